//! Why a quiet moment came when it did: what was wrong until then, what the processes said, and how
//! long they waited for a processor.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::probe;
use crate::rum::Lines;

/// Most lines of a trace: a storm says a lot.
const LINES: usize = 400;

/// A process that speaks, alive or not.
pub struct Voice {
    /// Which.
    pub name: &'static str,
    /// What it says on stderr.
    pub lines: Lines,
}

/// What is wrong, as it changes.
#[derive(Debug)]
pub struct Trace {
    began: Instant,
    seen: Vec<(Instant, String)>,
}

impl Trace {
    /// Begins now.
    pub fn begin() -> Self {
        Self {
            began: Instant::now(),
            seen: vec![],
        }
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Something is wrong now.
    pub fn wrong(&mut self, what: &str) {
        if self.seen.last().is_none_or(|(_, last)| last != what) {
            self.seen.push((Instant::now(), what.to_owned()));
        }
    }

    /// What was wrong and what was said since `from`, in order, with seconds since this began.
    pub fn tell(&self, from: Instant, voices: &[Voice]) -> String {
        let mut all: Vec<(Instant, &str, String)> = vec![];
        let wrong = self.seen.iter().cloned();
        all.extend(wrong.map(|(at, what)| (at, "seen", what)));
        for voice in voices {
            let lines = voice.lines.since(from).into_iter();
            all.extend(lines.map(|(at, line)| (at, voice.name, line)));
        }
        all.sort_by_key(|(at, ..)| *at);
        let mut lines: Vec<(String, usize, Instant)> = vec![];
        for (at, who, what) in all {
            let line = format!("{who:<5} {}", without_time(&what));
            match lines.last_mut() {
                Some((last, times, _)) if *last == line => *times += 1,
                _ => lines.push((line, 1, at)),
            }
        }
        let skipped = lines.len().saturating_sub(LINES);
        let mut text = String::new();
        for (line, times, at) in lines.drain(skipped..) {
            let after = at.saturating_duration_since(self.began).as_secs_f64();
            let before = self.began.saturating_duration_since(at).as_secs_f64();
            let times = match times {
                1 => String::new(),
                more => format!(" ({more} times)"),
            };
            // Nothing can go wrong with a String.
            let _ = writeln!(text, "  {:9.3} {line}{times}", after - before);
        }
        text
    }
}

/// A log line without its time, which is that of another clock.
fn without_time(line: &str) -> &str {
    match line.split_once(' ') {
        Some((time, rest)) if time.len() == "2026-11-24T04:14:16.572026Z".len() => {
            rest.trim_start()
        }
        _ => line,
    }
}

/// How long threads have waited for a processor so far (/proc/PID/schedstat,
/// Documentation/scheduler/sched-stats.rst), by process and thread.
#[derive(Debug)]
pub struct Delays(BTreeMap<u32, BTreeMap<OsString, u64>>);

impl Delays {
    /// Of `pids`, the processes below them, and the calling thread.
    pub fn now(pids: &[u32]) -> Self {
        let mut all = BTreeMap::new();
        all.insert(
            0,
            [(OsString::new(), run_delay("/proc/thread-self".as_ref()))].into(),
        );
        for pid in pids {
            for pid in [*pid].into_iter().chain(probe::below(*pid)) {
                let tasks = fs::read_dir(format!("/proc/{pid}/task"));
                let tasks = tasks.into_iter().flatten().flatten();
                let delays = tasks.map(|task| (task.file_name(), run_delay(&task.path())));
                all.insert(pid, delays.collect());
            }
        }
        Self(all)
    }

    /// By how much what happened from `before` to now may have come later: what one thread of each
    /// process waited, the one that waited longest. Its other threads wait at the same time, or for
    /// something else.
    pub fn since(&self, before: &Self) -> Duration {
        let longest = |(pid, threads): (&u32, &BTreeMap<OsString, u64>)| {
            let before = before.0.get(pid);
            let waited = threads.iter().map(|(thread, nanos)| {
                let before = before.and_then(|threads| threads.get(thread));
                nanos.saturating_sub(before.copied().unwrap_or(0))
            });
            waited.max().unwrap_or(0)
        };
        Duration::from_nanos(self.0.iter().map(longest).sum())
    }
}

/// 0 for what is gone.
fn run_delay(task: &Path) -> u64 {
    let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let mut words = text.split_whitespace();
    words.nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}
