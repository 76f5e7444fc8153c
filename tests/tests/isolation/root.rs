//! `root = true`: an ordinary user is root in his guest, over the ids that are given to him and nobody else's.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, below, binary};
use rum_tests::wait::until;

use crate::ids::Given;
use crate::privilege::CONTAINER;
use crate::support::{House, NOBODY, Who, said};

/// The first id that is given, and so of the id 1 inside.
const FIRST: u32 = 200_000;

/// A guest in which nothing runs yet.
fn started(given: &Given, more: &str) -> Rum {
    let rum = given.up(&format!("root = true\n{more}"), &["sleep", "infinity"]);
    rum.stderr.wait("connected");
    rum
}

fn answer(house: &House, command: &[&str]) -> String {
    let output = house.exec("a", command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    said(&output)
}

#[test]
fn the_user_is_root_and_the_others_are_those_given() {
    in_netns(|| {
        let given = Given::new();
        let _rum = started(&given, "");
        let house = &given.house;
        assert_eq!(answer(house, &["id", "-u"]), "0\n");
        let map = answer(house, &["cat", "/proc/self/uid_map"]);
        let map: Vec<u32> = map
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        assert_eq!(map, [0, NOBODY, 1, 1, FIRST, 65_536]);
        let status = answer(house, &["cat", "/proc/self/status"]);
        for set in ["Prm", "Eff", "Bnd"] {
            assert!(
                status.contains(&format!("Cap{set}:\t{CONTAINER}\n")),
                "{status}"
            );
        }
        // What is made inside is the user's outside, and what is given away is that id's.
        let file = given.file("made");
        let path = file.to_str().unwrap();
        answer(house, &["touch", path]);
        assert_eq!(fs::metadata(&file).unwrap().uid(), NOBODY);
        answer(house, &["chown", "33:33", path]);
        assert_eq!(fs::metadata(&file).unwrap().uid(), FIRST + 32);
        assert_eq!(answer(house, &["stat", "-c", "%u:%g", path]), "33:33\n");
    });
}

#[test]
fn programs_that_change_their_user_or_install_files_work() {
    in_netns(|| {
        let given = Given::new();
        let _rum = started(&given, "");
        let house = &given.house;
        let setpriv = [
            "setpriv",
            "--reuid=33",
            "--regid=33",
            "--clear-groups",
            "id",
            "-u",
        ];
        assert_eq!(answer(house, &setpriv), "33\n");
        answer(
            house,
            &["busybox", "ping", "-c", "1", "-W", "5", "127.0.0.1"],
        );
        let package = "set -e; cd \"$0\"; mkdir -p p/DEBIAN p/opt r/var/lib/dpkg/info r/var/lib/dpkg/updates; \
                       touch p/opt/f r/var/lib/dpkg/status; chown 33:34 p/opt/f; \
                       printf 'Package: x\\nVersion: 1\\nArchitecture: all\\nMaintainer: x\\nDescription: x\\n' \
                       >p/DEBIAN/control; dpkg-deb -b p x.deb >/dev/null; \
                       dpkg --root=r -i x.deb >/dev/null 2>&1; stat -c %u:%g r/opt/f; rm -r p r x.deb";
        let dir = given.file("work");
        fs::create_dir(&dir).unwrap();
        chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        let installed = answer(house, &["sh", "-c", package, dir.to_str().unwrap()]);
        assert_eq!(installed, "33:34\n");
    });
}

/// PostgreSQL refuses root, and runs as one of the others.
#[test]
fn a_server_of_another_user_is_forwarded() {
    in_netns(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").unwrap();
        let newest: PathBuf = versions.map(|entry| entry.unwrap().path()).max().unwrap();
        let given = Given::new();
        let rum = started(&given, "");
        let dir = given.file("cluster");
        fs::create_dir(&dir).unwrap();
        chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        let script = "set -e; chown 33:33 \"$1\"; cd /; \
                      as='setpriv --reuid=33 --regid=33 --clear-groups'; \
                      $as \"$0/initdb\" -A trust -N -U me -D \"$1/data\" >/dev/null; \
                      $as \"$0/pg_ctl\" -w -D \"$1/data\" -l \"$1/log\" \
                      -o \"-h 127.0.0.1 -p 5432 -k $1\" start >/dev/null; \
                      $as \"$0/psql\" -h \"$1\" -p 5432 -U me -Atc 'select 6*7' postgres";
        let bin = newest.join("bin");
        let run = [
            "sh",
            "-c",
            script,
            bin.to_str().unwrap(),
            dir.to_str().unwrap(),
        ];
        assert_eq!(answer(&given.house, &run), "42\n");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5432");
        let psql = bin.join("psql");
        let mut command = vec![psql.to_str().unwrap()];
        command.extend("-h 127.0.0.1 -p 5432 -U me postgres -Atc".split(' '));
        command.push("show data_directory");
        let output = given.house.outside(&command);
        assert!(said(&output).contains("cluster/data"), "{output:?}");
        // Its name is found though it is another user's.
        until("its name", || {
            let ports = given
                .house
                .setup
                .rum(["ports", "--name", "a"])
                .output()
                .unwrap();
            said(&ports).contains("postgres").then_some(())
        });
    });
}

