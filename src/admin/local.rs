//! The local socket: the same as over TCP, for whoever on this machine may open it, who may then do everything.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use nix::unistd::{Group, chown};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::caller::Caller;
use super::http;

/// A listener at a path, which goes when this does.
pub(super) struct LocalSocket {
    listener: StdListener,
    path: PathBuf,
}

impl LocalSocket {
    /// Takes the place of a socket that nobody listens on any more, and of nothing else. Members of `group`
    /// may open it, where there is one.
    pub(super) fn bind(path: &Path, group: Option<&str>) -> io::Result<Self> {
        if StdStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        // Made where nobody else can reach it, so that it is never open to more than it should be.
        let aside = tempfile::Builder::new().prefix(".socket-").tempdir_in(folder)?;
        let made = aside.path().join("s");
        let listener = StdListener::bind(&made)?;
        let mode = match group {
            Some(group) => {
                give_to(&made, group)?;
                GROUP_MODE
            }
            None => OWNER_MODE,
        };
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&made, path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Ends with an error only.
    pub(super) async fn serve(&self, routes: &Router) -> io::Error {
        match self.listener.try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => accept_all(listener, routes).await,
            Err(error) => error,
        }
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.path);
    }
}

fn give_to(path: &Path, group: &str) -> io::Result<()> {
    let given =
        Group::from_name(group)?.ok_or_else(|| io::Error::other(format!("there is no group {group}")))?;
    chown(path, None, Some(given.gid)).map_err(|error| {
        io::Error::other(format!(
            "it cannot be given to group {group}: {error}; make this user a member of it"
        ))
    })
}

async fn accept_all(listener: UnixListener, routes: &Router) -> io::Error {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes the semaphore");
        match listener.accept().await {
            Ok((stream, _)) => {
                let peer = stream.peer_cred().ok();
                let caller =
                    Caller::Local { uid: peer.map(|peer| peer.uid()), pid: peer.and_then(|peer| peer.pid()) };
                let routes = routes.clone().layer(Extension(caller));
                drop(tokio::spawn(http::answer(stream, routes, place, CONNECTION_TIME)));
            }
            Err(error) => {
                tracing::warn!(%error, "a local connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const OWNER_MODE: u32 = 0o600;

const GROUP_MODE: u32 = 0o660;

/// Connections that are served at once.
const CONNECTIONS_MAX: usize = 8;

/// From accept to the end of the answer, for which the control thread may have to finish a read.
pub(super) const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// Accept fails for want of descriptors, which is not over at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
