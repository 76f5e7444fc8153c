//! Clients of a program that accepts nobody for now. When it goes on, it serves every one of them.
//!
//! The program's accept queue is full before the first client comes, so its kernel answers none of rum's
//! dials. A dial without an answer is made again when the device is cut or the agent dies: neither is a
//! reason for a client to be reset.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Instant;

use rum_host::forward::LINK_DEADLINE;

use super::World;
use super::settle::expect_reset;
use crate::chaos::model::{Expected, FIRST, LAST};
use crate::chaos::probe;
use crate::client::host;

/// Clients that wait at once.
const WAITING: usize = 40;

/// A client that waits.
pub(super) struct Waiting {
    stream: TcpStream,
    pub(super) port: u16,
    since: Instant,
    fate: Fate,
}

/// What must become of a client. The worse comes later; nothing gets better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// The program serves it.
    Served,
    /// As before, but a newer listener may have answered the dial: then the next cut resets it.
    Answered,
    /// It is served or reset, and never ends cleanly.
    Either,
    /// It is reset.
    Reset,
}

impl World {
    /// The program behind `port`, or the next one for which nothing has changed since the last quiet
    /// moment, becomes deaf; then clients come.
    pub(super) fn deafen(&mut self, port: u16, count: u16) -> Result<bool, String> {
        let ports = self.model.all(Expected::Forwarded).into_iter();
        let ports = ports.filter(|port| !self.changed.contains(port));
        let lone = |port| Some((port, self.model.lone(port)?));
        let lone: Vec<_> = ports.filter_map(lone).collect();
        let next = lone.iter().find(|(other, _)| *other >= port);
        let Some(&(port, addr)) = next.or(lone.first()) else {
            return Ok(false);
        };
        let count = usize::from(count);
        if self.waiting.len() + count > WAITING {
            return Ok(false);
        }
        self.tell(&format!("deaf {addr}"));
        self.deaf.insert(addr);
        for _ in 0..count {
            match TcpStream::connect(host(port)) {
                Ok(stream) => self.waiting.push(Waiting {
                    stream,
                    port,
                    since: Instant::now(),
                    fate: Fate::Served,
                }),
                // The agent may be away for longer than the grace time.
                Err(_) if self.worst > 0 => break,
                Err(error) => return Err(format!("{port} was forwarded: {error}")),
            }
        }
        Ok(true)
    }

    /// Everybody accepts again.
    pub(super) fn hear(&mut self) {
        for addr in std::mem::take(&mut self.deaf) {
            self.tell(&format!("hear {addr}"));
        }
    }

    /// Something about `port` changes: those who wait there can expect no better than `fate`.
    pub(super) fn change(&mut self, port: u16, fate: Fate) {
        self.changed.insert(port);
        for waiting in self.waiting.iter_mut().filter(|w| w.port == port) {
            waiting.fate = waiting.fate.max(fate);
        }
    }

    /// As [`Self::change`] of all ports.
    pub(super) fn change_all(&mut self, fate: Fate) {
        (FIRST..=LAST).for_each(|port| self.change(port, fate));
    }

    /// Connections through the device are cut; a dial that was answered is not made again.
    pub(super) fn cut_answered(&mut self) {
        let answered = |waiting: &&mut Waiting| waiting.fate == Fate::Answered;
        for waiting in self.waiting.iter_mut().filter(answered) {
            waiting.fate = Fate::Either;
        }
    }

    /// Checks what became of those who waited, through faults or a `calm` time.
    pub(super) fn check_waiting(&mut self, calm: bool) -> Result<(), String> {
        let now = Instant::now();
        for Waiting {
            mut stream,
            port,
            since,
            mut fate,
        } in std::mem::take(&mut self.waiting)
        {
            let waited = now - since;
            // Nobody waits longer for an agent that is away.
            if !calm && waited > LINK_DEADLINE {
                fate = fate.max(Fate::Either);
            }
            if fate == Fate::Reset {
                expect_reset(&mut stream)?;
                self.report.reset += 1;
                continue;
            }
            // The kernel tries again after at most as much time as it has tried (tcp(7)).
            match probe::identify(&mut stream, self.deadline + waited) {
                Ok(seen) if seen == port => self.report.served += 1,
                Ok(seen) => return Err(format!("a client of {port} waited for {seen}")),
                Err(error)
                    if fate == Fate::Either && error.kind() == ErrorKind::ConnectionReset =>
                {
                    self.report.excused += 1;
                }
                Err(error) => {
                    return Err(format!(
                        "a client of {port} that waited {waited:.1?} was not served: {error} ({fate:?})"
                    ));
                }
            }
        }
        Ok(())
    }
}
