//! Places that take no lines: a full disk, a reader that is gone, a pipe that nobody reads. Whatever rum and
//! its helpers would say there, the guest and its forwards live on.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};

use rum_tests::guest::Guest;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Setup, agent_below, binary};
use rum_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};

use crate::until_nothing_is_left;

/// An echo through the forward of port 5000, once it is there.
fn until_it_serves() {
    until("an answer", || {
        let addr = SocketAddr::from(([127, 0, 0, 1], 5000));
        let mut stream = TcpStream::connect(addr).ok()?;
        stream.write_all(b"a").ok()?;
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        (byte == *b"a").then_some(())
    });
}

/// Kills the agent so often that its first process has more to say than a pipe holds.
fn kill_agents(up: &Child, times: u32) {
    let mut last = 0;
    for _ in 0..times {
        let agent = until("another agent", || {
            agent_below(up.id()).filter(|agent| *agent != last)
        });
        let pid = Pid::from_raw(agent.cast_signed()).expect("not 0");
        let _ = kill_process(pid, Signal::KILL);
        last = agent;
    }
}

fn signal(up: &Child, signal: Signal) {
    kill_process(Pid::from_child(up), signal).expect("a child of ours");
}

/// A `rum up` with a program whose stderr is `stderr`; its log says a lot.
fn start(setup: &Setup, stderr: impl Into<Stdio>) -> (Child, Guest) {
    let mut command = setup.rum(["up", "--range", "5000-6000", "--"]);
    command.env("RUST_LOG", "debug");
    command.arg(binary("guest")).stderr(stderr);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut up = command.spawn().expect("rum starts");
    let mut guest = Guest::of(&mut up);
    guest.tell("listen 127.0.0.1:5000 echo");
    (up, guest)
}

fn lives_on(stderr: impl Fn() -> Stdio) {
    for setup in [Setup::new(), Setup::ordinary_user()] {
        let (mut up, mut guest) = start(&setup, stderr());
        until_it_serves();
        kill_agents(&up, 3);
        // The one after it connects what was waiting, and sees what is new.
        until_it_serves();
        guest.tell("listen 127.0.0.1:5001 echo");
        until("another port", || {
            TcpStream::connect(("127.0.0.1", 5001)).ok()
        });
        signal(&up, Signal::TERM);
        let status = until("the end", || up.try_wait().expect("a child"));
        assert_eq!(status.code(), Some(143));
        until_nothing_is_left(&setup);
    }
}

#[test]
fn a_full_disk_ends_nothing() {
    in_netns(|| {
        let full = || {
            File::options()
                .write(true)
                .open("/dev/full")
                .expect("a device")
        };
        lives_on(|| full().into());
    });
}

#[test]
fn a_reader_of_stderr_that_is_gone_ends_nothing() {
    in_netns(|| {
        lives_on(|| {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            writer.into()
        });
    });
}

#[test]
fn a_stderr_that_nobody_reads_holds_nothing_up() {
    in_netns(|| {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("smaller than any");
        // Full from the start.
        let flags = rustix::fs::fcntl_getfl(&writer).expect("flags");
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).expect("flags");
        while rustix::io::write(&writer, &[b'\n'; 512]).is_ok() {}
        rustix::fs::fcntl_setfl(&writer, flags).expect("flags");
        lives_on(|| writer.try_clone().expect("a descriptor").into());
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
    });
}

/// The one who reads stdout, on the other hand, has `rum up` end.
#[test]
fn a_full_disk_of_stdout_ends_nothing_and_a_reader_that_is_gone_does() {
    in_netns(|| {
        let setup = Setup::new();
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("a device");
        let up = |stdout: Stdio| {
            let mut command = setup.rum(["up", "--range", "5000-6000"]);
            command.stdin(Stdio::null()).stdout(stdout);
            setup.spawn(&mut command)
        };
        let mut first = up(full.into());
        first.stderr.wait("connected");
        let (mut server, mut guest) = setup.exec_guest();
        guest.tell("listen 127.0.0.1:5000 echo");
        until_it_serves();
        first.signal(Signal::TERM);
        assert_eq!(first.wait().code(), Some(143));
        let _ = server.wait();
        until_nothing_is_left(&setup);

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut second = up(writer.into());
        second.stderr.wait("connected");
        let (mut server, mut guest) = setup.exec_guest();
        guest.send("listen 127.0.0.1:5000 echo");
        assert_eq!(second.wait().code(), Some(141));
        let _ = server.wait();
        until_nothing_is_left(&setup);
    });
}

/// The helpers' own words are the last that may hold up an end.
#[test]
fn a_command_that_cannot_be_run_ends_though_nobody_reads_why() {
    in_netns(|| {
        let setup = Setup::new();
        let up = setup.start(["up", "--range", "5000"]);
        up.stderr.wait("connected");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = setup.command("sh");
        let script = "head -c 65536 /dev/zero >&2 & wait; \"$0\" exec -- /no/such; echo $?";
        command.args(["-c", script]).arg(binary("rum"));
        let output = command.stderr(writer).stdout(Stdio::piped()).spawn();
        let output = output.expect("sh").wait_with_output().expect("sh");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "127\n");
        drop(reader);
    });
}
