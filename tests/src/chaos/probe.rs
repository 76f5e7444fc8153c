//! Looks from outside: nothing here asks rum's own state but by its command line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;

use super::model::{Expected, FIRST, LAST, Model};
use crate::client::host;
use crate::rum::Setup;

/// Time for a guest program to say who it is, before the connection is given up and another one is
/// tried.
const PATIENCE: Duration = Duration::from_secs(1);
/// TIME_WAIT (include/net/tcp_states.h): no socket of any process.
const TIME_WAIT: &str = "06";
/// FIN_WAIT2. Without a process (inode 0) it is kept as TIME_WAIT is, for a minute: a reset of the
/// other side's can be lost while the kernel makes the one into the other (tcp_time_wait).
const FIN_WAIT2: &str = "05";

/// What is not as the model says, if anything; `from` is where to look first, and becomes that port.
pub fn mismatch(model: &Model, from: &mut u16) -> Option<String> {
    for port in (*from..=LAST).chain(FIRST..*from) {
        if let Err(what) = look(port, model.expected(port)) {
            *from = port;
            return Some(what);
        }
    }
    None
}

fn look(port: u16, expected: Expected) -> Result<(), String> {
    if matches!(expected, Expected::Conflict | Expected::Taken) {
        return Ok(());
    }
    let seen = match (TcpStream::connect(host(port)), expected) {
        (Err(error), Expected::Closed) if error.kind() == ErrorKind::ConnectionRefused => {
            return Ok(());
        }
        (Err(error), _) => error.to_string(),
        (Ok(_), Expected::Closed) => "a connection".to_owned(),
        (Ok(mut stream), _) => match identify(&mut stream, PATIENCE) {
            Ok(seen) if seen == port => return Ok(()),
            Ok(other) => format!("port {other} of the guest"),
            Err(error) => error.to_string(),
        },
    };
    Err(format!("{expected:?} is expected of port {port}: {seen}"))
}

/// Which port of the guest a new connection leads to.
///
/// # Errors
/// The connection's.
pub fn identify(stream: &mut TcpStream, patience: Duration) -> std::io::Result<u16> {
    let mut port = [0; 2];
    stream.set_read_timeout(Some(patience))?;
    stream.read_exact(&mut port)?;
    Ok(u16::from_be_bytes(port))
}

/// What `rum ports --json` says differently from the model, if anything.
pub fn told_otherwise(setup: &Setup, model: &Model) -> Option<String> {
    let output = match setup.rum(["ports", "--json"]).output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => return Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => return Some(error.to_string()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let told: serde_json::Value = match serde_json::from_str(&text) {
        Ok(told) => told,
        Err(error) => return Some(format!("{error}: {text}")),
    };
    let mut states: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
    for port in told["ports"].as_array().into_iter().flatten() {
        let number = port["port"].as_u64().and_then(|n| u16::try_from(n).ok());
        let state = port["state"].as_str();
        if let (Some(number), Some(state)) = (number, state) {
            states.entry(state).or_default().insert(number);
        }
    }
    for (state, expected) in [
        ("forwarded", model.all(Expected::Forwarded)),
        ("conflict", model.all(Expected::Conflict)),
        ("lost", BTreeSet::new()),
        ("pending", BTreeSet::new()),
    ] {
        let told = states.remove(state).unwrap_or_default();
        if told != expected {
            return Some(format!("{state}: {told:?} instead of {expected:?}"));
        }
    }
    None
}

/// What a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Descriptors of sockets.
    pub sockets: usize,
    /// Other descriptors.
    pub others: usize,
    /// Threads.
    pub threads: usize,
    /// Processes below it.
    pub processes: usize,
}

/// What the process has now; all 0 when it is gone.
pub fn counts(pid: u32) -> Counts {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
    let links = descriptors.into_iter().flatten().flatten();
    let links = links.filter_map(|entry| fs::read_link(entry.path()).ok());
    let (sockets, others): (Vec<_>, Vec<_>) =
        links.partition(|link| link.to_string_lossy().starts_with("socket:"));
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    Counts {
        sockets: sockets.len(),
        others: others.len(),
        threads: threads.map_or(0, Iterator::count),
        processes: below(pid).len(),
    }
}

/// The processes below `pid`.
pub fn below(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        next += 1;
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        let mut children = vec![];
        for task in tasks.into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.extend(
                text.split_whitespace()
                    .filter_map(|p| p.parse::<u32>().ok()),
            );
        }
        all.extend(children);
    }
    all.split_off(1)
}

/// The TCP sockets of a network namespace, whose `net` directory in /proc this is: those that a
/// process has, or that still have something to say.
pub fn sockets(net: &str) -> Vec<String> {
    let mut all = vec![];
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("{net}/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, local, remote, state, _, _, _, _, _, inode, ..] = words[..]
                && state != TIME_WAIT
                && (state, inode) != (FIN_WAIT2, "0")
            {
                all.push(format!("{local}-{remote} in state {state}"));
            }
        }
    }
    all
}

/// Resident memory in KiB.
pub fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// One above the highest descriptor.
pub fn descriptors(pid: u32) -> u64 {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let names = entries.into_iter().flatten().flatten();
    let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    numbers.max().map_or(0, |highest| highest + 1)
}
