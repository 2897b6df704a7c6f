//! One thread's io_uring: probed and restricted when it is made, fed with typed operations, emptied in batches.
//!
//! Unsafe because the kernel reads what a submitted entry points to. The only operation that points to
//! our memory is connect; its address is kept here until the kernel has copied it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use socket2::SockAddr;

use super::backlog::{Backlog, SubmissionQueue};
use super::buffers::{Buffers, FilledBuffer, RingId};
use super::enter::{Enter, Until};
use super::receive::{ReceiveLimit, limited_receive};
use super::ring_rules::{NEEDED, enable_restricted};

pub use super::receive::{First, RECEIVE_BYTES_MAX};

/// An operation to queue. Descriptors must stay open until the operation's last completion; the caller counts
/// the operations in flight.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// Accepts every connection that arrives, until it fails.
    AcceptMultishot {
        listener: BorrowedFd<'a>,
    },
    /// Accepts only the next connection. Of several rings that wait at one socket in this way, the kernel wakes
    /// the one that has waited longest; with multishot accepts it always wakes the first.
    AcceptOne {
        listener: BorrowedFd<'a>,
    },
    /// Receives the next bytes into a buffer of the thread's ring.
    Receive {
        socket: BorrowedFd<'a>,
    },
    /// Receives each piece into a buffer of the thread's ring, until [`RECEIVE_BYTES_MAX`] have arrived, it fails,
    /// or it is cancelled. Where the kernel cannot count bytes (before 6.17), receives one piece.
    ReceiveStream {
        socket: BorrowedFd<'a>,
        first: First,
    },
    Connect {
        socket: BorrowedFd<'a>,
        address: SocketAddr,
    },
    /// Completes once, when there is something to read, an end or an error.
    PollReadable {
        fd: BorrowedFd<'a>,
    },
    /// Completes once, when there is room to write, or an error.
    PollWritable {
        fd: BorrowedFd<'a>,
    },
    /// Completes once, when the connection fails or both directions are shut.
    PollHangup {
        fd: BorrowedFd<'a>,
    },
    /// Completes each time that there is something to read.
    PollReadableMultishot {
        fd: BorrowedFd<'a>,
    },
    /// Moves bytes between a socket and a pipe, on a worker thread of the kernel.
    Splice {
        from: BorrowedFd<'a>,
        to: BorrowedFd<'a>,
        bytes: u32,
    },
    /// Cancels the operation with this user data.
    Cancel {
        user_data: u64,
    },
}

/// The result of an operation, or of one step of a multishot operation.
#[derive(Debug)]
pub struct Completion<S = OwnedFd> {
    pub user_data: u64,
    /// The operation's return value, negative for an errno.
    pub result: i32,
    /// True while a multishot operation goes on.
    pub more: bool,
    /// The buffer that a receive filled.
    pub buffer: Option<FilledBuffer>,
    /// The connection that an accept returned.
    pub accepted: Option<S>,
}

impl<S> Completion<S> {
    /// True for a receive that found every buffer in use.
    pub fn found_no_buffer(&self) -> bool {
        self.result == -libc::ENOBUFS
    }
}

/// The longest time that [`Ring::turn`] waits for a first completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    No,
    Until(Duration),
    Forever,
}

/// A wait for several completions. After `patience`, one is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    pub completions: u32,
    pub patience: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error(
        "io_uring is disabled on this machine or for this process; `sysctl -w kernel.io_uring_disabled=0` \
         enables it, and a container's seccomp profile must allow io_uring_setup"
    )]
    Disabled,
    #[error(
        "this kernel, or the sandbox around this process, does not support io_uring; run sluicegate on Linux 6.1 or later \
         itself and not in gVisor, WSL 1 or an emulator (`sluicegate doctor` tests it)"
    )]
    NotOffered,
    #[error("this kernel lacks {feature}; sluicegate needs Linux 6.1 or later")]
    Unsupported { feature: &'static str },
    #[error("no memory for an io_uring; raise the memlock limit (`ulimit -l`, LimitMEMLOCK=) or free memory")]
    Memory,
    #[error("too few file descriptors for an io_uring; raise the limit (`ulimit -n`, LimitNOFILE=)")]
    Descriptors,
    #[error("io_uring cannot be set up: {0}")]
    Setup(io::Error),
}

