//! The benchmark runs, with the smallest numbers, and has every figure that it promises. None of
//! them is judged: that is for a quiet machine.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// What one run of the benchmark has to show.
struct Run {
    report: Value,
    /// The document.
    text: String,
}

impl Run {
    /// Runs one section. `peers`: with the machine's own PATH, else nothing that is not rum's own
    /// can be found.
    fn of(section: &str, peers: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| dir.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        command
            .args([section, "--quick", "--json"])
            .arg(file("json"));
        // All that it measures is built.
        command.env_remove("CARGO");
        if !peers {
            command.env("PATH", dir.path());
        }
        let output = command.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let report = std::fs::read(file("json")).expect("it was written");
        let report: Value = serde_json::from_slice(&report).expect("JSON");

        // The document that is made of the file is the one that was printed, but for its plots.
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        command.arg("--render").arg(file("json"));
        let rendered = command.arg("--into").arg(dir.path()).output();
        let rendered = rendered.expect("it starts");
        assert!(rendered.status.success(), "{rendered:?}");
        let text = std::fs::read_to_string(file("BENCHMARKS.md")).expect("it was written");
        let plain: Vec<&str> = text.lines().filter(|l| !l.is_empty()).collect();
        let (plots, plain): (Vec<&str>, Vec<&str>) =
            plain.into_iter().partition(|l| l.starts_with("!["));
        let printed = String::from_utf8(output.stdout).expect("text");
        let printed: Vec<&str> = printed.lines().filter(|l| !l.is_empty()).collect();
        assert_eq!(plain, printed);
        for plot in &plots {
            let name = plot.rsplit(['(', ')']).nth(1).expect("a link");
            is_a_plot(&file(name));
        }
        eprintln!("{said}");
        Self { report, text }
    }

    fn array(&self, name: &str) -> &[Value] {
        self.report[name].as_array().expect("an array")
    }

    /// Asserts that there is exactly one row of that name, and that it makes sense.
    fn assert_row(&self, section: &str, what: &str, way: &str) {
        let same =
            |row: &&Value| row["section"] == section && row["what"] == what && row["way"] == way;
        let rows: Vec<&Value> = self.array("rows").iter().filter(same).collect();
        let [row] = rows[..] else {
            panic!("{} rows of `{what}`, {way}: {}", rows.len(), self.text);
        };
        assert!(row["n"].as_u64().is_some_and(|n| n > 0), "{row}");
        let numbers = ["min", "p25", "p50", "p75", "p90", "p99", "max"];
        let numbers = numbers.map(|name| row[name].as_f64().expect("a number"));
        assert!(numbers.is_sorted(), "{row}");
        assert!(numbers[0] >= 0.0 && numbers[6].is_finite(), "{row}");
    }

    /// As [`Run::assert_row`], and it is not just zeroes.
    fn assert_above_zero(&self, section: &str, what: &str, way: &str) {
        self.assert_row(section, what, way);
        let same =
            |row: &&Value| row["section"] == section && row["what"] == what && row["way"] == way;
        let row = self.array("rows").iter().find(same);
        assert!(
            row.is_some_and(|row| row["max"].as_f64() > Some(0.0)),
            "{row:?}"
        );
    }

    fn ways(&self, section: &str) -> BTreeSet<&str> {
        let rows = self.array("rows").iter();
        let rows = rows.filter(|row| row["section"] == section);
        rows.filter_map(|row| row["way"].as_str()).collect()
    }

    fn notes(&self, about: &str) -> Vec<&str> {
        let notes = self.array("notes").iter().filter_map(Value::as_str);
        notes.filter(|note| note.contains(about)).collect()
    }

    /// Asserts that the document has this heading, the machine, the date and the version.
    fn assert_document(&self, heading: &str) {
        let has = |line: &str| self.text.lines().any(|l| l == line);
        let text = |name: &str| self.report[name].as_str().expect("text");
        assert!(has(&format!("## {heading}")), "{}", self.text);
        assert!(has(&format!("{}. {}.", text("date"), text("machine"))));
        let version = self.report["versions"]["rum"].as_str().expect("text");
        assert!(has(&format!("- rum: {version}")) && version.contains(char::is_numeric));
    }
}

