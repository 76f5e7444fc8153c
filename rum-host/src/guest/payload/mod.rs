//! Gets the agent into a guest: rum embeds a static `rum-agent` and packs it in the form that the
//! guest accepts.
//!
//! | the guest boots | the agent comes in | see |
//! |---|---|---|
//! | a kernel and an initramfs | an archive before the initramfs | [`initramfs`](initramfs()) |
//! | a cloud image | a seed disk for cloud-init | [`seed`] |
//! | no: a namespace guest | a file in memory that is executed | [`become_agent`] |
//! | without rum's help | by hand or over ssh (`rum agent install`) | [`installer`](installer()) |
//!
//! `build.rs` builds the agent together with rum, so the agent in a guest has rum's own version.
//! Invariant: the same input makes the same bytes.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{MemfdFlags, Mode, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub mod initramfs;
pub mod seed;

pub use initramfs::{RDINIT, initramfs};
pub use seed::{Seed, is_seed_disk, seed_disk, seed_image};

/// Name of the agent's program, and of its systemd unit without `.service`.
pub const AGENT: &str = "rum-agent";
/// Where the unit expects the agent's program.
pub const AGENT_PATH: &str = "/usr/local/bin/rum-agent";
/// Where the unit goes.
pub const UNIT_PATH: &str = "/etc/systemd/system/rum-agent.service";

/// The agent: a static ELF program that needs nothing else in the guest.
pub fn agent() -> &'static [u8] {
    include_bytes!(env!("RUM_AGENT"))
}

/// Space for the files in the runtime directory.
const SMALL_FILES: u64 = 64 * 1024;

/// The largest file size allowed (RLIMIT_FSIZE), if that is too small for the agent, which may
/// raise its soft limit to the hard limit, or for the files of rum itself.
pub fn too_small_a_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Fsize);
    let agent = u64::try_from(agent().len()).unwrap_or(u64::MAX);
    let highest = limit.maximum.filter(|bytes| *bytes < agent);
    highest.or(limit.current.filter(|bytes| *bytes < SMALL_FILES))
}

/// The systemd unit that runs the agent at [`AGENT_PATH`] with as little privilege as it needs.
pub fn unit() -> String {
    include_str!("rum-agent.service").to_owned()
}

/// File name of the [`installer`] script.
pub const INSTALLER: &str = "install-rum-agent";

/// The script that installs the agent next to it, with any of systemd, OpenRC or busybox init; with
/// another init the agent runs until the next boot.
pub fn installer() -> String {
    include_str!("install-agent.sh")
        .replace("@UNIT@", unit().trim_end())
        .replace("@OPENRC@", include_str!("rum-agent.openrc").trim_end())
}

/// Executes the agent in this process, with `args`; returns why that failed.
///
/// The agent is a fraction of rum's size, and so is its resident memory.
pub fn become_agent(args: &[OsString]) -> io::Error {
    match execute(args) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn execute(args: &[OsString]) -> io::Result<Infallible> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 has no MFD_EXEC flag.
    let file = match memfd_create(AGENT, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(AGENT, flags),
        made => made,
    }?;
    let mut file = File::from(file);
    // RLIMIT_FSIZE applies to a memfd, too: writing beyond it would kill this process (SIGXFSZ),
    // and each one started in its place. The agent writes no file: it gets the limit back.
    let limit = getrlimit(Resource::Fsize);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Fsize, raised)?;
    file.write_all(agent())?;
    setrlimit(Resource::Fsize, limit)?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    // Not to be read: executing such a file guards the process from the first moment on against
    // who would attach to it (`would_dump` in fs/exec.c), as `sandbox::rights::guard` does before.
    rustix::fs::fchmod(&file, Mode::XUSR | Mode::XGRP | Mode::XOTH)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Err(Command::new(path).arg0(AGENT).args(args).exec())
}

#[cfg(test)]
mod tests;
