//! What `rum ports` and `rum wait` say about a real `rum up`: as text, as JSON, and while it
//! changes.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Output, Stdio};

use rum_tests::client::{exchange, host};
use rum_tests::guest::Guest;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Lines, Rum, Setup};
use rum_tests::wait::until;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;

const RANGE: [&str; 2] = ["--range", "5000-6000"];

/// Runs `rum ARGS` to its end.
fn run(setup: &Setup, args: &[&str]) -> Output {
    let mut command = setup.rum(args);
    command.stdin(Stdio::null()).output().expect("rum starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The lines of `rum ports ARGS`, each split into its columns.
fn rows(setup: &Setup, args: &[&str]) -> Vec<Vec<String>> {
    let output = run(setup, &[&["ports"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let split = |line: &str| line.split('\t').map(str::to_owned).collect();
    text(&output.stdout).lines().map(split).collect()
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Follows `rum ports --watch --json ARGS` as far as `hello`.
fn watch(setup: &Setup, args: &[&str]) -> Rum {
    let rum = setup.start([&["ports", "--watch", "--json"], args].concat());
    rum.stdout.wait(r#""type":"hello""#);
    rum
}

/// The first object for which `wanted` holds.
fn wait_json(lines: &Lines, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(what, || {
        lines
            .all()
            .iter()
            .map(|line| json(line))
            .find(|value| wanted(value))
    })
}

fn is_port(value: &Value, op: &str, port: u16) -> bool {
    value["op"] == op && value["port"]["port"] == port
}

fn started(setup: &Setup) -> (Rum, Guest) {
    let (rum, mut guest) = setup.start_guest(&RANGE);
    guest.tell("listen 127.0.0.1:5000 echo");
    rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
    (rum, guest)
}

#[test]
fn a_line_a_port_problems_first() {
    in_netns(|| {
        let taken = TcpListener::bind(host(5001)).expect("a host port");
        let setup = Setup::new();
        let (_rum, mut guest) = started(&setup);
        guest.tell("listen [::]:5001 echo");
        guest.tell("listen 127.0.0.1:4000 echo");
        // Names of processes come a little later than ports.
        let rows = until("both ports with their processes", || {
            let rows = rows(&setup, &[]);
            let known = |row: &Vec<String>| row[3].starts_with("guest[");
            (rows.len() == 2 && rows.iter().all(known) && rows[0][4].contains("taken by"))
                .then_some(rows)
        });
        let [conflict, forwarded] = &rows[..] else {
            panic!("{rows:?}");
        };
        assert_eq!(conflict[..3], ["5001", "conflict", "-"]);
        assert!(
            conflict[4].contains(&format!("(pid {})", std::process::id())),
            "{conflict:?}"
        );
        assert_eq!(conflict[5], "*");
        assert_eq!(forwarded[..3], ["5000", "forwarded", "127.0.0.1:5000"]);
        assert_eq!(forwarded[4..8], ["-", "127.0.0.1", "0", "0"]);
        exchange(5000, "12345").expect("echo");
        until("the connection to be counted", || {
            let rows = self::rows(&setup, &[]);
            (rows[1][6..10] == ["0", "1", "5", "5"]).then_some(())
        });
        let all = until("the port outside the range", || {
            let rows = self::rows(&setup, &["--all"]);
            (rows.len() == 3).then_some(rows)
        });
        assert_eq!(all[2][..3], ["4000", "out-of-range", "-"]);
        drop(taken);
        until("the conflict to be over", || {
            let rows = self::rows(&setup, &[]);
            let states = rows.iter().map(|row| &row[1]);
            states
                .clone()
                .all(|state| state == "forwarded")
                .then_some(())
        });
    });
}

#[test]
fn a_terminal_gets_a_table_that_fits_and_the_next_step() {
    in_netns(|| {
        let _taken = TcpListener::bind(host(5001)).expect("a host port");
        let setup = Setup::new();
        let (rum, mut guest) = started(&setup);
        guest.tell("listen 127.0.0.1:5001 echo");
        rum.stderr.wait("127.0.0.1:5001 is taken by");
        let (terminal, theirs) = terminal(80);
        let mut command = setup.rum(["--color", "never", "ports"]);
        let mut ports = setup.spawn(command.stdin(Stdio::null()).stdout(theirs));
        assert_eq!(ports.wait().code(), Some(0));
        drop(command);
        let lines = BufReader::new(terminal).lines();
        // When the last one has closed its end, reading fails.
        let lines: Vec<String> = lines.map_while(Result::ok).collect();
        let [header, conflict, forwarded] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert!(header.starts_with("PORT  STATE"), "{header}");
        assert!(conflict.starts_with("5001  conflict"), "{conflict}");
        assert!(forwarded.starts_with("5000  forwarded"), "{forwarded}");
        assert!(
            lines.iter().all(|line| line.chars().count() <= 80),
            "{lines:?}"
        );
        ports.stderr.wait("5001: 127.0.0.1:5001 is taken by");
        ports.stderr.wait("hint: ");
    });
}

#[test]
fn what_listens_outside_the_range_is_said() {
    in_netns(|| {
        let setup = Setup::new();
        let (rum, mut guest) = started(&setup);
        guest.tell("listen 127.0.0.1:8000 echo");
        let said = "8000 listens outside 5000-6000: --range 5000-6000,8000, or rum ports --all";
        rum.stderr.wait(said);
        let output = run(&setup, &["ports", "--json"]);
        let value = json(&text(&output.stdout));
        assert_eq!(value["outside"], serde_json::json!([8000]));
        assert_eq!(value["ports"].as_array().map(Vec::len), Some(1));
        let (_terminal, theirs) = terminal(80);
        let mut command = setup.rum(["ports"]);
        let mut ports = setup.spawn(command.stdin(Stdio::null()).stdout(theirs));
        assert_eq!(ports.wait().code(), Some(0));
        ports.stderr.wait(said);
        // A port below 1024 is most likely no program of the user's; it is shown, but not told.
        guest.tell("listen 127.0.0.1:80 echo");
        until("the other port", || {
            let output = run(&setup, &["ports", "--json"]);
            (json(&text(&output.stdout))["outside"] == serde_json::json!([80, 8000])).then_some(())
        });
        let lines = rum.stderr.all();
        let about = lines.iter().filter(|line| line.contains(" outside "));
        assert_eq!(about.count(), 1, "{lines:?}");
    });
}

/// A new terminal that is `columns` wide: our end and theirs.
fn terminal(columns: u16) -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
    let ours = ours.expect("a terminal");
    unlockpt(&ours).expect("a new terminal");
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs = ioctl_tiocgptpeer(&ours, flags).expect("its other end");
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&theirs, size).expect("a terminal");
    (File::from(ours), theirs)
}

#[test]
fn the_document_says_who_and_what() {
    in_netns(|| {
        let setup = Setup::new();
        let (_rum, _guest) = started(&setup);
        let value = until("the name of the process", || {
            let output = run(&setup, &["ports", "--json"]);
            assert_eq!(text(&output.stderr), "");
            let value = json(&text(&output.stdout));
            (!value["ports"][0]["process"].is_null()).then_some(value)
        });
        assert_eq!(value["schema_version"], 1);
        assert_eq!(value["guest"]["kind"], "namespace");
        assert_eq!(value["guest"]["name"], "default");
        assert_eq!(value["boot"].as_str().map(str::len), Some(16));
        assert_eq!(value["agent"]["state"], "connected");
        assert_eq!(value["config"]["range"], "5000-6000");
        let port = &value["ports"][0];
        assert_eq!(port["id"], "guest:5000");
        assert_eq!(port["host"], "127.0.0.1:5000");
        assert_eq!(port["state"], "forwarded");
        assert_eq!(port["reason"], Value::Null);
        assert_eq!(port["process"]["name"], "guest");
        assert_eq!(value["ports"].as_array().map(Vec::len), Some(1));
    });
}

#[test]
fn a_watch_tells_everything_once_and_can_be_resumed() {
    in_netns(|| {
        let setup = Setup::new();
        let (mut rum, mut guest) = started(&setup);
        let mut first = watch(&setup, &[]);
        let synced = wait_json(&first.stdout, "the snapshot", |v| v["type"] == "synced");
        let existing = |v: &Value| is_port(v, "existing", 5000);
        wait_json(&first.stdout, "the port of before", existing);
        guest.tell("listen 127.0.0.1:5001 echo");
        let forwarded = |v: &Value| v["port"]["port"] == 5001 && v["port"]["state"] == "forwarded";
        wait_json(&first.stdout, "the new port", forwarded);
        guest.tell("close 127.0.0.1:5001");
        let removed = |v: &Value| is_port(v, "removed", 5001);
        wait_json(&first.stdout, "its end", removed);

        // From the snapshot on the same is told again, and no snapshot.
        let boot = synced["boot"].as_str().expect("a boot");
        let since = format!("{boot}:{}", synced["seq"]);
        let mut second = watch(&setup, &["--since", &since]);
        wait_json(&second.stdout, "the port that came", |v| {
            is_port(v, "added", 5001)
        });
        wait_json(&second.stdout, "and went", removed);
        let told = second.stdout.all();
        assert_eq!(json(&told[0])["seq"], synced["seq"]);
        assert!(!told.iter().any(|line| existing(&json(line))), "{told:?}");

        // Another boot, or an event that was not yet: a gap, then everything.
        for since in ["0123456789abcdef:1", &format!("{boot}:999999")] {
            let late = watch(&setup, &["--since", since]);
            wait_json(&late.stdout, "the snapshot", |v| v["type"] == "synced");
            let types: Vec<_> = late
                .stdout
                .all()
                .iter()
                .map(|l| json(l)["type"].clone())
                .collect();
            assert_eq!(types[..5], ["hello", "gap", "agent", "config", "port"]);
        }

        guest.send("exit 0");
        assert_eq!(rum.wait().code(), Some(0));
        for watch in [&mut first, &mut second] {
            assert_eq!(watch.wait().code(), Some(0));
            let bye = wait_json(&watch.stdout, "the end", |v| v["type"] == "bye");
            assert!(bye["reason"].is_string(), "{bye}");
            let seqs = watch.stdout.all();
            let seqs: Vec<_> = seqs.iter().map(|line| json(line)["seq"].as_u64()).collect();
            assert!(seqs.is_sorted(), "{seqs:?}");
        }
    });
}

#[test]
fn a_watch_without_a_terminal_is_lines() {
    in_netns(|| {
        let setup = Setup::new();
        let (mut rum, mut guest) = started(&setup);
        let mut watch = setup.start(["ports", "--watch"]);
        watch.stdout.wait(" 5000 forwarded 127.0.0.1:5000");
        guest.tell("listen 127.0.0.1:5001 echo");
        let line = watch.stdout.wait(" 5001 forwarded 127.0.0.1:5001 in ");
        let took = line.split(" in ").nth(1).unwrap_or_default();
        let unit = took.split_whitespace().nth(1);
        assert!(matches!(unit, Some("ms" | "s")), "{line}");
        guest.tell("close 127.0.0.1:5001");
        watch.stdout.wait(" 5001 closed");
        rum.kill_agent();
        watch.stdout.wait("5000 forwarded -> lost: ");
        watch.stdout.wait("agent lost");
        guest.send("exit 0");
        rum.wait();
        watch.stdout.wait("rum up has ended");
        assert_eq!(watch.wait().code(), Some(0));
    });
}

#[test]
fn a_reader_that_goes_away_ends_a_watch() {
    in_netns(|| {
        let setup = Setup::new();
        let (_rum, _guest) = started(&setup);
        let mut command = setup.rum(["ports", "--watch"]);
        let mut watch = setup.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        let mut reader = BufReader::new(watch.child.stdout.take().expect("piped"));
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        // Nothing else is told: it has to find out by itself.
        drop(reader);
        assert_eq!(watch.wait().code(), Some(0));
        assert_eq!(watch.stderr.all(), [""; 0]);
    });
}

#[test]
fn wait_ends_with_the_port_and_says_where_it_is() {
    in_netns(|| {
        let setup = Setup::new();
        // Before there is a `rum up`.
        let mut early = setup.start(["wait", "5000", "--timeout", "1h"]);
        let (_rum, mut guest) = started(&setup);
        assert_eq!(early.wait().code(), Some(0));
        early.stdout.wait("127.0.0.1:5000");
        let output = run(&setup, &["wait", "5000"]);
        assert_eq!(text(&output.stdout), "127.0.0.1:5000\n");

        let mut gone = setup.start(["-vv", "wait", "--gone", "5000", "--timeout", "1h"]);
        gone.stderr.wait("following");
        guest.tell("close 127.0.0.1:5000");
        assert_eq!(gone.wait().code(), Some(0));
        assert_eq!(gone.stdout.all(), [""; 0]);
    });
}

#[test]
fn wait_says_why_it_waits_in_vain() {
    in_netns(|| {
        let taken = TcpListener::bind(host(5001)).expect("a host port");
        let setup = Setup::new();
        let none = run(&setup, &["wait", "5000", "--timeout", "1ms"]);
        assert_eq!(none.status.code(), Some(124));

        let (mut rum, mut guest) = started(&setup);
        let never = run(&setup, &["wait", "4000"]);
        assert_eq!(never.status.code(), Some(1));
        assert!(
            text(&never.stderr).contains("5000-6000"),
            "{}",
            text(&never.stderr)
        );

        guest.tell("listen 127.0.0.1:5001 echo");
        rum.stderr.wait("127.0.0.1:5001 is taken");
        let late = until("a wait that was told why", || {
            let late = run(&setup, &["wait", "5001", "--timeout", "1s"]);
            assert_eq!(late.status.code(), Some(124));
            text(&late.stderr).contains("conflict").then_some(late)
        });
        let why = text(&late.stderr);
        assert!(why.contains("127.0.0.1:5001 is taken by"), "{why}");
        assert!(why.contains("hint: "), "{why}");
        drop(taken);

        let mut left = setup.start(["-vv", "wait", "5002", "--timeout", "1h"]);
        left.stderr.wait("following");
        guest.send("exit 0");
        rum.wait();
        assert_eq!(left.wait().code(), Some(125));
    });
}

#[test]
fn it_has_to_be_clear_which_guest_is_meant() {
    in_netns(|| {
        let setup = Setup::new();
        let output = run(&setup, &["ports"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("no guest is running"));

        let (a, _guest_a) = setup.start_guest(&["--range", "5000", "--name", "a"]);
        let (b, _guest_b) = setup.start_guest(&["--range", "5001", "--name", "b"]);
        a.stderr.wait("connected");
        b.stderr.wait("connected");
        for (command, code) in [(&["ports"][..], 1), (&["wait", "5000"], 125)] {
            let output = run(&setup, command);
            assert_eq!(output.status.code(), Some(code));
            let said = text(&output.stderr);
            assert!(
                said.contains("more than one guest is running: a, b"),
                "{said}"
            );
            assert!(said.contains("--name a"), "{said}");
        }
        let output = run(&setup, &["ports", "--name", "b"]);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(text(&output.stdout), "");
        assert_eq!(
            text(&output.stderr),
            "Nothing in \"b\" is listening yet; watching tcp 5001\n"
        );
    });
}