fn is_a_plot(file: &Path) {
    let svg = std::fs::read_to_string(file).expect("it was written");
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn latency_has_the_floor_and_every_source_of_hints_and_pasta_or_why_not() {
    let run = Run::of("latency", true);
    let whats = ["open to accepted", "open to first byte", "close to refused"];
    for what in whats {
        for way in [
            "floor",
            "rum, tracepoint",
            "rum, no tracepoint",
            "rum, ordinary user",
            "rum, ordinary user, poll",
            "rum, 1 s poll only",
        ] {
            run.assert_row("latency", what, way);
        }
        if run.notes("pasta").is_empty() {
            run.assert_above_zero("latency", what, "pasta");
        }
    }
    run.assert_document("Open and close");
    let goals = run
        .text
        .lines()
        .filter(|l| l.ends_with("| met |") || l.ends_with("| missed |"));
    let floor = goals.filter(|l| l.contains("within 3 × the floor"));
    assert_eq!(floor.count(), 2, "{}", run.text);
}

#[test]
fn throughput_goes_on_without_its_peers_and_says_so() {
    let run = Run::of("throughput", false);
    let ways: Vec<&str> = run.ways("throughput").into_iter().collect();
    let bare = ["bare copy", "bare io_uring", "bare splice"];
    assert_eq!(ways, [&bare[..], &["direct", "rum"]].concat());
    for way in ways {
        for direction in ["to the guest", "to the host", "both at once"] {
            for streams in ["1 stream", "8 streams", "64 streams"] {
                run.assert_above_zero("throughput", &format!("{direction}, {streams}"), way);
            }
        }
        for what in [
            "connections, 4 clients",
            "request and answer, 64 B",
            "request and answer, 16 KiB",
        ] {
            run.assert_above_zero("throughput", what, way);
        }
    }
    for (peer, package) in [
        ("pasta", "passt"),
        ("socat", "socat"),
        ("haproxy", "haproxy"),
    ] {
        let notes = run.notes(&format!("{peer} is not there"));
        assert!(matches!(notes[..], [note] if note.contains(&format!("install {package}`"))));
        assert!(run.text.contains(&format!("- {}\n", notes[0])));
    }
    run.assert_document("Throughput, connections, requests");
}

#[test]
fn bulk_has_echoes_and_opens_beside_each_number_of_downloads() {
    let run = Run::of("bulk", true);
    let mut ways = vec!["direct", "rum"];
    for peer in ["haproxy", "pasta"] {
        if run.notes(peer).is_empty() {
            ways.push(peer);
        }
    }
    for way in ways {
        for load in ["idle", "1 download", "4 downloads"] {
            run.assert_above_zero("bulk", &format!("echo, {load}"), way);
            run.assert_row("bulk", &format!("open to first byte, {load}"), way);
        }
        for load in ["1 download", "4 downloads"] {
            let what = format!("throughput of {load}");
            match way {
                "direct" | "rum" => run.assert_above_zero("bulk", &what, way),
                // On a busy machine nothing of theirs may get through in so short a turn.
                _ => run.assert_row("bulk", &what, way),
            }
        }
    }
    for (way, processes) in [
        ("rum, handed over", &["host"][..]),
        ("rum, frames", &["host", "agent"]),
    ] {
        for process in processes {
            let what = format!("one-byte writes, {process}'s processor time for each MB");
            run.assert_above_zero("bulk", &what, way);
        }
    }
    run.assert_document("Beside bulk");
    let goals = run.text.lines().filter(|l| l.starts_with("| rum: "));
    let goals = goals.filter(|l| l.contains("within 3 × direct's") || l.contains("the idle one"));
    assert_eq!(goals.count(), 4, "{}", run.text);
}

#[test]
fn cost_has_each_activity_for_each_source_of_hints() {
    let run = Run::of("cost", true);
    let mut cases = vec!["no tracepoint: idle".to_owned()];
    for source in ["tracepoint", "seccomp"] {
        for activity in [
            "idle",
            "idle, 100 connections",
            "idle, 1,000 connections",
            "100 binds a second",
            "1,000 binds a second",
            "10,000 binds a second",
            "5,000 connections out a second",
            "1,000 listens a second outside the range",
            "1,000 listens a second inside the range",
        ] {
            cases.push(format!("{source}: {activity}"));
        }
    }
    for case in &cases {
        for process in ["host", "agent", "init"] {
            run.assert_row("cost", process, case);
            run.assert_row("cost", &format!("{process} wake-ups"), case);
        }
        for what in ["measured", "host memory", "agent memory"] {
            run.assert_above_zero("cost", what, case);
        }
        if case.contains("idle") {
            run.assert_row("cost", "events", case)
        } else {
            run.assert_above_zero("cost", "events", case)
        }
    }
    assert_eq!(run.ways("cost").len(), cases.len());
    // Something was measured at all.
    run.assert_above_zero(
        "cost",
        "agent",
        "tracepoint: 1,000 listens a second inside the range",
    );
    assert_eq!(run.notes(""), [""; 0]);
    run.assert_document("Cost");
}

#[test]
fn scale_has_every_number_of_listeners_and_of_connections() {
    let run = Run::of("scale", true);
    for way in ["10 listeners", "100 listeners"] {
        for what in [
            "all forwarded",
            "host memory",
            "agent memory",
            "one more",
            "agent killed",
        ] {
            run.assert_above_zero("scale", what, way);
        }
        for what in [
            "host idle",
            "agent idle",
            "one more, host time",
            "one more, agent time",
        ] {
            run.assert_row("scale", what, way);
        }
    }
    for way in ["10 connections", "100 connections"] {
        for what in ["host memory", "agent memory"] {
            run.assert_above_zero("connections", what, way);
        }
        run.assert_row("connections", "host, each", way);
        run.assert_row("connections", "agent, each", way);
    }
    assert_eq!(run.notes(""), [""; 0]);
    run.assert_document("Scale");
    run.assert_document("Memory of connections");
}

#[test]
fn dumps_have_both_sources_in_each_case() {
    let run = Run::of("dumps", true);
    for what in ["netlink", "/proc"] {
        for way in ["0 connections", "100 connections", "100 listeners"] {
            run.assert_above_zero("dumps", what, way);
        }
    }
    run.assert_document("One dump of the listeners");
}
