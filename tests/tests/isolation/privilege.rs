//! What programs of root may do in a guest, and that the machine's /proc lies beneath nothing.

use std::fs;
use std::process::Stdio;

use rum_tests::netns::in_netns;
use rum_tests::rum::below;

use crate::support::{House, Who, said};

/// The capabilities that Docker gives by default, as /proc/PID/status shows them.
pub const CONTAINER: &str = "00000000a80425fb";
/// What `rum up` says as root.
const NO_BOUNDARY: &str = "no security boundary";

fn capability_lines(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.starts_with("Cap"));
    lines.map(str::to_owned).collect()
}

fn own_capabilities() -> Vec<String> {
    capability_lines(&fs::read_to_string("/proc/self/status").unwrap())
}

fn of(house: &House, command: &[&str]) -> Vec<String> {
    capability_lines(&said(&house.exec("a", command)))
}

#[test]
fn root_has_the_capabilities_of_a_container() {
    in_netns(|| {
        let house = House::new(Who::Root);
        let rum = house.up("a", &[]);
        rum.stderr.wait(NO_BOUNDARY);
        let status = &["cat", "/proc/self/status"][..];
        let all: Vec<_> = ["Prm", "Eff", "Bnd"]
            .map(|set| format!("Cap{set}:\t{CONTAINER}"))
            .to_vec();
        let has_all = |seen: Vec<String>| all.iter().all(|line| seen.contains(line));
        assert!(has_all(of(&house, status)));
        // A program of somebody else that becomes root again, as sudo does.
        let again = &[
            &["setpriv", "--reuid=1", "--clear-groups", "su", "-c"][..],
            &["true"],
        ]
        .concat();
        house.exec("a", again);
        let no_new_privs = said(&house.exec("a", status));
        assert!(no_new_privs.contains("NoNewPrivs:\t0"), "{no_new_privs}");
        // CMD as well.
        let mut command = house
            .setup
            .rum(["up", "--name", "b", "--range", "5000", "--"]);
        let output = command.args(status).stdin(Stdio::null()).output().unwrap();
        assert!(has_all(capability_lines(&said(&output))), "{output:?}");
    });
}

#[test]
fn root_s_usual_programs_go_on() {
    in_netns(|| {
        let house = House::new(Who::Root);
        let _rum = house.up("a", &[]);
        let file = house.setup.path().join("file");
        fs::write(&file, "").unwrap();
        let file = file.to_str().unwrap();
        for command in [
            &["chown", "12345:12345", file][..],
            &["chmod", "4755", file],
            &["busybox", "ping", "-c", "1", "-W", "5", "127.0.0.1"],
            &[
                "setpriv",
                "--reuid=12345",
                "--regid=12345",
                "--clear-groups",
                "true",
            ],
            &["chroot", "/", "true"],
            &[
                "su",
                "-s",
                "/bin/sh",
                "nobody",
                "-c",
                "test $(id -u) = 65534",
            ],
            &["mknod", &format!("{file}-null"), "c", "1", "3"],
        ] {
            let output = house.exec("a", command);
            assert!(output.status.success(), "{command:?}: {output:?}");
        }
    });
}

#[test]
fn privileged_leaves_everything_and_proc_lies_beneath_nothing() {
    in_netns(|| {
        let house = House::new(Who::Root);
        let _rum = house.up("a", &["--privileged"]);
        assert_eq!(
            of(&house, &["cat", "/proc/self/status"]),
            own_capabilities()
        );
        let beneath = "umount /proc && ls -A /proc";
        // In mounts of its own: the guest keeps its /proc.
        let output = house.exec("a", &["unshare", "-m", "sh", "-c", beneath]);
        assert_eq!(said(&output), "", "the machine's /proc");
        assert!(output.status.success());
    });
}

/// One that is mounted elsewhere is the guest's there, too.
#[test]
fn no_other_proc_of_the_machine_is_left() {
    in_netns(|| {
        let house = House::new(Who::Root);
        let other = house.setup.path().join("with a space");
        fs::create_dir(&other).unwrap();
        let script = "mount -t proc proc \"$1\" && shift && exec \"$@\"";
        let mut command = house.setup.command("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).arg(&other);
        command.arg(rum_tests::rum::binary("rum"));
        command.args(["up", "--name", "a", "--range", "5000", "--privileged"]);
        let rum = house.setup.start_command(&mut command);
        rum.stderr.wait("connected");
        let first = other.join("1/comm");
        let first = house.exec("a", &["cat", first.to_str().unwrap()]);
        assert_eq!(said(&first), "rum-init\n");
        let umount = ["unshare", "-m", "sh", "-c", "umount \"$0\" && ls -A \"$0\""];
        let beneath = house.exec("a", &[&umount[..], &[other.to_str().unwrap()]].concat());
        assert_eq!(said(&beneath), "", "the machine's /proc");
    });
}

#[test]
fn the_ways_out_are_closed() {
    for who in [Who::Root, Who::User] {
        in_netns(|| {
            let house = House::new(who);
            let rum = house.up("a", &[]);
            let keeper = below(rum.child.id(), "__rum-keeper").unwrap().to_string();
            for command in [
                &["umount", "/proc"][..],
                &["nsenter", "-t", &keeper, "-n", "true"],
                &["nsenter", "-t", "1", "-m", "true"],
                &["mount", "-t", "tmpfs", "none", "/mnt"],
                &["cat", "/proc/1/environ"],
                &["readlink", "/proc/1/fd/0"],
            ] {
                let output = house.exec("a", command);
                assert!(!output.status.success(), "{who:?} {command:?}: {output:?}");
            }
            if who == Who::User {
                // Root of a user namespace of his own: the mounts are locked there.
                let nested = "umount /proc || umount -l /proc";
                let output = house.exec("a", &["unshare", "-Urm", "sh", "-c", nested]);
                assert!(!output.status.success(), "{output:?}");
            }
        });
    }
}

#[test]
fn it_is_said_once_and_not_with_quiet() {
    in_netns(|| {
        let said_by = |who: Who, more: &[&str]| {
            let house = House::new(who);
            let mut command = house.setup.rum(more);
            command.args(["up", "--range", "5000", "--", "true"]);
            let output = command.stdin(Stdio::null()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            said(&output).matches(NO_BOUNDARY).count()
        };
        assert_eq!(said_by(Who::Root, &[]), 1);
        assert_eq!(said_by(Who::Root, &["-q"]), 0);
        assert_eq!(said_by(Who::User, &[]), 0);
    });
}
