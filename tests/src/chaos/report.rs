//! What a run came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rum_host::stream::client::POLL_PERIOD;

/// In how much time the world is to be as the model says: a second, and a period of the poll for
/// what no hint told. Without what the threads that have to do it wait for a processor.
pub const GOAL: Duration = POLL_PERIOD.saturating_add(Duration::from_secs(1));
/// How many of 100 quiet moments must reach [`GOAL`] ...
const MOST: usize = 95;
/// ... and what each must reach. The difference is for what a busy machine does that is not seen as
/// waiting for a processor.
pub const WORST: Duration = GOAL.saturating_mul(10);

/// Memory of a process at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Since the run began.
    pub at: Duration,
    /// Which process.
    pub pid: u32,
    /// Resident, in KiB.
    pub resident: u64,
}

/// A quiet moment.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Until the world was as the model says.
    pub took: Duration,
    /// By how much it may have come later since threads waited for a processor.
    pub delayed: Duration,
    /// The worst fault before it.
    pub fault: String,
    /// All that happened since the last one.
    pub steps: String,
    /// What was wrong and what was said meanwhile, if it came late.
    pub trace: Option<String>,
}

impl Settled {
    /// What it took beside waiting for a processor.
    pub fn without_delay(&self) -> Duration {
        self.took.saturating_sub(self.delayed)
    }

    /// Whether it came later than [`GOAL`].
    fn is_late(&self) -> bool {
        self.without_delay() > GOAL
    }
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (took, delayed) = (self.took, self.delayed);
        writeln!(
            f,
            "late after {}: {took:.1?}, of which {delayed:.1?} without a processor\n  {}\n{}",
            self.fault,
            self.steps,
            self.trace.as_deref().unwrap_or_default(),
        )
    }
}

/// Figures of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Steps that happened, by their first word.
    pub steps: BTreeMap<String, usize>,
    /// From each quiet moment to the state of the model, with the worst fault before it.
    pub settled: Vec<Settled>,
    /// Connections that were to live and did; those that were to be reset and were.
    pub lived: usize,
    /// Resets that had to be, and were.
    pub reset: usize,
    /// Clients that waited for a program to go on, and were served.
    pub served: usize,
    /// Others that waited, and had reason to be reset.
    pub excused: usize,
    /// The host side at home.
    pub host: Vec<Memory>,
    /// The agent at home.
    pub agent: Vec<Memory>,
    /// Times at home, where nothing was left over.
    pub homes: usize,
    /// How long all took.
    pub took: Duration,
}

impl Report {
    /// Whether quiet moments came in time.
    ///
    /// # Errors
    /// Which did not, and why.
    pub fn verdict(&self) -> Result<(), String> {
        let late: Vec<&Settled> = self.settled.iter().filter(|s| s.is_late()).collect();
        let (count, all) = (late.len(), self.settled.len());
        if count * 100 <= all * (100 - MOST) {
            return Ok(());
        }
        Err(format!(
            "{count} of {all} quiet moments came later than {GOAL:?}\n{}",
            self.late()
        ))
    }

    /// Why what came late did.
    pub fn late(&self) -> String {
        let late = self.settled.iter().filter(|settled| settled.is_late());
        late.map(Settled::to_string).collect()
    }

    /// Adds another run's figures, but for its memory.
    pub fn add(&mut self, other: Self) {
        for (word, count) in other.steps {
            *self.steps.entry(word).or_default() += count;
        }
        self.settled.extend(other.settled);
        self.lived += other.lived;
        self.reset += other.reset;
        self.served += other.served;
        self.excused += other.excused;
        self.homes += other.homes;
        self.took += other.took;
    }
}

/// The `n`th of 100 parts of `sorted`.
fn quantile(sorted: &[Duration], n: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let at = (sorted.len() * n / 100).min(last);
    sorted.get(at).copied().unwrap_or_default()
}

/// KiB an hour, by least squares over the last half of the samples of the last process.
pub fn slope(samples: &[Memory]) -> Option<f64> {
    let pid = samples.last()?.pid;
    let own: Vec<&Memory> = samples.iter().filter(|s| s.pid == pid).collect();
    let half = &own[own.len() / 2..];
    let count = half.len() as f64;
    let mean = |f: &dyn Fn(&Memory) -> f64| half.iter().map(|s| f(s)).sum::<f64>() / count;
    let hours = |s: &Memory| s.at.as_secs_f64() / 3600.0;
    let (x, y) = (mean(&hours), mean(&|s| s.resident as f64));
    let above = mean(&|s| (hours(s) - x) * (s.resident as f64 - y));
    let below = mean(&|s| (hours(s) - x).powi(2));
    (half.len() >= 3 && below > 0.0).then(|| above / below)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: usize = self.steps.values().sum();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, mut times: Vec<Duration>| {
            times.sort_unstable();
            let late = times
                .iter()
                .filter(|t| **t > Duration::from_secs(2))
                .count();
            writeln!(
                f,
                "  {name:<12} {:>6} settled, ms: p50 {:.1}, p99 {:.1}, max {:.1}; {late} over 2 s",
                times.len(),
                ms(quantile(&times, 50)),
                ms(quantile(&times, 99)),
                ms(times.last().copied().unwrap_or_default()),
            )
        };
        writeln!(
            f,
            "{steps} steps in {:.0} s, {} times at home with nothing left over, \
             {} held connections checked alive, {} reset as they had to be, \
             {} that waited served, {} reset with reason",
            self.took.as_secs_f64(),
            self.homes,
            self.lived,
            self.reset,
            self.served,
            self.excused,
        )?;
        let steps = self
            .steps
            .iter()
            .map(|(word, count)| format!("{word} {count}"));
        writeln!(f, "  {}", steps.collect::<Vec<_>>().join(", "))?;
        let late = self.settled.iter().filter(|settled| settled.is_late());
        writeln!(
            f,
            "  {} came later than {GOAL:?}, beside waiting for a processor",
            late.count()
        )?;
        line(f, "all", self.settled.iter().map(|s| s.took).collect())?;
        let mut by_fault: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        for settled in &self.settled {
            by_fault
                .entry(&settled.fault)
                .or_default()
                .push(settled.took);
        }
        for (fault, times) in by_fault {
            line(f, fault, times)?;
        }
        for (name, samples) in [("host", &self.host), ("agent", &self.agent)] {
            if let (Some(first), Some(last)) = (samples.first(), samples.last()) {
                write!(
                    f,
                    "  {name} resident: {} KiB at first, {} at last",
                    first.resident, last.resident
                )?;
                match slope(samples) {
                    Some(slope) => writeln!(f, ", slope of the last half {slope:.0} KiB an hour")?,
                    None => writeln!(f)?,
                }
            }
        }
        Ok(())
    }
}
