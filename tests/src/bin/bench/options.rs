//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::SECTIONS;

/// What `--help` prints.
pub const HELP: &str = "Measures rum beside its peers, prints tables and writes JSON. Needs root.

Usage: bench [OPTIONS] [latency] [throughput] [bulk] [cost] [scale] [dumps] [vm]

  latency     from listen() to the first byte on the host, from close() to refused
  throughput  bytes, connections and requests, beside pasta, socat, haproxy and none
  bulk        echoes and opens beside downloads through the same forward
  cost        processor time, wake-ups and memory, idle and beside unrelated activity
  scale       many listeners and connections: time, memory, cost of one more
  dumps       one dump of the listeners, with 10,000 connections or listeners
  vm          a guest in a virtual machine, beside the raw channel; needs tests/vm-assets
Without a name all are measured, which takes 30 minutes, and BENCHMARKS.md is written. Nothing is
installed; what is missing is said.

Options:
  --quick         few samples, to see that everything works
  --json FILE     where the figures are written [default: target/bench.json]
  --render FILE   only makes BENCHMARKS.md and its plots of such a file
  --into DIR      where BENCHMARKS.md is made [default: the repository]
  --other RUM     another build of rum, which takes part in throughput and bulk
  --only TEXT     of throughput only the tables whose name has this text
  --samples N     how often latency is measured [default: 500]
  --rounds N      turns that each way has in throughput and bulk [default: 7]
  --seconds N     how long each cost is measured [default: 10]
  -h, --help      print this
";

/// What the command line asks for.
#[derive(Debug)]
pub struct Wanted {
    named: Vec<String>,
    /// Opens and closes.
    pub samples: usize,
    /// Turns.
    pub rounds: usize,
    /// How long each cost is measured.
    pub time: Duration,
    /// A smoke run.
    pub quick: bool,
    /// Where the figures go.
    pub json: PathBuf,
    /// Only the document is wanted, of this file.
    pub render: Option<PathBuf>,
    /// Where the document goes.
    pub into: PathBuf,
    /// What the name of a table of throughput must have.
    pub only: String,
    /// Another build of rum.
    pub other: Option<PathBuf>,
}

impl Wanted {
    /// None if only the help is wanted.
    ///
    /// # Errors
    /// What is wrong with the command line.
    pub fn parse(args: &[&str]) -> Result<Option<Self>, String> {
        let quick = args.contains(&"--quick");
        let mut this = Self {
            named: Vec::new(),
            samples: if quick { 5 } else { 500 },
            rounds: if quick { 1 } else { 7 },
            time: Duration::from_millis(if quick { 200 } else { 10_000 }),
            quick,
            json: PathBuf::from("target/bench.json"),
            render: None,
            into: Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
            other: None,
            only: String::new(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            let number = |text: &str| match text.parse::<u32>() {
                Ok(n) if n > 0 => Ok(n),
                _ => Err(format!("{arg} needs a number above 0")),
            };
            match *arg {
                "-h" | "--help" => return Ok(None),
                "--quick" => {}
                "--samples" => this.samples = number(value()?)? as usize,
                "--rounds" => this.rounds = number(value()?)? as usize,
                "--seconds" => this.time = Duration::from_secs(number(value()?)?.into()),
                "--json" => this.json = value()?.into(),
                "--render" => this.render = Some(value()?.into()),
                "--into" => this.into = value()?.into(),
                "--only" => this.only = (*value()?).to_owned(),
                "--other" => this.other = Some(value()?.into()),
                name if SECTIONS.iter().any(|(n, _)| *n == name) => {
                    this.named.push(name.to_owned())
                }
                _ => return Err(format!("there is no measurement or option `{arg}`")),
            }
        }
        Ok(Some(this))
    }

    /// Whether a measurement is wanted.
    pub fn measures(&self, name: &str) -> bool {
        self.everything() || self.named.iter().any(|n| n == name)
    }

    /// So many connections and the like, or a hundredth of it in a smoke run.
    pub fn many(&self, n: usize) -> usize {
        if self.quick { n / 100 } else { n }
    }

    /// Whether all of them are.
    pub fn everything(&self) -> bool {
        self.named.is_empty()
    }
}
