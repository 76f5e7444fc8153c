//! Chaos for as long as is wanted (see `rum_tests::chaos`).
//!
//!     chaos [--minutes N]    both kinds of guest, each with one host side and one random seed for
//!                            the whole time, beside short runs in which the host side dies, too;
//!                            prints the figures. Default: 1 minute. With `CHAOS_KIND`: only one
//!                            host side of that kind
//!
//! With `CHAOS_SEED` and `CHAOS_STEPS`, or with `CHAOS_REPLAY`, it runs exactly those steps once, with
//! `CHAOS_KIND`, which is `namespace` or `connect`. Needs root.

#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rum_tests::chaos::report::Report;
use rum_tests::chaos::step::{Step, Steps};
use rum_tests::chaos::{Kind, run, run_list, run_seed, words};
use rum_tests::wait::DEADLINE;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match (var("CHAOS_REPLAY"), var("CHAOS_SEED"), &args[..]) {
        (Some(words), ..) => replay(&words),
        (None, Some(seed), _) => again(&seed),
        (None, None, []) => soak(1),
        (None, None, ["--minutes", minutes]) => match minutes.parse() {
            Ok(minutes) => soak(minutes),
            Err(_) => Err(format!("`{minutes}` is no number of minutes")),
        },
        _ => Err("what is that? Try --minutes N".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn kind() -> Result<Kind, String> {
    var("CHAOS_KIND").ok_or("set CHAOS_KIND")?.parse()
}

fn replay(words: &str) -> Result<(), String> {
    let steps: Result<Vec<Step>, String> = words.split_whitespace().map(str::parse).collect();
    let report = run_list(kind()?, &steps?, DEADLINE, "CHAOS_REPLAY")?;
    println!("{}{report}", report.late());
    Ok(())
}

fn again(seed: &str) -> Result<(), String> {
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|_| format!("`{text}` is no number"))
    };
    let count = number(&var("CHAOS_STEPS").unwrap_or("160".to_owned()))?;
    let report = run_seed(kind()?, number(seed)?, count as usize, DEADLINE)?;
    println!("{}{report}", report.late());
    Ok(())
}

fn soak(minutes: u64) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(minutes * 60);
    if var("CHAOS_KIND").is_some() {
        return long(kind()?, until);
    }
    thread::scope(|scope| {
        let long = |kind: Kind| move || long(kind, until);
        let all = [
            scope.spawn(long(Kind::Namespace)),
            scope.spawn(long(Kind::Connect)),
            scope.spawn(move || short(until)),
        ];
        let mut failed = vec![];
        for thread in all {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(text)) => failed.push(text),
                Err(_) => failed.push("a panic".to_owned()),
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(failed.join("\n"))
        }
    })
}

/// One host side for the whole time.
fn long(kind: Kind, until: Instant) -> Result<(), String> {
    let seed = fastrand::u64(..);
    println!("{} with seed {seed}", kind.word());
    let steps = Steps::new(seed).without_kill();
    match run(kind, steps, DEADLINE, Some(until)) {
        Ok(report) => {
            println!(
                "{}{}, one host side, seed {seed}: {report}",
                report.late(),
                kind.word()
            );
            report.verdict()
        }
        Err(failure) => {
            let steps: Vec<Step> = Steps::new(seed)
                .without_kill()
                .take(failure.at + 1)
                .collect();
            // The whole list is long; what the last few steps did is the likely cause.
            let last = &steps[steps.len().saturating_sub(60)..];
            let (kind, at, what) = (kind.word(), failure.at, failure.what);
            Err(format!(
                "{kind}, seed {seed}, step {at}: {what}\nlast steps: {}",
                words(last)
            ))
        }
    }
}

/// Short runs, each with a seed of its own.
fn short(until: Instant) -> Result<(), String> {
    let mut total = Report::default();
    let (mut runs, mut failed) = (0, vec![]);
    while Instant::now() < until {
        for kind in [Kind::Namespace, Kind::Connect] {
            let seed = fastrand::u64(..);
            match run_seed(kind, seed, 200, DEADLINE) {
                Ok(report) => total.add(report),
                Err(text) => {
                    eprintln!("{text}");
                    failed.push(text);
                }
            }
            runs += 1;
        }
    }
    println!(
        "{}{runs} short runs of both kinds, {} failed: {total}",
        total.late(),
        failed.len()
    );
    if failed.is_empty() {
        total.verdict()
    } else {
        Err(failed.join("\n"))
    }
}
