//! Opens the listening sockets of the engine threads, or takes those that a service manager opened.
//!
//! The threads' own sockets share their address (`SO_REUSEPORT`), and the kernel spreads clients over the threads by
//! hash. An inherited socket belongs to another user, and ours may not share an address with it. So all threads
//! accept from it, one client at a time: the kernel wakes them in turn, and a thread with more sessions than another
//! leaves the next client to it. A manager may open several sockets for one address (`ReusePort=yes` and one
//! `ListenStream=` per CPU); then each thread has a socket of its own.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::config::Config;
use crate::engine::EngineError;
use crate::engine::kernel::uring::silence_options;
use crate::engine::listener::{Listener, Sharing};
use crate::sys::address::canonical;
use crate::sys::silence::WatchForSilence;
use crate::sys::{activation, socket};

/// Listeners that a service manager opened before the node started, or that come from the process before.
pub struct Inherited {
    sockets: Vec<InheritedSocket>,
    origin: Origin,
}

struct InheritedSocket {
    /// Address in the configuration; its port may be 0.
    configured: SocketAddr,
    bound: SocketAddr,
    socket: OwnedFd,
}

/// Where listeners come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    ServiceManager,
    /// A process that hands over. It accepts until this one may.
    Predecessor,
}

#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    #[error("the sockets of LISTEN_FDS cannot be taken over: {0}")]
    Lost(io::Error),
    #[error(
        "socket {number} of those passed does not listen for TCP; the socket unit may hold ListenStream=ADDRESS:PORT only"
    )]
    NotTcp { number: usize },
    #[error(
        "the socket unit listens on {address}, which is not in the configuration; add it to `listen` or take it out of the unit"
    )]
    Unknown { address: SocketAddr },
    #[error("the inherited listener on {address} cannot be set up: {source}")]
    Options { address: SocketAddr, source: io::Error },
}

impl Inherited {
    /// No listeners, for a node that binds all of its own.
    pub const fn none() -> Self {
        Self { sockets: Vec::new(), origin: Origin::ServiceManager }
    }

    /// Listeners of the process before, each with its address in that one's configuration. The engine begins without
    /// accepting.
    pub fn of_predecessor(
        sockets: impl IntoIterator<Item = (SocketAddr, OwnedFd)>,
    ) -> Result<Self, InheritedError> {
        let with_address = |(number, (configured, socket)): (usize, (SocketAddr, OwnedFd))| {
            let bound = activation::listening_address(&socket).ok_or(InheritedError::NotTcp { number })?;
            Ok(InheritedSocket { configured: canonical(configured), bound, socket })
        };
        let sockets = (1..).zip(sockets).map(with_address).collect::<Result<_, _>>()?;
        Ok(Self { sockets, origin: Origin::Predecessor })
    }

    /// Returns whether the engine begins without accepting: another process still does.
    pub(in crate::engine) fn is_paused(&self) -> bool {
        self.origin == Origin::Predecessor
    }

    /// Takes the sockets that a service manager passed to this process, if any.
    pub fn take() -> Result<Self, InheritedError> {
        let sockets = activation::take().map_err(InheritedError::Lost)?;
        let with_address = |(number, socket)| match activation::listening_address(&socket) {
            Some(address) => Ok(InheritedSocket { configured: address, bound: address, socket }),
            None => Err(InheritedError::NotTcp { number }),
        };
        let sockets = (1..).zip(sockets).map(with_address).collect::<Result<_, _>>()?;
        Ok(Self { sockets, origin: Origin::ServiceManager })
    }

    /// Takes the sockets for a configured address, with the address that they share.
    fn take_for(&mut self, address: SocketAddr) -> Option<(SocketAddr, Vec<OwnedFd>)> {
        let is_for = |each: &InheritedSocket| each.configured == address || each.bound == address;
        let bound = self.sockets.iter().find(|each| is_for(each))?.bound;
        let taken = self.sockets.extract_if(.., |each| is_for(each) && each.bound == bound);
        Some((bound, taken.map(|each| each.socket).collect()))
    }
}

