//! `rum ports --watch` on a real terminal, against a real `rum up`.

use std::process::Child;

use rum_tests::netns::in_netns;
use rum_tests::rum::Setup;
use rum_tests::terminal::Terminal;
use rum_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::Termios;

/// A running view. Killed when dropped.
struct View(Child);

impl View {
    fn start(setup: &Setup, terminal: &Terminal) -> Self {
        Self(terminal.spawn(&mut setup.rum(["ports", "--watch"])))
    }

    fn code(&mut self) -> Option<i32> {
        let ended = || self.0.try_wait().expect("a child of ours");
        until("the end of the view", ended).code()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("it runs");
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The terminal is as it was: `before`, on its main screen, with a cursor.
fn until_restored(terminal: &Terminal, before: &Termios) {
    until("the terminal to be given back", || {
        (!terminal.is_taken()).then_some(())
    });
    let after = terminal.modes();
    assert_eq!(before.local_modes, after.local_modes);
    assert_eq!(before.input_modes, after.input_modes);
    assert_eq!(before.output_modes, after.output_modes);
    assert_eq!(before.control_modes, after.control_modes);
}

#[test]
fn a_day_with_the_view() {
    in_netns(|| {
        let setup = Setup::new();
        let (rum, mut guest) = setup.start_guest(&["--range", "5000-6000"]);
        rum.stderr.wait("connected");
        let terminal = Terminal::new(80, 24);
        let before = terminal.modes();
        let mut view = View::start(&setup, &terminal);
        let empty = terminal.wait("[live]");
        assert!(empty.contains("Watching tcp 5000-6000"), "{empty}");
        assert_ne!(before.local_modes, terminal.modes().local_modes, "raw");

        guest.tell("listen 127.0.0.1:5001 echo");
        guest.tell("listen 127.0.0.1:5002 echo");
        terminal.wait("127.0.0.1:5002");
        let both = terminal.wait("> 5001");
        assert!(both.contains("5001 forwarded in "), "the log: {both}");

        terminal.keys("/5002");
        terminal.wait_for("only 5002", |screen| {
            screen.contains("> 5002") && !screen.contains("127.0.0.1:5001")
        });
        terminal.keys("\r");
        terminal.wait("/5002  1 of 2");
        terminal.resize(50, 24);
        let line = terminal.wait_for("one line", |screen| screen.lines().count() == 1);
        assert!(line.contains("2 forwarded"), "{line}");
        terminal.resize(120, 30);
        terminal.wait("GUEST");
        // Esc, and it quits nothing.
        terminal.keys("\u{1b}");
        terminal.wait("127.0.0.1:5001");

        // What is not forwarded shows when it is asked for.
        guest.tell("listen 127.0.0.1:7001 echo");
        terminal.keys("a");
        terminal.wait("- out-of-range");
        terminal.keys("a");
        terminal.wait_for("fewer rows", |screen| !screen.contains("- out-of-range"));

        // With nobody to continue it, Ctrl+Z changes nothing.
        terminal.keys("\u{1a}?");
        terminal.wait("this help");
        terminal.keys("q");
        assert_eq!(view.code(), Some(0));
        until_restored(&terminal, &before);
    });
}

#[test]
fn signals_give_the_terminal_back() {
    in_netns(|| {
        let setup = Setup::new();
        let (rum, _guest) = setup.start_guest(&["--range", "5000-6000"]);
        rum.stderr.wait("connected");
        for (number, want) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
            let terminal = Terminal::new(80, 24);
            let before = terminal.modes();
            let mut view = View::start(&setup, &terminal);
            terminal.wait("[live]");
            view.signal(number);
            assert_eq!(view.code(), Some(want));
            until_restored(&terminal, &before);
        }
    });
}

#[test]
fn the_view_outlives_rum_up() {
    in_netns(|| {
        let setup = Setup::new();
        let (mut rum, mut guest) = setup.start_guest(&["--range", "5000-6000"]);
        guest.tell("listen 127.0.0.1:5001 echo");
        let terminal = Terminal::new(80, 24);
        let mut view = View::start(&setup, &terminal);
        terminal.wait("127.0.0.1:5001");
        rum.signal(Signal::KILL);
        rum.wait();
        let lost = terminal.wait("[lost]");
        assert!(lost.contains("? forwarded"), "the rows stay: {lost}");
        assert!(lost.contains("waiting for it to come back"), "{lost}");

        let (rum, mut guest) = setup.start_guest(&["--range", "5000-6000"]);
        guest.tell("listen 127.0.0.1:5002 echo");
        let back = terminal.wait("127.0.0.1:5002");
        assert!(back.contains("rum up is back"), "{back}");
        terminal.wait_for("the old port to be gone", |s| !s.contains("127.0.0.1:5001"));

        // A goodbye has a reason.
        drop(guest);
        rum.stderr.wait("Auto-forwarding");
        terminal.wait("rum up ended: ");
        terminal.keys("\u{3}");
        assert_eq!(view.code(), Some(0));
    });
}

#[test]
fn a_port_more_writes_little() {
    in_netns(|| {
        let setup = Setup::new();
        let (rum, mut guest) = setup.start_guest(&["--range", "5000-6000"]);
        rum.stderr.wait("connected");
        let terminal = Terminal::new(80, 24);
        let _view = View::start(&setup, &terminal);
        terminal.wait("[live]");
        guest.tell("listen 127.0.0.1:5001 echo");
        terminal.wait("5001 forwarded in");
        let rows = terminal.bytes();
        // A port more is one row, a line of the log, and the count.
        guest.tell("listen 127.0.0.1:5002 echo");
        terminal.wait("5002 forwarded in");
        terminal.wait("2 forwarded");
        assert!(
            terminal.bytes() - rows < 1024,
            "{}",
            terminal.bytes() - rows
        );
    });
}
