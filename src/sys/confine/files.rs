//! Files of this process (Landlock): it opens those below some folders, and no others.
//!
//! Unsafe because the crate does not say which version of Landlock a kernel has.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Part;

/// Folders and files that may be opened.
#[derive(Clone, Default, Debug)]
pub struct Files {
    /// Read below these.
    pub read: Vec<PathBuf>,
    /// Read, written, made, renamed and removed below these. Nothing below them is executed.
    pub write: Vec<PathBuf>,
}

impl Files {
    /// True where `path` is below a folder that may be read, or written.
    pub fn contains(&self, path: &Path, access: BelowFolder) -> bool {
        let is_below = |folders: &[PathBuf]| folders.iter().any(|folder| path.starts_with(folder));
        is_below(&self.write) || (access == BelowFolder::Read && is_below(&self.read))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BelowFolder {
    Read,
    Write,
}

/// Puts the rule in force for the calling thread and the ones that it starts.
pub(super) fn restrict(files: &Files) -> Part {
    match apply(files) {
        Ok(part) => part,
        Err(error) => Part::Missing(format!("Landlock failed: {error}")),
    }
}

fn apply(files: &Files) -> Result<Part, RulesetError> {
    let mut rules =
        Ruleset::default().handle_access(AccessFs::from_all(NEWEST))?.scope(Scope::Signal)?.create()?;
    for (folders, access) in [(&files.read, reading()), (&files.write, writing())] {
        for folder in folders {
            // What is not there cannot be opened either.
            let Ok(opened) = PathFd::new(folder) else { continue };
            let access = if folder.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
            rules = rules.add_rule(PathBeneath::new(opened, access))?;
        }
    }
    let status = rules.restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Part::InForce,
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
            let version = effective_abi as u32;
            Part::Partly(format!(
                "this kernel has version {version} of Landlock, and {LANDLOCK_WANTED} does all"
            ))
        }
        (_, LandlockStatus::NotEnabled) => Part::Missing(
            "Landlock is not enabled on this machine; add it to the kernel's parameter `lsm=`".to_owned(),
        ),
        _ => Part::Missing("this kernel has no Landlock".to_owned()),
    })
}

/// The kernel's version of Landlock, or why it has none.
pub fn landlock_version() -> Result<u32, &'static str> {
    // SAFETY: with this flag the call takes no memory, and returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    match u32::try_from(version) {
        Ok(version) => Ok(version),
        Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Err("not enabled on this machine")
        }
        Err(_) => Err("this kernel has none"),
    }
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

fn writing() -> BitFlags<AccessFs> {
    reading()
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer
}

/// The version of Landlock whose restrictions are asked for: that of Linux 6.12. Older kernels do what they can.
const NEWEST: ABI = ABI::V6;

/// `NEWEST` as a number.
pub const LANDLOCK_WANTED: u32 = 6;

/// `LANDLOCK_CREATE_RULESET_VERSION` of the kernel's include/uapi/linux/landlock.h.
const CREATE_RULESET_VERSION: u32 = 1;
