//! The reasons for a port's state, in words.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

use rum_shared::bytes::channel::DialStatus;
use rum_shared::listener::{BoundAddr, Holder, Listener, Process};

use super::publisher;
use crate::forward::bind_failure::BindFailure;
use crate::forward::{Refusal, Stats};
use crate::plan::{Destination, GuestPort, HostAddr};
use crate::reason::ReasonCode;
use crate::status::model::{OtherHolder, ProcessName, Reason};

/// Why `at` is not bound.
pub fn not_bound(at: HostAddr, why: &BindFailure, hint: Option<&str>) -> Reason {
    Reason {
        holder: why.holder().map(|holder| ProcessName {
            pid: holder.pid,
            name: holder.name.clone(),
        }),
        ..reason(why.code(), why.message(at), hint)
    }
}

pub(super) fn reason(code: ReasonCode, message: impl Into<String>, hint: Option<&str>) -> Reason {
    Reason {
        code: code.as_str().to_owned(),
        message: message.into(),
        hint: hint.map(str::to_owned),
        holder: None,
    }
}

/// The address of `listener`, as `ss` prints it.
pub(super) fn address(listener: &Listener, addr: &BoundAddr) -> String {
    let ip = match addr.ip {
        IpAddr::V6(ip) if ip.is_unspecified() && addr.dual_stack => "*".to_owned(),
        ip => ip.to_string(),
    };
    let known = listener.devices.iter().find(|d| d.index == addr.device);
    match known {
        Some(device) if !device.name.is_empty() => format!("{ip}%{}", device.name),
        _ if addr.device != 0 => format!("{ip}%{}", addr.device),
        _ => ip,
    }
}

/// The worst problem that clients of the port have. `listens`: whether a program listens on it.
pub(super) fn trouble(
    guest: Destination,
    stats: &Stats,
    listens: bool,
    lacks: Option<(HostAddr, &BindFailure)>,
) -> Option<Reason> {
    let count = |n: u64, what: &str| match n {
        1 => format!("1 connection {what}"),
        n => format!("{n} connections {what}"),
    };
    if stats.exhausted.load(Relaxed) {
        let message = "connections wait: rum has no file descriptors or memory left";
        let hint = "close some connections, or start rum with a higher `ulimit -n`";
        return Some(reason(ReasonCode::Exhausted, message, Some(hint)));
    }
    let unserved = stats.unserved.load(Relaxed);
    if unserved > 0 {
        let message = count(unserved.into(), "waiting: the agent has no room for more");
        let hint = "close some connections, or give the agent more file descriptors";
        return Some(reason(ReasonCode::AgentExhausted, message, Some(hint)));
    }
    let slow = stats.slow.load(Relaxed);
    if slow > 0 {
        let message = count(
            slow.into(),
            "waiting: the program in the guest does not accept them",
        );
        let hint = "look whether it is stopped or busy, or whether the guest's firewall drops them";
        return Some(reason(ReasonCode::NotAccepted, message, Some(hint)));
    }
    if let Some((at, why)) = lacks {
        let hint = match why {
            BindFailure::Taken { .. } => {
                Some("free it; until then clients that use this address do not reach the guest")
            }
            other => other.hint(),
        };
        return Some(not_bound(at, why, hint));
    }
    let refusal = stats.last_refusal()?;
    let refused = count(stats.refused.load(Relaxed), "reset");
    let why = match refusal {
        Refusal::Agent(DialStatus::Refused) if listens => {
            "the guest refused it, though a program listens: its firewall may reject connections"
        }
        refusal => refusal.words(guest),
    };
    let message = format!("{refused}, the last one because {why}");
    Some(reason(ReasonCode::Refused, message, None))
}

pub(super) fn named(process: &Process) -> ProcessName {
    ProcessName {
        pid: process.pid,
        name: publisher::name(process),
    }
}

/// The other processes that listen on the port of `listener`.
pub(super) fn other_holders(listener: &Listener) -> Vec<OtherHolder> {
    let others = listener.others.iter();
    let others = others.map(|other| OtherHolder {
        address: address(listener, &other.address),
        process: named(&other.process),
    });
    others.collect()
}

/// Reports that several programs listen on the port of `listener`, and which one clients reach.
pub(super) fn several_programs(listener: &Listener) -> Option<Reason> {
    let reached = listener.process.as_ref();
    let is_another = |other: &&Holder| {
        !reached.is_some_and(|reached| publisher::same_container(reached, &other.process))
    };
    let mut others = listener.others.iter().filter(is_another);
    let first = others.next()?;
    let of = |process: &Process| format!("{} (pid {})", publisher::name(process), process.pid);
    let reached = match reached {
        Some(process) => of(process),
        None => "another process".to_owned(),
    };
    let more = match others.count() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let message = format!(
        "{reached} is reached; {} listens on the same port at {}{more}",
        of(&first.process),
        address(listener, &first.address)
    );
    let hint = "give one of them another port";
    Some(reason(ReasonCode::SeveralPrograms, message, Some(hint)))
}

pub(super) fn unreachable(port: GuestPort, why: &str) -> Reason {
    let message = format!("nothing can connect to guest port {port}: {why}");
    let hint = "have its program listen on 127.0.0.1, 0.0.0.0 or an address that the guest has";
    reason(ReasonCode::Unreachable, message, Some(hint))
}
