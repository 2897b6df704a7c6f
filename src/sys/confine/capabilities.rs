//! Capabilities of this process: all but a few are given up.
//!
//! Unsafe because no crate here sets capabilities.

use std::io;

/// Gives up, for the calling thread and the ones that it starts, all capabilities but those of [`KEPT`] that it has.
/// Returns the names of those that it keeps.
pub(super) fn give_up() -> io::Result<Vec<&'static str>> {
    let mut sets = read()?;
    let kept = KEPT.iter().fold([0_u32; 2], |mut bits, (number, _)| {
        bits[(number / 32) as usize] |= 1 << (number % 32);
        bits
    });
    // Without CAP_SETPCAP the bounding set stays as it is. It gives nothing to a process that cannot exec.
    for number in 0..=LAST_CAPABILITY {
        if kept[(number / 32) as usize] & (1 << (number % 32)) == 0 {
            drop_from_bounding_set(number);
        }
    }
    clear_ambient_set();
    for (set, kept) in sets.iter_mut().zip(kept) {
        set.permitted &= kept;
        set.effective &= kept;
        set.inheritable = 0;
    }
    write(&sets)?;
    let has = |number: u32| sets[(number / 32) as usize].permitted & (1 << (number % 32)) != 0;
    Ok(KEPT.iter().filter(|(number, _)| has(*number)).map(|(_, name)| *name).collect())
}

fn drop_from_bounding_set(number: u32) {
    // SAFETY: `prctl` takes numbers here, and touches no memory of ours.
    let _not_permitted = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
}

fn clear_ambient_set() {
    // SAFETY: as above.
    let _none_there = unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0, 0, 0)
    };
}

fn read() -> io::Result<[Sets; 2]> {
    let mut header = Header::of_this_thread();
    let mut sets = [Sets::default(); 2];
    // SAFETY: the kernel reads the header and writes two sets, all of its own layout, during the call only.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(sets) }
}

fn write(sets: &[Sets; 2]) -> io::Result<()> {
    let mut header = Header::of_this_thread();
    // SAFETY: the kernel reads the header and two sets, all of its own layout, during the call only.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct __user_cap_header_struct` of the kernel's include/uapi/linux/capability.h.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

impl Header {
    fn of_this_thread() -> Self {
        Self { version: VERSION_3, pid: 0 }
    }
}

/// `struct __user_cap_data_struct` of the same file.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Capabilities that a relay which was given them may need again.
const KEPT: [(u32, &str); 5] = [
    // Sets the group of the local socket.
    (0, "CAP_CHOWN"),
    // Root reads files of other users, such as a status file of OpenVPN. Landlock bounds which.
    (1, "CAP_DAC_OVERRIDE"),
    // Opens a listener again.
    (10, "CAP_NET_BIND_SERVICE"),
    // An engine thread that begins anew locks memory for its ring, which old kernels count.
    (14, "CAP_IPC_LOCK"),
    // Pipes beyond fs.pipe-user-pages-soft.
    (24, "CAP_SYS_RESOURCE"),
];

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION_3: u32 = 0x2008_0522;

/// `CAP_CHECKPOINT_RESTORE`. A kernel with more keeps them in the bounding set, which gives nothing by itself.
const LAST_CAPABILITY: u32 = 40;
