//! Processor time and memory of both processes while nothing happens.

use std::fs;
use std::time::{Duration, Instant};

use rum_tests::rum::{Setup, agent_below};

/// Measures for `seconds` and prints the table.
pub fn run(seconds: u64) {
    println!("\n### Idle for {seconds} s, the 1 s poll running\n");
    println!("| process | processor time, % of a core | wake-ups a second | resident, MB |");
    println!("|---|---|---|---|");
    for (name, args) in [
        ("tracepoint", &[][..]),
        ("seccomp", &["--agent-arg=--hint=seccomp"][..]),
        ("poll (no tracepoint)", &["--agent-arg=--hint=poll"][..]),
    ] {
        let setup = Setup::new();
        let mut all = vec!["--range", "5000-5999"];
        all.extend(args);
        let (mut rum, mut guest) = setup.start_guest(&all);
        guest.tell("listen 127.0.0.1:5000 hello");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let host = rum.child.id();
        let agent = agent_below(host).expect("an agent below rum");
        // Start-up (handshakes, names) is over once a few polls have gone by.
        std::thread::sleep(Duration::from_secs(3));
        let (start, before) = (Instant::now(), [host, agent].map(usage));
        std::thread::sleep(Duration::from_secs(seconds));
        let (elapsed, after) = (start.elapsed(), [host, agent].map(usage));
        for (i, process) in ["host", "agent"].iter().enumerate() {
            let busy = (after[i].0 - before[i].0) as f64 / elapsed.as_nanos() as f64;
            let wakes = (after[i].1 - before[i].1) as f64 / elapsed.as_secs_f64();
            let rss = resident([host, agent][i]) as f64 / 1e6;
            println!(
                "| {process}, {name} | {:.3} | {wakes:.1} | {rss:.1} |",
                busy * 100.0
            );
        }
        guest.send("exit 0");
        rum.wait();
    }
}

/// Nanoseconds on a processor and times scheduled, of all threads (proc(5), schedstat).
fn usage(pid: u32) -> (u64, u64) {
    let mut sum = (0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .expect("it lives")
        .flatten()
    {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let mut fields = text.split_whitespace().map(|f| f.parse().unwrap_or(0u64));
        sum.0 += fields.next().unwrap_or(0);
        sum.1 += fields.nth(1).unwrap_or(0);
    }
    sum
}

/// Resident set in bytes (proc(5), status VmRSS).
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = text.lines().find(|l| l.starts_with("VmRSS:"));
    let kb = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kb.expect("a VmRSS line") * 1024
}
