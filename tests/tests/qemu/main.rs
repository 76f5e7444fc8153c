//! `rum up` with a guest of kind `qemu`: a real QEMU, translating.

mod support;

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use rum_tests::netns::in_netns;
use rum_tests::terminal::Terminal;
use rum_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};

use support::{Vms, get, processes, until_nothing_is_left, until_served};

/// The id of the process of `vms` whose command line starts with `program`.
fn process(vms: &Vms, program: &str) -> Pid {
    let found = until(program, || {
        let all = processes(&vms.setup);
        let name = |line: &str| line.split(' ').next().is_some_and(|p| p.ends_with(program));
        all.into_iter().find(|(_, line)| name(line))
    });
    Pid::from_raw(found.0 as i32).expect("not 0")
}

#[test]
fn a_vm_boots_is_forwarded_and_powers_off() {
    in_netns(|| {
        let vms = Vms::new();
        vms.configure("dev", 5000, "", "");
        let mut rum = vms.up("dev");
        rum.stderr
            .wait("Booting with TCG, which is slow: as rum.toml says");
        rum.stderr.wait("Agent up after");
        rum.stdout
            .wait("Auto-forwarding 127.0.0.1:5000 → guest:5000");
        until_served(5000, "dev");
        // An agent that is killed is started again.
        get(5000, "/cgi-bin/sh?kill+-9+$(pidof+rum-agent)");
        rum.stderr.wait("Agent lost");
        rum.stderr.wait_nth("connected (events", 2);
        until_served(5000, "dev");
        rum.signal(Signal::INT);
        assert_eq!(rum.wait().code(), Some(130));
        let said = rum.stderr.all().join("\n");
        assert!(said.contains("Powering the guest off"), "{said}");
        assert!(
            !said.contains("switched off"),
            "it heard its button: {said}"
        );
        until_nothing_is_left(&vms.setup);
    });
}

/// Everything that listens in the guest goes with the boot it belonged to, and nothing else does:
/// rum, its forwards, the console's log.
#[test]
fn a_guest_that_reboots_is_started_again_and_found() {
    in_netns(|| {
        let vms = Vms::new();
        vms.configure("dev", 5000, "", "");
        vms.replace("dev", "range = \"5000\"", "range = \"5000-5010\"");
        let mut rum = vms.up("dev");
        for boot in 1..=3 {
            rum.stderr.wait_nth("Agent up after", boot);
            until_served(5000, "dev");
            let port = 5000 + boot as u16;
            get(5000, &format!("/cgi-bin/sh?httpd+-p+{port}+-h+/www"));
            until_served(port, "dev");
            let log = vms.setup.path().join("state/dev/console.log");
            let log = std::fs::read_to_string(log).expect("a log");
            assert_eq!(log.matches("init: up").count(), boot, "{log}");
            let mut open = TcpStream::connect(("127.0.0.1", port)).expect("forwarded");
            let last = boot == 3;
            let command = if last { "poweroff" } else { "reboot" };
            // Its own connection ends with the guest.
            get(port, &format!("/cgi-bin/sh?{command}+-f"));
            let error = open.read(&mut [0]).expect_err("a reset, not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            if last {
                break;
            }
            rum.stderr
                .wait_nth("The guest reboots: starting its machine again", boot);
            rum.stdout.wait(&format!("Stopped forwarding {port}"));
        }
        // It was told so inside: no failure.
        assert_eq!(rum.wait().code(), Some(0));
        rum.stderr.wait("The guest ended: it powered off");
        until_nothing_is_left(&vms.setup);
    });
}

