//! What a ring may do: it is made disabled, gets the list of its operations, and is then enabled. The kernel refuses
//! everything else from then on, such as opening a file by a ring, whatever code this process runs.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

/// The rules of the rings of this process.
static STATE: AtomicU8 = AtomicU8::new(NO_RING);

/// Gives a ring that was made disabled the list of its operations, and enables it. A kernel that does not take the list
/// gives a ring without one.
pub(super) fn enable_restricted(ring: &IoUring) -> io::Result<()> {
    let operations = NEEDED.iter().map(|(code, _)| Restriction::sqe_op(*code));
    let registrations = REGISTRATIONS.into_iter().map(Restriction::register_op);
    let flags = Restriction::sqe_flags_allowed(squeue::Flags::BUFFER_SELECT.bits());
    let mut rules: Vec<Restriction> = operations.chain(registrations).chain([flags]).collect();
    match ring.submitter().register_restrictions(&mut rules) {
        Ok(()) => _ = STATE.compare_exchange(NO_RING, RESTRICTED, Ordering::Relaxed, Ordering::Relaxed),
        Err(_) => STATE.store(UNRESTRICTED, Ordering::Relaxed),
    }
    ring.submitter().register_enable_rings()
}

/// The rules of the rings that this process has made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingRules {
    NoRing,
    InForce,
    /// The kernel did not take them for one ring at least.
    Refused,
}

pub fn in_force() -> RingRules {
    match STATE.load(Ordering::Relaxed) {
        UNRESTRICTED => RingRules::Refused,
        RESTRICTED => RingRules::InForce,
        _ => RingRules::NoRing,
    }
}

/// Operations that sessions need; Linux 6.1 has all of them. A ring serves no others.
pub(super) const NEEDED: [(u8, &str); 6] = [
    (opcode::AcceptMulti::CODE, "io_uring accept"),
    (opcode::RecvMulti::CODE, "io_uring receive"),
    (opcode::Connect::CODE, "io_uring connect"),
    (opcode::PollAdd::CODE, "io_uring poll"),
    (opcode::AsyncCancel2::CODE, "io_uring cancel"),
    (opcode::Splice::CODE, "io_uring splice"),
];

const NO_RING: u8 = 0;
const RESTRICTED: u8 = 1;
const UNRESTRICTED: u8 = 2;

/// Calls of io_uring_register that are used once a ring is enabled: its descriptor is registered with the thread and
/// unregistered (IORING_REGISTER_RING_FDS, IORING_UNREGISTER_RING_FDS), and so are its buffers
/// (IORING_REGISTER_PBUF_RING).
const REGISTRATIONS: [u8; 3] = [20, 21, 22];

#[cfg(test)]
mod tests {
    use io_uring::cqueue;
    use io_uring::types::Fd;

    use super::*;

    /// A ring with the rules, and the result of one operation in it.
    fn result_of(entry: squeue::Entry) -> i32 {
        let mut ring: IoUring = IoUring::builder().setup_r_disabled().build(4).unwrap();
        enable_restricted(&ring).unwrap();
        // SAFETY: the operations of the tests below point to no memory but static text.
        unsafe { ring.submission().push(&entry).unwrap() };
        ring.submit_and_wait(1).unwrap();
        let results: Vec<i32> = ring.completion().map(|entry: cqueue::Entry| entry.result()).collect();
        results[0]
    }

    #[test]
    fn a_ring_serves_its_operations_and_no_others() {
        let path = c"/etc/hostname";
        let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build();
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build();
        let message = opcode::MsgRingData::new(Fd(-1), 0, 0, None).build();
        for refused in [open, socket, message, opcode::Nop::new().build()] {
            assert_eq!(result_of(refused), -libc::EACCES);
        }
        // Allowed, and fails for a reason of its own.
        assert_eq!(result_of(opcode::PollAdd::new(Fd(-1), 1).build()), -libc::EBADF);
        let linked = opcode::PollAdd::new(Fd(-1), 1).build().flags(squeue::Flags::IO_DRAIN);
        assert_eq!(result_of(linked), -libc::EACCES);
    }

    #[test]
    fn a_ring_registers_nothing_that_it_does_not_need() {
        let ring: IoUring = IoUring::builder().setup_r_disabled().build(4).unwrap();
        enable_restricted(&ring).unwrap();
        let error = ring.submitter().register_files(&[0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        let again = ring.submitter().register_restrictions(&mut [Restriction::sqe_op(0)]).unwrap_err();
        assert!(matches!(again.raw_os_error(), Some(libc::EACCES | libc::EBADFD)), "{again}");
    }
}
