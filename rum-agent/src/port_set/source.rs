//! Step 2 of the data flow: where dumps come from, SOCK_DIAG or the /proc fallback.
//!
//! SOCK_DIAG is asked on the spot: a dump takes some 50 us. Reading /proc takes milliseconds
//! and grows with the number of connections, so it happens on a blocking thread; and SOCK_DIAG
//! is tried again now and then, since an agent that starts first in a guest may be there before
//! the kernel module is.

use tracing::{info, warn};

use crate::chain;
use crate::kernel::proc_net::ProcNet;
use crate::kernel::sock_diag::SockDiag;
use crate::kernel::{DumpError, Socket};
use crate::port_set::socket_table::Scope;

/// Confirmations after which other tasks get a turn; each takes a few microseconds.
const CONFIRM_SLICE: usize = 64;

/// Dumps of /proc between two attempts to use SOCK_DIAG after all. Each may make the kernel look
/// for its module, which costs about as much as one of those dumps.
const RETRY_AFTER: u32 = 16;

/// The kinds of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// NETLINK_SOCK_DIAG.
    Netlink,
    /// `/proc/net/tcp` and `/proc/net/tcp6`.
    Proc,
}

impl SourceKind {
    /// The word for `hello` and for the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Netlink => "netlink",
            Self::Proc => "proc",
        }
    }
}

impl std::str::FromStr for SourceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "netlink" => Ok(Self::Netlink),
            "proc" => Ok(Self::Proc),
            _ => Err("write `netlink` or `proc`".into()),
        }
    }
}

/// An open source of dumps.
pub enum Source {
    /// NETLINK_SOCK_DIAG.
    Netlink(SockDiag),
    /// `/proc/net/tcp` and `/proc/net/tcp6`.
    Proc {
        /// Dumps until SOCK_DIAG is tried again; `None` for never.
        retry: Option<u32>,
    },
    /// What a test says.
    #[cfg(test)]
    Fake(fake::FakeKernel),
}

impl Source {
    /// Opens the `forced` source, else netlink, else /proc; the reason for /proc is logged.
    ///
    /// # Errors
    /// Why netlink cannot be used, only where it is forced.
    pub fn open(forced: Option<SourceKind>) -> Result<Self, DumpError> {
        if forced == Some(SourceKind::Proc) {
            return Ok(Self::Proc { retry: None });
        }
        match try_netlink() {
            Ok((diag, _)) => Ok(Self::Netlink(diag)),
            Err(error) if forced.is_some() => Err(error),
            Err(error) => {
                let reason = chain(&error);
                warn!("reading /proc/net/tcp, since SOCK_DIAG cannot be used: {reason}");
                Ok(Self::Proc {
                    retry: Some(RETRY_AFTER),
                })
            }
        }
    }

    /// Which it is.
    pub fn kind(&self) -> SourceKind {
        match self {
            Self::Netlink(_) => SourceKind::Netlink,
            Self::Proc { .. } => SourceKind::Proc,
            #[cfg(test)]
            Self::Fake(_) => SourceKind::Netlink,
        }
    }

    /// The listening sockets of the namespace, all of `scope` and perhaps others.
    ///
    /// # Errors
    /// [`DumpError`]: nothing is known then, least of all that nothing listens.
    pub async fn dump(&mut self, scope: &Scope) -> Result<Vec<Socket>, DumpError> {
        match self {
            Self::Netlink(diag) => match scope {
                Scope::All => diag.dump(),
                Scope::Ports(ports) => diag.dump_ports(ports),
            },
            Self::Proc { retry } => {
                let Some(left) = retry else {
                    return read_proc().await;
                };
                *left = left.checked_sub(1).unwrap_or(RETRY_AFTER);
                if *left == 0
                    && let Ok((diag, sockets)) = try_netlink()
                {
                    info!("SOCK_DIAG can be used now");
                    *self = Self::Netlink(diag);
                    return Ok(sockets);
                }
                read_proc().await
            }
            #[cfg(test)]
            Self::Fake(fake) => fake.dump(scope),
        }
    }

    /// What a connection to `port` would reach at the loopback addresses and at that of `known`, at a
    /// cost that does not grow; `None` where only a dump can tell.
    ///
    /// # Errors
    /// [`DumpError`]: it is not known what.
    pub fn look_up(
        &mut self,
        port: u16,
        known: Option<&Socket>,
    ) -> Result<Option<Vec<Socket>>, DumpError> {
        match self {
            Self::Netlink(diag) => diag.look_up(port, known).map(Some),
            Self::Proc { .. } => Ok(None),
            #[cfg(test)]
            Self::Fake(fake) => fake.look_up(port, known).map(Some),
        }
    }