#[test]
fn rum_ends_between_two_boots() {
    in_netns(|| {
        let vms = Vms::new();
        vms.configure("dev", 5000, "", "");
        let mut rum = vms.up("dev");
        for boot in 1..=3 {
            rum.stderr.wait_nth("Agent up after", boot);
            until_served(5000, "dev");
            get(5000, "/cgi-bin/sh?reboot+-f");
        }
        // A guest that does so on and on gets pauses.
        rum.stderr.wait_nth("Agent up after", 4);
        until_served(5000, "dev");
        get(5000, "/cgi-bin/sh?reboot+-f");
        rum.stderr
            .wait("reboots soon after each start: starting its machine again in 1 s");
        rum.signal(Signal::TERM);
        assert_eq!(rum.wait().code(), Some(143));
        until_nothing_is_left(&vms.setup);
    });
}

#[test]
fn two_vms_run_at_once_and_one_that_rum_leaves_by_sigkill_is_gone() {
    in_netns(|| {
        let vms = Vms::new();
        let mut both = ["one", "two"].map(|name| {
            let port = if name == "one" { 5001 } else { 5002 };
            vms.configure(name, port, "", "");
            vms.up(name)
        });
        until_served(5001, "one");
        until_served(5002, "two");
        let [one, two] = &mut both;
        one.signal(Signal::KILL);
        one.wait();
        until("the end of its VM", || {
            let left = processes(&vms.setup);
            let one = left.iter().any(|(_, line)| line.contains("run/one"));
            (!one).then_some(())
        });
        until("the end of its files", || {
            (!vms.setup.path().join("run/one").exists()).then_some(())
        });
        assert_eq!(get(5002, "/").as_deref(), Some("two"));
        // The warden's end is the VM's end too.
        let warden = processes(&vms.setup)
            .into_iter()
            .find(|(_, line)| line.contains("__rum-warden"))
            .expect("a warden");
        let warden = Pid::from_raw(warden.0 as i32).expect("not 0");
        kill_process(warden, Signal::KILL).expect("it is there");
        two.stderr.wait("The guest ended");
        assert_eq!(two.wait().code(), Some(1));
        until_nothing_is_left(&vms.setup);
    });
}

/// Instead of QEMU, a machine whose guest hears its power button only when that is pressed again.
const BOOTS_STILL: &str = r#"#!/usr/bin/env python3
import json, socket, sys
if "-version" in sys.argv:
    sys.exit(0)
qmp = next(arg for arg in sys.argv if arg.startswith("socket,id=qmp"))
server = socket.socket(socket.AF_UNIX)
server.bind(qmp.split("path=")[1])
server.listen()
lines = server.accept()[0].makefile("rw")
def say(what):
    lines.write(json.dumps(what) + "\n")
    lines.flush()
say({"QMP": {}})
pressed = 0
for line in lines:
    asked = json.loads(line)
    say({"return": {}, "id": asked["id"]})
    pressed += asked["execute"] == "system_powerdown"
    if pressed == 2:
        sys.exit(0)
"#;

#[test]
fn the_power_button_is_pressed_until_it_is_heard() {
    in_netns(|| {
        let vms = Vms::new();
        let path = |name: &str| vms.setup.path().join(name);
        fs::write(path("disk"), [0; 1 << 16]).expect("ours");
        let config = "[guest]\nkind = \"qemu\"\naccel = \"tcg\"\nimage = \"disk\"\n\
                      [auto_ports]\nrange = \"5000\"\n";
        fs::write(path("dev.toml"), config).expect("ours");
        let bin = path("bin");
        fs::create_dir(&bin).expect("ours");
        let qemu = bin.join("qemu-system-x86_64");
        fs::write(&qemu, BOOTS_STILL).expect("ours");
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).expect("ours");
        let mut command = vms.rum(&["up", "-c", "dev.toml"]);
        let dirs = std::env::split_paths(&vms.path()).collect::<Vec<_>>();
        let dirs = std::env::join_paths([bin].into_iter().chain(dirs)).expect("no colon in them");
        let mut rum = vms.setup.start_command(command.env("PATH", dirs));
        rum.stderr.wait("VM started in");
        rum.signal(Signal::TERM);
        rum.stderr.wait("it is still booting and reacts later");
        assert_eq!(rum.wait().code(), Some(143));
        let said = rum.stderr.all().join("\n");
        assert!(!said.contains("switched off"), "{said}");
        until_nothing_is_left(&vms.setup);
    });
}

