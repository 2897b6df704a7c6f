//! A bad wire to a PostgreSQL server: passes everything on, until it is told to cut, to stop or to lie.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::wait_for;

/// Listens on a port of its own. What it does to answers can be changed at any time.
pub struct Proxy {
    address: SocketAddr,
    fault: Arc<Mutex<Fault>>,
}

/// A fault in the server's answers. Counts begin anew with each change.
#[derive(Clone, Debug)]
pub enum Fault {
    None,
    /// Ends the connection after so many bytes of answers.
    Cut {
        after_bytes: usize,
    },
    /// Says no more after so many.
    Hang {
        after_bytes: usize,
    },
    /// Puts a pause before each piece.
    Delay(Duration),
    /// Says something else, of the same length, where a piece has this.
    Rewrite {
        from: &'static str,
        to: &'static str,
    },
}

impl Proxy {
    pub fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, fault) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Fault::None)));
        let shared = Arc::clone(&fault);
        // Lives as long as the test's process.
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(server) = TcpStream::connect(server) else { continue };
                let (questions, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass_on(questions, to_server));
                let fault = Arc::clone(&shared);
                std::thread::spawn(move || answer(server, client, &fault));
            }
        });
        Self { address, fault }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    /// Waits until what was to come after some bytes has come.
    pub fn has_struck(&self) -> bool {
        let is_due =
            || matches!(*self.fault.lock(), Fault::Cut { after_bytes: 0 } | Fault::Hang { after_bytes: 0 });
        wait_for(|| is_due().then_some(())).is_some()
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let _whatever_ended_it = std::io::copy(&mut from, &mut to);
    let _gone_already = to.shutdown(Shutdown::Both);
}

fn answer(mut server: TcpStream, mut client: TcpStream, fault: &Mutex<Fault>) {
    let mut piece = [0; PIECE_BYTES];
    while let Ok(count @ 1..) = server.read(&mut piece) {
        let piece = &mut piece[..count];
        let (passes, then) = strike(fault, piece);
        if client.write_all(&piece[..passes]).is_err() {
            break;
        }
        match then {
            Then::GoOn => {}
            Then::End => break,
            // Until the client gives up, which ends the server's side too.
            Then::BeSilent => while let Ok(1..) = server.read(&mut [0; PIECE_BYTES]) {},
        }
    }
    let _gone_already = client.shutdown(Shutdown::Both);
    let _gone_already = server.shutdown(Shutdown::Both);
}

enum Then {
    GoOn,
    End,
    BeSilent,
}

/// Bytes of a piece that pass, and the action that follows.
fn strike(fault: &Mutex<Fault>, piece: &mut [u8]) -> (usize, Then) {
    let mut fault = fault.lock();
    let whole = piece.len();
    match &mut *fault {
        Fault::None => (whole, Then::GoOn),
        Fault::Cut { after_bytes } => match take(after_bytes, whole) {
            passes if passes < whole => (passes, Then::End),
            passes => (passes, Then::GoOn),
        },
        Fault::Hang { after_bytes } => match take(after_bytes, whole) {
            passes if passes < whole => (passes, Then::BeSilent),
            passes => (passes, Then::GoOn),
        },
        Fault::Delay(pause) => {
            let pause = *pause;
            drop(fault);
            std::thread::sleep(pause);
            (whole, Then::GoOn)
        }
        Fault::Rewrite { from, to } => {
            let (from, to) = (from.as_bytes(), to.as_bytes());
            assert_eq!(from.len(), to.len(), "messages say how long they are");
            for place in 0..(whole + 1).saturating_sub(from.len()) {
                if piece[place..].starts_with(from) {
                    piece[place..place + to.len()].copy_from_slice(to);
                }
            }
            (whole, Then::GoOn)
        }
    }
}

fn take(left: &mut usize, wanted: usize) -> usize {
    let taken = wanted.min(*left);
    *left -= taken;
    taken
}

const PIECE_BYTES: usize = 16 * 1024;
