//! Private mounts: what a program sees in the place of a part of the file system.

use std::path::{Path, PathBuf};

/// The words in front of a program that run it after `script`, a shell script whose mounts nobody else sees. Needs
/// root.
pub fn with_mounts(script: &str) -> Vec<String> {
    let shell = format!("set -e; {script}; exec \"$@\"");
    ["unshare", "--mount", "--propagation", "private", "sh", "-c", &shell, "sh"].map(str::to_owned).into()
}

/// The path under which the test finds what process `pid` sees at `path`.
pub fn as_seen_by(pid: u32, path: &Path) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("root").join(path.strip_prefix("/").unwrap())
}
