//! What was measured: the JSON that the benchmark writes, and that its tables are made of.
//!
//! One object: `schema` (1), `date` (UTC), `machine`, `versions` (name to text), `notes`, and
//! `rows`. A row is one series of samples: `section`, `what` (rows with the same section and
//! `what` are compared with each other), `way` (who did it), `unit`, `n` (samples), and `min`,
//! `p25`, `p50`, `p75`, `p90`, `p99`, `max`. No sample is left out. What the tables derive, such
//! as ratios, is not in it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::{fs, io};

use facet::Facet;
use rum_tests::rum::binary;

/// Version of the format.
pub const SCHEMA: u32 = 1;

/// Everything that one run has measured.
#[derive(Debug, Facet)]
pub struct Report {
    /// Version of this format.
    pub schema: u32,
    /// When it began, RFC 3339.
    pub date: String,
    /// Processor, count, memory, kernel.
    pub machine: String,
    /// What was measured, by name.
    pub versions: BTreeMap<String, String>,
    /// What went wrong or is worth knowing.
    pub notes: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
}

/// One series.
#[derive(Debug, Clone, Facet)]
pub struct Row {
    /// The part of the benchmark.
    pub section: String,
    /// What was measured.
    pub what: String,
    /// Who did it.
    pub way: String,
    /// What the numbers are.
    pub unit: String,
    /// How many samples there are.
    pub n: usize,
    /// Least sample.
    pub min: f64,
    /// A quarter is not above.
    pub p25: f64,
    /// Median.
    pub p50: f64,
    /// Three quarters are not above.
    pub p75: f64,
    /// Nine tenths are not above.
    pub p90: f64,
    /// 99 of 100 are not above.
    pub p99: f64,
    /// Greatest sample.
    pub max: f64,
}

/// What numbers are, and whether more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// 10^9 bits a second; more is better.
    Gbit,
    /// Times a second; more is better.
    PerSecond,
    /// Less is better, as with all that follow.
    Microseconds,
    /// Thousandths of a second.
    Milliseconds,
    /// Percent of one processor.
    Percent,
    /// 10^6 bytes.
    Megabytes,
    /// Times a minute.
    PerMinute,
    /// 10^3 bytes.
    Kilobytes,
    /// As it says.
    Seconds,
}

impl Unit {
    const ALL: [Self; 9] = [
        Self::Gbit,
        Self::PerSecond,
        Self::Microseconds,
        Self::Milliseconds,
        Self::Percent,
        Self::Megabytes,
        Self::PerMinute,
        Self::Kilobytes,
        Self::Seconds,
    ];

    /// As in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gbit => "Gbit/s",
            Self::PerSecond => "1/s",
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::Percent => "% of a core",
            Self::Megabytes => "MB",
            Self::PerMinute => "1/min",
            Self::Kilobytes => "kB",
            Self::Seconds => "s",
        }
    }

    /// The unit of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| unit.name() == name)
    }

    /// Whether a greater number is a better one.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Gbit | Self::PerSecond)
    }
}

impl Row {
    fn new(section: &str, what: &str, way: &str, unit: Unit, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().saturating_sub(1) as f64;
        let at = |q: f64| samples[(last * q).round() as usize];
        Self {
            section: section.into(),
            what: what.into(),
            way: way.into(),
            unit: unit.name().into(),
            n: samples.len(),
            min: at(0.0),
            p25: at(0.25),
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

impl Report {
    /// An empty report of this machine and moment.
    pub fn new() -> Self {
        Self {
            schema: SCHEMA,
            date: jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
            machine: machine(),
            versions: BTreeMap::new(),
            notes: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Asks every program for its version.
    pub fn ask_versions(&mut self) {
        let rum = binary("rum");
        let asked = [
            ("rum", rum.as_path(), "--version"),
            ("pasta", Path::new("pasta"), "--version"),
            ("socat", Path::new("socat"), "-V"),
            ("haproxy", Path::new("haproxy"), "-v"),
        ];
        for (name, program, option) in asked {
            let Ok(answer) = Command::new(program).arg(option).output() else {
                continue;
            };
            let text = String::from_utf8_lossy(&answer.stdout);
            let line = text
                .lines()
                .find(|line| line.contains("ersion") || line.contains(name));
            let mut version = line.unwrap_or("unknown").to_owned();
            // Debian's pasta does not know its own.
            if version.contains("unknown") {
                version = package(name).unwrap_or(version);
            }
            self.versions.insert(name.into(), version);
        }
    }

    /// Adds a series. Without a sample there is no row.
    pub fn add(&mut self, section: &str, what: &str, way: &str, unit: Unit, samples: Vec<f64>) {
        if !samples.is_empty() {
            self.rows.push(Row::new(section, what, way, unit, samples));
        }
    }

    /// Adds a remark, and says it at once.
    pub fn note(&mut self, text: &str) {
        eprintln!("note: {text}");
        self.notes.push(text.to_owned());
    }

    /// Does `work`, which adds to the report. If it panics, that is noted, and the rest goes on.
    pub fn attempt(&mut self, what: &str, work: impl FnOnce(&mut Self)) {
        // What a panic leaves half done is at worst a row that is not added.
        let done = catch_unwind(AssertUnwindSafe(|| work(self)));
        if let Err(panic) = done {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            self.note(&format!(
                "{what} ended early: {}",
                text.unwrap_or("for no reason that is known")
            ));
        }
    }

    /// Writes the JSON.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let text = facet_json::to_string_pretty(self).map_err(io::Error::other)?;
        fs::write(path, text + "\n")
    }

    /// Reads the JSON.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        let report: Self = facet_json::from_str(&text).map_err(io::Error::other)?;
        if report.schema != SCHEMA {
            let text = format!("this is schema {}, not {SCHEMA}", report.schema);
            return Err(io::Error::other(text));
        }
        Ok(report)
    }
}

/// What dpkg calls the package that pasta is from.
fn package(name: &str) -> Option<String> {
    let package = if name == "pasta" { "passt" } else { name };
    let asked = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${Version}", package])
        .output()
        .ok()?;
    let text = String::from_utf8(asked.stdout).ok()?;
    asked.status.success().then_some(text)
}

/// What it ran on: the processor's name, how many, memory and kernel.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("unknown".into(), |(_, value)| value.trim().to_owned())
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kb: f64 = memory.trim_end_matches(" kB").parse().unwrap_or(0.0);
    let count = std::thread::available_parallelism().map_or(1, |n| n.get());
    format!(
        "{count} processors ({}), {:.0} GiB, Linux {}",
        field(&read("/proc/cpuinfo"), "model name"),
        kb / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// A number as tables have it: `10,000`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
