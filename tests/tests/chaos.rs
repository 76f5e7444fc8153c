//! Chaos in short: the same seeds each time. What a step does and what must come true is told in
//! `rum_tests::chaos`; `cargo run -p rum-tests --bin chaos -- --minutes 30` goes on for longer.
//!
//! `CHAOS_SEED`, `CHAOS_STEPS`, `CHAOS_KIND` and `CHAOS_REPLAY` make the program, not these tests,
//! do what a failure printed.

use std::time::Duration;

use rum_tests::chaos::report::{Report, Settled};
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

/// What chaos found once. `words` as often as `times`; half of the quiet moments after `fault` came
/// within `goal`, where the processor was to be had.
fn comes_soon(words: &str, times: usize, fault: &str, goal: Duration) {
    let words = vec![words; times].join(" ");
    let steps: Result<Vec<_>, String> = words.split_whitespace().map(str::parse).collect();
    let steps = steps.expect("these are steps");
    let report = match run_list(Kind::Connect, &steps, DEADLINE, "") {
        Ok(report) => report,
        Err(text) => panic!("{text}"),
    };
    let settled = report.settled.iter().filter(|s| s.fault == fault);
    let mut took: Vec<Duration> = settled.map(Settled::without_delay).collect();
    took.sort_unstable();
    assert!(
        took.len() >= times && took[took.len() / 2] <= goal,
        "{took:?}"
    );
}

/// The agent's own poll of addresses: nothing wakes it, and a port moves to another address.
#[test]
fn a_rebind_that_no_hint_tells_of_is_found() {
    let words = "kill-agent:none open:5001:v4 quiet wait:1500 close:5001:v4 open:5001:other quiet \
                 close:5001:other";
    comes_soon(words, 3, "none, blind", Duration::from_millis(1500));
}

/// The port of the host was there after the second poll, but led nowhere for as long again.
#[test]
fn a_port_that_no_hint_tells_of_is_dialled_when_it_is_forwarded() {
    let words = "kill-agent:none open:5001:v4 quiet wait:1100 open:5002:v4 quiet wait:1100 \
                 open:5003:v6 quiet close:5001:v4 close:5002:v4 close:5003:v6";
    comes_soon(words, 3, "none, blind", Duration::from_millis(1500));
}

/// The guest that has rebooted knocks; the session of before hangs without a word.
#[test]
fn a_guest_that_reboots_without_a_word_is_found_by_its_knock() {
    let words = "open:5001:v4 quiet reboot open:5002:v4 quiet close:5002:v4";
    let fault = "reboot or kill-host";
    comes_soon(words, 5, fault, Duration::from_millis(1500));
}
