//! Whoever of a guest was stopped or killed before: with `rum up` everything ends, and its name is free.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup, agent_below, below};
use rum_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};

use crate::{until_no_process_is_left, until_nothing_is_left};

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Up,
    Keeper,
    Init,
    Agent,
    /// The process of `rum exec`, outside the guest.
    Enter,
    /// What it runs, inside.
    Command,
    /// The command, and then whoever waits for it: Ctrl+Z.
    Job,
    Everybody,
}

const VICTIMS: [Victim; 8] = [
    Victim::Up,
    Victim::Keeper,
    Victim::Init,
    Victim::Agent,
    Victim::Enter,
    Victim::Command,
    Victim::Job,
    Victim::Everybody,
];

/// How the end begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGKILL to `rum up`.
    Kill,
    /// `rum down`.
    Down,
    /// `rum down --force`.
    Force,
}

/// A guest with a job in it.
struct Stage {
    setup: Setup,
    up: Rum,
    exec: Child,
}

impl Stage {
    fn new(setup: Setup) -> Self {
        let up = setup.start(["up", "--range", "5000-6000"]);
        up.stderr.wait("connected");
        let mut exec = setup.rum(["exec", "--", "sh", "-c", "echo on; exec sleep 1000"]);
        exec.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut exec = exec.spawn().expect("exec starts");
        let mut line = String::new();
        let stdout = exec.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("text");
        assert_eq!(line, "on\n");
        Self { setup, up, exec }
    }

    /// From the innermost outwards.
    fn pids(&self, victim: Victim) -> Vec<u32> {
        let up = self.up.child.id();
        let helper = |name| until(name, || below(up, name));
        match victim {
            Victim::Up => vec![up],
            Victim::Keeper => vec![helper("__rum-keeper")],
            Victim::Init => vec![helper("__rum-init")],
            Victim::Agent => vec![until("the agent", || agent_below(up))],
            Victim::Enter => vec![self.exec.id()],
            Victim::Command => vec![until("the command", || {
                let children = format!("/proc/{0}/task/{0}/children", self.exec.id());
                fs::read_to_string(children).ok()?.trim().parse().ok()
            })],
            Victim::Job => [Victim::Command, Victim::Enter]
                .into_iter()
                .flat_map(|victim| self.pids(victim))
                .collect(),
            Victim::Everybody => [
                Victim::Job,
                Victim::Agent,
                Victim::Init,
                Victim::Keeper,
                Victim::Up,
            ]
            .into_iter()
            .flat_map(|victim| self.pids(victim))
            .collect(),
        }
    }

    fn signal(&self, victim: Victim, signal: Signal) {
        for pid in self.pids(victim) {
            let id = Pid::from_raw(pid.cast_signed()).expect("not 0");
            // Gone with the one before it is as good.
            let _ = kill_process(id, signal);
            until("it to be stopped, or gone", || {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
                matches!(state.chars().next(), None | Some('T' | 'Z' | 'X'))
                    .then_some(())
                    .or_else(|| (signal == Signal::KILL).then_some(()))
            });
        }
    }

    fn end(&self, end: End) {
        match end {
            End::Kill => self.up.signal(Signal::KILL),
            End::Down | End::Force => {
                let mut args = vec!["down"];
                args.extend((end == End::Force).then_some("--force"));
                let output = self.setup.rum(args).output().expect("rum");
                assert!(output.status.success(), "{output:?}");
            }
        }
    }
}

fn everything_ends(new: fn() -> Setup, end: End) {
    in_netns(|| {
        for signal in [Signal::STOP, Signal::KILL] {
            for victim in VICTIMS {
                let is_heard = match (signal, victim) {
                    // Stopped, it does not answer, which is what `--force` is for.
                    (Signal::STOP, Victim::Up | Victim::Everybody) => end != End::Down,
                    // It has ended already.
                    (_, Victim::Up | Victim::Keeper | Victim::Init | Victim::Everybody) => {
                        signal == Signal::STOP
                    }
                    _ => true,
                };
                let mut stage = Stage::new(new());
                stage.signal(victim, signal);
                if is_heard {
                    stage.end(end);
                } else if signal == Signal::STOP {
                    continue;
                }
                eprintln!("{victim:?} got {signal:?}, then {end:?}");
                stage.up.wait();
                if (signal, victim) == (Signal::KILL, Victim::Everybody) {
                    // Nobody could remove the files; the next one does.
                    until_no_process_is_left(&stage.setup);
                } else {
                    until_nothing_is_left(&stage.setup);
                }
                until("the command's end", || {
                    stage.exec.try_wait().expect("a child")
                });
                let next = ["up", "--range", "5000", "--", "true"];
                let next = stage.setup.rum(next).output().expect("rum");
                assert!(next.status.success(), "the name is not free: {next:?}");
                let said = stage.up.stderr.all().join("\n");
                assert!(!said.contains("cannot be killed"), "{said}");
            }
        }
    });
}

