//! A program that tries its port before it takes it, as dev servers do: listens, closes, and listens
//! again. What `rum up` says of that beside the program's own output, and what scripts see of it.

use std::process::Command;

use rum_tests::client::exchange;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Lines, Rum, Setup};
use rum_tests::wait::until;

/// How many of the lines contain `text`.
fn count(lines: &Lines, text: &str) -> usize {
    let lines = lines.all();
    lines.iter().filter(|line| line.contains(text)).count()
}

/// How often guest port 5000 went, as those see it who follow the ports.
fn removed(watch: &Rum) -> usize {
    let lines = watch.stdout.all();
    let of_port = |line: &&String| line.contains("\"removed\"") && line.contains("\"port\":5000");
    lines.iter().filter(of_port).count()
}

#[test]
fn a_port_that_is_tried_and_taken_is_told_once_and_recorded_as_it_was() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let (up, mut guest) = setup.start_guest(&["--range", "5000-6000"]);
            up.stderr.wait("connected");
            let watch = setup.start(["ports", "--watch", "--json"]);
            watch.stdout.wait("\"synced\"");
            guest.tell("listen 127.0.0.1:5000 echo");
            up.stderr.wait("Auto-forwarding 127.0.0.1:5000");
            let mut other = 0;
            // On a busy machine a round may take longer than a pause, or nobody may see it.
            until("a pause that is seen and not told", || {
                let before = (removed(&watch), count(&up.stderr, "5000"));
                guest.tell("close 127.0.0.1:5000");
                guest.tell("listen 127.0.0.1:5000 echo");
                // What is said of a port that stops later comes later.
                guest.tell("listen 127.0.0.1:5900 echo");
                other += 1;
                up.stderr.wait_nth("Auto-forwarding 127.0.0.1:5900", other);
                guest.tell("close 127.0.0.1:5900");
                up.stderr.wait_nth("Stopped forwarding 5900", other);
                let after = (removed(&watch), count(&up.stderr, "5000"));
                (after.0 > before.0 && after.1 == before.1).then_some(())
            });
            let (on, off) = ("Auto-forwarding 127.0.0.1:5000", "Stopped forwarding 5000");
            let forwarded = count(&up.stderr, on);
            assert_eq!(count(&up.stderr, off), forwarded - 1, "always in turn");
            assert_eq!(exchange(5000, "on").expect("echo"), "on");
            guest.tell("close 127.0.0.1:5000");
            up.stderr.wait_nth(off, forwarded);
        }
    });
}

#[test]
fn a_program_that_ends_at_once_leaves_no_line_behind_it() {
    in_netns(|| {
        let setup = Setup::new();
        let script = "import socket; socket.create_server(('127.0.0.1', 5000))";
        let mut up = setup.start(["up", "--range", "5000", "--", "python3", "-c", script]);
        assert_eq!(up.wait().code(), Some(0));
        let lines = up.stderr.all();
        let of = |text: &str| lines.iter().filter(|l| l.contains(text)).count();
        let (on, off) = (of("Auto-forwarding"), of("Stopped forwarding"));
        assert!(on <= 1 && off <= on, "{lines:?}");
        let left = Command::new("ls").arg(setup.path().join("run")).output();
        assert_eq!(String::from_utf8_lossy(&left.expect("ls").stdout), "");
    });
}
