//! What processes use: processor time, wake-ups, memory.

use std::fs;
use std::time::{Duration, Instant};

use nix::time::{clock_getcpuclockid, clock_gettime};
use rum_tests::rum::{agent_below, below};
use rum_tests::wait::until;

/// The processes of a `rum up` with a namespace guest.
#[derive(Debug, Clone, Copy)]
pub struct Processes {
    /// `rum up`.
    pub host: u32,
    /// `rum-agent`.
    pub agent: u32,
    /// The guest's PID 1, which answers seccomp notifications.
    pub init: u32,
}

/// What each of them used during some time.
#[derive(Debug)]
pub struct Used {
    /// Host, agent, init.
    pub each: [Usage; 3],
    /// How long that was.
    pub time: Duration,
}

/// What one process used, all its threads together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// On a processor, in nanoseconds.
    pub ns: u64,
    /// Voluntary context switches of the threads that live (proc(5), status): how often it slept, and so
    /// was woken.
    pub wakes: u64,
}

impl Processes {
    /// The names of them, in order.
    pub const NAMES: [&str; 3] = ["host", "agent", "init"];

    /// Of the `rum up` with this process id.
    pub fn of(host: u32) -> Self {
        Self {
            host,
            agent: until("an agent below rum", || agent_below(host)),
            init: until("init below rum", || below(host, "__rum-init")),
        }
    }

    fn usage(self) -> [Usage; 3] {
        [self.host, self.agent, self.init].map(usage)
    }

    /// What they use while `work` is done.
    pub fn during(self, work: impl FnOnce()) -> Used {
        let (start, before) = (Instant::now(), self.usage());
        work();
        let (time, after) = (start.elapsed(), self.usage());
        let each = std::array::from_fn(|i| Usage {
            ns: after[i].ns.saturating_sub(before[i].ns),
            wakes: after[i].wakes.saturating_sub(before[i].wakes),
        });
        Used { each, time }
    }
}

impl Used {
    /// Of process number `i`, in percent of one processor.
    pub fn percent(&self, i: usize) -> f64 {
        self.each[i].ns as f64 / self.time.as_nanos() as f64 * 100.0
    }

    /// Of process number `i`.
    pub fn wakes_a_minute(&self, i: usize) -> f64 {
        self.each[i].wakes as f64 / self.time.as_secs_f64() * 60.0
    }
}

/// Nothing, of a process that is gone.
fn usage(pid: u32) -> Usage {
    let mut sum = Usage {
        ns: processor_time(pid),
        wakes: 0,
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let switches = status
            .lines()
            .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        sum.wakes += switches.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    }
    sum
}

/// What a process has been on a processor so far, in nanoseconds, by the threads too that have ended
/// (clock_getcpuclockid(3)); 0 when it is gone.
pub fn processor_time(pid: u32) -> u64 {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    let time = clock_getcpuclockid(pid).and_then(clock_gettime);
    time.map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// Resident set in bytes (proc(5), status VmRSS).
pub fn resident(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kb = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    kb.unwrap_or(f64::NAN) * 1024.0
}
