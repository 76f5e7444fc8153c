//! Step 1, the top rung: the kernel wakes us when a socket enters or leaves LISTEN.
//!
//! The tracepoint `sock:inet_sock_set_state` is opened once for each CPU through
//! perf_event_open(2), with a filter that the kernel applies: LISTEN on one side of the change,
//! TCP or MPTCP, and the ports of interest. Port 0 passes as well, since listen() without bind()
//! chooses its port only after the event. The event needs CAP_PERFMON (or CAP_SYS_ADMIN, which is
//! taken up for the moment of opening alone: [`super::privilege`]), and tracefs once at the start
//! ([`super::tracefs`]).
//!
//! What an event means: look now, and look again shortly. It fires before the socket is in the
//! kernel's table, so the first dump can miss it; it fires for every network namespace of the
//! machine, and on the way of whoever calls listen(): so the threads of a host that shares our kernel,
//! which binds each port that we tell of, are left out by name. CPUs that come online later are not
//! watched.
//!
//! Invariants: a hint carries no fact; whatever was dropped or cannot be read becomes
//! [`Hint::Lost`]; waiting is cancel-safe, and no wake-up is lost, since readiness is cleared
//! before the rings are read.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::str::FromStr;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::perf_ring::{PerfRing, Record, records};
use super::privilege;
use super::tracefs::{self, Event, TracefsError};
use super::{TCP_CLOSE, TCP_LISTEN};

/// CPUs beyond this number are not watched; it bounds what a strange file makes us open.
const MAX_CPUS: u32 = 4096;

/// The name of threads (`/proc/PID/task/TID/comm`): 1 to 15 letters, digits, `-` and `_`, fewer than
/// the kernel takes (TASK_COMM_LEN, include/linux/sched.h), but all that a filter can quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadName(String);

impl FromStr for ThreadName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        match text.len() {
            1..16 if text.chars().all(plain) => Ok(Self(text.to_owned())),
            _ => Err("write 1 to 15 letters, digits, `-` or `_`"),
        }
    }
}

/// Something may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// A socket enters LISTEN; the first dump may come too early to show it.
    Listen {
        /// Its port; 0 when the kernel is yet to choose one.
        port: u16,
        /// The process, 0 when our pid namespace does not have it.
        pid: u32,
        /// When, in nanoseconds on CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// A socket left LISTEN.
    Unlisten {
        /// Its port.
        port: u16,
    },
    /// Hints were lost.
    Lost,
}

/// Why the tracepoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TracepointError {
    /// Its description cannot be had.
    #[error(transparent)]
    Description(#[from] TracefsError),
    /// perf_event_open(2) or what belongs to it failed.
    #[error("the event sock:inet_sock_set_state cannot be opened on CPU {cpu}")]
    Refused {
        /// The CPU.
        cpu: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no CPU to watch.
    #[error("no CPU is online as far as /sys tells")]
    NoCpu,
}

impl TracepointError {
    /// What would help, for a `hint:` line.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Description(error) => error.hint(),
            Self::Refused { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(
                    "give the agent CAP_PERFMON, outside of any user namespace; kernels with \
                 kernel.perf_event_paranoid above 2 want CAP_SYS_ADMIN",
                )
            }
            _ => None,
        }
    }
}

/// The stream of hints.
#[derive(Debug)]
pub struct Tracepoint {
    event: Event,
    except: Option<ThreadName>,
    rings: Vec<AsyncFd<PerfRing>>,
    pending: VecDeque<Hint>,
    scratch: Vec<u8>,
}

impl Tracepoint {
    /// Opens the tracepoint, for all ports, and for all threads except those of one name. Must be
    /// called inside a tokio runtime.
    ///
    /// # Errors
    /// [`TracepointError`], which says why and what would help.
    pub fn open(except: Option<ThreadName>) -> Result<Self, TracepointError> {
        let event = tracefs::find()?;
        let rings = open_rings(event.id, &filter(&event, 1, u16::MAX, except.as_ref()))?;
        Ok(Self {
            event,
            except,
            rings,
            pending: VecDeque::new(),
            scratch: Vec::new(),
        })
    }

    /// Lets only changes of the ports from `min` to `max` through, from now on, and those
    /// whose port is yet unknown. None is lost in between.
    ///
    /// # Errors
    /// What the system calls say; then everything is as before.
    pub fn set_range(&mut self, min: u16, max: u16) -> io::Result<()> {
        // A perf event's filter can be set only once (EEXIST), so new events take over.
        let filter = filter(&self.event, min, max, self.except.as_ref());
        let rings = open_rings(self.event.id, &filter).map_err(|error| match error {
            TracepointError::Refused { source, .. } => source,
            other => io::Error::other(other),
        })?;
        self.drain();
        self.rings = rings;
        Ok(())
    }