/// Opens sockets for every configured address. Returns the addresses and each thread's listeners.
pub(in crate::engine) fn bind_all(
    config: &Config,
    threads: usize,
    mut inherited: Inherited,
) -> Result<(Vec<SocketAddr>, Vec<Vec<Listener>>), EngineError> {
    let options = silence_options(config);
    let mut addresses = Vec::with_capacity(config.listen.len());
    let mut by_thread: Vec<Vec<Listener>> = (0..threads).map(|_| Vec::new()).collect();
    for (place, listen) in config.listen.iter().enumerate() {
        let address = canonical(listen.address);
        let (bound, passed) = inherited.take_for(address).unwrap_or((address, Vec::new()));
        let sharing = if (1..threads).contains(&passed.len()) { Sharing::Shared } else { Sharing::Own };
        log_families(address, &passed);
        let (address, sockets) = if passed.is_empty() {
            let refused = |source| EngineError::Listen { address, source };
            bind(address, threads, options).map_err(refused)?
        } else {
            let refused = |source| InheritedError::Options { address, source };
            (bound, adopt(passed, threads, options).map_err(refused)?)
        };
        for (number, socket) in sockets.into_iter().enumerate() {
            by_thread[number % threads].push(Listener::new(socket, place, sharing));
        }
        addresses.push(address);
    }
    match (inherited.sockets.first(), inherited.origin) {
        (None, _) => Ok((addresses, by_thread)),
        (Some(&InheritedSocket { bound: address, .. }), Origin::ServiceManager) => {
            Err(InheritedError::Unknown { address }.into())
        }
        // The configuration has changed since the process before has read it.
        (Some(InheritedSocket { bound, .. }), Origin::Predecessor) => {
            tracing::info!(address = %bound, "this listener is not in the configuration any more, and is closed");
            Ok((addresses, by_thread))
        }
    }
}

/// Logs which clients a listener on all IPv6 addresses takes: elsewhere `[::]` may stand for both families.
fn log_families(address: SocketAddr, passed: &[OwnedFd]) {
    if !address.is_ipv6() || !address.ip().is_unspecified() {
        return;
    }
    if passed.iter().any(activation::takes_both_families) {
        tracing::info!(%address, "this listener takes IPv4 and IPv6 clients; its socket unit says so (BindIPv6Only=)");
    } else if passed.is_empty() {
        tracing::info!(%address, "this listener takes IPv6 clients alone; for IPv4, add one on 0.0.0.0 to `listen`");
    } else {
        tracing::info!(%address, "this listener takes IPv6 clients alone; its socket unit says so (BindIPv6Only=)");
    }
}

/// Opens one socket per thread. Returns the address that they share, and the sockets.
fn bind(
    address: SocketAddr,
    threads: usize,
    options: WatchForSilence,
) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    if address.port() != 0 {
        socket::check_free(address)?;
    }
    let mut address = address;
    let mut sockets = Vec::with_capacity(threads);
    for _ in 0..threads {
        let socket = socket::listen(address, options)?;
        // The first socket turns port 0 into a real one, which the others then share.
        address = socket::local_address(&socket)?;
        sockets.push(socket);
    }
    Ok((address, sockets))
}

/// Prepares inherited sockets: at least one per thread, and every one has a thread, since clients of a socket
/// without a thread would wait for ever.
fn adopt(passed: Vec<OwnedFd>, threads: usize, options: WatchForSilence) -> io::Result<Vec<OwnedFd>> {
    let ours = passed.into_iter().map(|socket| activation::make_ours(socket, options));
    let mut sockets = ours.collect::<io::Result<Vec<_>>>()?;
    let passed = sockets.len();
    for number in passed..threads {
        sockets.push(sockets[number % passed].try_clone()?);
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Listen;

    /// Number of listeners of each of `threads`, where a unit with `ReusePort=yes` opened `passed` sockets.
    fn listeners_by_thread(passed: usize, threads: usize) -> Vec<usize> {
        let options = silence_options(&Config::default());
        let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut sockets = Vec::new();
        for _ in 0..passed {
            let socket = socket::listen(address, options).unwrap();
            address = socket::local_address(&socket).unwrap();
            sockets.push(InheritedSocket { configured: address, bound: address, socket });
        }
        let config = Config {
            listen: vec![Listen { address, suffixes: Vec::new(), ..Listen::default() }],
            ..Config::default()
        };
        let (addresses, by_thread) = {
            let inherited = Inherited { sockets, origin: Origin::ServiceManager };
            bind_all(&config, threads, inherited).unwrap()
        };
        assert_eq!(addresses, [address]);
        by_thread.iter().map(Vec::len).collect()
    }

    #[test]
    fn every_thread_has_a_listener_where_one_was_passed_for_all() {
        assert_eq!(listeners_by_thread(1, 3), [1, 1, 1]);
        assert_eq!(listeners_by_thread(2, 3), [1, 1, 1]);
    }

    #[test]
    fn no_socket_that_was_passed_is_left_without_a_thread() {
        assert_eq!(listeners_by_thread(3, 2), [2, 1]);
    }
}
