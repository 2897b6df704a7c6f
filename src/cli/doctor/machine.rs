//! Reads facts about the machine from files below `/proc` and `/sys`.

use std::path::PathBuf;

/// A machine, or a folder that looks like one.
pub(super) struct Machine {
    root: PathBuf,
    /// The process whose limits count.
    process: String,
}

impl Machine {
    /// `pid` is the process whose limits and control group count; `None` for this process.
    pub fn new(root: Option<PathBuf>, pid: Option<u32>) -> Self {
        let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
        Self { root: root.unwrap_or_else(|| PathBuf::from("/")), process }
    }

    /// The process that is looked at, where it is not this one.
    pub fn other_process(&self) -> Option<&str> {
        (self.process != "self").then_some(self.process.as_str())
    }

    /// Tests whether an experiment in this process says something about this machine.
    pub fn is_this_one(&self) -> bool {
        self.root.as_os_str() == "/"
    }

    /// Reads the file at `path` and trims it. `None` where it cannot be read.
    pub fn read(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    pub fn sysctl(&self, key: &str) -> Option<String> {
        self.read(&format!("proc/sys/{}", key.replace('.', "/")))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// Names in the folder at `path`, sorted.
    pub fn list(&self, path: &str) -> Vec<String> {
        let Ok(folder) = std::fs::read_dir(self.root.join(path)) else { return Vec::new() };
        let names = folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Reads a file of the process whose limits count.
    pub fn of_process(&self, name: &str) -> Option<String> {
        self.read(&format!("proc/{}/{name}", self.process))
    }
}
