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
        rum.stderr.wait("to stop now");
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

/// Runs `rum ARGS` until it is successful.
fn until_it_works(setup: &Setup, args: &[&str]) -> Output {
    until("rum to find it", || {
        let output = setup.rum(args).output().expect("rum starts");
        output.status.success().then_some(output)
    })
}

fn removed_while_in_use(setup: &Setup) {
    let (mut rum, mut guest) = setup.start_guest(&["--name", "one", "--range", "5000-6000"]);
    guest.tell("listen 127.0.0.1:5000 echo");
    rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
    let run = setup.path().join("run");
    let dir = run.join("one");
    let remove_file = |name: &str| std::fs::remove_file(dir.join(name)).expect("it was there");
    let removals: [&dyn Fn(); 5] = [
        &|| remove_file("control.sock"),
        &|| remove_file("lock"),
        &|| remove_file("guest"),
        &|| std::fs::remove_dir_all(&dir).expect("it was there"),
        &|| std::fs::remove_dir_all(&run).expect("it was there"),
    ];
    for (number, remove) in removals.iter().enumerate() {
        remove();
        if number == 1 {
            // Whoever comes for the name meanwhile leaves the live one alone.
            let mut second = setup.rum(["up", "--name", "one", "--range", "7000"]);
            let second = second.output().expect("rum starts");
            assert_eq!(second.status.code(), Some(1));
            let text = text(&second);
            assert!(text.contains("already running"), "{text}");
        }
        exchange(5000, "12345").expect("a new client is served");
        let ports = until_it_works(setup, &["ports", "--name", "one"]);
        let ports = String::from_utf8_lossy(&ports.stdout).into_owned();
        assert!(ports.contains("forwarded"), "{ports}");
        if number < 3 {
            until_it_works(setup, &["exec", "--name", "one", "--", "true"]);
            continue;
        }
        let exec = setup.rum(["exec", "--name", "one", "--", "true"]).output();
        let said = text(&exec.expect("rum starts"));
        let hint = "`rum down --name one`";
        assert!(
            said.contains("was removed") && said.contains(hint),
            "{said}"
        );
    }
    rum.stderr.wait("was removed while in use");
    // More clients than there are sockets ready ahead.
    for _ in 0..100 {
        exchange(5000, "12345").expect("a new client is served");
    }
    until_it_works(setup, &["down", "--name", "one"]);
    assert_eq!(rum.wait().code(), Some(0));
    assert!(!dir.exists(), "nothing is left");
}

#[test]
fn a_runtime_directory_that_is_removed_is_made_anew() {
    in_netns(|| removed_while_in_use(&Setup::new()));
}

#[test]
fn so_it_is_for_an_ordinary_user() {
    in_netns(|| removed_while_in_use(&Setup::ordinary_user()));
}

#[test]
fn readers_that_are_stopped_keep_nobody_out() {
    in_netns(|| {
        let setup = Setup::new();
        let (mut rum, mut guest) = setup.start_guest(&["--range", "5000-6000"]);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        // As many as there are places, and those that are kept beside them.
        let stopped: Vec<Rum> = (0..80)
            .map(|_| {
                let watch = setup.start(["ports", "--watch", "--json"]);
                watch.stdout.wait(r#""type":"hello""#);
                watch.signal(Signal::STOP);
                watch
            })
            .collect();
        for _ in 0..20 {
            until_it_works(&setup, &["ports"]);
        }
        let alive = setup.start(["ports", "--watch", "--json"]);
        alive.stdout.wait(r#""type":"hello""#);
        assert_eq!(down(&setup, &["--force"]).status.code(), Some(0));
        assert_eq!(rum.wait().code(), Some(0));
        drop(stopped);
    });
}

#[test]
fn readers_that_live_keep_no_command_out_and_one_too_many_is_told() {
    in_netns(|| {
        let setup = Setup::new();
        let (mut rum, mut guest) = setup.start_guest(&["--range", "5000-6000"]);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let watch = || {
            let watch = setup.start(["ports", "--watch", "--json"]);
            watch.stdout.wait(r#""type":"synced""#);
            watch
        };
        let mut watching: Vec<Rum> = (0..64).map(|_| watch()).collect();
        let waiting = |port: &str| setup.start(["wait", port, "--timeout", "1h"]);
        let mut patient: Vec<Rum> = (0..30).map(|_| waiting("5900")).collect();
        let one_more = setup.rum(["ports", "--watch", "--json"]);
        let refused = { one_more }.output().expect("rum starts");
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused);
        assert!(
            said.contains("takes no more watchers: 64 others follow") && said.contains("hint: "),
            "{said}"
        );
        for _ in 0..5 {
            let ports = setup.rum(["ports"]).output().expect("rum starts");
            assert!(ports.status.success(), "{}", text(&ports));
        }
        assert_eq!(waiting("5000").wait().code(), Some(0));
        guest.tell("listen 127.0.0.1:5900 echo");
        for wait in &mut patient {
            assert_eq!(wait.wait().code(), Some(0));
        }
        for watch in &watching {
            watch.stdout.wait(r#""port":5900"#);
        }
        drop(watching.pop());
        watching.push(watch());
        assert!(down(&setup, &[]).status.success());
        assert_eq!(rum.wait().code(), Some(0));
    });
}

/// `rum` with arguments, after `limits` of a shell.
fn limited(setup: &Setup, limits: &str, args: &[&str]) -> std::process::Command {
    let mut command = setup.command("/bin/sh");
    command.args(["-c", &format!("{limits}; exec \"$0\" \"$@\"")]);
    command.arg(rum_tests::rum::binary("rum")).args(args);
    command
}

#[test]
fn odd_limits_of_the_caller_are_borne_or_said() {
    in_netns(|| {
        for setup in [Setup::new(), Setup::ordinary_user()] {
            let up = ["up", "--name", "odd", "--range", "5000", "--", "true"];
            for limits in ["umask 0777", "umask 0277", "ulimit -S -f 1024", "umask 022"] {
                let output = limited(&setup, limits, &up).output().expect("a shell");
                assert_eq!(output.status.code(), Some(0), "{limits}: {}", text(&output));
                assert!(!setup.path().join("run/odd").exists(), "{limits}");
            }
            for limits in ["ulimit -f 0", "ulimit -f 1024", "ulimit -S -f 0"] {
                let output = limited(&setup, limits, &up).output().expect("a shell");
                assert_eq!(output.status.code(), Some(1));
                let text = text(&output);
                assert!(
                    text.contains("RLIMIT_FSIZE") && text.contains("hint: "),
                    "{text}"
                );
                assert!(!setup.path().join("run/odd").exists());
            }
        }
    });
}

#[test]
fn a_runtime_directory_that_is_not_used_is_said() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        for (xdg, why) in [
            ("run", "absolute"),
            ("/does/not/exist", "cannot be used"),
            ("/root", "another user"),
        ] {
            let mut command =
                setup.rum(["up", "--name", "xdg-said", "--range", "5000", "--", "true"]);
            command
                .env_remove("RUM_RUNTIME_DIR")
                .env("XDG_RUNTIME_DIR", xdg);
            let output = command.output().expect("rum starts");
            let text = text(&output);
            assert_eq!(output.status.code(), Some(0), "{text}");
            assert!(
                text.contains(&format!("XDG_RUNTIME_DIR {xdg} ")) && text.contains(why),
                "{text}"
            );
        }
    });
}
