//! Private mounts: what a program sees in the place of a part of the file system.

use std::path::{Path, PathBuf};

/// What to put before a program so that it runs with what the shell's `script` has mounted, which nobody else
/// sees. Needs root.
pub fn with_mounts(script: &str) -> Vec<String> {
    let shell = format!("set -e; {script}; exec \"$@\"");
    ["unshare", "--mount", "--propagation", "private", "sh", "-c", &shell, "sh"].map(str::to_owned).into()
}

/// What the process `pid` sees at `path`.
pub fn as_seen_by(pid: u32, path: &Path) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("root").join(path.strip_prefix("/").unwrap())
}
