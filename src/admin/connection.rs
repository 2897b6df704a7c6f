//! One connection to the admin side, and its limits.
//!
//! A connection serves one request, for a limited time, and the number of connections is limited. So a client that
//! holds admin connections open cannot take descriptors or memory from tunnels. The rate of new connections is not
//! limited.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};

use super::slots::HasAsked;

/// Serves one request on `stream`, for at most `time_max`.
pub(super) async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    routes: Router,
    has_asked: HasAsked,
    time_max: Duration,
) {
    let service = TowerToHyperService::new(routes);
    let answer = service_fn(move |request| {
        has_asked.set();
        service.call(request)
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    // A connection that broke or timed out needs no log: its client knows.
    let _ended = tokio::time::timeout(time_max, connection).await;
}

/// Registers a listener with this thread's runtime, again and again while the system has no memory or descriptor for that.
pub(super) async fn registered<L>(register: impl Fn() -> io::Result<L>) -> L {
    loop {
        match register() {
            Ok(listener) => return listener,
            Err(error) => {
                tracing::warn!(%error, "an admin listener cannot be polled yet; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Time that a TCP connection may take, from accept to the end of the response.
pub(super) const REMOTE_TIME_MAX: Duration = Duration::from_secs(5);

/// Time after which a TCP connection gives way to another, where too few places are left: more than any request of a
/// monitor takes.
pub(super) const REMOTE_TIME_USUAL: Duration = Duration::from_secs(1);

/// Time that a connection on the local socket may take, from accept to the end of the response. The control thread
/// may first have to finish a read of the store.
pub(super) const LOCAL_TIME_MAX: Duration = Duration::from_secs(60);

/// Pause after a failed accept. Accept fails for lack of descriptors, which lasts a while.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Smallest buffer that hyper works with.
const HEAD_BYTES_MAX: usize = 8 * 1024;
