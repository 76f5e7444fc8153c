//! How `rum up` starts and ends: exit codes, signals, a terminal, an ordinary user, and that
//! nothing is left behind whatever ended it.

mod callers;
mod diagnostics;
mod limits;
mod stopped;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup, binary};
use rum_tests::wait::until;
use rustix::process::Signal;

/// Every process whose environment names `setup`'s directory, and every network namespace
/// that such a process is in.
fn traces(setup: &Setup) -> BTreeSet<u32> {
    let marker = format!("RUM_RUNTIME_DIR={}/run", setup.path().display());
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|v| v == marker.as_bytes())
    })
    .collect()
}

/// Sockets below `setup`'s directory.
fn sockets(setup: &Setup) -> Vec<String> {
    let output = Command::new("find")
        .arg(setup.path())
        .args(["-type", "s"])
        .output();
    let text = String::from_utf8(output.expect("find").stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

fn until_no_process_is_left(setup: &Setup) {
    until("every process to be gone", || {
        traces(setup).is_empty().then_some(())
    });
}

fn until_nothing_is_left(setup: &Setup) {
    until_no_process_is_left(setup);
    until("every socket file to be gone", || {
        sockets(setup).is_empty().then_some(())
    });
}

fn started(setup: &Setup) -> (Rum, rum_tests::guest::Guest) {
    let (rum, mut guest) = setup.start_guest(&["--range", "5000-6000"]);
    guest.tell("listen 127.0.0.1:5000 echo");
    rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
    (rum, guest)
}

#[test]
fn the_command_decides_the_exit_code() {
    in_netns(|| {
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)] {
            let setup = Setup::new();
            let mut command = setup.rum(["up", "--range", "5000", "--", "sh", "-c", script]);
            let status = setup.spawn(command.stdin(Stdio::null())).wait();
            assert_eq!(status.code(), Some(code), "{script}");
            until_nothing_is_left(&setup);
        }
        let setup = Setup::new();
        let mut command = setup.rum(["up", "--range", "5000", "--", "/no/such/program"]);
        assert_eq!(setup.spawn(&mut command).wait().code(), Some(127));
    });
}

#[test]
fn the_limit_of_descriptors_is_raised_for_rum_alone() {
    in_netns(|| {
        let setup = Setup::new();
        let script = "ulimit -Sn 256; exec \"$0\" up --range 5000 -- sh -c 'ulimit -Sn; read line'";
        let mut command = setup.command("sh");
        command.args(["-c", script]).arg(binary("rum"));
        let mut rum = setup.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut inside = BufReader::new(rum.child.stdout.take().expect("piped"));
        let mut line = String::new();
        inside.read_line(&mut line).expect("text");
        assert_eq!(line, "256\n");
        let limits = fs::read_to_string(format!("/proc/{}/limits", rum.child.id()));
        let limits = limits.expect("rum runs");
        let files = limits.lines().find(|l| l.starts_with("Max open files"));
        let mut words = files.expect("a limit").split_whitespace().skip(3);
        let (soft, hard) = (words.next(), words.next());
        assert_eq!(soft, hard, "{limits}");
        drop(rum.child.stdin.take());
        rum.wait();
    });
}

#[test]
fn stdout_belongs_to_the_command() {
    in_netns(|| {
        let setup = Setup::new();
        let mut command = setup.rum(["up", "--range", "5000", "--", "cat"]);
        let mut rum = setup.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut stdin = rum.child.stdin.take().expect("piped");
        stdin.write_all(b"through\n").expect("cat reads");
        drop(stdin);
        let mut stdout = String::new();
        let mut pipe = rum.child.stdout.take().expect("piped");
        pipe.read_to_string(&mut stdout).expect("text");
        assert_eq!(stdout, "through\n");
        assert_eq!(rum.wait().code(), Some(0));
    });
}

#[test]
fn without_a_command_the_lines_are_stdout_and_ctrl_c_ends_it() {
    in_netns(|| {
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let setup = Setup::new();
            let mut rum = setup.start(["up", "--range", "5000-6000"]);
            rum.stderr.wait("connected");
            let (mut server, mut guest) = setup.exec_guest();
            guest.tell("listen 127.0.0.1:5000 echo");
            rum.stdout
                .wait("Auto-forwarding 127.0.0.1:5000 → guest:5000");
            rum.signal(signal);
            assert_eq!(rum.wait().code(), Some(code));
            assert_eq!(
                server.wait().expect("a child").code(),
                Some(143),
                "ended inside"
            );
            until_nothing_is_left(&setup);
        }
    });
}

#[test]
fn ctrl_c_gives_connections_time_and_a_second_one_ends_at_once() {
    in_netns(|| {
        let setup = Setup::new();
        let mut rum = setup.start(["up", "--range", "5000-6000"]);
        rum.stderr.wait("connected");
        let (mut server, mut guest) = setup.exec_guest();
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        let addr = SocketAddr::from(([127, 0, 0, 1], 5000));
        let mut stream = TcpStream::connect(addr).expect("forwarded");
        let mut byte = [0];
        stream.write_all(b"a").expect("connected");
        stream.read_exact(&mut byte).expect("echo");
        rum.signal(Signal::INT);
        rum.stderr.wait("to stop now");
        stream.write_all(b"b").expect("it drains");
        stream.read_exact(&mut byte).expect("it drains");
        assert_eq!(&byte, b"b");
        rum.signal(Signal::INT);
        assert_eq!(rum.wait().code(), Some(130));
        let _ = server.wait();
        until_nothing_is_left(&setup);
    });
}

