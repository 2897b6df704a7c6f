//! The confinement of `sluicegate run`: which files, programs and system calls its configuration needs.

use std::io;
use std::path::{Path, PathBuf};

use super::Loaded;
use super::output::CommandError;
use crate::config::{Config, Confine, FileAccess, KernelTls, NamedFile};
use crate::handover::Program;
use crate::store;
use crate::sys::confine::{self, BelowFolder, Confinement, ConfinementMode, Files, Strictness};
use crate::sys::kernel_tls;
use crate::sys::launcher::{self, Launcher};

/// Confines this process as `security.confine` says, and logs what came of it. This process must have one thread.
pub fn confine(loaded: &Loaded, program: &Program) -> Result<(), CommandError> {
    let config = &loaded.config;
    let strictness = match config.security.confine {
        Confine::On => Strictness::Refuse,
        Confine::Log => Strictness::Log,
        Confine::Off => {
            tracing::warn!("security.confine is off: this process keeps all that its user may do");
            return Ok(());
        }
    };
    let failed = |error: io::Error| CommandError::failed(format!("this process cannot be confined: {error}"));
    let mut programs = vec![program.call(), program.as_it_runs().call()];
    programs.extend(store::wireguard_calls(&config.vpn));
    Launcher::start(LAUNCHER, programs).map_err(failed)?.put_in_use();
    make_folders(config);
    if config.speaks_tls() && config.engine.kernel_tls == KernelTls::Auto {
        // The kernel loads its module for TLS for a process that may administer the network, and for no other later.
        let _found_out_again_later = kernel_tls::probe();
    }
    let confinement = confine::confine(files(config, loaded.file.as_deref()), strictness).map_err(failed)?;
    log(&confinement);
    Ok(())
}

/// `sluicegate launcher`: the process that starts programs for a confined relay.
pub fn run_launcher() -> Result<(), CommandError> {
    launcher::serve().map_err(CommandError::failed)
}

/// Files of `next` that this process may not open, since it gave up all others when it started: the keys that name them,
/// and where they are.
pub fn files_out_of_reach(next: &Config) -> Vec<String> {
    let Some(files) = confine::files_in_force() else { return Vec::new() };
    let is_out_of_reach = |named: &NamedFile<'_>| {
        let access = match named.access {
            FileAccess::Read => BelowFolder::Read,
            FileAccess::WriteBeside | FileAccess::WriteInside => BelowFolder::Write,
        };
        places(named).iter().any(|place| !files.contains(place, access))
    };
    let named = next.files();
    let out_of_reach = named.iter().filter(|named| is_out_of_reach(named));
    out_of_reach.map(|NamedFile { key, path, .. }| format!("{key} ({})", path.display())).collect()
}

fn log(confinement: &Confinement) {
    if confinement.mode == ConfinementMode::Log {
        tracing::warn!(
            "security.confine is \"log\": system calls that are not needed are logged by the kernel, and served"
        );
    }
    for lack in confinement.lacks() {
        tracing::warn!("confined less than it could be: {lack}");
    }
    let capabilities = confinement.capabilities.join(" ");
    tracing::info!(mode = ?confinement.mode, %capabilities, "confined");
}

/// Folders that the relay makes where they are not there. They must be there to be named in a rule.
fn make_folders(config: &Config) {
    use std::os::unix::fs::DirBuilderExt;
    let made_by_the_relay = config.files().into_iter().filter_map(|named| match named.access {
        FileAccess::WriteInside => Some(named.path),
        FileAccess::WriteBeside if named.key == "admin.socket" => named.path.parent(),
        _ => None,
    });
    for folder in made_by_the_relay {
        // Who uses the folder says why it cannot be made.
        let _told_later = std::fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder);
    }
}

/// The files that a relay with this configuration opens.
fn files(config: &Config, file: Option<&Path>) -> Files {
    let mut files = Files::default();
    let of_the_system = if config.needs_names() { [SYSTEM, NAMES].concat() } else { SYSTEM.to_vec() };
    files.read.extend(of_the_system.into_iter().map(PathBuf::from));
    let certificates = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os);
    files.read.extend(certificates.map(PathBuf::from));
    if let Some(file) = file {
        files.read.extend(folders_of(file));
    }
    files.write.push(PathBuf::from("/dev/null"));
    for named in config.files() {
        let list = if named.access == FileAccess::Read { &mut files.read } else { &mut files.write };
        list.extend(places(&named));
    }
    if config.has_embedded_store() {
        files.write.extend(sqlite_temporary_folder());
    }
    for list in [&mut files.read, &mut files.write] {
        list.sort();
        list.dedup();
    }
    files
}

/// The folders of a file, and of the one that will take its place.
fn places(named: &NamedFile<'_>) -> Vec<PathBuf> {
    match named.access {
        FileAccess::WriteInside => vec![existing(named.path)],
        FileAccess::Read | FileAccess::WriteBeside => folders_of(named.path),
    }
}

/// The folder of `path`, and the folder of the file that it leads to, as with `/etc/letsencrypt/live`. A device has no
/// folder: it stands for itself.
fn folders_of(path: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = absolute.canonicalize();
    if let Ok(real) = &real
        && real.starts_with("/dev")
    {
        return vec![real.clone()];
    }
    let folder = |path: &Path| existing(path.parent().unwrap_or(path));
    let mut folders = vec![folder(&absolute)];
    folders.extend(real.iter().map(|real| folder(real)));
    folders.dedup();
    folders
}

/// The real path of `folder`; where it is not there yet, that of the nearest folder above it that is.
fn existing(folder: &Path) -> PathBuf {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    absolute.ancestors().find_map(|each| each.canonicalize().ok()).unwrap_or(absolute)
}

/// The folder in which SQLite sorts what is large: the first of these that is there (sqlite.org/tempfiles.html).
fn sqlite_temporary_folder() -> Option<PathBuf> {
    let set = ["SQLITE_TMPDIR", "TMPDIR"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let usual = ["/var/tmp", "/usr/tmp", "/tmp"].into_iter().map(PathBuf::from);
    set.chain(usual).find(|folder| folder.is_dir())
}

/// Name of the command that is the launcher.
pub const LAUNCHER: &str = "launcher";

/// The mode that `authz.state` is made with.
const FOLDER_MODE: u32 = 0o700;

/// The parts of the machine that every relay reads: libraries that glibc loads late, facts of the kernel, root certificates, random
/// bytes, time zones.
const SYSTEM: &[&str] = &[
    "/dev/random",
    "/dev/urandom",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/pki",
    "/etc/ssl",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/share/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/share/zoneinfo",
];

/// The folders that glibc reads to find the address of a host, or the number of a group. Some of the files are replaced while the relay
/// runs.
const NAMES: &[&str] = &[
    "/etc",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/systemd/resolve",
    "/run/systemd/userdb",
    "/usr/etc",
];
