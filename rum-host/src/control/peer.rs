//! Whether a client of the control socket is inside a guest.
//!
//! A guest does not see the runtime directories that its `rum up` knows
//! ([`crate::guest::process`]). But if its caller uses another `$RUM_RUNTIME_DIR`, it may see those
//! of other guests. So programs in a guest may read from this socket, but not stop anything.

use std::fs;

use rum_shared::transport::Stream;

/// Whether the client process is in a PID namespace below ours, or has already ended.
pub fn is_inside(stream: &Stream) -> bool {
    let Stream::Unix(stream) = stream else {
        return false;
    };
    // The pid is 0 if the client is in a PID namespace that is not below ours (unix(7),
    // SO_PEERCRED).
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let Some(pid) = pid.filter(|pid| *pid != 0) else {
        return false;
    };
    match (depth(&pid.to_string()), depth("self")) {
        (Some(peer), Some(own)) => peer > own,
        (peer, _) => peer.is_none(),
    }
}

/// Number of nested PID namespaces that a process is in, counted from that of /proc.
fn depth(process: &str) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let ids = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(ids.split_whitespace().count())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_process_beside_us_is_outside() {
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        assert!(!is_inside(&Stream::Unix(ours)));
        assert_eq!(depth("self"), depth(&std::process::id().to_string()));
        assert_eq!(depth("0"), None);
    }
}
