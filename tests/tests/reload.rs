//! Live reload, end to end: an edited `rum.toml` is in force at once, and touches nothing that it
//! says nothing else about.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use rum_host::status::model::State;
use rum_tests::client::{connect, exchange, until_refused};
use rum_tests::guest::Guest;
use rum_tests::netns::in_netns;
use rum_tests::ports::{follow, until_port};
use rum_tests::rum::{Rum, Setup, binary};
use rum_tests::wait::until;
use rustix::process::Signal;

const CONFIG: &str = "[auto_ports]\nrange = \"5000-5999\"\n";

fn write(setup: &Setup, text: &str) {
    fs::write(setup.path().join("rum.toml"), text).expect("a file");
}

fn up() -> (Setup, Rum, Guest) {
    let setup = Setup::new();
    write(&setup, CONFIG);
    let (rum, guest) = setup.start_guest(&[]);
    (setup, rum, guest)
}

/// A connection that echoes, now and later.
struct Echo(TcpStream);

impl Echo {
    fn new(port: u16) -> Self {
        let mut echo = Self(connect(port));
        echo.lives();
        echo
    }

    fn lives(&mut self) {
        let mut byte = [0];
        self.0.write_all(b"a").expect("it lives");
        self.0.read_exact(&mut byte).expect("it lives");
    }
}

#[test]
fn only_what_differs_is_touched() {
    in_netns(|| {
        let (setup, rum, mut guest) = up();
        guest.tell("listen 127.0.0.1:5000 echo");
        guest.tell("listen 127.0.0.1:5001 echo");
        guest.tell("listen 127.0.0.1:7000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5001");
        let (mut kept, mut moved) = (Echo::new(5000), Echo::new(5001));
        // A static forward comes, a rule moves one of the ports.
        let ports = "[[ports]]\nhost = 8080\nguest = 5000\n";
        let rule = "[[auto_ports.rule]]\nguest = \"5001\"\nhost = 15001\n";
        write(&setup, &format!("{ports}{CONFIG}{rule}"));
        rum.stderr
            .wait("Configuration reloaded: 2 forwards changed");
        rum.stderr.wait("Forwarding 127.0.0.1:8080 → guest:5000");
        rum.stderr
            .wait("Stopped forwarding 5001 (1 connection draining)");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:15001");
        assert_eq!(exchange(8080, "static").expect("echo"), "static");
        assert_eq!(exchange(15_001, "moved").expect("echo"), "moved");
        until_refused(5001);
        kept.lives();
        moved.lives();
        // The range grows, so the agent is asked for more; the static forward goes.
        write(&setup, &CONFIG.replace("5999", "7999"));
        rum.stderr.wait("Auto-forwarding 127.0.0.1:7000");
        until_refused(8080);
        rum.stderr.wait_nth("Auto-forwarding 127.0.0.1:5001", 2);
        kept.lives();
        let range = |range: &str| {
            let range = Some(range.to_owned());
            follow(&setup, "the configuration", |known| {
                let config = known.config.as_ref()?;
                (config.range == range && config.error.is_none()).then_some(())
            });
        };
        range("5000-7999");
        // It shrinks to the one that was never touched.
        write(&setup, &CONFIG.replace("5000-5999", "5000"));
        rum.stderr.wait("Stopped forwarding 7000");
        range("5000");
        until_refused(7000);
        until_refused(5001);
        kept.lives();
        assert_eq!(exchange(5000, "still").expect("echo"), "still");
        let said = rum.stderr.all();
        let again = said.iter().filter(|l| l.contains("127.0.0.1:5000 →"));
        assert_eq!(again.count(), 1, "never bound anew: {said:?}");
        assert!(
            !said.iter().any(|l| l.contains("no event reported it")),
            "{said:?}"
        );
    });
}

#[test]
fn a_broken_file_changes_nothing_until_it_is_mended() {
    in_netns(|| {
        let (setup, rum, mut guest) = up();
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let mut echo = Echo::new(5000);
        write(&setup, "[auto_ports]\nrange = \"6000-5000\"\n");
        rum.stderr.wait("error: the range 6000-5000 is reversed");
        rum.stderr.wait("hint: write `5000-6000`");
        let kept = "Configuration not reloaded: the one from before stays in force";
        rum.stderr.wait(kept);
        let error = follow(&setup, "the error", |known| {
            known.config.as_ref()?.error.clone()
        });
        assert!(error.contains("rum.toml:2:10"), "{error}");
        // The same once more is no news; what is asked for is answered.
        write(&setup, "[auto_ports]\nrange = \"6000-5000\"\n");
        fs::remove_file(setup.path().join("rum.toml")).expect("a file");
        rum.stderr.wait("error: rum.toml is gone");
        rum.stderr.wait_nth(kept, 2);
        echo.lives();
        guest.tell("listen 127.0.0.1:5001 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5001");
        write(&setup, &format!("{CONFIG}exclude = \"5001\"\n"));
        rum.stderr.wait("Configuration reloaded: 1 forward changed");
        rum.stderr.wait("Stopped forwarding 5001");
        until_port(&setup, "guest:5001", |port| port.state == State::Ignored);
        echo.lives();
        let errors = rum.stderr.all();
        let reversed = errors.iter().filter(|l| l.contains("is reversed"));
        assert_eq!(reversed.count(), 1, "{errors:?}");
    });
}