pub struct Ring {
    /// Declared above the ring, so that it is dropped first: the ring must still be open then.
    enter: Enter,
    ring: IoUring,
    id: RingId,
    /// Entries that found the submission queue full; the next turn submits them first. It keeps the addresses of connects
    /// that are not submitted yet, boxed, so that they keep their place in memory.
    backlog: Backlog<squeue::Entry, Box<SockAddr>>,
    /// User data of accepts, whose results are descriptors that we then own. A handful at most.
    accept_user_data: Vec<u64>,
    receive_limit: ReceiveLimit,
    overflows: u64,
    /// Time since which the kernel has refused every call for want of resources; `None` where the last one passed.
    refused_since: Option<Instant>,
}

impl Ring {
    /// Makes a ring for the calling thread.
    ///
    /// The kernel keeps completions that find the completion queue full (`IORING_FEAT_NODROP`), so `COMPLETIONS`
    /// limits speed, not correctness.
    pub fn new() -> Result<Self, RingError> {
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_r_disabled()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)
            .map_err(setup_error)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(probe_error)?;
        for (code, feature) in NEEDED {
            if !probe.is_supported(code) {
                return Err(RingError::Unsupported { feature });
            }
        }
        if !ring.params().is_feature_submit_stable() || !ring.params().is_feature_nodrop() {
            return Err(RingError::Unsupported { feature: "stable submission" });
        }
        enable_restricted(&ring).map_err(RingError::Setup)?;
        let receive_limit = ReceiveLimit::probe(&mut ring).map_err(RingError::Setup)?;
        Ok(Self {
            enter: Enter::new(&ring),
            ring,
            id: RingId::next(),
            backlog: Backlog::default(),
            overflows: 0,
            accept_user_data: Vec::new(),
            receive_limit,
            refused_since: None,
        })
    }

    /// Queues `operation`; the next turn submits it.
    pub fn push(&mut self, user_data: u64, operation: Operation<'_>) {
        let accepts = matches!(operation, Operation::AcceptMultishot { .. } | Operation::AcceptOne { .. });
        if accepts && !self.accept_user_data.contains(&user_data) {
            self.accept_user_data.push(user_data);
        }
        let (entry, address) = self.entry(operation);
        self.backlog.push(entry.user_data(user_data), address, &mut Queue(&mut self.ring));
    }

    /// Submits all queued operations, waits for a first completion as `wait` says, and appends all completions to
    /// `completions`. A kernel before 6.12 ignores `gather` and returns with the first completion.
    ///
    /// Where the kernel lacks memory or other resources, the call is repeated for some seconds.
    ///
    /// # Errors
    /// The ring can no longer be used: its operations and their completions are lost.
    pub fn turn(
        &mut self,
        wait: Wait,
        gather: Option<Gather>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        while !self.backlog.move_into(&mut Queue(&mut self.ring)) && self.flush()? {}
        let wait = if self.backlog.is_empty() { wait } else { Wait::No };
        if wait == Wait::No && !self.has_work() && self.ring.submission().is_empty() {
            return Ok(());
        }
        let gather = gather.filter(|_| wait != Wait::No && self.can_gather());
        let until = Until {
            completions: gather.map_or(u32::from(wait != Wait::No), |gather| gather.completions),
            timeout: if let Wait::Until(timeout) = wait { Some(timeout) } else { None },
            patience: gather.map_or(Duration::ZERO, |gather| gather.patience),
        };
        while self.enter(until)? == Entered::Refused && self.ring.completion().is_empty() {
            std::thread::sleep(REFUSED_PAUSE);
        }
        self.backlog.forget_submitted(&mut Queue(&mut self.ring));
        self.take_completions(completions);
        Ok(())
    }

    fn take_completions(&mut self, completions: &mut Vec<Completion>) {
        let (accept_user_data, id) = (&self.accept_user_data, self.id);
        completions.extend(self.ring.completion().map(|entry| {
            Completion {
                user_data: entry.user_data(),
                result: entry.result(),
                more: cqueue::more(entry.flags()),
                buffer: cqueue::buffer_select(entry.flags())
                    .map(|number| FilledBuffer::of_completion(number, id)),
                accepted: (entry.result() >= 0 && accept_user_data.contains(&entry.user_data()))
                    .then(|| adopt(entry.result())),
            }
        }));
    }

    /// True where a turn would find completions: some are in the queue, or the kernel has flagged that it posts
    /// some when it is entered. Makes no system call.
    pub fn has_work(&mut self) -> bool {
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// True once the kernel has been handed all queued operations, which no longer need their descriptors' numbers.
    pub fn has_submitted_all(&mut self) -> bool {
        self.backlog.has_submitted_all(&mut Queue(&mut self.ring))
    }

    /// Turns so far that found more completions than the queue holds.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Maps and registers `count` receive buffers; `count` is a power of two of at most 32768.
    /// Drop them after this ring.
    pub fn register_buffers(&self, count: u16) -> io::Result<Buffers> {
        Buffers::register(&self.ring, self.id, count)
    }

    pub(super) fn receive_limit(&self) -> ReceiveLimit {
        self.receive_limit
    }

    /// True where a wait can go on for several completions.
    pub(super) fn can_gather(&self) -> bool {
        self.ring.params().is_feature_min_timeout()
    }

    /// Submits queued entries without a wait. Returns whether the kernel took any.
    fn flush(&mut self) -> io::Result<bool> {
        let queued = self.ring.submission().len();
        self.enter(Until::default())?;
        Ok(self.ring.submission().len() < queued)
    }

    fn enter(&mut self, until: Until) -> io::Result<Entered> {
        let queue = self.ring.submission();
        let (queued, has_overflown) = (queue.len() as u32, queue.cq_overflow());
        let events = queue.taskrun() || has_overflown;
        // The drop makes the pushed entries visible to the kernel.
        drop(queue);
        self.overflows += u64::from(has_overflown);
        match self.enter.enter(queued, until, events) {
            Err(error) if is_want_of_resources(&error) => {
                let since = *self.refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= REFUSED_MAX { Err(error) } else { Ok(Entered::Refused) }
            }
            Err(error) if !is_no_failure(&error) => Err(error),
            _ => {
                self.refused_since = None;
                Ok(Entered::Passed)
            }
        }
    }

    /// The entry of an operation, and the address that it points to.
    fn entry(&self, operation: Operation<'_>) -> (squeue::Entry, Option<Box<SockAddr>>) {
        let entry = match operation {
            Operation::AcceptMultishot { listener } => {
                opcode::AcceptMulti::new(fd(listener)).flags(ACCEPT_FLAGS).build()
            }
            Operation::AcceptOne { listener } => {
                opcode::Accept::new(fd(listener), std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(ACCEPT_FLAGS)
                    .build()
            }
            Operation::ReceiveStream { socket, first } if self.receive_limit == ReceiveLimit::Counted => {
                limited_receive(fd(socket), first)
            }
            Operation::Receive { socket } | Operation::ReceiveStream { socket, .. } => {
                opcode::Recv::new(fd(socket), std::ptr::null_mut(), 0)
                    .buf_group(super::buffers::GROUP)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
            }
            Operation::Connect { socket, address } => {
                let address = Box::new(SockAddr::from(address));
                let entry = opcode::Connect::new(fd(socket), address.as_ptr().cast(), address.len()).build();
                return (entry, Some(address));
            }
            Operation::PollReadable { fd: polled } => poll(polled, libc::POLLIN | libc::POLLRDHUP).build(),
            Operation::PollWritable { fd: polled } => poll(polled, libc::POLLOUT).build(),
            // Errors and hangups are always reported, so the mask may be empty.
            Operation::PollHangup { fd: polled } => poll(polled, 0).build(),
            Operation::PollReadableMultishot { fd: polled } => poll(polled, libc::POLLIN).multi(true).build(),
            Operation::Splice { from, to, bytes } => {
                opcode::Splice::new(fd(from), -1, fd(to), -1, bytes).flags(SPLICE_FLAGS).build()
            }
            Operation::Cancel { user_data } => {
                opcode::AsyncCancel2::new(CancelBuilder::user_data(user_data)).build()
            }
        };
        (entry, None)
    }
}

/// The ring's submission queue, for the backlog alone.
struct Queue<'a>(&'a mut IoUring);

