//! The local socket. It serves the same requests as TCP does. Every user who may open it may run every command.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use axum::{Extension, Router};
use nix::unistd::{Group, chown};
use tokio::net::UnixListener;

use super::caller::Caller;
use super::connection::{ACCEPT_PAUSE, LOCAL_TIME_MAX, registered, serve_connection};
use super::slots::Slots;

/// A Unix socket that listens at a path. Dropping it removes the path, if that is this process's.
pub(super) struct LocalSocket {
    listener: StdListener,
    path: PathBuf,
    /// False while another process has the path.
    owns_path: bool,
}

impl LocalSocket {
    /// Creates the socket at `path`, and replaces a socket that no process listens on any more. Members of `group`,
    /// if it is given, may open the socket.
    pub(super) fn bind(path: &Path, group: Option<&str>) -> io::Result<Self> {
        if StdStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on it"));
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        // Create it in a private folder first, so that it never has wider permissions than it should.
        let aside = tempfile::Builder::new().prefix(".socket-").tempdir_in(folder)?;
        let made = aside.path().join("s");
        let listener = StdListener::bind(&made)?;
        let mode = match group.map(|group| set_group(&made, group)) {
            Some(Ok(())) => GROUP_MODE,
            Some(Err(error)) => {
                // Its owner can still use it.
                tracing::error!("admin.socket {} is for its owner alone: {error}", path.display());
                OWNER_MODE
            }
            None => OWNER_MODE,
        };
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&made, path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned(), owns_path: true })
    }

    /// The socket at `path` that another process has opened. The path is that one's until
    /// [`own_path`](Self::own_path).
    pub(super) fn taken_over(listener: OwnedFd, path: &Path) -> io::Result<Self> {
        let listener = StdListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned(), owns_path: false })
    }

    /// Another descriptor of the listener, for a process that takes it over.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.listener.try_clone().map(OwnedFd::from)
    }

    /// The path is this process's from here on.
    pub(super) fn own_path(&mut self) {
        self.owns_path = true;
    }

    /// Leaves the path to another process.
    pub(super) fn leave_path(&mut self) {
        self.owns_path = false;
    }

    /// Accepts connections.
    pub(super) async fn serve(&self, routes: &Router) -> Infallible {
        let listener = registered(|| self.listener.try_clone().and_then(UnixListener::from_std)).await;
        accept_all(listener, routes).await
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        if self.owns_path {
            let _gone_already = std::fs::remove_file(&self.path);
        }
    }
}

/// Gives the file to a group. One that it has already needs no system call for that, which a sandbox may forbid.
fn set_group(path: &Path, group: &str) -> io::Result<()> {
    let given =
        Group::from_name(group)?.ok_or_else(|| io::Error::other(format!("there is no group {group}")))?;
    if std::fs::metadata(path)?.gid() == given.gid.as_raw() {
        return Ok(());
    }
    chown(path, None, Some(given.gid)).map_err(|error| {
        io::Error::other(format!(
            "its group cannot be set to {group}: {error}; make this user a member of that group, and in a sandbox \
             allow chown and that group"
        ))
    })
}

async fn accept_all(listener: UnixListener, routes: &Router) -> Infallible {
    let mut slots = Slots::new(CONNECTIONS_MAX, LOCAL_TIME_MAX);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let peer = stream.peer_cred().ok();
                let caller =
                    Caller::Local { uid: peer.map(|peer| peer.uid()), pid: peer.and_then(|peer| peer.pid()) };
                let routes = routes.clone().layer(Extension(caller));
                slots.run(|has_asked| serve_connection(stream, routes, has_asked, LOCAL_TIME_MAX)).await;
            }
            Err(error) => {
                tracing::warn!(%error, "a local connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const OWNER_MODE: u32 = 0o600;

const GROUP_MODE: u32 = 0o660;

/// Number of connections that are served at once; for a further one, the oldest that has sent no request gives way.
const CONNECTIONS_MAX: usize = 8;
