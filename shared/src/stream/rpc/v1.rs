//! What `watch_ports` streams: the items of agents and hosts that do not know `watch_listeners`.
//!
//! Roam derives the id of a method from the names and types of all fields that its arguments have, so
//! nothing here may ever change: a test holds the id.

use std::net::IpAddr;

use facet::Facet;

use crate::listener;

/// An address that a listener is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Facet)]
#[allow(missing_docs)]
pub struct BoundAddr {
    pub ip: IpAddr,
    pub dual_stack: bool,
}

/// The process that holds a listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[allow(missing_docs)]
pub struct Process {
    pub pid: u32,
    pub name: String,
}

/// One port that something in the guest listens on.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[allow(missing_docs)]
pub struct Listener {
    pub port: u16,
    pub addresses: Vec<BoundAddr>,
    pub uid: u32,
    pub inode: u64,
    pub process: Option<Process>,
    pub seen_ns: u64,
    pub hinted_ns: Option<u64>,
}

/// One item of a `watch_ports` stream; as [`super::WatchEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum WatchEvent {
    Snapshot {
        generation: u64,
        source: String,
        listeners: Vec<Listener>,
    },
    Delta {
        generation: u64,
        opened: Vec<Listener>,
        changed: Vec<Listener>,
        closed: Vec<u16>,
    },
    Heartbeat {
        generation: u64,
    },
}

impl From<listener::Listener> for Listener {
    fn from(new: listener::Listener) -> Self {
        let addresses = new.addresses.into_iter().map(|bound| BoundAddr {
            ip: bound.ip,
            dual_stack: bound.dual_stack,
        });
        Self {
            port: new.port,
            addresses: addresses.collect(),
            uid: new.uid,
            inode: new.inode,
            process: new.process.map(|process| Process {
                pid: process.pid,
                name: process.name,
            }),
            seen_ns: new.seen_ns,
            hinted_ns: new.hinted_ns,
        }
    }
}

impl From<&Listener> for listener::Listener {
    fn from(old: &Listener) -> Self {
        let addresses = old.addresses.iter();
        let addresses = addresses.map(|old| listener::BoundAddr::new(old.ip, old.dual_stack));
        Self {
            addresses: addresses.collect(),
            uid: old.uid,
            inode: old.inode,
            process: old.process.as_ref().map(|process| listener::Process {
                pid: process.pid,
                name: process.name.clone(),
                ..listener::Process::default()
            }),
            seen_ns: old.seen_ns,
            hinted_ns: old.hinted_ns,
            ..Self::bare(old.port)
        }
    }
}

impl From<super::WatchEvent> for WatchEvent {
    fn from(new: super::WatchEvent) -> Self {
        let all = |list: Vec<listener::Listener>| list.into_iter().map(Listener::from).collect();
        match new {
            super::WatchEvent::Snapshot {
                generation,
                source,
                listeners,
            } => Self::Snapshot {
                generation,
                source,
                listeners: all(listeners),
            },
            super::WatchEvent::Delta {
                generation,
                opened,
                changed,
                closed,
            } => Self::Delta {
                generation,
                opened: all(opened),
                changed: all(changed),
                closed,
            },
            super::WatchEvent::Heartbeat { generation } => Self::Heartbeat { generation },
        }
    }
}

impl From<&WatchEvent> for super::WatchEvent {
    fn from(old: &WatchEvent) -> Self {
        let all = |list: &[Listener]| list.iter().map(listener::Listener::from).collect();
        match old {
            WatchEvent::Snapshot {
                generation,
                source,
                listeners,
            } => Self::Snapshot {
                generation: *generation,
                source: source.clone(),
                listeners: all(listeners),
            },
            WatchEvent::Delta {
                generation,
                opened,
                changed,
                closed,
            } => Self::Delta {
                generation: *generation,
                opened: all(opened),
                changed: all(changed),
                closed: closed.clone(),
            },
            WatchEvent::Heartbeat { generation } => Self::Heartbeat {
                generation: *generation,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    /// By this number an agent of any version finds the method.
    #[test]
    fn the_method_is_the_one_that_all_know() {
        let service = crate::stream::rpc::rum_agent_service_descriptor();
        let methods = service.methods.iter();
        let mut named = methods.filter(|method| method.method_name == "watch_ports");
        let id = named.next().map(|method| method.id.0);
        assert_eq!(id, Some(365_640_869_260_663_006));
    }
}