    /// Waits for the next hint. Cancel-safe.
    pub async fn next(&mut self) -> Hint {
        loop {
            if let Some(hint) = self.try_next() {
                return hint;
            }
            poll_fn(|cx| self.poll_ready(cx)).await;
        }
    }

    /// The next hint that is there already.
    pub fn try_next(&mut self) -> Option<Hint> {
        if self.pending.is_empty() {
            self.drain();
        }
        self.pending.pop_front()
    }

    /// Ready when a ring has been written to since it was last asked.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut ready = false;
        for ring in &self.rings {
            // Pending has registered the waker. An error means that the runtime is going
            // down, and this task with it.
            if let Poll::Ready(Ok(mut guard)) = ring.poll_read_ready(cx) {
                // Cleared first, read afterwards: a record that comes after the read makes
                // the descriptor ready again.
                guard.clear_ready();
                ready = true;
            }
        }
        if ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Moves the records of all rings to the pending hints.
    fn drain(&mut self) {
        for ring in &mut self.rings {
            self.scratch.clear();
            let complete = ring.get_mut().drain(&mut self.scratch);
            self.pending
                .extend(records(&self.scratch).filter_map(|record| hint(&self.event, record)));
            if !complete {
                self.pending.push_back(Hint::Lost);
            }
        }
    }
}

/// What a record says, if anything.
pub fn hint(event: &Event, record: Record<'_>) -> Option<Hint> {
    let Record::Sample { pid, at_ns, raw } = record else {
        return Some(Hint::Lost);
    };
    let state = |offset: usize| {
        let bytes = raw.get(offset..)?.first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let (Some(old), Some(new), Some(port)) = (
        state(event.old_state),
        state(event.new_state),
        raw.get(event.sport..)
            .and_then(|rest| rest.first_chunk::<2>()),
    ) else {
        return Some(Hint::Lost);
    };
    let port = u16::from_ne_bytes(*port);
    if new == u32::from(TCP_LISTEN) {
        Some(Hint::Listen { port, pid, at_ns })
    } else if old == u32::from(TCP_LISTEN) && new == u32::from(TCP_CLOSE) {
        Some(Hint::Unlisten { port })
    } else {
        None
    }
}

/// The filter for the kernel. A listener leaves LISTEN for CLOSE. A connection that comes in begins as
/// a copy of its listener and leaves LISTEN for SYN_RECV (net/ipv4/inet_connection_sock.c,
/// `inet_csk_clone_lock`), with MPTCP for ESTABLISHED; a busy server must not wake us.
pub fn filter(event: &Event, min: u16, max: u16, except: Option<&ThreadName>) -> String {
    let mptcp = if event.protocol_size > 1 {
        "||protocol==262"
    } else {
        ""
    };
    let others = match except {
        Some(ThreadName(name)) => format!("&&comm!=\"{name}\""),
        None => String::new(),
    };
    format!(
        "(newstate=={TCP_LISTEN}||(oldstate=={TCP_LISTEN}&&newstate=={TCP_CLOSE}))\
         &&(protocol==6{mptcp})\
         &&(sport==0||(sport>={min}&&sport<={max})){others}"
    )
}

/// One ring for each CPU that is online.
fn open_rings(event: u64, filter: &str) -> Result<Vec<AsyncFd<PerfRing>>, TracepointError> {
    let filter = CString::new(filter).expect("the filter has no zero byte");
    let mut rings = Vec::new();
    for cpu in online_cpus() {
        let ring = privilege::open(|| PerfRing::open(event, cpu, &filter)).and_then(|ring| {
            // SAFETY: the ring owns its descriptor, always names the same one, and closes it
            // only when it is dropped.
            Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
        });
        match ring {
            Ok(ring) => rings.push(ring),
            // Went offline meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(source) => return Err(TracepointError::Refused { cpu, source }),
        }
    }
    if rings.is_empty() {
        return Err(TracepointError::NoCpu);
    }
    Ok(rings)
}

/// The CPUs that are online; without /sys, as many as we may run on, counted from 0.
fn online_cpus() -> Vec<u32> {
    let listed = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let cpus = parse_cpus(&listed);
    if !cpus.is_empty() {
        return cpus;
    }
    let count = std::thread::available_parallelism().map_or(1, |n| n.get());
    (0..MAX_CPUS).take(count).collect()
}

/// A list such as `0-3,8` (Documentation/admin-guide/cputopology.rst). What cannot be read is
/// left out.
fn parse_cpus(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse::<u32>().ok()?.min(MAX_CPUS - 1))
    };
    let mut cpus: Vec<u32> = text
        .split(',')
        .filter_map(range)
        .take(MAX_CPUS as usize)
        .flatten()
        .collect();
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

#[cfg(test)]
mod tests;
