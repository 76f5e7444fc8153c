//! What `tests/vhost` does on a host with a genuine /dev/vhost-vsock: as the only program of a
//! virtual machine that is that host. Real `rum`s boot two VMs inside it, QEMU within QEMU, and
//! reach their agents through the kernel's AF_VSOCK.
//!
//! One check after the other, since a boot takes most of a minute there. Each prints its name
//! before and after; the first that fails ends the program.

#![allow(clippy::print_stdout)] // The console is read by the test.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rum_tests::client::{connect, dial, exchange, host, server_ends_first, talk, until_refused};
use rum_tests::guest::Guest;
use rum_tests::rum::{Lines, Rum, Setup};
use rum_tests::wait::{be_patient, patience, until};
use rustix::process::{Pid, Signal, kill_process};
use vsock::{VMADDR_CID_ANY, VsockListener};

/// For anything that is waited for: this is two translations slower than a machine, which may
/// be loaded.
const PATIENCE: u64 = 1200;
/// Where the test puts what a VM boots from.
const KERNEL: &str = "/vmlinuz";
const INITRD: &str = "/initrd";
/// Where it puts QEMU.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Vsock ports of the host, where the guest programs of the two VMs call.
const CONTROL: [u32; 2] = [9001, 9002];
/// Where it puts an empty disk, in which the first VM can be saved.
const SNAPSHOTS: &str = "/snapshots.qcow2";
/// A QEMU whose first machine asks for a CID that is taken. It notes each start.
const COLLIDING_QEMU: &str = r#"#!/bin/sh
case " $* " in *guest-cid=*) ;; *) exec "$QEMU" "$@" ;; esac
echo "$@" >>"$STARTS"
if [ "$(wc -l <"$STARTS")" = 1 ]; then
    for arg; do
        shift
        case $arg in vhost-vsock-pci,guest-cid=*) arg=vhost-vsock-pci,guest-cid=$TAKEN ;; esac
        set -- "$@" "$arg"
    done
fi
exec "$QEMU" "$@"
"#;

/// A VM that `rum up` boots, and its guest program.
struct Machine {
    rum: Rum,
    control: VsockListener,
    guest: Guest,
}