    /// Those of `missing`, which a dump did not show, that listen all the same. SOCK_DIAG is
    /// asked about each; /proc is read a second time.
    ///
    /// # Errors
    /// [`DumpError`]: it is not known which.
    pub async fn confirm(&mut self, missing: Vec<Socket>) -> Result<Vec<Socket>, DumpError> {
        if missing.is_empty() {
            return Ok(missing);
        }
        let mut alive = Vec::new();
        let second = match self {
            Self::Proc { .. } => read_proc().await?,
            _ => Vec::new(),
        };
        for (i, socket) in missing.into_iter().enumerate() {
            if i % CONFIRM_SLICE == CONFIRM_SLICE - 1 {
                tokio::task::yield_now().await;
            }
            let exists = match self {
                Self::Netlink(diag) => diag.exists(&socket)?,
                Self::Proc { .. } => second
                    .iter()
                    .any(|s| (s.port, s.ip) == (socket.port, socket.ip)),
                #[cfg(test)]
                Self::Fake(fake) => fake.exists(&socket)?,
            };
            if exists {
                alive.push(socket);
            }
        }
        Ok(alive)
    }
}

/// SOCK_DIAG and its first dump: only an answer proves that the kernel knows the family.
fn try_netlink() -> Result<(SockDiag, Vec<Socket>), DumpError> {
    let mut diag = SockDiag::open()?;
    let sockets = diag.dump()?;
    Ok((diag, sockets))
}

async fn read_proc() -> Result<Vec<Socket>, DumpError> {
    let dump = crate::blocking::run(|| ProcNet::new().dump()).await;
    dump.unwrap_or_else(|source| {
        Err(DumpError::Io {
            what: "read /proc/net/tcp",
            source,
        })
    })
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod fake {
    //! A kernel that does what a test says.

    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Debug, Default)]
    pub struct State {
        /// What truly listens.
        pub sockets: Vec<Socket>,
        /// How many of the next dumps show nothing of `hidden`.
        pub hide: u32,
        /// Ports that those dumps do not show.
        pub hidden: Vec<u16>,
        /// How many of the next dumps fail.
        pub fail: u32,
        /// How long the next dump takes, as if the process were stopped on its way.
        pub stopped: std::time::Duration,
        /// Dumps so far, and those of them that were of some ports.
        pub dumps: u32,
        pub scoped: u32,
    }

    #[derive(Debug, Default, Clone)]
    pub struct FakeKernel(Arc<Mutex<State>>);

    impl FakeKernel {
        pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
            f(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()))
        }

        pub fn dump(&self, scope: &Scope) -> Result<Vec<Socket>, DumpError> {
            self.with(|state| {
                std::thread::sleep(std::mem::take(&mut state.stopped));
                state.dumps += 1;
                state.scoped += u32::from(*scope != Scope::All);
                if let Some(left) = state.fail.checked_sub(1) {
                    state.fail = left;
                    return Err(DumpError::Interrupted);
                }
                let mut dump = state.sockets.clone();
                dump.retain(|s| scope.covers(s.port));
                if let Some(left) = state.hide.checked_sub(1) {
                    state.hide = left;
                    dump.retain(|s| !state.hidden.contains(&s.port));
                }
                Ok(dump)
            })
        }

        pub fn look_up(&self, port: u16, known: Option<&Socket>) -> Result<Vec<Socket>, DumpError> {
            let mut all = self.dump(&Scope::Ports([port].into()))?;
            self.with(|state| {
                state.scoped -= 1;
                state.dumps -= 1;
            });
            let reached = |s: &Socket| s.ip.is_loopback() || known.is_some_and(|k| k.ip == s.ip);
            all.retain(reached);
            // One of several twins.
            all.dedup_by_key(|s| s.ip);
            Ok(all)
        }

        pub fn exists(&self, socket: &Socket) -> Result<bool, DumpError> {
            self.with(|state| {
                let same = |s: &Socket| (s.port, s.ip) == (socket.port, socket.ip);
                Ok(state.sockets.iter().any(same))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_fallback_is_left_when_netlink_answers_and_a_choice_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut fallen = Source::Proc { retry: Some(2) };
        let mut chosen = Source::open(Some(SourceKind::Proc)).unwrap();
        for expected in [SourceKind::Proc, SourceKind::Netlink, SourceKind::Netlink] {
            for (source, kind) in [(&mut fallen, expected), (&mut chosen, SourceKind::Proc)] {
                let dump = source.dump(&Scope::All).await.unwrap();
                assert!(dump.iter().any(|s| s.port == port));
                assert_eq!(source.kind(), kind);
            }
        }
    }
}