#[test]
fn a_kernel_that_panics_shows_its_last_words() {
    in_netns(|| {
        let vms = Vms::new();
        vms.configure("dev", 5000, "rdinit=/none root=/dev/none", "");
        let mut rum = vms.up("dev");
        assert_eq!(rum.wait().code(), Some(1));
        rum.stderr.wait("  | ");
        rum.stderr.wait("Kernel panic - not syncing");
        rum.stderr.wait("it rebooted before its agent was up");
        until_nothing_is_left(&vms.setup);
    });
}

#[test]
fn qemu_that_is_killed_ends_rum() {
    in_netns(|| {
        let vms = Vms::new();
        vms.configure("dev", 5000, "", "");
        let mut rum = vms.up("dev");
        rum.stderr.wait("VM started in");
        let qemu = process(&vms, "qemu-system-x86_64");
        kill_process(qemu, Signal::KILL).expect("it is there");
        assert_eq!(rum.wait().code(), Some(1));
        rum.stderr.wait("qemu-system-x86_64 was killed by signal 9");
        until_nothing_is_left(&vms.setup);
    });
}

#[test]
fn what_is_missing_is_named() {
    in_netns(|| {
        let vms = Vms::new();
        vms.configure("dev", 5000, "", "");
        let cases = [
            ("/nowhere", "", "qemu-system-x86_64 is not installed"),
            ("/usr/bin", "", "there is no vhost-device-vsock"),
            (
                "",
                "args = [\"-device\", \"none\"]",
                "'none' is not a valid device",
            ),
        ];
        for (path, guest, said) in cases {
            vms.configure("dev", 5000, "", guest);
            let mut command = vms.rum(&["up", "-c", "dev.toml"]);
            if !path.is_empty() {
                command.env("PATH", path);
            }
            let mut rum = vms.setup.start_command(&mut command);
            assert_eq!(rum.wait().code(), Some(1), "{said}");
            rum.stderr.wait(said);
            rum.stderr.wait("hint: ");
            until_nothing_is_left(&vms.setup);
        }
    });
}

#[test]
fn the_console_is_a_terminal_and_leaves_it_as_it_was() {
    in_netns(|| {
        let vms = Vms::new();
        vms.configure("dev", 5000, "", "");
        let rum = vms.up("dev");
        rum.stderr.wait("Agent up");
        let refused = vms.rum(&["exec", "--", "true"]).output().expect("rum");
        let refused_said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused_said.contains("of kind `qemu`"), "{refused_said}");

        let terminal = Terminal::new(80, 24);
        let before = terminal.modes();
        let mut console = terminal.spawn(&mut vms.rum(&["console"]));
        terminal.wait("Ctrl+] detaches");
        let raw = || format!("{:?}", terminal.modes()) != format!("{before:?}");
        until("raw mode", || raw().then_some(()));
        terminal.keys("echo wo''rd-$((6 * 7))\r");
        terminal.wait("word-42");

        let mut second = vms.rum(&["console"]);
        let second = second.output().expect("rum");
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(said.contains("another `rum console` is attached"), "{said}");

        terminal.keys("\u{1d}");
        assert_eq!(console.wait().expect("a child").code(), Some(0));
        assert_eq!(format!("{:?}", terminal.modes()), format!("{before:?}"));

        // Without a terminal it shows what comes, and ends with the guest.
        let mut reader = vms.rum(&["console"]);
        let mut reader = reader.stdout(Stdio::piped()).spawn().expect("rum");
        rum.signal(Signal::TERM);
        let mut shown = String::new();
        let mut pipe = reader.stdout.take().expect("piped");
        pipe.read_to_string(&mut shown).expect("text");
        assert_eq!(reader.wait().expect("a child").code(), Some(0));
        until_nothing_is_left(&vms.setup);
    });
}
