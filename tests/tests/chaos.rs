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
    // Else the seeds show nothing of them.
    assert!(total.lived > 0 && total.served > 0);
}

#[test]
fn a_namespace_guest_survives_chaos() {
    survives(Kind::Namespace, 1..=2);
}

#[test]
fn a_guest_behind_a_device_survives_chaos() {
    survives(Kind::Connect, 1..=2);
}

/// A dial without an answer is made again, whatever happens on the way to the program; nothing here is a
/// reason to reset a client.
#[test]
fn who_waits_is_served() {
    let before = "open:5001:v4 open:5003:other open:5005:v6 open:5007:any6 quiet";
    let deaf = "deaf:5001:8 deaf:5003:8 deaf:5005:8 deaf:5007:8";
    let faults = [
        "wait:1500",
        "wait:100 kill-agent:poll",
        "kill-agent:none kill-agent:tracepoint",
        "stop-agent wait:300",
        "stop-host wait:300",
        "wait:100 stall wait:300 cut",
        "wait:100 cut cut",
        "exhaust:2 rush:5001:20",
    ];
    let episodes = faults.map(|fault| format!("{deaf} {fault} quiet {fault} {deaf} quiet"));
    let words = [before, &episodes.join(" ")].join(" ");
    let steps: Result<Vec<_>, String> = words.split_whitespace().map(str::parse).collect();
    let steps = steps.expect("these are steps");
    for kind in [Kind::Namespace, Kind::Connect] {
        let report = run_list(kind, &steps, DEADLINE, "").unwrap_or_else(|text| panic!("{text}"));
        assert_eq!((report.served, report.excused), (faults.len() * 64, 0));
    }
}

/// What chaos found once: `before`, then `steps` until it is quiet, as often as `times`. In half of
/// the cases that came within `goal`, where the processor was to be had.
fn comes_soon(before: &str, steps: &str, times: usize, goal: Duration) {
    let words = vec![format!("{before} {steps}"); times].join(" ");
    let all: Result<Vec<_>, String> = words.split_whitespace().map(str::parse).collect();
    let report = match run_list(Kind::Connect, &all.expect("these are steps"), DEADLINE, "") {
        Ok(report) => report,
        Err(text) => panic!("{text}"),
    };
    let settled = report.settled.iter().filter(|s| s.steps == steps);
    let mut took: Vec<Duration> = settled.map(Settled::without_delay).collect();
    took.sort_unstable();
    assert_eq!(took.len(), times);
    assert!(took[times / 2] <= goal, "{took:?}");
}

/// Nothing wakes the agent, and a port moves to another address, of which the host's poll is not told.
#[test]
fn a_rebind_that_no_hint_tells_of_is_found() {
    let before = "kill-agent:none open:5001:v4 quiet";
    let steps = "wait:1500 close:5001:v4 open:5001:other quiet";
    let goal = Duration::from_millis(1400);
    comes_soon(&format!("close:5001:other {before}"), steps, 5, goal);
}

/// The port of the host was there after the second poll, but led nowhere for as long again.
#[test]
fn a_port_that_no_hint_tells_of_is_dialled_when_it_is_forwarded() {
    let before = "kill-agent:none quiet";
    let steps = "wait:1500 open:5001:other quiet";
    let goal = Duration::from_millis(1400);
    comes_soon(&format!("close:5001:other {before}"), steps, 5, goal);
}

/// The guest that has rebooted knocks; the session of before hangs without a word.
#[test]
fn a_guest_that_reboots_without_a_word_is_found_by_its_knock() {
    let goal = Duration::from_secs(1);
    comes_soon("open:5001:v4 quiet", "reboot open:5002:v4 quiet", 5, goal);
}
