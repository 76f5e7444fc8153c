//! Capabilities of the programs in a guest, and the protection of the helper processes.
//!
//! - [`bound`] and [`reduce`]: root's programs keep the capabilities that root in a container has
//!   by default (Docker's list). The others break out of the namespaces: with CAP_SYS_ADMIN a
//!   program unmounts what covers the host, with CAP_SYS_PTRACE it reads a process outside. The
//!   bounding set keeps a program from regaining them, for instance through a set-user-ID file.
//!   `no_new_privs` is not set, so sudo and su work.
//! - [`guard`]: no program of the same user can attach to a helper or take its descriptors.

use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The default capabilities of a container (`DefaultCapabilities` in moby's oci/caps).
const CONTAINER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Upper bound of the capability numbers.
const BITS: u32 = u64::BITS;

/// Removes everything but [`CONTAINER`] from the bounding set, so no program that this process
/// executes from now on gets it. This process keeps its own capabilities.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn bound() -> rustix::io::Result<()> {
    for bit in 0..BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // An error means that the kernel does not know the capability.
        let has = rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false);
        if has && !CONTAINER.contains(capability) {
            rustix::thread::remove_capability_from_bounding_set(capability)?;
        }
    }
    Ok(())
}

/// Removes everything but [`CONTAINER`] from this process. Two system calls: safe between fork and
/// exec.
///
/// # Errors
/// No known ones, since capabilities are only dropped.
pub fn reduce() -> rustix::io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective.intersection(CONTAINER),
            permitted: now.permitted.intersection(CONTAINER),
            // Programs that root executes keep these as well. The ambient set shrinks accordingly.
            inheritable: now.inheritable.intersection(CONTAINER),
        },
    )
}

/// Until the next exec, no process without CAP_SYS_PTRACE can attach to this process, read its
/// memory or take its descriptors (ptrace(2), "Ptrace access mode checking"). `rum exec` can still
/// enter: the creator of a user namespace has all capabilities in it.
pub fn guard() {
    // Never fails (prctl(2)).
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
