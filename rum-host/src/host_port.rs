//! What the host's own kernel says: who holds a port, and which boot this is.

use std::sync::atomic::AtomicBool;

use rum_agent::kernel::process;
use rum_agent::kernel::sock_diag::SockDiag;
use rum_shared::listener::Process;

use crate::plan::HostAddr;

/// How many descriptors of this machine are looked at for one name: a second's work, in a thread of its
/// own. A machine with busy servers has more than the agent's bound allows for.
const MAX_DESCRIPTORS: usize = 500_000;

/// The process that keeps `addr` from being bound, where it can be seen: a listener on that
/// port at the same or an unspecified address. Reads /proc: call it off the hot path.
pub fn holder(addr: HostAddr) -> Option<Process> {
    let sockets = SockDiag::open().ok()?.dump().ok()?;
    let overlaps = |ip: std::net::IpAddr| {
        ip == addr.0.ip() || ip.is_unspecified() || addr.0.ip().is_unspecified()
    };
    let inodes: Vec<u64> = sockets
        .iter()
        .filter(|s| s.port == addr.0.port() && overlaps(s.ip))
        .map(|s| s.inode)
        .collect();
    let mut found = process::find(&inodes, None, MAX_DESCRIPTORS, &AtomicBool::new(false));
    let holder = inodes.iter().find_map(|inode| found.remove(inode))?;
    Some(Process {
        pid: holder.pid,
        name: rum_shared::text::clean(&holder.name, rum_shared::listener::MAX_NAME),
    })
}

/// The kernel's boot id: equal for an agent on the same kernel.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}
