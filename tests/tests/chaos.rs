//! Chaos in short: the same seeds each time. What a step does and what must come true is told in
//! `rum_tests::chaos`; `cargo run -p rum-tests --bin chaos -- --minutes 30` goes on for longer.
//!
//! `CHAOS_SEED`, `CHAOS_STEPS`, `CHAOS_KIND` and `CHAOS_REPLAY` make the program, not these tests,
//! do what a failure printed.

use rum_tests::chaos::{Kind, run_seed};
use rum_tests::wait::DEADLINE;

fn survives(kind: Kind, seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        match run_seed(kind, seed, 160, DEADLINE) {
            Ok(report) => println!("seed {seed}: {report}"),
            Err(text) => panic!("{text}"),
        }
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
