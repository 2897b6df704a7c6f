//! Connects to the first of several addresses that accepts. They are tried side by side, as RFC 8305 says.
//!
//! Names are resolved before: the system's resolver gives all addresses at once, in the order of RFC 6724.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout_at;

/// Connects to the first of `addresses` that accepts by `until`. The error names each address that was tried.
pub(super) fn connect_first(addresses: &[SocketAddr], until: Instant) -> io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let stream = runtime.block_on(race(interleaved(addresses), until))?.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Starts the next attempt once the one before has failed, or has had [`ATTEMPT_DELAY`]. The first that succeeds ends
/// all others.
async fn race(addresses: Vec<SocketAddr>, until: Instant) -> io::Result<tokio::net::TcpStream> {
    let mut failures = Vec::new();
    let mut attempts = JoinSet::new();
    let mut untried = addresses.iter().copied();
    let mut has_more = true;
    while has_more || !attempts.is_empty() {
        let mut next_at = until;
        if has_more {
            match untried.next() {
                Some(address) => {
                    attempts.spawn(async move { (address, tokio::net::TcpStream::connect(address).await) });
                    next_at = until.min(Instant::now() + ATTEMPT_DELAY);
                }
                None => has_more = false,
            }
        }
        match timeout_at(next_at.into(), attempts.join_next()).await {
            Ok(Some(Ok((_, Ok(stream))))) => return Ok(stream),
            Ok(Some(Ok((address, Err(error))))) => failures.push((address, error.to_string())),
            Ok(Some(Err(_)) | None) => {}
            Err(_) if Instant::now() >= until => break,
            Err(_) => {}
        }
    }
    Err(failure(&addresses, &failures))
}

/// The addresses with the families by turns, so that a family that does not work costs one delay. The first stays first.
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let (preferred, others): (Vec<SocketAddr>, Vec<SocketAddr>) =
        addresses.iter().partition(|address| address.is_ipv6() == addresses[0].is_ipv6());
    let mut order = Vec::with_capacity(addresses.len());
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    while order.len() < addresses.len() {
        order.extend(preferred.next());
        order.extend(others.next());
    }
    order
}

/// The error of each address. One that has not failed has not answered either.
fn failure(addresses: &[SocketAddr], failures: &[(SocketAddr, String)]) -> io::Error {
    let reason = |address: &SocketAddr| {
        let failed = failures.iter().find(|(failed, _)| failed == address);
        failed.map_or("no answer", |(_, reason)| reason.as_str())
    };
    match addresses {
        [] => io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
        [address] => io::Error::other(reason(address)),
        several => {
            let each: Vec<String> =
                several.iter().map(|address| format!("{}: {}", address.ip(), reason(address))).collect();
            io::Error::other(each.join(", "))
        }
    }
}

/// Time before the next address is tried beside the last one: the Connection Attempt Delay that RFC 8305, section 5,
/// recommends.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// An address that answers nothing: its queue is full, so that the kernel drops what comes.
    fn silent() -> (Vec<socket2::Socket>, SocketAddr) {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut held = vec![listener];
        for _ in 0..4 {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _in_progress = socket.connect(&address.into());
            held.push(socket);
        }
        (held, address)
    }

    #[test]
    fn addresses_that_do_not_answer_cost_a_delay_each_and_not_their_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let (_held, dead) = silent();
        let begin = Instant::now();
        let stream = connect_first(&[dead, dead, good], soon()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        let took = begin.elapsed();
        assert!(took >= 2 * ATTEMPT_DELAY && took < Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn an_address_that_refuses_costs_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let begin = Instant::now();
        assert_eq!(connect_first(&[closed, good], soon()).unwrap().peer_addr().unwrap(), good);
        assert!(begin.elapsed() < ATTEMPT_DELAY);
    }

    #[test]
    fn the_error_names_each_address_and_comes_at_the_deadline() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (_held, dead) = silent();
        let begin = Instant::now();
        let error = connect_first(&[closed, dead], begin + Duration::from_millis(600)).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(2));
        let text = error.to_string();
        assert!(
            text.contains("127.0.0.1: Connection refused") && text.contains("127.0.0.1: no answer"),
            "{text}"
        );
        assert!(connect_first(&[], soon()).unwrap_err().to_string().contains("no address"));
    }

    #[test]
    fn the_families_take_turns_and_the_first_address_stays_first() {
        let [a, b, c, d] = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"].map(|text| text.parse().unwrap());
        assert_eq!(interleaved(&[a, b, c, d]), [a, d, b, c]);
        assert_eq!(interleaved(&[d, a, b]), [d, a, b]);
        assert_eq!(interleaved(&[]), []);
    }
}
