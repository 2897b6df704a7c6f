//! Reasons for which a state on disk is not used, or cannot be kept.

use std::io;
use std::path::Path;

/// Reason why the state on disk cannot be used; each text ends in the consequence and what to do.
#[derive(Debug, thiserror::Error)]
pub(in crate::control) enum KeptError {
    #[error(
        "{path} cannot be read ({source}); make it readable for the relay's user: until then the store alone decides"
    )]
    Unreadable { path: String, source: io::Error },
    #[error(
        "{path} is damaged ({detail}) and is not used; the store alone decides, and a new state replaces it. Check the disk"
    )]
    Damaged { path: String, detail: &'static str },
    #[error(
        "{path} was written by another version of sluicegate and is not used; the store alone decides, and a new state \
         replaces it. Rollbacks and holds from before have to be repeated"
    )]
    Version { path: String },
    #[error(
        "{path} was kept of {found}, this node's store is {wanted}; it is not used. The store alone decides, and a new \
         state replaces it; name another folder in authz.state where two nodes share this one"
    )]
    Store { path: String, found: String, wanted: String },
    #[error(
        "{path} can be written by other users (mode {mode:o}) and is not used, because it gives rights; `chmod go-w` \
         it: until then the store alone decides"
    )]
    Permissions { path: String, mode: u32 },
}

/// Describes an error that keeps the state from being written, and what to do.
pub(super) fn describe_failure(folder: &Path, error: &io::Error) -> String {
    let folder = folder.display();
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "make room on its disk"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make it writable for the relay's user, or name another folder in authz.state"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "name a folder in authz.state",
        io::ErrorKind::WouldBlock => "end it, or give each node a folder of its own in authz.state",
        _ => "check its disk",
    };
    format!(
        "the node's state cannot be kept in {folder} ({error}); {advice}: until then a restart needs the store"
    )
}

/// Describes an older state that could be neither followed nor removed.
pub(super) fn describe_undestroyed(state: &Path, error: &io::Error) -> String {
    format!(
        "{} lacks rights that have ended, and can be neither replaced nor removed ({error}); remove it, or a restart \
         without the store gives them back",
        state.display()
    )
}
