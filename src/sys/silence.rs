//! The ways in which TCP finds out that its peer is gone, and how far the peer has taken what was sent to it.
//!
//! `TCP_USER_TIMEOUT` is not among them. It ends a connection whose peer keeps its window shut for that long, although
//! the peer answers every probe: a pager, ssh behind Ctrl-S, a device that erases its flash. So keepalives find the
//! peer that is gone from an idle connection, and [`delivery`] the one that is gone while bytes wait for it.
//!
//! Unsafe because the options `TCP_INFO` and `TCP_RTO_MAX_MS` have no safe wrapper.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Time without traffic after which TCP probes the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive(pub Duration);

/// Time that a peer may answer nothing before it counts as gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserTimeout(pub Duration);

/// The options by which every connection, to clients and to devices, finds out that its peer is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchForSilence {
    pub keepalive: Keepalive,
    pub user_timeout: UserTimeout,
}

/// The state of the bytes that were sent to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Delivery {
    /// The peer has acknowledged all of them. So it stands, too, where the connection has failed: its next completion
    /// has the error.
    #[default]
    Complete,
    /// Some are on their way, or the peer answers and has no room for them.
    Pending,
    /// Some are not acknowledged, and the peer has answered nothing for the user timeout: it is gone.
    Unanswered,
}

/// Lets the kernel detect that the peer of a connection has gone silent. A listener passes it on to its connections.
pub fn watch_for_silence(socket: &impl AsFd, options: WatchForSilence) -> io::Result<()> {
    set_longest_retry(socket, options.user_timeout);
    let idle = options.keepalive.0.max(SECOND);
    let left = options.user_timeout.0.saturating_sub(idle).max(options.user_timeout.0 / 4);
    // The kernel counts whole seconds.
    let interval =
        Duration::from_secs((left / PROBES).as_secs_f64().ceil() as u64).clamp(SECOND, INTERVAL_MAX);
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(PROBES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Finds out how far the peer of a connection has taken what was sent to it.
pub fn delivery(socket: &impl AsFd, timeout: UserTimeout) -> Delivery {
    match tcp_info(socket) {
        Ok(info) => info.delivery(timeout),
        Err(_) => Delivery::Complete,
    }
}

/// Bounds the pauses between two probes, or two retransmissions, of which the kernel doubles each up to two minutes.
/// So a peer that is gone while its window is shut has left several unanswered within the user timeout.
///
/// Linux has the option since 6.15. An older one is slower to find such a peer, and nothing else.
fn set_longest_retry(socket: &impl AsFd, timeout: UserTimeout) {
    let pause = (timeout.0 / RETRIES_PER_TIMEOUT).clamp(SECOND, KERNELS_LONGEST_PAUSE);
    let milliseconds = pause.as_millis() as libc::c_int;
    // SAFETY: the value is an int that outlives the call, and its length is passed with it.
    let _older_kernel = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const milliseconds).cast(),
            size_of_val(&milliseconds) as libc::socklen_t,
        )
    };
}

/// The part of `struct tcp_info` (linux/tcp.h) that says how far the peer has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct TcpInfo {
    /// Retransmissions, and probes of a shut window, in a row that the peer has not answered.
    retransmits: u8,
    probes: u8,
    /// Segments that were sent and not acknowledged.
    unacknowledged: u32,
    /// Time since the last answer of the peer.
    last_answer_ms: u32,
    /// Bytes that were not sent, since the peer has no room.
    unsent_bytes: u32,
}

impl TcpInfo {
    fn parse(bytes: &[u8; TCP_INFO_BYTES]) -> Self {
        let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            retransmits: bytes[2],
            probes: bytes[3],
            unacknowledged: number(24),
            last_answer_ms: number(56),
            unsent_bytes: number(144),
        }
    }

    fn delivery(self, timeout: UserTimeout) -> Delivery {
        let Self { retransmits, probes, unacknowledged, last_answer_ms, unsent_bytes } = self;
        if unacknowledged == 0 && unsent_bytes == 0 {
            return Delivery::Complete;
        }
        // The last answer may be old because nothing was asked. And a single probe may be lost on its way.
        let is_gone = Duration::from_millis(last_answer_ms.into()) >= timeout.0
            && retransmits.max(probes) >= UNANSWERED_MIN;
        if is_gone { Delivery::Unanswered } else { Delivery::Pending }
    }
}

