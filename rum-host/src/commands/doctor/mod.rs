//! `rum doctor`: what rum can do on this machine.
//!
//! `facts` tries, `verdict` judges, this module renders. Judging and rendering are pure.

mod facts;
mod verdict;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use facet::Facet;
use rum_shared::text::printable;

use crate::cli::GlobalArgs;
use crate::cli::tools::DoctorArgs;
use crate::error::RumError;
use crate::exit;
use crate::status::model::SCHEMA_VERSION;
use facts::Facts;
use verdict::{Check, GuestLine, Level};

/// Everything that is printed; the JSON has these names.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
struct Report {
    schema_version: u32,
    /// rum's.
    version: String,
    /// The user this is about.
    uid: u32,
    checks: Vec<Check>,
    guests: Vec<GuestLine>,
}

impl Report {
    fn new(facts: &Facts) -> Self {
        let guests = facts.guests.as_deref().unwrap_or_default();
        Self {
            schema_version: SCHEMA_VERSION,
            version: crate::VERSION.to_owned(),
            uid: facts.uid,
            checks: verdict::checks(facts),
            guests: guests.iter().map(GuestLine::from).collect(),
        }
    }

    fn exit_code(&self) -> u8 {
        if self.checks.iter().any(|check| check.level == Level::Fail) {
            exit::FAILED
        } else {
            exit::OK
        }
    }
}

/// Runs `rum doctor`. Must be called on the process's first thread, on which the trial guest's
/// helper processes rely.
///
/// # Errors
/// There is no runtime to be had, or stdout cannot be written to.
pub fn run(args: &DoctorArgs, global: &GlobalArgs) -> Result<u8, RumError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| RumError::new("cannot start the runtime").caused_by(error))?;
    let report = Report::new(&runtime.block_on(facts::gather()));
    super::print(&if args.json {
        json(&report)?
    } else {
        text(&report, global.quiet)
    })?;
    Ok(report.exit_code())
}

fn json(report: &Report) -> Result<String, RumError> {
    let failed = |error| RumError::new(format!("cannot write JSON: {error}"));
    Ok(facet_json::to_string(report).map_err(failed)? + "\n")
}

/// One line a fact, its remedy below it, with colours; the problems only if `quiet`.
fn text(report: &Report, quiet: bool) -> String {
    const PLAIN: &str = "\u{1b}[0m";
    let mut out = String::new();
    let shown = |check: &&Check| !quiet || check.level != Level::Ok;
    let checks = report.checks.iter().filter(shown);
    let guests = report.guests.iter().filter(|_| !quiet);
    let width = report
        .checks
        .iter()
        .map(|c| c.check.len())
        .max()
        .unwrap_or(0);
    for Check {
        check,
        level,
        fact,
        remedy,
    } in checks
    {
        let (colour, word) = match level {
            Level::Ok => ("\u{1b}[32m", "ok"),
            Level::Warn => ("\u{1b}[33m", "warn"),
            Level::Fail => ("\u{1b}[1;31m", "fail"),
        };
        let fact = printable(fact);
        let _ = writeln!(out, "{colour}{word:<4}{PLAIN}  {check:<width$}  {fact}");
        for remedy in remedy.iter() {
            let remedy = printable(remedy);
            let _ = writeln!(out, "{:6}{:width$}  hint: {remedy}", "", "");
        }
    }
    for GuestLine { name, kind, pid } in guests {
        let kind = kind.as_deref().unwrap_or("starting");
        let pid = pid.map_or("-".to_owned(), |pid| pid.to_string());
        let _ = writeln!(out, "guest {name}: {kind}, pid {pid}");
    }
    out
}
