//! The HTTP server: accepts connections on `admin.address` and `admin.health_address`, and runs the local socket beside
//! them.

use std::convert::Infallible;
use std::net::TcpListener;

use axum::{Extension, Router};
use tokio::sync::{oneshot, watch};

use super::caller::Caller;
use super::connection::{ACCEPT_PAUSE, REMOTE_TIME_MAX, REMOTE_TIME_USUAL, registered, serve_connection};
use super::local::LocalSocket;
use super::slots::Slots;
use super::{AdminAccepting, AdminState, awaited, certificates, history, routes};
use crate::sys::address::canonical;

/// Serves requests until `stopped` resolves. Does not wait for requests under way. Accepts connections as
/// `accepting` says.
pub(super) async fn serve(
    listener: TcpListener,
    health: Option<TcpListener>,
    local: Option<LocalSocket>,
    state: AdminState,
    accepting: watch::Receiver<AdminAccepting>,
    stopped: oneshot::Receiver<()>,
) {
    let certificates = certificates::watch(state.sources.clone());
    let awaited = awaited::watch(state.sources.clone());
    let history = history::record(state.sources.clone(), state.history.clone());
    let health_routes = routes::health_only(state.clone());
    let routes = routes::all(state);
    tokio::select! {
        () = accept_in_turn(listener, health.map(|health| (health, &health_routes)), local, &routes, accepting) => {}
        never = certificates => match never {},
        never = awaited => match never {},
        never = history => match never {},
        _ = stopped => {}
    }
}

/// Accepts whenever this process is to, until another one has the listeners; requests under way go on then.
async fn accept_in_turn(
    listener: TcpListener,
    health: Option<(TcpListener, &Router)>,
    mut local: Option<LocalSocket>,
    routes: &Router,
    mut accepting: watch::Receiver<AdminAccepting>,
) {
    loop {
        // The handle that says when is gone only when the server stops.
        let now = accepting.wait_for(|now| *now != AdminAccepting::Paused).await.map(|now| *now);
        match (now, &mut local) {
            (Ok(AdminAccepting::Yes), Some(local)) => local.own_path(),
            (Ok(AdminAccepting::Left { has_path: true }), Some(local)) => local.leave_path(),
            _ => {}
        }
        if *accepting.borrow() != AdminAccepting::Yes {
            break;
        }
        let locally = async {
            match &local {
                Some(local) => local.serve(routes).await,
                None => std::future::pending().await,
            }
        };
        let health = async {
            match &health {
                Some((listener, routes)) => accept(listener, routes).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            never = health => match never {},
            never = accept(&listener, routes) => match never {},
            never = locally => match never {},
            _ = accepting.wait_for(|now| *now != AdminAccepting::Yes) => {}
        }
    }
    drop((listener, health, local));
    std::future::pending().await
}

/// Accepts connections.
async fn accept(listener: &TcpListener, routes: &Router) -> Infallible {
    let listener = registered(|| listener.try_clone().and_then(tokio::net::TcpListener::from_std)).await;
    let mut slots = Slots::new(CONNECTIONS_MAX, REMOTE_TIME_USUAL);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let routes = routes.clone().layer(Extension(Caller::Remote(canonical(peer))));
                slots.run(|has_asked| serve_connection(stream, routes, has_asked, REMOTE_TIME_MAX)).await;
            }
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Number of connections that are served at once; for a further one, the slowest gives way.
const CONNECTIONS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use axum::routing::get;

    use super::*;
    async fn answers() -> &'static str {
        "ok"
    }

    async fn panics() -> &'static str {
        panic!("a fault of our own")
    }

    #[test]
    fn a_panic_ends_one_connection_and_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/panic", get(panics)).route("/livez", get(answers));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(&listener, &routes))
        });
        let get = |path: &str| {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(REMOTE_TIME_MAX)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        // More requests than permits: a panic releases its permit.
        for _ in 0..=CONNECTIONS_MAX {
            assert!(!get("/panic").is_ok_and(|answer| answer.contains("200 OK")));
        }
        assert!(get("/livez").unwrap().starts_with("HTTP/1.1 200 OK"));
    }
}