impl SubmissionQueue<squeue::Entry> for Queue<'_> {
    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: an entry points to no memory but the buffer group's, whose owner drops it after this ring,
        // and a connect's address, which the backlog keeps until it and the queue are empty: the kernel has copied it
        // (IORING_FEAT_SUBMIT_STABLE was checked). Descriptors are plain numbers to the kernel.
        unsafe { self.0.submission().push(entry).is_ok() }
    }

    fn is_empty(&mut self) -> bool {
        self.0.submission().is_empty()
    }
}

impl Drop for Ring {
    /// Closes connections that were accepted and whose completions nobody has taken.
    fn drop(&mut self) {
        self.take_completions(&mut Vec::new());
    }
}

/// The outcome of a call into the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entered {
    Passed,
    /// The kernel has no resources for the call now; completions may have to be taken first.
    Refused,
}

/// Takes ownership of a descriptor that an accept of this ring has just made.
fn adopt(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel opened this descriptor for the accept whose completion was just taken off the
    // queue; a completion is taken once, so nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn fd(borrowed: BorrowedFd<'_>) -> Fd {
    Fd(borrowed.as_raw_fd())
}

fn poll(polled: BorrowedFd<'_>, mask: libc::c_short) -> opcode::PollAdd {
    opcode::PollAdd::new(fd(polled), mask as u32)
}