/// As `podman unshare`, and `unshare --map-auto -r`, which have all capabilities.
#[test]
fn buildah_works_with_all_capabilities() {
    in_netns(|| {
        let given = Given::new();
        let _rum = started(&given, "privileged = true\n");
        let dir = given.file("storage");
        fs::create_dir(&dir).unwrap();
        chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        let script = "set -e; cd /; b=\"buildah --root $0/s --runroot $0/r --storage-driver vfs\"; \
                      c=$($b from scratch); $b copy -q --chown 33:34 $c /bin/busybox /bin/busybox >/dev/null; \
                      $b run --isolation chroot $c /bin/busybox stat -c %u:%g /bin/busybox; \
                      $b rm $c >/dev/null; rm -r \"$0/s\" \"$0/r\"";
        let built = answer(&given.house, &["sh", "-c", script, dir.to_str().unwrap()]);
        assert_eq!(built, "33:34\n");
    });
}

#[test]
fn root_inside_has_no_way_out() {
    in_netns(|| {
        let given = Given::new();
        let mut rum = started(&given, "");
        let house = &given.house;
        let keeper = below(rum.child.id(), "__rum-keeper").unwrap().to_string();
        let secret = given.file("secret");
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let secret = secret.to_str().unwrap();
        for command in [
            &["umount", "/proc"][..],
            &["umount", "-l", "/proc"],
            &["mount", "-t", "tmpfs", "none", "/mnt"],
            &["unshare", "-m", "true"],
            &[
                "unshare",
                "-Urm",
                "sh",
                "-c",
                "umount /proc || umount -l /proc",
            ],
            &["nsenter", "-t", &keeper, "-n", "true"],
            &["nsenter", "-t", "1", "-m", "true"],
            &["cat", "/proc/1/environ"],
            &["readlink", "/proc/1/fd/0"],
            &["ip", "link", "set", "lo", "down"],
            &["mknod", "/var/tmp/disk", "b", "8", "0"],
            // What is the machine's root's.
            &["cat", "/etc/shadow"],
            &["cat", secret],
            &["chown", "0", secret],
            &["sh", "-c", "echo >>/etc/passwd"],
        ] {
            let output = house.exec("a", command);
            assert!(!output.status.success(), "{command:?}: {output:?}");
        }
        // rum's sockets are as far away as in every guest.
        let base = house.setup.path().join("run");
        let seen = answer(house, &["ls", "-A", base.to_str().unwrap()]);
        assert_eq!(seen, ".inside\n");
        let inside = binary("rum");
        let down = [inside.to_str().unwrap(), "down", "--name", "a"];
        let output = house.exec("a", &down);
        assert!(said(&output).contains("inside the guest `a`"), "{output:?}");
        assert!(!output.status.success());
        // Killing everything in sight ends CMD, and rum ends as it does then.
        house.exec("a", &["sh", "-c", "kill -9 -1"]);
        assert_eq!(rum.wait().code(), Some(137));
    });
}

/// Without ids there is root alone, as in `unshare -r`.
#[test]
fn without_ids_root_is_alone() {
    in_netns(|| {
        let house = House::new(Who::User);
        let _rum = house.up("a", &["--root"]);
        assert_eq!(answer(&house, &["id", "-u"]), "0\n");
        let file = house.setup.path().join("file");
        let file = file.to_str().unwrap();
        answer(&house, &["touch", file]);
        answer(&house, &["chown", "0:0", file]);
        let output = house.exec("a", &["chown", "33", file]);
        assert!(said(&output).contains("Invalid argument"), "{output:?}");
    });
}

/// Root is root anyway.
#[test]
fn it_changes_nothing_for_root() {
    in_netns(|| {
        let house = House::new(Who::Root);
        let _rum = house.up("a", &["--root"]);
        let map = answer(&house, &["cat", "/proc/self/uid_map"]);
        assert_eq!(map, fs::read_to_string("/proc/self/uid_map").unwrap());
    });
}
