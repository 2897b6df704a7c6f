//! The server: listens on `admin.address`, and bounds what a connection may take.
//!
//! One request per connection, so many connections, so long: nobody who holds an admin connection open
//! takes descriptors or memory from tunnels. What is not bounded is how often one may come back.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::caller::Caller;
use super::local::LocalSocket;
use super::{Desk, routes};

/// Serves until `stopped` resolves. Requests that are under way are not worth waiting for.
pub(super) async fn serve(
    listener: TcpListener,
    local: Option<LocalSocket>,
    desk: Desk,
    stopped: oneshot::Receiver<()>,
) {
    let routes = routes::all(desk);
    let locally = async {
        match &local {
            Some(local) => local.serve(&routes).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        error = accept(listener, &routes) => tracing::error!(%error, "the admin side has ended"),
        error = locally => tracing::error!(%error, "the admin side has ended by its socket"),
        _ = stopped => {}
    }
}

/// Ends with an error only.
async fn accept(listener: TcpListener, routes: &Router) -> io::Error {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes the semaphore");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let routes = routes.clone().layer(Extension(Caller::Remote(peer)));
                drop(tokio::spawn(answer(stream, routes, place, CONNECTION_TIME)));
            }
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one request, in `time` at most.
pub(super) async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    routes: Router,
    _place: OwnedSemaphorePermit,
    time: Duration,
) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // One that broke off or took too long is its client's business.
    let _ended = tokio::time::timeout(time, connection).await;
}

/// Connections that are served at once; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 32;

/// From accept to the end of the answer.
pub(super) const CONNECTION_TIME: Duration = Duration::from_secs(5);

/// The least that hyper works with.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Accept fails for want of descriptors, which is not over at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use axum::routing::get;

    use super::*;
    use crate::admin::health::livez;

    async fn panics() -> &'static str {
        panic!("a fault of our own")
    }

    #[test]
    fn a_panic_ends_one_connection_and_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/panic", get(panics)).route("/livez", get(livez));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(listener, &routes))
        });
        let get = |path: &str| {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(CONNECTION_TIME)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        // More than there are places: a panic gives its place back.
        for _ in 0..=CONNECTIONS_MAX {
            assert!(!get("/panic").is_ok_and(|answer| answer.contains("200 OK")));
        }
        assert!(get("/livez").unwrap().starts_with("HTTP/1.1 200 OK"));
    }
}