/// True for a wait that ended without a completion (ETIME), or by a signal (EINTR).
fn is_no_failure(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR))
}

/// True where the kernel lacks memory (ENOMEM) or requests (EAGAIN), or completions must be taken first (EBUSY). Most
/// often that is over in a moment.
fn is_want_of_resources(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM))
}

fn setup_error(error: io::Error) -> RingError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => RingError::Disabled,
        Some(libc::EOPNOTSUPP) => RingError::NotOffered,
        Some(libc::EINVAL) => RingError::Unsupported { feature: "SINGLE_ISSUER and DEFER_TASKRUN rings" },
        Some(libc::ENOMEM) => RingError::Memory,
        Some(libc::EMFILE | libc::ENFILE) => RingError::Descriptors,
        _ => RingError::Setup(error),
    }
}

fn probe_error(error: io::Error) -> RingError {
    match error.raw_os_error() {
        Some(libc::EINVAL) => RingError::Unsupported { feature: "the io_uring probe" },
        _ => setup_error(error),
    }
}

/// Operations that one turn can queue before it must enter the kernel early.
const SUBMISSIONS: u32 = 1024;

/// Completions that the kernel can post before it has to allocate.
const COMPLETIONS: u32 = 8192;

/// Time for which the kernel may refuse every call for want of resources, until the ring counts as lost. Longer than
/// memory is short where the kernel ends a process for it; shorter than peers of tunnels wait.
const REFUSED_MAX: Duration = Duration::from_secs(5);

/// Pause between two calls that are refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(1);

const ACCEPT_FLAGS: i32 = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

