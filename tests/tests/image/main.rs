//! `rum up` with an image: a Debian that firmware boots, with the real systemd and cloud-init.
//!
//! One test, since two translated boots are what it costs: 1 to 2 minutes where nothing else runs.

mod support;

use std::fs::{self, File};
use std::process::Command;
use std::time::SystemTime;

use rum_tests::client::exchange;
use rum_tests::netns::in_netns;
use rum_tests::wait::until_within;
use rustix::process::Signal;

use support::{BOOT, DISK_MIB, Debian};

/// What systemd is to have made of the unit.
const HARDENED: &[&str] = &[
    "ActiveState=active",
    "NRestarts=0",
    "Restart=always",
    "DynamicUser=yes",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "DevicePolicy=closed",
    "OOMScoreAdjust=-900",
    "PrivateTmp=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "MemoryDenyWriteExecute=yes",
    "LockPersonality=yes",
];
/// CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE and CAP_PERFMON, and not CAP_SYS_ADMIN.
const EFFECTIVE: &str = "CapEff:\t0000004000080004";

/// Waits for the user's service, reached from the host.
fn until_served(debian: &Debian) {
    until_within(BOOT, "the user's service", || {
        let forwarded = debian.ports().contains("\"port\":5000");
        let answer = || exchange(5000, "GET / HTTP/1.0\r\n\r\n").ok();
        forwarded
            .then(answer)
            .flatten()
            .filter(|answer| answer.ends_with("of the user"))
    });
}

/// Boots for the first time: everything that the image makes of the seed.
fn first_boot(debian: &Debian) {
    let mut rum = debian.up(&[]);
    rum.stderr.wait("an overlay of its own");
    // Before the guest can answer: it waits for that, for as long as a boot usually takes, and asks as whom
    // to log in.
    let user = until_within(BOOT, "rum ssh", || {
        let output = debian.rum_ssh("id -un; exit 3").output().expect("rum");
        (output.status.code() == Some(3)).then_some(output)
    });
    assert_eq!(String::from_utf8_lossy(&user.stdout), "debian\n");
    let said = String::from_utf8_lossy(&user.stderr);
    assert!(!said.contains("error"), "{said}");
    debian.until_said(&rum, "Booting for ");
    debian.until_said(&rum, "Agent up after");
    rum.stderr.wait("connected (events: tracepoint)");
    until_served(debian);
    let ports = debian.ports();
    for name in ["\"name\":\"sshd\"", "\"name\":\"python3\""] {
        assert!(ports.contains(name), "{name} of another user: {ports}");
    }

    let unit = debian.ssh("systemctl show rum-agent.service");
    for property in HARDENED {
        assert!(unit.lines().any(|line| line == *property), "{property}");
    }
    assert!(
        debian.try_ssh("ls /sys/firmware/efi").is_none(),
        "not a BIOS"
    );
    let status = debian.ssh("cat /proc/$(pidof rum-agent)/status");
    // Its code is kept in memory.
    assert!(!status.contains("VmLck:\t       0 kB"), "{status}");
    for line in [EFFECTIVE, "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.lines().any(|l| l == line), "{line}: {status}");
    }
    assert!(!status.contains("Uid:\t0\t"), "{status}");

    let sectors = debian.ssh("cat /sys/block/vda/size");
    assert_eq!(sectors.trim(), (DISK_MIB * 2048).to_string());

    // For the second boot: something of the guest's own, and an agent of another version.
    debian.ssh(
        "echo first >kept && sudo rm /usr/local/bin/rum-agent && \
         echo old | sudo tee /usr/local/bin/rum-agent /etc/systemd/system/rum-agent.service",
    );
    rum.signal(Signal::INT);
    until_within(BOOT, "the end", || rum.child.try_wait().expect("ours"));
    let said = rum.stderr.all().join("\n");
    assert!(!said.contains("switched off"), "{said}");
    let console = fs::read_to_string(debian.state("console.log")).expect("a log");
    assert!(console.contains("reboot: Power down"), "{console}");
}

/// Boots once more, by UEFI: what was written is there, and the agent is that of this rum again.
fn second_boot(debian: &Debian) {
    debian.set("uefi = true");
    let mut rum = debian.up(&[]);
    rum.stderr.wait("Continuing with the disk of the last run");
    debian.until_said(&rum, "Agent up after");
    rum.stderr.wait("connected (events: tracepoint)");
    until_served(debian);
    assert_eq!(debian.ssh("cat kept"), "first\n");
    // Its sshd is known by now, and so is its user.
    let again = debian.rum_ssh("cat kept").output().expect("rum");
    assert_eq!(String::from_utf8_lossy(&again.stdout), "first\n");
    assert_eq!(String::from_utf8_lossy(&again.stderr), "");
    assert_eq!(debian.ssh("ls -d /sys/firmware/efi"), "/sys/firmware/efi\n");
    let agent = debian.setup.path().join("agent");
    fs::write(&agent, rum_host::guest::payload::agent()).expect("ours");
    let mut sum = Command::new("sha256sum");
    let sum = sum.stdin(File::open(agent).expect("ours")).output();
    let here = sum.expect("coreutils").stdout;
    let there = debian.ssh("sha256sum </usr/local/bin/rum-agent");
    assert_eq!(there.as_bytes(), here, "another agent");
    let unit = debian.ssh("cat /etc/systemd/system/rum-agent.service");
    assert_eq!(unit, rum_host::guest::payload::unit());
    let down = debian.rum(&["down"]).output().expect("rum");
    assert!(down.status.success(), "{down:?}");
    until_within(BOOT, "the end", || rum.child.try_wait().expect("ours"));
}

#[test]
fn a_debian_boots_with_the_agent_and_keeps_what_it_wrote() {
    in_netns(|| {
        let debian = Debian::new();
        let before = debian.hash();
        first_boot(&debian);
        assert_eq!(debian.hash(), before, "the image was written to");

        // An image that has changed and an overlay over what it was do not go together.
        let image = File::options()
            .write(true)
            .open(debian.image())
            .expect("ours");
        let changed = image.metadata().expect("ours").modified().expect("Linux");
        image.set_modified(SystemTime::UNIX_EPOCH).expect("ours");
        let mut refused = debian.up(&[]);
        assert_eq!(refused.wait().code(), Some(1));
        refused.stderr.wait("debian.qcow2 has changed since");
        refused.stderr.wait("`rum up --reset` starts anew");
        image.set_modified(changed).expect("ours");

        second_boot(&debian);
        let written = fs::metadata(debian.state("overlay.qcow2"))
            .expect("it stays")
            .len();
        assert!(debian.state("known_hosts").exists());
        let mut rum = debian.up(&["--reset"]);
        rum.stderr.wait("an overlay of its own");
        rum.stderr.wait("VM started in");
        let fresh = fs::metadata(debian.state("overlay.qcow2"))
            .expect("a new one")
            .len();
        assert!(fresh < written / 2, "{fresh} of {written} bytes are left");
        assert!(!debian.state("known_hosts").exists(), "of another disk");
        rum.signal(Signal::KILL);
        rum.wait();
        assert_eq!(debian.hash(), before, "the image was written to");
    });
}