#[test]
fn everything_ends_with_a_killed_up_of_root() {
    everything_ends(Setup::new, End::Kill);
}

#[test]
fn everything_ends_with_a_killed_up_of_an_ordinary_user() {
    everything_ends(Setup::ordinary_user, End::Kill);
}

#[test]
fn everything_ends_with_down_by_root() {
    everything_ends(Setup::new, End::Down);
}

#[test]
fn everything_ends_with_down_by_an_ordinary_user() {
    everything_ends(Setup::ordinary_user, End::Down);
}

#[test]
fn everything_ends_with_down_and_force_by_root() {
    everything_ends(Setup::new, End::Force);
}

#[test]
fn everything_ends_with_down_and_force_by_an_ordinary_user() {
    everything_ends(Setup::ordinary_user, End::Force);
}

/// The command of `rum up` itself stops: nobody but rum waits for it.
#[test]
fn a_command_that_stops_itself_ends_with_down() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let script = "kill -STOP $$; sleep 1000";
            let mut up = setup.start(["up", "--range", "5000", "--", "sh", "-c", script]);
            until("it to be stopped", || {
                let enter = below(up.child.id(), "__rum-enter")?;
                let children = format!("/proc/{enter}/task/{enter}/children");
                let pid: u32 = fs::read_to_string(children).ok()?.trim().parse().ok()?;
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                stat.contains(") T ").then_some(())
            });
            let down = setup.rum(["down"]).output().expect("rum");
            assert!(down.status.success(), "{down:?}");
            assert_eq!(up.wait().code(), Some(0));
            until_nothing_is_left(&setup);
        }
    });
}

#[test]
fn force_says_that_it_took_a_signal() {
    in_netns(|| {
        let setup = Setup::new();
        let mut up = setup.start(["up", "--range", "5000"]);
        up.stderr.wait("connected");
        up.signal(Signal::STOP);
        let process = format!("(process {})", up.child.id());
        let down = setup.rum(["down"]).output().expect("rum");
        let said = String::from_utf8_lossy(&down.stderr).into_owned();
        assert_eq!(down.status.code(), Some(1), "{said}");
        assert!(said.contains("`rum down --force` ends it"), "{said}");
        let down = setup.rum(["down", "--force"]).output().expect("rum");
        let said = String::from_utf8_lossy(&down.stderr).into_owned();
        assert_eq!(down.status.code(), Some(0), "{said}");
        assert!(
            said.contains(&process) && said.contains("SIGTERM"),
            "{said}"
        );
        assert_eq!(up.wait().code(), Some(143));
        until_nothing_is_left(&setup);
    });
}

/// In the wrong place their first act would be to end or to remove what is not theirs.
#[test]
fn helpers_refuse_to_be_started_by_hand() {
    let setup = Setup::new();
    let dir = setup.path().join("victim");
    fs::create_dir(&dir).expect("a directory");
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("ours");
    fs::write(dir.join("lock"), "mine").expect("a file");
    let script = r#"
        for mode in init "keeper $DIR 3 3 3 ''" "warden $DIR 3 1 true"; do
            { echo T; sleep 1; } | eval "\"$0\" __rum-$mode" 3<"$0" && echo started
        done
        echo alive"#;
    let output = setup
        .command("setsid")
        .args(["-w", "sh", "-c", script])
        .arg(rum_tests::rum::binary("rum"))
        .env("DIR", &dir)
        .output()
        .expect("sh");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        said.matches("not to be called by hand").count(),
        3,
        "{output:?}"
    );
    assert!(
        said.ends_with("alive\n") && !said.contains("started"),
        "{said}"
    );
    assert!(dir.join("lock").exists());
}