const SPLICE_FLAGS: u32 = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_refused_setup_names_its_remedy() {
        let disabled = setup_error(io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(disabled.contains("kernel.io_uring_disabled=0"), "{disabled}");
        let old = setup_error(io::Error::from_raw_os_error(libc::EINVAL)).to_string();
        assert!(old.contains("Linux 6.1"), "{old}");
        let sandbox = setup_error(io::Error::from_raw_os_error(libc::EOPNOTSUPP)).to_string();
        assert!(sandbox.contains("does not support io_uring; run sluicegate on Linux 6.1"), "{sandbox}");
    }

    #[test]
    fn a_stream_receive_ends_by_itself_at_its_bound() {
        use std::io::Write;
        let mut ring = Ring::new().unwrap();
        let _buffers = ring.register_buffers(256).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        let writer = std::thread::spawn(move || {
            // The relay reads less than this: the rest stays in the sockets, or is cut off.
            let _cut_off = sender.write_all(&[7; 4 * RECEIVE_BYTES_MAX]);
        });
        ring.push(1, Operation::ReceiveStream { socket: receiver.as_fd(), first: First::Wait });
        let (mut received, mut more) = (0, true);
        while more {
            let mut completions = Vec::new();
            ring.turn(Wait::Until(Duration::from_secs(5)), None, &mut completions).unwrap();
            assert!(!completions.is_empty(), "nothing more came after {received} bytes");
            for completion in completions {
                assert!(completion.result > 0, "{completion:?}");
                received += completion.result as usize;
                more = completion.more;
            }
        }
        match ring.receive_limit {
            ReceiveLimit::Counted => {
                let last = super::super::buffers::BUFFER_BYTES;
                assert!((RECEIVE_BYTES_MAX..RECEIVE_BYTES_MAX + last).contains(&received), "{received}");
            }
            ReceiveLimit::Missing => assert!(received <= super::super::buffers::BUFFER_BYTES),
        }
        drop(receiver);
        writer.join().unwrap();
    }

    #[test]
    fn a_gathering_wait_ends_with_its_patience_or_with_enough() {
        let mut ring = Ring::new().unwrap();
        let wake = super::super::wake::Wake::new().unwrap();
        wake.wake();
        for (operations, gathered) in [(1, 1), (5, 5)] {
            for user_data in 0..operations {
                ring.push(user_data, Operation::PollReadable { fd: wake.as_fd() });
            }
            let gather = Gather { completions: 5, patience: Duration::from_millis(20) };
            let mut completions = Vec::new();
            let began = std::time::Instant::now();
            ring.turn(Wait::Forever, Some(gather), &mut completions).unwrap();
            assert_eq!(completions.len(), gathered);
            if gathered < 5 && ring.can_gather() {
                assert!(began.elapsed() >= gather.patience);
            }
        }
    }

    #[test]
    fn the_address_of_a_connect_lives_as_long_as_its_entry_waits_in_the_backlog() {
        let mut ring = Ring::new().unwrap();
        let wake = super::super::wake::Wake::new().unwrap();
        for user_data in 0..u64::from(SUBMISSIONS) {
            ring.push(user_data, Operation::PollReadable { fd: wake.as_fd() });
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let address = listener.local_addr().unwrap();
        ring.push(u64::MAX, Operation::Connect { socket: socket.as_fd(), address });

        // As in a turn whose last flush was the last that the kernel would take.
        assert!(ring.flush().unwrap());
        ring.backlog.forget_submitted(&mut Queue(&mut ring.ring));
        assert_eq!(ring.backlog.kept(), (1, 1));

        let mut completions = Vec::new();
        ring.turn(Wait::Until(Duration::from_secs(5)), None, &mut completions).unwrap();
        assert_eq!(
            completions.iter().map(|one| (one.user_data, one.result)).collect::<Vec<_>>(),
            [(u64::MAX, 0)]
        );
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(address));
        assert_eq!(ring.backlog.kept(), (0, 0));
    }

    #[test]
    fn more_operations_than_the_queue_holds_all_complete() {
        let mut ring = Ring::new().unwrap();
        let wake = super::super::wake::Wake::new().unwrap();
        wake.wake();
        let count = u64::from(SUBMISSIONS) * 2 + 7;
        for user_data in 0..count {
            ring.push(user_data, Operation::PollReadable { fd: wake.as_fd() });
        }
        let mut completions = Vec::new();
        while completions.len() < count as usize {
            ring.turn(Wait::Until(Duration::from_secs(5)), None, &mut completions).unwrap();
        }
        let mut user_data: Vec<u64> = completions.iter().map(|completion| completion.user_data).collect();
        user_data.sort_unstable();
        assert_eq!(user_data, (0..count).collect::<Vec<_>>());
    }
}
