//! What the pure parts cost, in instructions: each piece of work of the program `cost` is counted by
//! callgrind and compared with what `tests/cost.txt` says.
//!
//! Instructions, unlike time, are the same on a loaded machine: counts repeat within a tenth of a
//! percent. They differ between build profiles, compilers and, a little, C libraries.
//! Here they are those of the dev profile, in which the tests are built anyway and only the
//! dependencies are optimised: so they say what became dearer, not what a release costs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

/// What is done, with how many ports.
const WORK: [(&str, [u32; 2]); 11] = [
    ("parse", [100, 10_000]),
    ("fold", [100, 10_000]),
    ("refold", [100, 10_000]),
    ("diff", [100, 10_000]),
    ("plan", [100, 10_000]),
    ("replan", [100, 10_000]),
    ("taken", [100, 10_000]),
    ("publish", [100, 10_000]),
    ("table", [100, 10_000]),
    ("frame", [100, 1_000]),
    ("redraw", [100, 1_000]),
];
/// A count may differ by so many percent: one more copy or allocation for each port costs more.
const TOLERANCE: u64 = 10;
/// What is the same however many ports there are, be it for each of them, may cost so many percent
/// more with many: a map of 10,000 ports is two or three steps deeper than one of 100, and a change
/// takes some steps in several.
const DEEPER: u64 = 80;
/// The plain variants of memcpy and its like in every machine's C library; callgrind has the
/// instructions of the machine that it runs on.
const PLAIN: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX_Fast_Unaligned_Load,\
                     -ERMS,-FSRM,-SSSE3,-SSE4_1,-SSE4_2";
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cost.txt");
const HEAD: &str = "\
# Instructions of one piece of work (tests/src/bin/cost.rs says which), dev profile, x86_64.
# Written by: COST_ACCEPT=1 cargo test --locked -p rum-tests --test cost
";

type Counts = BTreeMap<(String, u32), u64>;

fn count(name: &str, n: u32) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=cost::measured")
        .arg(env!("CARGO_BIN_EXE_cost"))
        .args([name, &n.to_string()])
        .env("GLIBC_TUNABLES", PLAIN)
        .output()
        .expect("valgrind is installed, as by tests/run");
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.split_once("Collected :").map(|(_, rest)| rest);
    let count = collected.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    match count {
        // 0: what is measured has another name.
        Some(count) if count > 0 && output.status.success() => count,
        _ => panic!(
            "cost {name} {n} was not counted ({}):\n{said}",
            output.status
        ),
    }
}

fn count_all() -> Counts {
    let work = WORK
        .iter()
        .flat_map(|(name, sizes)| sizes.map(|n| (*name, n)));
    let (work, counts) = (Mutex::new(work), Mutex::new(Counts::new()));
    let next = || work.lock().expect("no worker failed").next();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((name, n)) = next() {
                    let count = count(name, n);
                    let mut counts = counts.lock().expect("no worker failed");
                    counts.insert((name.to_owned(), n), count);
                }
            });
        }
    });
    counts.into_inner().expect("no worker failed")
}

/// What the file says. The line that says what it was counted with is a comment to it.
fn parse(text: &str) -> Counts {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let counts = lines.map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [name, n, count] = columns[..] else {
            panic!("{FILE}: `{line}` is not NAME N INSTRUCTIONS");
        };
        let number = |text: &str| text.parse::<u64>().expect("a number");
        ((name.to_owned(), number(n) as u32), number(count))
    });
    counts.collect()
}

fn render(counts: &Counts, tools: &str) -> String {
    let mut text = format!("{HEAD}{tools}\n");
    for (name, sizes) in WORK {
        for n in sizes {
            let count = counts[&(name.to_owned(), n)];
            let _ = writeln!(text, "{name:<8} {n:>6} {count:>12}");
        }
    }
    text
}

/// The tools that counts depend on, as a line of the file.
fn tools() -> String {
    let version = |tool: &str| {
        let output = Command::new(tool).arg("--version").output();
        let said = output.map_or(Vec::new(), |output| output.stdout);
        String::from_utf8_lossy(&said).trim().to_owned()
    };
    format!(
        "# Counted with: {}, {}",
        version("rustc"),
        version("valgrind")
    )
}

/// What is beyond the tolerance, one line each.
fn differences(accepted: &Counts, counts: &Counts) -> String {
    let mut lines = String::new();
    for ((name, n), count) in counts {
        let line = match accepted.get(&(name.clone(), *n)) {
            None => format!("{name} {n}: {count}, not in the file yet"),
            Some(old) if count.abs_diff(*old) * 100 <= old * TOLERANCE => continue,
            Some(old) => {
                let percent = (*count as f64 / *old as f64 - 1.0) * 100.0;
                format!("{name} {n}: {count} instead of {old} ({percent:+.1} %)")
            }
        };
        let _ = writeln!(lines, "{line}");
    }
    for (name, n) in accepted.keys().filter(|key| !counts.contains_key(key)) {
        let _ = writeln!(lines, "{name} {n}: in the file, but not counted any more");
    }
    lines
}

#[test]
#[cfg_attr(
    not(all(debug_assertions, target_arch = "x86_64")),
    ignore = "the counts are those of the dev profile on x86_64"
)]
fn nothing_became_dearer_or_cheaper_unnoticed() {
    let (counts, tools) = (count_all(), tools());
    for (name, ports) in [
        ("refold", 1),
        ("publish", 1),
        ("replan", 1),
        ("plan", 100),
        ("taken", 100),
        ("fold", 100),
    ] {
        let [few, many] = [100, 10_000].map(|n| counts[&(name.to_owned(), n)]);
        assert!(
            many * 100 <= few * ports * (100 + DEEPER),
            "{name}: {few} instructions with 100 ports, {many} with 10,000"
        );
    }
    if std::env::var_os("COST_ACCEPT").is_some() {
        fs::write(FILE, render(&counts, &tools)).expect("tests/cost.txt is written");
        return;
    }
    let text = fs::read_to_string(FILE).expect("tests/cost.txt is there");
    let differences = differences(&parse(&text), &counts);
    let other_tools = if text.lines().any(|line| line == tools) {
        ""
    } else {
        "\nThe file was made with other tools, which may be all there is to it; now\n"
    };
    assert!(
        differences.is_empty(),
        "instructions differ by more than {TOLERANCE} %:\n{differences}{other_tools}{}\n\
         hint: if that is meant to be, for the better or the worse, accept it:\n\
         COST_ACCEPT=1 cargo test --locked -p rum-tests --test cost",
        if other_tools.is_empty() { "" } else { &tools },
    );
}

#[test]
fn a_difference_beyond_the_tolerance_is_told_in_both_directions() {
    let accepted = parse("# comment\nsame 1 100\nless 1 100\nmore 1 100\ngone 1 100\n");
    let counts = parse("same 1 110\nless 1 89\nmore 1 111\nnew 1 5\n");
    assert_eq!(
        differences(&accepted, &counts),
        "less 1: 89 instead of 100 (-11.0 %)\n\
         more 1: 111 instead of 100 (+11.0 %)\n\
         new 1: 5, not in the file yet\n\
         gone 1: in the file, but not counted any more\n"
    );
}