#[test]
fn editors_rename_over_it_and_links_are_followed() {
    in_netns(|| {
        let setup = Setup::new();
        let real = setup.path().join("real");
        fs::create_dir(&real).expect("a directory");
        fs::write(real.join("target.toml"), CONFIG).expect("a file");
        let link = setup.path().join("rum.toml");
        std::os::unix::fs::symlink("real/target.toml", &link).expect("a link");
        let (rum, mut guest) = setup.start_guest(&[]);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let replace = |path: &std::path::Path, to: u16| {
            let rule = format!("[[auto_ports.rule]]\nguest = \"5000\"\nhost = {to}\n");
            let new = path.with_extension("swp");
            fs::write(&new, format!("{CONFIG}{rule}")).expect("a file");
            fs::rename(new, path).expect("the same directory");
            rum.stderr.wait(&format!("Auto-forwarding 127.0.0.1:{to}"));
        };
        replace(&real.join("target.toml"), 15_000);
        replace(&real.join("target.toml"), 15_001);
        // The link itself becomes a file.
        replace(&link, 15_002);
        replace(&link, 15_003);
        assert_eq!(exchange(15_003, "here").expect("echo"), "here");
    });
}

#[test]
fn the_command_line_stays_over_the_file_and_some_things_wait() {
    in_netns(|| {
        let setup = Setup::new();
        write(&setup, CONFIG);
        let (rum, mut guest) = setup.start_guest(&["--range", "7000-7999"]);
        guest.tell("listen 127.0.0.1:5000 echo");
        guest.tell("listen 127.0.0.1:7000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:7000");
        let next = "bind = \"127.0.0.3\"\n[guest]\nkind = \"unix\"\nsocket = \"x\"\n";
        write(&setup, &format!("name = \"other\"\n{CONFIG}{next}"));
        rum.stderr
            .wait("name and [guest] take effect with the next `rum up`");
        rum.stderr.wait("Auto-forwarding 127.0.0.3:7000");
        until_refused(7000);
        assert!(TcpStream::connect("127.0.0.3:5000").is_err());
    });
}

#[test]
fn sighup_reads_again_and_without_a_file_ends_rum() {
    in_netns(|| {
        let (setup, mut rum, mut guest) = up();
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        rum.signal(Signal::HUP);
        rum.stderr.wait("Configuration reloaded: nothing changed");
        write(&setup, "[auto_ports]\nrange = \"x\"\n");
        rum.stderr.wait("`x` is not a port number");
        rum.signal(Signal::HUP);
        rum.stderr.wait_nth("`x` is not a port number", 2);
        assert_eq!(exchange(5000, "lives").expect("echo"), "lives");
        rum.signal(Signal::TERM);
        assert_eq!(rum.wait().code(), Some(143));
        let mut rum = Setup::new().start(["up", "--range", "5000"]);
        rum.stderr.wait("connected");
        rum.signal(Signal::HUP);
        assert_eq!(rum.wait().code(), Some(129));
    });
}

#[test]
fn a_terminal_that_goes_away_ends_rum() {
    in_netns(|| {
        let setup = Setup::new();
        write(&setup, CONFIG);
        let line = format!("exec {} up", binary("rum").display());
        let mut script = setup.command("script");
        script.args(["-qefc", &line, "/dev/null"]);
        let mut terminal = script
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script(1) starts");
        follow_once_up(&setup);
        terminal.kill().expect("a child");
        terminal.wait().expect("a child");
        until("rum to be gone", || {
            let guests = rum_host::runtime_dir::list_in(&setup.path().join("run"));
            guests.ok()?.is_empty().then_some(())
        });
    });
}

/// Waits until the `rum up` of `setup` has its agent.
fn follow_once_up(setup: &Setup) {
    until("rum up", || {
        let guests = rum_host::runtime_dir::list_in(&setup.path().join("run")).ok()?;
        let guest = guests.first()?;
        // Between bind(2) and listen(2) it is there and refuses.
        UnixStream::connect(guest.control_socket()).ok()
    });
    follow(setup, "the agent", |known| {
        let agent = known.agent.as_ref()?;
        agent.version.is_some().then_some(())
    });
}
