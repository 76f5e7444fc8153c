//! Ports that real containers publish: by rules of the guest's firewall, behind a socket that nobody
//! accepts from.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{PermissionsExt, symlink};

use rum_tests::client::{connect, exchange};
use rum_tests::netns::in_netns;
use rum_tests::rum::Setup;
use rum_tests::wait::until;

use crate::support::Stage;

const CONFIG: &str = "[guest]\nprivileged = true\n[auto_ports]\nrange = \"5000-5999\"\n";

/// Nothing of it in the machine's directories, and control groups as podman's runtime asks for.
const PREPARE: &str = "mount -t tmpfs none /run
while umount -R /sys/fs/cgroup 2>/dev/null; do :; done
mount -t cgroup2 none /sys/fs/cgroup
mkdir podman";

/// podman with all its state here.
const PODMAN: &str = "podman --root $PWD/podman/root --runroot $PWD/podman/run --tmpdir $PWD/podman/tmp \
                      --network-config-dir $PWD/podman/net --network-backend netavark \
                      --cgroup-manager cgroupfs --events-backend file --storage-driver vfs";

/// The files of a container: busybox, and a page.
fn make_root(stage: &Stage) {
    let root = stage.setup.path().join("container");
    for dir in ["bin", "www", "etc", "proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir_all(root.join(dir)).expect("ours");
    }
    let busybox = root.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).expect("busybox-static");
    fs::set_permissions(&busybox, Permissions::from_mode(0o755)).expect("ours");
    symlink("busybox", root.join("bin/httpd")).expect("ours");
    fs::write(root.join("www/index.html"), "of the container").expect("ours");
}

/// A client that comes at once is served, or reset as without rum, and does not hang.
fn until_served() {
    until("a page of the container", || {
        let answer = exchange(5000, "GET /index.html HTTP/1.0\r\n\r\n").ok()?;
        answer.ends_with("of the container").then_some(())
    });
}

#[test]
fn a_port_that_podman_publishes_is_its_container_s() {
    in_netns(|| {
        let stage = Stage::new(Setup::new(), CONFIG);
        make_root(&stage);
        let podman = |command: &str| stage.shell(&format!("{PODMAN} {command} >/dev/null"));
        stage.shell(PREPARE);
        podman(
            "run -d --name web --cgroups disabled -p 5000:80 --rootfs $PWD/container \
             httpd -f -p 80 -h /www",
        );
        stage.rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        until_served();
        let first = stage.until_named(5000, "conmon:web");

        let mut before = connect(5000);
        podman("restart -t 0 web");
        stage.rum.stdout.wait("Stopped forwarding 5000");
        stage
            .rum
            .stdout
            .wait_nth("Auto-forwarding 127.0.0.1:5000", 2);
        match before.read(&mut [0]) {
            Ok(n) => assert_eq!(n, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        until_served();
        let shown = stage.until(5000, "the new container", |port| {
            port["process"]["name"] == "conmon:web" && port["process"]["pid"] != first
        });
        assert_eq!(shown["state"], "forwarded");
        let command = shown["command"].as_str().expect("a command line");
        assert!(command.contains(" -n web "), "{command}");

        podman("rm -f -t 0 web");
        stage.rum.stdout.wait_nth("Stopped forwarding 5000", 2);
    });
}
