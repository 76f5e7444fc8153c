//! Namespace guests, as root and as an ordinary user: what is inside, what commands see, and
//! that nothing inside outlives rum.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::process::{Output, Stdio};

use rustix::process::Signal;
use support::{
    GUEST, Stage, USER, Who, expect, kill, net_namespace, on_a_terminal, read_line, until,
};

/// Each test for root and for an ordinary user.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod as_root { $(#[test] fn $name() { super::$name(super::Who::Root) })* }
        mod as_user { $(#[test] fn $name() { super::$name(super::Who::User) })* }
    };
}

both!(
    exit_codes,
    what_a_command_sees,
    a_killed_agent_comes_back,
    nothing_outlives_rum,
    nothing_outlives_the_keeper,
    nothing_outlives_init,
    stops_when_asked,
    kills_at_the_deadline,
    one_guest_a_name,
    terminal_signals_pass_the_guest_by,
    signals_reach_the_command,
    a_command_ends_with_the_process_that_entered,
    a_shell_has_job_control,
    ctrl_c_and_ctrl_z_from_outside,
);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn exit_codes(who: Who) {
    let stage = Stage::new(who);
    let cases: [(&[&str], i32); 6] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 3"], 3),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["no-such-command"], 127),
        (&["/etc/passwd"], 126),
    ];
    for (command, want) in cases {
        let output = stage.run(&[&["up", GUEST], command].concat());
        assert_eq!(code(&output), want, "up {command:?}: {output:?}");
    }
    let _up = stage.up();
    for (command, want) in cases {
        let output = stage.exec(command);
        assert_eq!(code(&output), want, "exec {command:?}: {output:?}");
    }
    let none = stage.run(&["exec", "other", "true"]);
    assert_eq!(code(&none), 125);
    assert!(text(&none.stderr).contains("no guest `other` is running (running: dev)"));
}

fn what_a_command_sees(who: Who) {
    let stage = Stage::new(who);
    let up = stage.up();
    // Executed inside, that is still the stand-in.
    let output = stage.exec(&["/proc/self/exe", "probe"]);
    let seen = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let values = |key: &str| -> Vec<&str> {
        let lines = seen.lines();
        lines
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
            .collect()
    };
    assert_eq!(values("guest"), [GUEST]);
    assert_eq!(values("cwd"), ["/usr"]);
    // `lo` is up and port 80 free for everybody.
    assert_eq!(values("peer"), ["127.0.0.1"]);
    assert_eq!(values("SigBlk"), ["0000000000000000"]);
    if who == Who::User {
        assert_eq!(values("Uid"), [USER.to_string()]);
        assert_eq!(values("Gid"), [USER.to_string()]);
        assert_eq!(values("CapEff"), ["0000000000000000"]);
        for pid in [up.init, stage.find("__rum-agent")] {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        }
    }
    // Init, the agent and the probe itself, and nobody from outside.
    let processes = values("process");
    assert_eq!(processes.len(), 3, "{processes:?}");
    assert!(
        processes
            .iter()
            .any(|line| line.starts_with("1 rum __rum-init"))
    );
    // The fourth reads the directory.
    assert_eq!(values("fd").len(), 4, "{seen}");
}

fn a_killed_agent_comes_back(who: Who) {
    let stage = Stage::new(who);
    let _up = stage.up();
    let (first, args) = stage.ask_agent().unwrap();
    assert!(args.ends_with("--hint poll"), "{args}");
    kill(stage.find("__rum-agent"), Signal::KILL);
    // A connection waits in the backlog for the new one; only the old one can drop it.
    until("another agent", || {
        stage.ask_agent().filter(|(pid, _)| *pid != first)
    });
}

