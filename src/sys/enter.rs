//! The system call that enters the kernel for a ring.
//!
//! It uses a descriptor that is registered with the thread, where the kernel has that: the kernel then need not
//! look up a descriptor that other threads might close. The crate registers a ring's descriptor too, but loses the
//! number with every borrow of the ring.
//!
//! Unsafe because the crate has no call that enters by such a number.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::IoUring;

/// One thread's way into the kernel for one ring.
pub(super) struct Enter {
    ring: RawFd,
    /// Place in the table of registered rings of the thread that made this; `None` where that is full.
    registered: Option<u32>,
}

/// The end of a wait in the kernel.
#[derive(Clone, Copy, Default)]
pub(super) struct Until {
    /// Completions to wait for; 0 does not wait.
    pub completions: u32,
    pub timeout: Option<Duration>,
    /// Time after which one completion is enough; zero where the kernel cannot wait for several.
    pub patience: Duration,
}

/// `struct io_uring_getevents_arg` of the kernel's include/uapi/linux/io_uring.h.
#[repr(C)]
struct GetEvents {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_us: u32,
    timespec: u64,
}

/// `struct io_uring_rsrc_update` of the same file.
#[repr(C)]
struct ResourceUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanoseconds: i64,
}

impl Enter {
    /// Registers `ring` with the calling thread. Use the result on this thread only, and while `ring` is open.
    pub fn new(ring: &IoUring) -> Self {
        let ring = ring.as_raw_fd();
        let mut update = ResourceUpdate { offset: ANY_PLACE, reserved: 0, data: ring as u64 };
        let registered = register(ring, REGISTER_RING_FDS, &mut update) == Ok(1);
        Self { ring, registered: registered.then_some(update.offset) }
    }

    /// Submits the `queued` entries and waits for `until`. With `events`, the kernel posts completions that it
    /// had put off.
    pub fn enter(&self, queued: u32, until: Until, events: bool) -> io::Result<()> {
        let timespec = until.timeout.map(|timeout| KernelTimespec {
            seconds: timeout.as_secs().min(i64::MAX as u64) as i64,
            nanoseconds: timeout.subsec_nanos().into(),
        });
        let arguments = GetEvents {
            sigmask: 0,
            sigmask_size: 0,
            min_wait_us: until.patience.as_micros().min(u32::MAX.into()) as u32,
            timespec: timespec.as_ref().map_or(0, |timespec| std::ptr::from_ref(timespec) as u64),
        };
        let mut flags = ENTER_EXT_ARG;
        if events || until.completions > 0 {
            flags |= ENTER_GETEVENTS;
        }
        let descriptor = match self.registered {
            Some(place) => {
                flags |= ENTER_REGISTERED_RING;
                place
            }
            None => self.ring as u32,
        };
        // SAFETY: the kernel reads `arguments` and `timespec`, both of its own layout, during the call only.
        // The ring answers for the memory that queued entries point to.
        let entered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                descriptor,
                queued,
                until.completions,
                flags,
                &raw const arguments,
                size_of::<GetEvents>(),
            )
        };
        if entered < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Enter {
    /// Unregisters the ring, which would live as long as its thread otherwise.
    fn drop(&mut self) {
        if let Some(place) = self.registered {
            let mut update = ResourceUpdate { offset: place, reserved: 0, data: 0 };
            let _unregistered_with_the_thread = register(self.ring, UNREGISTER_RING_FDS, &mut update);
        }
    }
}

fn register(ring: RawFd, operation: libc::c_uint, update: &mut ResourceUpdate) -> Result<libc::c_long, ()> {
    // SAFETY: the kernel reads and writes one `ResourceUpdate`, which is of its own layout, during the call only.
    let done = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, operation, &raw mut *update, 1) };
    if done < 0 { Err(()) } else { Ok(done) }
}

// Constants of the kernel's include/uapi/linux/io_uring.h.
const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;
const ANY_PLACE: u32 = u32::MAX;

const _: () = assert!(size_of::<GetEvents>() == 24 && size_of::<ResourceUpdate>() == 16);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_ring_is_registered_and_given_back() {
        // A thread's table holds far fewer at once.
        for _ in 0..100 {
            let ring = IoUring::new(2).unwrap();
            assert!(Enter::new(&ring).registered.is_some());
        }
    }

    #[test]
    fn a_thread_whose_table_is_full_enters_by_the_descriptor() {
        let rings: Vec<IoUring> = (0..40).map(|_| IoUring::new(2).unwrap()).collect();
        let enters: Vec<Enter> = rings.iter().map(Enter::new).collect();
        assert!(enters.last().unwrap().registered.is_none());
        for enter in &enters {
            enter.enter(0, Until::default(), true).unwrap();
        }
    }

    #[test]
    fn a_wait_ends_by_its_timeout() {
        let ring = IoUring::new(2).unwrap();
        let enter = Enter::new(&ring);
        let timeout = Duration::from_millis(20);
        let began = Instant::now();
        let until = Until { completions: 1, timeout: Some(timeout), patience: Duration::ZERO };
        let error = enter.enter(0, until, true).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ETIME));
        assert!(began.elapsed() >= timeout);
    }
}