#[test]
fn sigterm_is_rums_even_with_a_command() {
    in_netns(|| {
        let setup = Setup::new();
        let (mut rum, _guest) = started(&setup);
        rum.signal(Signal::TERM);
        assert_eq!(rum.wait().code(), Some(143));
        until_nothing_is_left(&setup);
    });
}

#[test]
fn sigkill_leaves_nothing() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let (mut rum, _guest) = started(&setup);
            let before = traces(&setup);
            assert!(
                before.len() >= 4,
                "rum, its helpers, the agent, the command: {before:?}"
            );
            rum.signal(Signal::KILL);
            assert_eq!(rum.wait().signal(), Some(Signal::KILL.as_raw()));
            until_nothing_is_left(&setup);
            // And the next one starts where this one lay.
            let (_rum, _guest) = started(&setup);
        }
    });
}

#[test]
fn ctrl_c_on_a_terminal_reaches_the_command() {
    in_netns(|| {
        let setup = Setup::new();
        let inside = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done";
        let rum = binary("rum");
        // Without `exec` a shell between script(1) and rum may get the key too, and die of it.
        let line = format!(
            "exec {} up --range 5000 -- sh -c '{}'",
            rum.display(),
            inside.replace('\'', "'\\''")
        );
        let mut script = setup.command("script");
        script.args(["-qefc", &line, "/dev/null"]);
        let mut terminal = script
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script(1) starts");
        let mut keys = terminal.stdin.take().expect("piped");
        let mut screen = terminal.stdout.take().expect("piped");
        let mut seen = String::new();
        let mut wait_for = |text: &str| {
            let mut block = [0; 1024];
            while !seen.contains(text) {
                let n = screen.read(&mut block).expect("the terminal's output");
                assert!(n > 0, "no `{text}` in {seen}");
                seen.push_str(&String::from_utf8_lossy(&block[..n]));
            }
        };
        wait_for("ready");
        keys.write_all(b"\x03").expect("a key");
        wait_for("caught");
        assert_eq!(terminal.wait().expect("a child").code(), Some(3));
        until_nothing_is_left(&setup);
    });
}

#[test]
fn an_ordinary_user_needs_no_privilege() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let (rum, mut guest) = started(&setup);
        guest.tell("listen 127.0.0.1:80 echo");
        let id = setup
            .rum(["exec", "--", "id", "-u"])
            .output()
            .expect("exec");
        assert_eq!(String::from_utf8_lossy(&id.stdout), "65534\n");
        // The guest's port 80 may be bound; the host's may not, and says so.
        let config = "[[ports]]\nhost = 80\nguest = 80\n";
        let other = Setup::ordinary_user();
        fs::write(other.path().join("rum.toml"), config).expect("a file");
        let second = other.start(["up"]);
        second.stdout.wait("needs privilege");
        drop(rum);
    });
}

#[test]
fn a_name_is_taken_by_one_rum_at_a_time() {
    in_netns(|| {
        let setup = Setup::new();
        let (rum, _guest) = started(&setup);
        let output = setup
            .rum(["up", "--range", "5000-6000"])
            .output()
            .expect("rum");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains(&rum.child.id().to_string()),
            "names the process: {text}"
        );
        // Another name may run beside it.
        let other = setup.start(["up", "--name", "other", "--range", "7000-7999"]);
        other.stderr.wait("connected");
        let output = setup.rum(["exec", "--", "true"]).output().expect("rum");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "two guests: {text}");
        assert!(text.contains("other"), "{text}");
    });
}

#[test]
fn a_wrong_configuration_is_a_usage_error() {
    let setup = Setup::new();
    fs::write(
        setup.path().join("rum.toml"),
        "[auto_ports]\nrange = \"6000-5000\"\n",
    )
    .expect("a file");
    let output = setup.rum(["up"]).output().expect("rum");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("rum.toml:2") && text.contains("5000-6000"),
        "{text}"
    );
    let output = Setup::new().rum(["up"]).output().expect("rum");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--range"));
}

#[test]
fn postgresql_runs_as_an_ordinary_users_command() {
    let bin = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let bin = bin
        .flatten()
        .map(|e| e.path().join("bin"))
        .find(|p| p.join("initdb").exists());
    let bin = bin.expect("PostgreSQL is installed");
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let script = format!(
            "set -e; PATH={}:$PATH; initdb -D data -A trust -U me >initdb.log; \
             exec postgres -D data -p 5432 -k '' -c listen_addresses=127.0.0.1",
            bin.display()
        );
        let rum = setup.start(["up", "--range", "5000-6000", "--", "sh", "-c", &script]);
        rum.stderr
            .wait("Auto-forwarding 127.0.0.1:5432 → guest:5432");
        let query = [
            "-h",
            "127.0.0.1",
            "-p",
            "5432",
            "-U",
            "me",
            "-Atc",
            "select 6*7",
            "postgres",
        ];
        until("a query to be answered", || {
            let psql = setup
                .command(bin.join("psql"))
                .args(query)
                .output()
                .expect("psql");
            (psql.stdout == b"42\n").then_some(())
        });
        let mut rum = rum;
        rum.signal(Signal::TERM);
        assert_eq!(rum.wait().code(), Some(143));
        until_nothing_is_left(&setup);
    });
}
