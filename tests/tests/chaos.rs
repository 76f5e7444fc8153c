//! Chaos in short: the same seeds each time. What a step does and what must come true is told in
//! `rum_tests::chaos`; `cargo run -p rum-tests --bin chaos -- --minutes 30` goes on for longer.
//!
//! `CHAOS_SEED`, `CHAOS_STEPS`, `CHAOS_KIND` and `CHAOS_REPLAY` make the program, not these tests,
//! do what a failure printed.

use rum_tests::chaos::report::Report;
use rum_tests::chaos::{Kind, run_list, run_seed};
use rum_tests::wait::DEADLINE;

fn survives(kind: Kind, seeds: impl IntoIterator<Item = u64>) {
    let mut total = Report::default();
    for seed in seeds {
        match run_seed(kind, seed, 160, DEADLINE) {
            Ok(report) => total.add(report),
            Err(text) => panic!("{text}"),
        }
    }
    eprintln!("{total}");
    if let Err(text) = total.verdict() {
        panic!("{text}");
    }
}

#[test]
fn a_namespace_guest_survives_chaos() {
    survives(Kind::Namespace, 1..=2);
}

#[test]
fn a_guest_behind_a_device_survives_chaos() {
    survives(Kind::Connect, 1..=2);
}

/// What chaos found once: nothing wakes this agent, and a port moves to another address.
#[test]
fn a_rebind_that_no_hint_tells_of_is_found() {
    let words = "kill-agent:none open:5001:v4 quiet wait:1500 close:5001:v4 open:5001:other quiet";
    let steps: Result<Vec<_>, String> = words.split_whitespace().map(str::parse).collect();
    let steps = steps.expect("these are steps");
    if let Err(text) = run_list(Kind::Connect, &steps, DEADLINE, "") {
        panic!("{text}");
    }
}