/// A guest full of life, of which `victim` is killed.
fn kill_and_look(who: Who, victim: impl Fn(&Stage, &support::Up) -> u32) {
    let stage = Stage::new(who);
    let mut up = stage.up();
    let net = net_namespace(up.init).unwrap();
    assert_ne!(Some(net), net_namespace(std::process::id()));
    let linger = stage.exec(&["/proc/self/exe", "linger"]);
    assert_eq!(text(&linger.stdout), "lingering\n");
    let mut exec = stage.rum(&["exec", GUEST, "sh", "-c", "trap '' TERM; echo on; cat"]);
    let mut exec = exec
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _open = exec.stdin.take();
    let mut on = [0; 3];
    exec.stdout.take().unwrap().read_exact(&mut on).unwrap();

    kill(victim(&stage, &up), Signal::KILL);

    assert_eq!(exec.wait().unwrap().code(), Some(137));
    up.child.wait().unwrap();
    stage.assert_empty(net);
    // And the name is free.
    assert_eq!(code(&stage.run(&["up", GUEST, "true"])), 0);
}

fn nothing_outlives_rum(who: Who) {
    kill_and_look(who, |_, up| up.child.id());
}

fn nothing_outlives_the_keeper(who: Who) {
    kill_and_look(who, |stage, _| stage.find("__rum-keeper"));
}

fn nothing_outlives_init(who: Who) {
    kill_and_look(who, |_, up| up.init);
}

fn stops_when_asked(who: Who) {
    let stage = Stage::new(who);
    let up = stage.up();
    let net = net_namespace(up.init).unwrap();
    let script = "trap 'echo asked; exit 7' TERM; echo on; while :; do sleep 0.01; done";
    let mut exec = stage.rum(&["exec", GUEST, "sh", "-c", script]);
    let mut exec = exec.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(exec.stdout.take().unwrap());
    assert_eq!(read_line(&mut lines), "on");
    assert_eq!(up.stop(), "Clean");
    assert_eq!(read_line(&mut lines), "asked");
    assert_eq!(exec.wait().unwrap().code(), Some(7));
    stage.assert_empty(net);
}

fn kills_at_the_deadline(who: Who) {
    let stage = Stage::new(who);
    let up = stage.up();
    let net = net_namespace(up.init).unwrap();
    let linger = stage.exec(&["/proc/self/exe", "linger"]);
    assert_eq!(text(&linger.stdout), "lingering\n");
    assert_eq!(up.stop(), "Killed");
    stage.assert_empty(net);
}

fn one_guest_a_name(who: Who) {
    let stage = Stage::new(who);
    let up = stage.up();
    let second = stage.run(&["up", GUEST, "true"]);
    let want = format!("already running (process {})", up.child.id());
    assert!(text(&second.stderr).contains(&want), "{second:?}");
    assert_eq!(code(&stage.run(&["up", "other", "true"])), 0);
    assert_eq!(code(&stage.exec(&["true"])), 0);
}

fn terminal_signals_pass_the_guest_by(who: Who) {
    let stage = Stage::new(who);
    let up = stage.up();
    for pid in [stage.find("__rum-keeper"), up.init] {
        for signal in [
            Signal::INT,
            Signal::QUIT,
            Signal::HUP,
            Signal::TSTP,
            Signal::TERM,
        ] {
            kill(pid, signal);
        }
    }
    assert_eq!(code(&stage.exec(&["true"])), 0);
    // Also not stopped: both have their part in this.
    assert_eq!(up.stop(), "Clean");
}

fn signals_reach_the_command(who: Who) {
    let stage = Stage::new(who);
    let _up = stage.up();
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
    ] {
        let script = format!("trap 'exit 42' {name}; echo on; while :; do sleep 0.01; done");
        let mut exec = stage.rum(&["exec", GUEST, "sh", "-c", &script]);
        let mut exec = exec.stdout(Stdio::piped()).spawn().unwrap();
        exec.stdout.take().unwrap().read_exact(&mut [0; 3]).unwrap();
        kill(exec.id(), signal);
        assert_eq!(exec.wait().unwrap().code(), Some(42), "{name}");
    }
}

fn a_command_ends_with_the_process_that_entered(who: Who) {
    let stage = Stage::new(who);
    let _up = stage.up();
    let mut exec = stage.rum(&["exec", GUEST, "sleep", "98765"]);
    let mut exec = exec.spawn().unwrap();
    // One is the process that entered, which has the command in its arguments too.
    let command = || {
        let children = format!("/proc/{0}/task/{0}/children", exec.id());
        fs::read_to_string(children)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    };
    let command = until("the command", command);
    until("its exec", || {
        let line = fs::read_to_string(format!("/proc/{command}/cmdline")).ok()?;
        line.starts_with("sleep").then_some(())
    });
    kill(exec.id(), Signal::KILL);
    exec.wait().unwrap();
    until("the command's end", || {
        (!stage.processes().contains(&command)).then_some(())
    });
}