fn main() {
    be_patient(PATIENCE);
    let setup = Setup::new();
    check("doctor finds the device", || {
        let said = setup.rum(["doctor"]).output().expect("rum runs").stdout;
        let said = String::from_utf8_lossy(&said);
        let found = said.contains("/dev/vhost-vsock can be opened");
        assert!(found, "{said}");
    });
    let control = CONTROL.map(|port| {
        let control = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port);
        let control = control.expect("AF_VSOCK");
        control.set_nonblocking(true).expect("a socket");
        control
    });
    let (one, cid) = check("a VM starts with the kernel's vsock", || {
        let one = up(&setup, "one", 5000, CONTROL[0], |_| {});
        one.stderr.wait("VM started in");
        let line = qemu("one").1;
        let cid = line
            .split("vhost-vsock-pci,guest-cid=")
            .nth(1)
            .expect(&line);
        let cid = cid.split(' ').next().expect("a number").to_owned();
        (one, cid)
    });
    let two = check("a CID that is taken is drawn anew", || {
        let starts = setup.path().join("starts");
        let program = setup.path().join("bin/qemu-system-x86_64");
        fs::create_dir(program.parent().expect("bin")).expect("a new directory");
        fs::write(&program, COLLIDING_QEMU).expect("a new file");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("ours");
        let two = up(&setup, "two", 5100, CONTROL[1], |command| {
            let mut path = OsString::from(setup.path().join("bin:"));
            path.push(std::env::var_os("PATH").unwrap_or_default());
            let vars = [
                ("PATH", path),
                ("QEMU", QEMU.into()),
                ("TAKEN", (&cid).into()),
            ];
            command.envs(vars).env("STARTS", &starts);
        });
        two.stderr.wait("VM started in");
        let starts = fs::read_to_string(starts).expect("it was started");
        assert_eq!(starts.lines().count(), 2, "{starts}");
        two
    });
    let [mut one, mut two] = check("both agents come up", || {
        let [first, second] = control;
        [(one, first), (two, second)].map(|(rum, control)| {
            rum.stderr.wait("connected (events: tracepoint)");
            rum.stderr.wait("Agent up after");
            let guest = accept(&control);
            Machine {
                rum,
                control,
                guest,
            }
        })
    });
    check("ports follow each guest", || {
        one.listen(5000, "echo");
        two.listen(5100, "echo");
        for port in [5000, 5100] {
            until_echoed(host(port));
        }
        two.guest.tell("close 127.0.0.1:5100");
        two.rum.stdout.wait("Stopped forwarding 5100");
        until_refused(5100);
    });
    let mut by_cid = check("kind vsock finds a running VM by its CID", || {
        let by_cid = up_by_cid(&setup, "by-cid", &cid);
        by_cid
            .stdout
            .wait("Auto-forwarding 127.0.0.2:5000 → guest:5000");
        until_echoed(SocketAddr::from(([127, 0, 0, 2], 5000)));
        by_cid
    });
    check("a CID that nobody has is named", || {
        let mut nobody = up_by_cid(&setup, "nobody", "4242");
        nobody.stderr.wait("no VM here has the CID 4242");
        // SIGKILL would leave its directory to the next one of that name.
        nobody.signal(Signal::TERM);
        nobody.wait();
    });
    check("half-close works in both directions", || {
        half_close(&mut one)
    });
    check("a reset stays a reset", || {
        one.listen(5003, "reset");
        let mut stream = connect(5003);
        stream.write_all(b"!").expect("connected");
        let error = stream.read(&mut [0]).expect_err("not a clean end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
    check("megabytes arrive both ways at once", || both_ways(5000));
    check("the agent serves its host only", || {
        // The guest's own loopback, in which it is CID 1.
        for port in [2222, 2223] {
            one.guest.tell(&format!("refused 1 {port}"));
        }
    });
    check("a killed agent is replaced by the next", || {
        let stderr = &one.rum.stderr;
        let [lost, connected] = ["Agent lost", "connected (events"].map(|t| times(stderr, t));
        let mut stream = echoed(5000);
        one.guest.tell("sh kill -9 $(pidof agent)");
        let error = stream.read(&mut [0]).expect_err("not a clean end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        stderr.wait_nth("Agent lost", lost + 1);
        one.guest
            .tell("sh setsid /rum/agent </dev/null >/dev/null 2>&1 &");
        stderr.wait_nth("connected (events", connected + 1);
        until_echoed(host(5000));
    });
    check(
        "a guest that was stopped and goes on is found again",
        || {
            let stderr = &one.rum.stderr;
            let [lost, connected] = ["Agent lost", "connected (events"].map(|t| times(stderr, t));
            let monitor = setup.path().join("one.qmp");
            qmp(&monitor, "stop", "{}").expect("QEMU stops the guest");
            stderr.wait_nth("Agent lost", lost + 1);
            qmp(&monitor, "cont", "{}").expect("QEMU goes on");
            stderr.wait_nth("connected (events", connected + 1);
            until_echoed(host(5000));
        },
    );
    check("a VM goes back to a snapshot", || {
        back_to_snapshot(&setup, &mut one)
    });
    check("a guest that reboots is found again", || {
        two.listen(5101, "echo");
        let connected = times(&two.rum.stderr, "connected (events");
        two.guest.send("sh reboot -f");
        two.guest = accept(&two.control);
        two.rum.stderr.wait_nth("connected (events", connected + 1);
        two.listen(5102, "echo");
        until_echoed(host(5102));
        two.rum.stdout.wait("Stopped forwarding 5101");
        until_refused(5101);
    });
    check("a VM that loses its power ends rum", || {
        let pid = Pid::from_raw(qemu("two").0).expect("not 0");
        kill_process(pid, Signal::KILL).expect("it runs");
        assert_eq!(two.rum.wait().code(), Some(1));
        two.rum.stderr.wait("The guest ended");
        until_refused(5102);
    });
    check("rum down ends the other, and who found it says so", || {
        let lost = times(&by_cid.stderr, "Agent lost");
        let down = setup.rum(["down", "--name", "one"]).status();
        assert!(down.expect("rum runs").success());
        assert!(one.rum.wait().success());
        by_cid.stderr.wait_nth("Agent lost", lost + 1);
        by_cid.signal(Signal::TERM);
        by_cid.wait();
    });
    check("nothing is left", || {
        until("the end of every QEMU", || {
            processes("qemu-system").is_empty().then_some(())
        });
        until("an empty runtime directory", || {
            let mut left = fs::read_dir(setup.path().join("run")).ok()?;
            left.next().is_none().then_some(())
        });
    });
    println!("all checks passed");
}

/// Runs one check.
fn check<T>(name: &str, body: impl FnOnce() -> T) -> T {
    println!("check: {name}");
    let start = Instant::now();
    let value = body();
    println!("ok: {name} ({} s)", start.elapsed().as_secs());
    value
}

/// `rum up` with a VM that is to be forwarded from port `first` on. It boots when its process says
/// that it runs.
fn up(
    setup: &Setup,
    name: &str,
    first: u16,
    control: u32,
    change: impl FnOnce(&mut std::process::Command),
) -> Rum {
    let dir = setup.path().display();
    let snapshots = match name {
        "one" => format!(", \"-drive\", \"if=none,file={SNAPSHOTS}\""),
        _ => String::new(),
    };
    let config = format!(
        "name = \"{name}\"\n[guest]\nkind = \"qemu\"\naccel = \"tcg\"\ncpus = 1\nmemory = \"192M\"\n\
         kernel = \"{KERNEL}\"\ninitrd = \"{INITRD}\"\n\
         append = \"quiet cryptomgr.notests apparmor=0 mitigations=off CONTROL_PORT={control}\"\n\
         args = [\"-qmp\", \"unix:{dir}/{name}.qmp,server=on,wait=off\"{snapshots}]\n\
         [auto_ports]\nrange = \"{first}-{}\"\n",
        first + 9
    );
    let file = format!("{name}.toml");
    fs::write(setup.path().join(&file), config).expect("a file");
    let mut command = setup.rum(["up", "-c", &file]);
    change(&mut command);
    setup.start_command(&mut command)
}

/// `rum up` for a VM that somebody else runs, with host ports on an address of its own.
fn up_by_cid(setup: &Setup, name: &str, cid: &str) -> Rum {
    let config = format!(
        "name = \"{name}\"\n[guest]\nkind = \"vsock\"\ncid = {cid}\n\
         [auto_ports]\nrange = \"5000-5009\"\nbind = \"127.0.0.2\"\n"
    );
    let file = format!("{name}.toml");
    fs::write(setup.path().join(&file), config).expect("a file");
    setup.start(["up", "-c", &file])
}

/// The guest program that calls next.
fn accept(control: &VsockListener) -> Guest {
    let stream = until("the guest program to call", || {
        control.accept().ok().map(|(stream, _)| stream)
    });
    stream.set_nonblocking(false).expect("a socket");
    Guest::over_vsock(stream).expect("a socket")
}

impl Machine {
    /// Makes a listener in the guest and waits for its forward.
    fn listen(&mut self, port: u16, mode: &str) {
        self.guest.tell(&format!("listen 127.0.0.1:{port} {mode}"));
        let line = format!("Auto-forwarding 127.0.0.1:{port} → guest:{port}");
        self.rum.stdout.wait(&line);
    }
}

/// The guest forgets its connections, and says so only when it is asked. Its programs and the agent are those of
/// the snapshot, so nothing but that ends what clients have with them.
fn back_to_snapshot(setup: &Setup, one: &mut Machine) {
    let monitor = setup.path().join("one.qmp");
    let human = |line: &str| {
        let arguments = format!("{{\"command-line\":\"{line}\"}}");
        qmp(&monitor, "human-monitor-command", &arguments).expect("QEMU has a disk for it");
    };
    // One that does not end with its connection to the test.
    let server = "(echo listen 127.0.0.1:5004 echo; sleep 100000) | setsid guest";
    one.guest
        .tell(&format!("sh {{ {server}; }} >/dev/null 2>&1 &"));
    one.rum.stdout.wait("Auto-forwarding 127.0.0.1:5004");
    let mut clients = vec![echoed(5004)];
    one.guest.tell("sh pidof agent >/tmp/agent");
    human("savevm before");
    clients.push(echoed(5004));
    one.listen(5005, "echo");
    let connected = times(&one.rum.stderr, "connected (events");
    human("loadvm before");
    for mut client in clients {
        let error = client.read(&mut [0]).expect_err("its server forgot it");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    one.rum.stderr.wait_nth("connected (events", connected + 1);
    one.rum.stdout.wait("Stopped forwarding 5005");
    until_refused(5005);
    until_echoed(host(5004));
    one.guest = accept(&one.control);
    one.guest
        .tell("sh test \"$(pidof agent)\" = \"$(cat /tmp/agent)\"");
    one.listen(5000, "echo");
}

/// A client that was served and is idle.
fn echoed(port: u16) -> TcpStream {
    let mut stream = connect(port);
    stream.write_all(b"!").expect("connected");
    stream.read_exact(&mut [0]).expect("echo");
    stream
}

fn half_close(one: &mut Machine) {
    let text = "0123456789abcdef".repeat(1 << 12);
    // The client ends first and still gets the whole answer.
    one.listen(5001, "late");
    let answer = exchange(5001, &text).expect("the late answer");
    assert!(answer == text, "{} bytes of {}", answer.len(), text.len());
    // The server ends first and still hears the client.
    one.listen(5002, "greet-then-read");
    server_ends_first(&mut one.guest, 5002, &text);
}

/// An echo of some megabytes: what vhost-device-vsock stalls of now and then.
fn both_ways(port: u16) {
    let sent: Vec<u8> = (0..4_000_037u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    let mut stream = connect(port);
    let mut heard = Vec::new();
    std::thread::scope(|scope| {
        let mut writer = stream.try_clone().expect("a socket");
        let sent = &sent;
        scope.spawn(move || {
            writer.write_all(sent).expect("the guest reads");
            writer.shutdown(Shutdown::Write).expect("a socket");
        });
        stream.read_to_end(&mut heard).expect("the echo");
    });
    assert!(heard == sent, "{} bytes of {}", heard.len(), sent.len());
}

/// Waits until the echo behind `address` answers.
fn until_echoed(address: SocketAddr) {
    until("an echo", || {
        let answer = talk(dial(address).ok()?, "hello").ok()?;
        assert_eq!(answer, "hello");
        Some(())
    });
}

/// How often `lines` has `text` so far.
fn times(lines: &Lines, text: &str) -> usize {
    lines.all().iter().filter(|l| l.contains(text)).count()
}

/// Carries out `command` on the monitor at `path`.
fn qmp(path: &Path, command: &str, arguments: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience()))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    for (command, arguments) in [("qmp_capabilities", "{}"), (command, arguments)] {
        writeln!(
            stream,
            "{{\"execute\":\"{command}\",\"arguments\":{arguments}}}"
        )?;
        // Greetings and events come between. What a line for humans returns is its error.
        let mut answer = lines.by_ref().map_while(Result::ok);
        let answer =
            answer.find(|line| line.starts_with("{\"return\"") || line.starts_with("{\"error\""));
        let answer = answer.ok_or(ErrorKind::UnexpectedEof)?;
        if !matches!(answer.trim_end(), "{\"return\": {}}" | "{\"return\": \"\"}") {
            return Err(io::Error::other(answer));
        }
    }
    Ok(())
}

/// Id and command line of the QEMU that runs the VM `name`.
fn qemu(name: &str) -> (i32, String) {
    until("QEMU", || {
        let all = processes("qemu-system").into_iter();
        let mut of_name = all.filter(|(_, line)| line.contains(&format!(" -name {name} ")));
        of_name.next()
    })
}

/// Ids and command lines of the processes whose program's name starts with `program`.
fn processes(program: &str) -> Vec<(i32, String)> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let found = all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let (first, _) = line.split_once('\0')?;
        let name = PathBuf::from(first).file_name()?.to_str()?.to_owned();
        name.starts_with(program)
            .then(|| (pid, line.replace('\0', " ")))
    });
    found.collect()
}
