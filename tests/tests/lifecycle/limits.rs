//! Limits of the caller (ulimit) and runtime directories without room: `rum up` works, or says in one line
//! what is in its way and in a hint what to do. It neither panics nor leaves anything behind.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rum_tests::netns::in_netns;
use rum_tests::rum::{Setup, binary};
use rum_tests::wait::until;
use rustix::process::Signal;

use crate::until_nothing_is_left;

/// The exit codes of a process that was killed: SIGSEGV, SIGABRT, and Rust's for a panic.
const CRASHES: [Option<i32>; 3] = [Some(139), Some(134), Some(101)];

/// Runs `up` in a shell that has done `before`.
fn up(setup: &Setup, before: &str) -> Output {
    let script = format!(
        "{before}; \"$0\" up --range 5000 -- sh -c 'echo inside; ulimit -s'; code=$?; exit $code"
    );
    let mut shell = setup.command("bash");
    shell.args(["-c", &script]).arg(binary("rum"));
    shell.stdin(Stdio::null()).output().expect("bash")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It works, or there is one error, about what `names` says, with a hint.
fn works_or_says(setup: &Setup, before: &str, names: &str) -> bool {
    let output = up(setup, before);
    let said = text(&output);
    until_nothing_is_left(setup);
    assert!(!CRASHES.contains(&output.status.code()), "{before}: {said}");
    assert!(!said.contains("panicked"), "{before}: {said}");
    if output.status.success() {
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.starts_with("inside\n"), "{before}: {stdout}{said}");
        return true;
    }
    // 125, as from env(1): all was there but for CMD. Which one is too many differs from run to run.
    assert!(
        [Some(1), Some(125)].contains(&output.status.code()),
        "{before}: {said}"
    );
    let count = |word| said.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!(
        (count("error: "), count("hint: ")),
        (1, 1),
        "{before}: {said}"
    );
    assert!(said.contains(names), "{before}: {said}");
    let left = fs::read_dir(setup.path().join("run")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{before} left something");
    false
}

#[test]
fn small_limits_are_borne_or_said() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            for (before, names, works) in [
                // Both limits, which nobody raises again.
                ("ulimit -s 32", "RLIMIT_STACK", Some(false)),
                ("ulimit -s 64", "RLIMIT_STACK", Some(false)),
                ("ulimit -s 1024", "RLIMIT_STACK", Some(true)),
                ("ulimit -s unlimited", "", Some(true)),
                ("export RUST_MIN_STACK=1", "", Some(true)),
                ("ulimit -n 20", "ulimit -n", Some(false)),
                ("ulimit -n 64", "", Some(true)),
                ("ulimit -f 0", "RLIMIT_FSIZE", Some(false)),
                // No room for a second thread, in unoptimised builds.
                ("ulimit -d 2000", "ulimit -d", None),
                ("ulimit -l 0; ulimit -c 0; ulimit -q 0", "", Some(true)),
            ] {
                let worked = works_or_says(&setup, before, names);
                if let Some(works) = works {
                    assert_eq!(worked, works, "{before}");
                }
            }
        }
    });
}

/// Only the soft one is small, and is what the program inside gets.
#[test]
fn a_soft_limit_of_the_stack_is_the_program_s() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let output = up(&setup, "ulimit -Ss 64");
            let stdout = String::from_utf8_lossy(&output.stdout);
            assert_eq!(stdout, "inside\n64\n", "{}", text(&output));
        }
    });
}

/// Commands that need no guest's helper work with the smallest stack.
#[test]
fn other_commands_have_stack_enough() {
    let setup = Setup::new();
    let mut shell = setup.command("sh");
    let script = "ulimit -s 64; \"$0\" --version && \"$0\" check --range 5000-6000";
    let output = shell.args(["-c", script]).arg(binary("rum")).output();
    let output = output.expect("sh");
    assert!(output.status.success(), "{output:?}");
}

/// The number of processes and threads is counted for each user, so this is one whom nobody else has.
#[test]
fn few_processes_are_borne_or_said() {
    const USER: u32 = 61_001;
    in_netns(|| {
        let setup = Setup::of_user(USER);
        // `rum up`, its workers, its two lines to the terminal; keeper, init, agent, enter, CMD.
        for count in 2..14 {
            works_or_says(&setup, &format!("ulimit -u {count}"), "ulimit -u");
        }
        assert!(works_or_says(&setup, "ulimit -u 64", ""));
    });
}

/// Forks until there is no room for another process or thread, and listens then.
const FORKS: &str = "\
import os, signal, socket, sys
children = []
def fill():
    while True:
        try:
            pid = os.fork()
        except OSError:
            return
        if pid == 0:
            signal.pause()
        children.append(pid)
fill()
listeners = []
for port in range(5001, 5006):
    listeners.append(socket.create_server(('127.0.0.1', port)))
    fill()
print('full', flush=True)
sys.stdin.readline()
for pid in children:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
print('free', flush=True)
sys.stdin.readline()
";