/// Runs until it is interrupted. It forks no more once it has said so: a shell that is stopped
/// inside vfork(2) stops only half. What is typed is echoed too: the quotes keep it from looking
/// like the answer.
const JOB: &str = "sh -c 'trap \"echo con''tinued\" CONT; sleep 1000 & echo g''o; \
                   while :; do wait; done'\n";

fn a_shell_has_job_control(who: Who) {
    let stage = Stage::new(who);
    let _up = stage.up();
    let mut command = stage.rum(&["exec", GUEST, "sh", "-i"]);
    command.env("PS1", "ready> ");
    let (mut shell, mut terminal) = on_a_terminal(command);
    let mut talk = |keys: &str, answer: &str| {
        terminal.write_all(keys.as_bytes()).unwrap();
        expect(&mut terminal, answer)
    };
    let greeting = talk("", "ready> ");
    assert!(!greeting.contains("job control"), "{greeting}");
    talk(JOB, "go\r\n");
    talk("\x03", "ready> ");
    talk("echo code''-$?\n", "code-130\r\n");
    talk(JOB, "go\r\n");
    talk("\x1a", "Stopped");
    talk("", "ready> ");
    talk("fg\n", "continued\r\n");
    talk("\x03", "ready> ");
    let last = talk("echo last''-one; exit 5\n", "last-one\r\n");
    assert!(!last.contains("Cannot set tty"), "{last}");
    assert_eq!(shell.wait().unwrap().code(), Some(5));
}

/// A shell outside, whose job is a command inside.
fn ctrl_c_and_ctrl_z_from_outside(who: Who) {
    let stage = Stage::new(who);
    let _up = stage.up();
    let mut command = stage.command("sh");
    command
        .arg("-i")
        .env("PS1", "ready> ")
        .env("HOLDER", stage.holder());
    let (mut shell, mut terminal) = on_a_terminal(command);
    let mut talk = |keys: &str, answer: &str| {
        terminal.write_all(keys.as_bytes()).unwrap();
        expect(&mut terminal, answer)
    };
    talk("", "ready> ");
    talk(&format!("$HOLDER exec dev {JOB}"), "go\r\n");
    talk("\x1a", "Stopped");
    talk("", "ready> ");
    talk("fg\n", "continued\r\n");
    talk("\x03", "ready> ");
    talk("echo code''-$?\n", "code-130\r\n");
    talk("exit 6\n", "exit 6");
    assert_eq!(shell.wait().unwrap().code(), Some(6));
}

/// Runs `up` as the root of a user namespace in which `before` was done, without capabilities but
/// the one for mapping itself.
fn up_after(before: &str) -> String {
    let stage = Stage::new(Who::User);
    let mut command = stage.command("unshare");
    let script =
        format!("{before} && exec setpriv --bounding-set=-all,+setfcap \"$0\" up dev true");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    command.arg(stage.holder());
    let output = command.output().unwrap();
    assert_eq!(code(&output), 125, "{output:?}");
    assert_eq!(fs::read_dir(stage.dir.path()).unwrap().count(), 0);
    text(&output.stderr)
}

#[test]
fn says_which_switch_forbids_user_namespaces() {
    let said = up_after("echo 0 >/proc/sys/user/max_user_namespaces");
    assert!(said.contains("user namespaces are not available"), "{said}");
    assert!(
        said.contains("sysctl -w user.max_user_namespaces="),
        "{said}"
    );
}

#[test]
fn says_that_proc_is_covered() {
    let said = up_after("mount -t tmpfs none /proc/fs");
    assert!(
        said.contains("cannot mount the guest's own /proc"),
        "{said}"
    );
    assert!(said.contains("hint: parts of /proc are covered"), "{said}");
}
