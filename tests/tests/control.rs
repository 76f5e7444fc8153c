//! The control socket of a real `rum up`: who may talk to it, what it does when asked to end, and
//! what is seen of one that is dead or frozen.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Output;

use rum_tests::client::{connect, exchange};
use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until;
use rustix::process::Signal;

fn down(setup: &Setup, args: &[&str]) -> Output {
    let args = ["down"].iter().chain(args);
    setup.rum(args).output().expect("rum starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn up(setup: &Setup, name: &str, range: &str) -> Rum {
    let rum = setup.start(["up", "--name", name, "--range", range]);
    rum.stderr.wait("connected");
    rum
}

#[test]
fn down_ends_the_one_that_is_meant_with_exit_code_0() {
    in_netns(|| {
        let setup = Setup::new();
        let none = down(&setup, &[]);
        assert_eq!(none.status.code(), Some(1));
        assert!(text(&none).contains("hint: "), "{}", text(&none));
        let mut one = up(&setup, "one", "5000");
        let mut two = up(&setup, "two", "6000");
        let both = down(&setup, &[]);
        assert_eq!(both.status.code(), Some(1));
        assert!(text(&both).contains("one, two"), "{}", text(&both));
        let output = down(&setup, &["--name", "one"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        // It has ended by now, and nothing of it is left.
        assert_eq!(
            one.child
                .try_wait()
                .expect("a child")
                .and_then(|s| s.code()),
            Some(0)
        );
        assert!(!setup.path().join("run/one").exists());
        assert!(down(&setup, &[]).status.success(), "the only one is meant");
        assert_eq!(two.wait().code(), Some(0));
    });
}

#[test]
fn down_gives_connections_time_and_with_force_none() {
    in_netns(|| {
        let setup = Setup::new();
        let (mut rum, mut guest) = setup.start_guest(&["--range", "5000-6000"]);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let lives = connect(5000);
        let patient = setup.start(["down"]);
        rum.stderr.wait("again to force");
        assert_eq!(rum.child.try_wait().expect("a child"), None);
        let output = down(&setup, &["--force"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert_eq!(rum.wait().code(), Some(0));
        let mut patient = patient;
        assert_eq!(patient.wait().code(), Some(0));
        drop(lives);
    });
}

#[test]
fn the_socket_is_for_its_user_only() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let _rum = up(&setup, "mine", "5000");
        let mode = |path: &str| {
            let meta = setup.path().join(path).metadata().expect("it is there");
            meta.permissions().mode() & 0o777
        };
        assert_eq!(mode("run"), 0o700);
        assert_eq!(mode("run/mine"), 0o700);
        assert_eq!(mode("run/mine/control.sock"), 0o600);
    });
}

#[test]
fn a_dead_one_is_not_there_and_its_place_can_be_taken() {
    in_netns(|| {
        let setup = Setup::new();
        let mut rum = up(&setup, "dev", "5000");
        rum.signal(Signal::KILL);
        rum.wait();
        let missing = |output: &Output| {
            assert_eq!(output.status.code(), Some(1));
            let said = text(output);
            assert!(said.contains("no guest `dev` is running"), "{said}");
        };
        missing(&down(&setup, &["--name", "dev"]));
        // As after a power cut: files of a socket that nobody listens on and of a lock that
        // nobody holds.
        let dir = setup.path().join("run/dev");
        until("its keeper to clean up", || (!dir.exists()).then_some(()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .expect("a directory");
        std::fs::write(dir.join("lock"), "").expect("a file");
        drop(UnixListener::bind(dir.join("control.sock")).expect("a socket"));
        missing(&down(&setup, &["--name", "dev"]));
        let (again, mut guest) = setup.start_guest(&["--name", "dev", "--range", "5000"]);
        guest.tell("listen 127.0.0.1:5000 echo");
        again.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        assert_eq!(exchange(5000, "again").expect("echo"), "again");
        assert!(down(&setup, &["--force"]).status.success());
    });
}

#[test]
fn a_frozen_one_is_an_error_not_a_hang() {
    in_netns(|| {
        let setup = Setup::new();
        let rum = up(&setup, "dev", "5000");
        rum.signal(Signal::STOP);
        let output = down(&setup, &[]);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output);
        assert!(
            said.contains("does not answer") && said.contains("hint: "),
            "{said}"
        );
        rum.signal(Signal::CONT);
        assert!(down(&setup, &[]).status.success());
    });
}
