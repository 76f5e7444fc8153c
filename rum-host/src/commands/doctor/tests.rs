#![allow(clippy::unwrap_used)]

use super::facts::{GuestFacts, No, Tried};
use super::*;
use crate::runtime_dir::RunningGuest;

fn no<T>(why: &str, remedy: Option<&str>) -> Tried<T> {
    Err(No {
        why: why.to_owned(),
        remedy: remedy.map(str::to_owned),
    })
}

/// Root on a machine that has everything.
fn everything() -> Facts {
    Facts {
        uid: 0,
        kernel: "6.1.0-18-amd64".to_owned(),
        user_namespaces: Ok(()),
        guest: Ok(GuestFacts {
            hint: "tracepoint".to_owned(),
            source: "netlink".to_owned(),
            user_namespace: false,
            more_ids: false,
        }),
        tracepoint: Ok(()),
        perf_event_paranoid: Some("2".to_owned()),
        sock_diag: Ok(()),
        sockstat: Ok(()),
        vsock: Ok(()),
        local_cid: Ok(2),
        vhost_vsock: Ok(()),
        vhost_device_vsock: Some("/usr/bin/vhost-device-vsock".into()),
        kvm: Ok(()),
        qemu: Ok("QEMU emulator version 7.2.9".to_owned()),
        qemu_img: Some("/usr/bin/qemu-img".into()),
        libvirt: Ok("QEMU 7.2.9 at qemu:///system".to_owned()),
        ssh: Some("/usr/bin/ssh".into()),
        ssh_keygen: Some("/usr/bin/ssh-keygen".into()),
        open_files: [Some(1_048_576), None],
        low_port: Ok(()),
        port_start: Some("1024".to_owned()),
        runtime_dir: ("/run/rum".into(), Ok(())),
        guests: Ok(vec![
            RunningGuest {
                rum: Some("4121 1".parse().unwrap()),
                kind: Some("name\u{1b}space".to_owned()),
                ..RunningGuest::starting("dev", "/run/rum/dev")
            },
            RunningGuest::starting("new", "/run/rum/new"),
        ]),
    }
}

/// An ordinary user where namespaces work.
fn ordinary() -> Facts {
    Facts {
        uid: 1000,
        guest: Ok(GuestFacts {
            hint: "poll".to_owned(),
            source: "netlink".to_owned(),
            user_namespace: true,
            more_ids: false,
        }),
        tracepoint: no(
            "tracefs cannot be read",
            Some("give the agent CAP_SYS_ADMIN"),
        ),
        vhost_vsock: no("/dev/vhost-vsock: Permission denied (os error 13)", None),
        libvirt: no("Failed to connect socket", None),
        ssh_keygen: None,
        kvm: no("/dev/kvm: Permission denied (os error 13)", None),
        low_port: no("Permission denied (os error 13)", None),
        open_files: [Some(1024), Some(524_288)],
        runtime_dir: ("/run/user/1000/rum".into(), Ok(())),
        guests: Ok(Vec::new()),
        ..everything()
    }
}

/// An ordinary user where nothing works.
fn nothing() -> Facts {
    let missing = "No such file or directory (os error 2)";
    Facts {
        kernel: "4.19.0".to_owned(),
        user_namespaces: no("Operation not permitted", Some("as root: sysctl -w …=1")),
        guest: no("cannot start the guest:\u{1b}[2J no", None),
        perf_event_paranoid: None,
        sock_diag: no("cannot open a netlink socket", None),
        sockstat: no(missing, None),
        vsock: no("Address family not supported", None),
        local_cid: no(missing, None),
        vhost_vsock: no(missing, None),
        vhost_device_vsock: None,
        qemu: no("no qemu-system-x86_64 in the PATH", None),
        qemu_img: None,
        libvirt: no(
            "`virsh` is not installed",
            Some("install libvirt's clients"),
        ),
        ssh: None,
        open_files: [Some(256), Some(256)],
        port_start: None,
        runtime_dir: ("/tmp/rum-1000".into(), no("belongs to another user", None)),
        guests: no("belongs to another user", None),
        ..ordinary()
    }
}

fn shown(facts: &Facts) -> String {
    crate::commands::plain(&text(&Report::new(facts), false))
}

#[test]
fn what_is_shown() {
    insta::assert_snapshot!("everything", shown(&everything()));
    insta::assert_snapshot!("ordinary", shown(&ordinary()));
    insta::assert_snapshot!("nothing", shown(&nothing()));
}

#[test]
fn quiet_shows_what_is_to_be_done() {
    let report = Report::new(&everything());
    assert_eq!(text(&report, true), "");
    let report = Report::new(&ordinary());
    assert!(!text(&report, true).contains("Linux"));
    assert!(text(&report, true).contains("kvm"));
}

#[test]
fn the_guest_decides_the_exit_code() {
    assert_eq!(Report::new(&everything()).exit_code(), exit::OK);
    assert_eq!(Report::new(&ordinary()).exit_code(), exit::OK);
    assert_eq!(Report::new(&nothing()).exit_code(), exit::FAILED);
    let root_without_users = Facts {
        user_namespaces: no("No space left on device", None),
        ..everything()
    };
    assert_eq!(Report::new(&root_without_users).exit_code(), exit::OK);
}

#[test]
fn what_is_not_ok_has_a_remedy() {
    for facts in [everything(), ordinary(), nothing()] {
        for check in verdict::checks(&facts) {
            assert_eq!(
                check.level == Level::Ok,
                check.remedy.is_none(),
                "{check:?}"
            );
        }
    }
}

#[test]
fn json_says_the_same() {
    let report = Report::new(&everything());
    let text = json(&report).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert!(!text.contains('\u{1b}'));
    assert_eq!(facet_json::from_str::<Report>(&text).unwrap(), report);
    let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    insta::assert_snapshot!(&text[..300]);
}