fn tcp_info(socket: &impl AsFd) -> io::Result<TcpInfo> {
    let mut bytes = [0; TCP_INFO_BYTES];
    let mut length = TCP_INFO_BYTES as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `bytes`, which has as many, and the new length to `length`;
    // both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // A kernel that has io_uring fills all of it.
    if result == 0 { Ok(TcpInfo::parse(&bytes)) } else { Err(io::Error::last_os_error()) }
}

const SECOND: Duration = Duration::from_secs(1);

/// Keepalives in a row that a peer leaves unanswered before its connection ends. One may be lost on its way.
const PROBES: u32 = 4;

/// Longest pause between two keepalives that the kernel takes.
const INTERVAL_MAX: Duration = Duration::from_secs(32_767);

/// Probes of a shut window, or retransmissions, in one user timeout at least, on Linux 6.15 and later.
const RETRIES_PER_TIMEOUT: u32 = 4;

/// The kernel's own bound, and the highest that it takes.
const KERNELS_LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Probes, or retransmissions, that a peer leaves unanswered before it counts as gone. Two in a row may be lost on
/// their way.
const UNANSWERED_MIN: u8 = 3;

/// Bytes of `struct tcp_info` up to `tcpi_notsent_bytes`, which Linux has since 4.6.
const TCP_INFO_BYTES: usize = 148;

/// linux/tcp.h; the libc crate does not have it.
const TCP_RTO_MAX_MS: libc::c_int = 44;

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    const MINUTE: UserTimeout = UserTimeout(Duration::from_secs(60));

    fn stalled() -> TcpInfo {
        TcpInfo { unsent_bytes: 1, last_answer_ms: 60_000, probes: UNANSWERED_MIN, ..TcpInfo::default() }
    }

    #[test]
    fn only_a_peer_that_leaves_several_retries_unanswered_for_the_timeout_is_gone() {
        assert_eq!(stalled().delivery(MINUTE), Delivery::Unanswered);
        let in_flight =
            TcpInfo { unsent_bytes: 0, probes: 0, unacknowledged: 1, retransmits: 3, ..stalled() };
        assert_eq!(in_flight.delivery(MINUTE), Delivery::Unanswered);
        for slow in [
            TcpInfo { probes: 2, ..stalled() },
            TcpInfo { last_answer_ms: 59_999, ..stalled() },
            // Sent a moment ago, after a long silence of both sides.
            TcpInfo { unsent_bytes: 0, unacknowledged: 3, probes: 0, last_answer_ms: u32::MAX, ..stalled() },
        ] {
            assert_eq!(slow.delivery(MINUTE), Delivery::Pending, "{slow:?}");
        }
        let idle = TcpInfo { unsent_bytes: 0, ..stalled() };
        assert_eq!(idle.delivery(MINUTE), Delivery::Complete, "nothing waits for it");
    }

    #[test]
    fn a_reader_that_pauses_is_pending_and_complete_once_it_has_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = WatchForSilence {
            keepalive: Keepalive(SECOND),
            user_timeout: UserTimeout(Duration::from_millis(300)),
        };
        watch_for_silence(&listener, options).unwrap();
        let mut reader = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut writer, _) = listener.accept().unwrap();
        writer.set_nonblocking(true).unwrap();
        let full = loop {
            if let Err(error) = writer.write(&[0; 64 * 1024]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        // Far longer than the timeout, with an answer to each probe.
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(100));
            assert_eq!(delivery(&writer, options.user_timeout), Delivery::Pending);
        }
        writer.set_nonblocking(false).unwrap();
        drop(thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink())));
        let began = std::time::Instant::now();
        while delivery(&writer, options.user_timeout) != Delivery::Complete {
            assert!(began.elapsed() < Duration::from_secs(20), "the reader reads on");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn an_accepted_connection_has_the_options_of_its_listener_and_no_user_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let keepalive = Keepalive(Duration::from_secs(60));
        watch_for_silence(&listener, WatchForSilence { keepalive, user_timeout: MINUTE }).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(4));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }
}
