//! Getting the agent into a VM: rum carries a static `rum-agent` and packs it in the form that
//! a VM takes it in.
//!
//! | the VM boots | the agent comes in | module |
//! |---|---|---|
//! | a kernel and an initramfs | an archive before the initramfs | [`initramfs`] |
//! | a cloud image | a seed disk for cloud-init | [`seed`] |
//! | without rum's help | by hand or over ssh (`rum agent install`) | [`unit`](unit()) |
//!
//! The agent is built by `build.rs`, together with rum, so what rum puts into a VM is of its
//! own version. Invariant: the same input makes the same bytes.

pub mod initramfs;
pub mod seed;

pub use initramfs::{RDINIT, initramfs};
pub use seed::{Seed, seed_disk};

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

/// The systemd unit that runs the agent at [`AGENT_PATH`] with as little privilege as it needs.
pub fn unit() -> String {
    include_str!("rum-agent.service").to_owned()
}

#[cfg(test)]
mod tests;
