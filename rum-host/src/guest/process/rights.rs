//! What a program in a guest may do, beyond what its user may.
//!
//! - [`bound`] and [`reduce`]: root's programs keep the capabilities that a container's root has
//!   by default (Docker's list). The others lead out of the namespaces: with CAP_SYS_ADMIN a program
//!   unmounts what covers the host, with CAP_SYS_PTRACE it reads a process outside. The bounding set
//!   keeps them from coming back, by a set-user-ID program for instance. `no_new_privs` is not set, so sudo
//!   and su work.
//! - [`guard`]: no program of the same user attaches to a helper, or takes its descriptors.

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

/// Capabilities that a kernel may know.
const BITS: u32 = u64::BITS;

/// Takes everything but [`CONTAINER`] from the bounding set: nothing that this process executes
/// from now on has it. This process still does.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn bound() -> rustix::io::Result<()> {
    for bit in 0..BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // An error: the kernel does not know it.
        let has = rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false);
        if has && !CONTAINER.contains(capability) {
            rustix::thread::remove_capability_from_bounding_set(capability)?;
        }
    }
    Ok(())
}

/// Takes everything but [`CONTAINER`] from this process. Two system calls: may be called between
/// fork and exec.
///
/// # Errors
/// None that is known: nothing is added.
pub fn reduce() -> rustix::io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective.intersection(CONTAINER),
            permitted: now.permitted.intersection(CONTAINER),
            // What root executes has these as well. The ambient set shrinks with them.
            inheritable: now.inheritable.intersection(CONTAINER),
        },
    )
}

/// From now on until its next exec nobody without CAP_SYS_PTRACE attaches to this process, reads its
/// memory or takes its descriptors (ptrace(2), "Ptrace access mode checking"). `rum exec` still enters: whoever
/// made a user namespace has all capabilities in it.
pub fn guard() {
    // Never fails (prctl(2)).
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