/// The agent cannot have a thread to look for names then: ports are forwarded all the same, and named later.
#[test]
fn a_guest_that_forks_up_to_its_limit_keeps_its_agent() {
    const USER: u32 = 61_002;
    in_netns(|| {
        let setup = Setup::of_user(USER);
        let script = "ulimit -u 40; exec \"$0\" up --range 5000-6000 -- python3 -c \"$1\"";
        let mut command = setup.command("bash");
        command.args(["-c", script]).arg(binary("rum")).arg(FORKS);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut rum = setup.spawn(&mut command);
        let mut stdin = rum.child.stdin.take().expect("piped");
        let mut stdout = BufReader::new(rum.child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("text");
        assert_eq!(line, "full\n");
        for port in 5001..5006 {
            rum.stderr
                .wait(&format!("Auto-forwarding 127.0.0.1:{port} "));
        }
        stdin.write_all(b"\n").expect("it reads");
        stdout.read_line(&mut line).expect("text");
        until("their names", || {
            let ports = setup.rum(["ports"]).output().expect("rum");
            let text = String::from_utf8_lossy(&ports.stdout).into_owned();
            (text.matches("python3").count() == 5).then_some(())
        });
        let said = rum.stderr.all().join("\n");
        assert!(
            !said.contains("panicked") && !said.contains("the agent"),
            "{said}"
        );
        drop(stdin);
        assert!(rum.wait().success());
        until_nothing_is_left(&setup);
    });
}

/// Mounts a tmpfs at `at` in the mount namespace of the shell that goes on with `more`.
fn with_small_disk(setup: &Setup, options: &str, more: &str) -> Command {
    let at = setup.path().join("run");
    fs::create_dir_all(&at).expect("a directory");
    let owner = setup.uid.unwrap_or(0);
    let script = format!(
        "mount -t tmpfs -o {options},mode=700,uid={owner} none \"$RUM_RUNTIME_DIR\" && {more}"
    );
    let root = Setup {
        uid: None,
        ..setup.clone()
    };
    let mut unshare = root.command("unshare");
    let as_user = format!("setpriv --reuid={owner} --regid={owner} --clear-groups");
    unshare
        .args(["-m", "bash", "-c", &script])
        .arg(binary("rum"));
    unshare.env("AS_USER", as_user);
    unshare
}

#[test]
fn a_runtime_directory_without_room_is_said_and_left_as_it_was() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let full = "head -c 1M /dev/zero >\"$RUM_RUNTIME_DIR/fill\" 2>/dev/null;";
            let mut worked = 0;
            for (options, before) in [("size=64k", full), ("nr_inodes=1", "")]
                .into_iter()
                .map(|(options, before)| (options.to_owned(), before))
                .chain((2..12).map(|count| (format!("nr_inodes={count}"), "")))
            {
                let more = format!(
                    "{{ {before} $AS_USER \"$0\" up --range 5000 -- echo inside; code=$?; \
                     rm -f \"$RUM_RUNTIME_DIR/fill\"; ls -A \"$RUM_RUNTIME_DIR\"; exit $code; }}"
                );
                let mut command = with_small_disk(&setup, &options, &more);
                let output = command.stdin(Stdio::null()).output().expect("unshare");
                let said = text(&output);
                let stdout = String::from_utf8_lossy(&output.stdout);
                if output.status.success() {
                    assert_eq!(stdout, "inside\n", "{options}");
                    worked += 1;
                    continue;
                }
                assert_eq!(output.status.code(), Some(1), "{options}: {said}");
                assert_eq!(stdout, "", "{options} left something");
                assert!(said.contains("No space left"), "{options}: {said}");
                assert!(
                    said.contains("hint: the file system of"),
                    "{options}: {said}"
                );
            }
            assert!(worked > 0, "none of them is large enough");
        }
    });
}

fn answers(port: u16) -> bool {
    let echo = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"a").ok()?;
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        (byte == *b"a").then_some(())
    };
    echo().is_some()
}

/// Also when the directory goes and cannot be made anew: that is said once, with the reason, until there is
/// room again.
#[test]
fn a_runtime_directory_that_fills_up_ends_nothing() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let more = "exec $AS_USER \"$0\" up --range 5000-6000 -- \"$GUEST\"";
            let mut command = with_small_disk(&setup, "size=64k", more);
            command.env("GUEST", binary("guest"));
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut rum = setup.spawn(&mut command);
            let mut guest = rum_tests::guest::Guest::of(&mut rum.child);
            guest.tell("listen 127.0.0.1:5000 echo");
            until("an answer", || answers(5000).then_some(()));
            // In its mounts.
            let inside = format!(
                "/proc/{}/root{}",
                rum.child.id(),
                setup.path().join("run").display()
            );
            let dir = Path::new(&inside);
            let fill = dir.join("fill");
            fs::write(&fill, vec![0; 1 << 20]).expect_err("it is full");
            guest.tell("listen 127.0.0.1:5001 echo");
            until("an answer", || {
                (answers(5000) && answers(5001)).then_some(())
            });
            fs::remove_dir_all(dir.join("default")).expect("there");
            let line = rum.stderr.wait("the runtime directory was removed");
            assert!(line.contains("No space left"), "{line}");
            assert!(answers(5000) && answers(5001));
            fs::remove_file(&fill).expect("there");
            rum.stderr.wait("find this `rum up` again");
            rum.signal(Signal::TERM);
            assert_eq!(rum.wait().code(), Some(143));
            until_nothing_is_left(&setup);
        }
    });
}
