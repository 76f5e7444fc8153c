//! What `rum` and its commands take from whoever calls them: which signals are ignored, and the working
//! directory.

use std::fs;
use std::process::{Command, Output, Stdio};

use rum_tests::netns::in_netns;
use rum_tests::rum::{Setup, binary};
use rustix::process::Signal;

use crate::until_nothing_is_left;

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn what_is_ignored_stays_ignored() {
    in_netns(|| {
        let setup = Setup::new();
        let script = "trap '' HUP INT; exec \"$0\" up --range 5000-6000";
        let mut command = setup.command("sh");
        command.args(["-c", script]).arg(binary("rum"));
        let mut up = setup.start_command(&mut command);
        up.stderr.wait("connected");
        for signal in [Signal::HUP, Signal::INT] {
            up.signal(signal);
        }
        // An answer comes after whatever it would have made of them.
        let ports = setup.rum(["ports"]).output().expect("rum");
        assert!(ports.status.success(), "{ports:?}");
        let said = up.stderr.all().join("\n");
        assert!(!said.contains("Stopping"), "{said}");
        up.signal(Signal::TERM);
        assert_eq!(up.wait().code(), Some(143));
        until_nothing_is_left(&setup);
    });
}

#[test]
fn a_command_has_its_callers_signals() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let up = setup.start(["up", "--name", "other", "--range", "5000"]);
            up.stderr.wait("connected");
            let show = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"];
            for options in [
                vec!["--default-signal"],
                vec![
                    "--ignore-signal=HUP,INT,QUIT,PIPE,CHLD,TSTP,USR1",
                    "--block-signal=USR2,WINCH",
                ],
            ] {
                let rum = binary("rum");
                let rum = rum.to_str().expect("text");
                let run = |before: &[&str]| {
                    let mut command = setup.command("env");
                    command.args(&options).args(before).args(show);
                    said(&command.stdin(Stdio::null()).output().expect("env"))
                };
                let (code, direct, _) = run(&[]);
                assert_eq!(code, Some(0));
                let inside = run(&[rum, "up", "--range", "5000", "--"]);
                assert_eq!((inside.0, &inside.1), (Some(0), &direct), "{}", inside.2);
                let inside = run(&[rum, "exec", "--name", "other", "--"]);
                assert_eq!((inside.0, &inside.1), (Some(0), &direct), "{}", inside.2);
            }
        }
    });
}

#[test]
fn a_command_runs_in_its_callers_directory_or_not_at_all() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let up = setup.start(["up", "--name", "other", "--range", "5000"]);
            up.stderr.wait("connected");
            let here = setup.path().join("here");
            fs::create_dir(&here).expect("a directory");
            let rum = binary("rum");
            let rum = rum.to_str().expect("text");
            let up = ["up", "--range", "5000", "pwd"];
            let exec = ["exec", "--name", "other", "pwd"];
            for [verb, option, value, program] in [up, exec] {
                let run = |before: &str, workdir: &str| {
                    let script = format!(
                        "mkdir -p \"$HERE\"; cd \"$HERE\"; {before}; \
                         exec {rum} {verb} {option} {value} {workdir} -- {program}"
                    );
                    let mut command = setup.command("sh");
                    command.env("HERE", &here).args(["-c", &script]);
                    said(&command.stdin(Stdio::null()).output().expect("sh"))
                };
                let (code, stdout, stderr) = run(":", "");
                assert_eq!(code, Some(0), "{stderr}");
                assert_eq!(stdout.trim_end(), here.to_str().expect("text"));
                let (code, stdout, stderr) = run("rmdir \"$HERE\"", "");
                assert_eq!((code, stdout.as_str()), (Some(125), ""), "{stderr}");
                assert!(stderr.contains(here.to_str().expect("text")), "{stderr}");
                assert!(stderr.contains("--workdir"), "{stderr}");
                // The guest's own /proc is another directory.
                let (code, stdout, stderr) = run("cd /proc", "");
                assert_eq!((code, stdout.as_str()), (Some(125), ""), "{stderr}");
                assert!(
                    stderr.contains("`/proc`: the guest has another"),
                    "{stderr}"
                );
                let (code, stdout, stderr) = run("rmdir \"$HERE\"", "--workdir /proc");
                assert_eq!((code, stdout.as_str()), (Some(0), "/proc\n"), "{stderr}");
                let (code, stdout, _) = run("cd ..", "--workdir here");
                assert_eq!(code, Some(0));
                assert_eq!(stdout.trim_end(), here.to_str().expect("text"));
                let (code, _, stderr) = run(":", "--workdir /no/such/place");
                assert_eq!(code, Some(125), "{stderr}");
                assert!(stderr.contains("`/no/such/place`"), "{stderr}");
            }
        }
    });
}

#[test]
fn a_guest_whose_first_process_is_killed_has_ended_and_its_command_for_that_reason() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let mut up = setup.start(["up", "--range", "5000", "--", "sleep", "1000"]);
            up.stderr.wait("connected");
            let init = rum_tests::rum::below(up.child.id(), "__rum-init").expect("init");
            let status = Command::new("kill")
                .args(["-KILL", &init.to_string()])
                .status();
            assert!(status.expect("kill").success());
            assert_eq!(up.wait().code(), Some(1));
            let line = up.stderr.wait("The guest ended");
            assert_eq!(line, "The guest ended: its init was killed by signal 9");
            until_nothing_is_left(&setup);
        }
    });
}

#[test]
fn what_is_killed_at_once_because_somebody_asked_is_told_so() {
    in_netns(|| {
        let setup = Setup::new();
        let script = "trap '' TERM; echo on; while :; do sleep 1; done";
        let mut up = setup.start(["up", "--range", "5000"]);
        up.stderr.wait("connected");
        let mut exec = setup.rum(["exec", "--", "sh", "-c", script]);
        let mut exec = exec.stdout(Stdio::piped()).spawn().expect("rum");
        let mut on = [0; 3];
        let stdout = exec.stdout.as_mut().expect("piped");
        std::io::Read::read_exact(stdout, &mut on).expect("on");
        up.signal(Signal::TERM);
        up.stderr.wait("to stop now");
        // The first second signal may still meet the drain, which has nothing to do here.
        let ended = rum_tests::wait::until("the end", || {
            up.signal(Signal::TERM);
            std::thread::sleep(std::time::Duration::from_millis(50));
            up.child.try_wait().expect("a child")
        });
        assert_eq!(ended.code(), Some(143));
        let said = up.stderr.all().join("\n");
        assert!(!said.contains("after 5s"), "{said}");
        let _ = exec.wait();
        until_nothing_is_left(&setup);
    });
}
