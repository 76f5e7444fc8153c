//! Keeps an item of a stream within the frame that a host reads: where very many listen, the last of
//! them come without the details that only people and a few rules ask for.

use crate::listener::{Listener, Process};
use crate::stream::session::Limits;

/// Most bytes of the listeners in one item; the rest of the frame is for what is around them.
const MAX_ITEM: usize = Limits::HOST.frame - 1024 * 1024;
/// The numbers of a listener and the lengths of its lists and texts, at most: variable-length integers.
const FIXED: usize = 64;
/// An address on the wire: up to 39 characters, their number, and two numbers.
const ADDRESS: usize = 48;

/// Takes details away from the last of `listeners`, so that all of them fit into one item.
pub fn fit(listeners: &mut [Listener]) {
    let bare: usize = listeners.iter().map(bare).sum();
    let mut left = MAX_ITEM.saturating_sub(bare);
    for listener in listeners {
        let details = details(listener);
        if details > left {
            strip(listener);
        } else {
            left -= details;
        }
    }
}

/// What a listener takes without details.
fn bare(listener: &Listener) -> usize {
    let name = listener.process.as_ref().map_or(0, |p| p.name.len());
    let reason = listener.unreachable.as_ref().map_or(0, String::len);
    FIXED + ADDRESS * listener.addresses.len() + name + reason
}

fn details(listener: &Listener) -> usize {
    let texts = |p: &Process| p.program.len() + p.script.len() + p.command.len();
    let others = listener.others.iter();
    let others = others.map(|o| FIXED + ADDRESS + o.process.name.len() + texts(&o.process));
    let devices = listener
        .devices
        .iter()
        .map(|device| FIXED + device.name.len());
    listener.process.as_ref().map_or(0, texts) + others.sum::<usize>() + devices.sum::<usize>()
}

fn strip(listener: &mut Listener) {
    listener.others = Vec::new();
    listener.devices = Vec::new();
    if let Some(process) = &mut listener.process {
        *process = Process {
            pid: process.pid,
            name: std::mem::take(&mut process.name),
            ..Process::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::{BoundAddr, Holder, MAX_ADDRESSES, MAX_COMMAND, MAX_NAME};
    use crate::stream::rpc::WatchEvent;

    fn process() -> Process {
        let name = || "x".repeat(MAX_NAME);
        Process {
            pid: u32::MAX,
            name: name(),
            program: name(),
            script: name(),
            command: "x".repeat(MAX_COMMAND),
        }
    }

    fn largest(port: u16, addresses: usize) -> Listener {
        let address = BoundAddr {
            device: u32::MAX,
            ..BoundAddr::new(std::net::Ipv6Addr::from(u128::MAX).into(), false)
        };
        Listener {
            addresses: vec![address; addresses],
            uid: u32::MAX,
            inode: u64::MAX,
            process: Some(process()),
            others: vec![
                Holder {
                    address,
                    process: process(),
                };
                addresses
            ],
            seen_ns: u64::MAX,
            hinted_ns: Some(u64::MAX),
            ..Listener::bare(port)
        }
    }

    fn size(listeners: &[Listener]) -> usize {
        let snapshot = WatchEvent::Snapshot {
            generation: u64::MAX,
            source: "tracepoint".into(),
            listeners: listeners.to_vec(),
        };
        let bytes = facet_postcard::to_vec(&snapshot);
        bytes.expect("it can be written").len()
    }

    #[test]
    fn all_ports_fit_into_one_frame_and_few_keep_everything() {
        let most = |port| largest(port, MAX_ADDRESSES);
        let mut few: Vec<Listener> = (1..=1000).map(most).collect();
        let before = few.clone();
        fit(&mut few);
        assert!(few == before);
        let mut all: Vec<Listener> = (1..=u16::MAX).map(|port| largest(port, 2)).collect();
        fit(&mut all);
        assert!(size(&all) < Limits::HOST.frame);
        let (first, last) = (&all[0], &all[65_534]);
        assert!(!first.others.is_empty() && last.others.is_empty());
        assert_eq!(first.addresses.len(), 2);
        let name = last
            .process
            .as_ref()
            .map(|p| (p.name.len(), p.command.len()));
        assert_eq!(name, Some((MAX_NAME, 0)));
    }
}
