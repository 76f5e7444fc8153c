//! What is packed, read back by others: our own reader of newc, fatfs, and the tools of a
//! distribution.

#![allow(clippy::unwrap_used)]
use std::fs;
use std::io::Read;
use std::process::Command;

use super::*;

/// Runs a tool on a file: whether it was content, and what it said.
fn tool(command: &[&str]) -> (bool, String) {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output =
        output.unwrap_or_else(|error| panic!("{}, which tests/run installs: {error}", command[0]));
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// Name, mode and content.
type Record<'a> = (String, u32, &'a [u8]);

/// The records of a newc archive, and what follows the last.
fn newc(mut bytes: &[u8]) -> (Vec<Record<'_>>, &[u8]) {
    let mut records = Vec::new();
    loop {
        assert_eq!(&bytes[..6], b"070701");
        let field = |n: usize| {
            let text = std::str::from_utf8(&bytes[6 + 8 * n..][..8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
        let name = std::str::from_utf8(&bytes[110..][..name_size]).unwrap();
        let name = name.strip_suffix('\0').unwrap().to_owned();
        let start = (110 + name_size).next_multiple_of(4);
        let content = &bytes[start..][..size];
        bytes = &bytes[(start + size).next_multiple_of(4)..];
        if name == "TRAILER!!!" {
            return (records, bytes);
        }
        records.push((name, mode, content));
    }
}

#[test]
fn an_initramfs_has_the_agent_and_what_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let (given, out) = (dir.path().join("given"), dir.path().join("out"));
    // Any bytes: whatever compression it has is none of our business.
    fs::write(&given, b"\x1f\x8b\x08 of five").unwrap();
    for (initrd, rest) in [
        (None, &b""[..]),
        (Some(given.as_path()), b"\x1f\x8b\x08 of five"),
    ] {
        initramfs(initrd, &out).unwrap();
        let bytes = fs::read(&out).unwrap();
        let (records, tail) = newc(&bytes);
        assert_eq!(tail, rest);
        assert_eq!(records[0], ("rum".into(), 0o40755, &b""[..]));
        assert_eq!(
            (records[1].0.as_str(), records[1].1),
            ("rum/agent", 0o100755)
        );
        assert!(records[1].2 == agent(), "another agent");
        assert_eq!(records.len(), 2);
        assert_eq!(format!("/{}", records[1].0), RDINIT);
    }
    let missing = initramfs(Some(&dir.path().join("none")), &dir.path().join("never"));
    assert_eq!(missing.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(!dir.path().join("never").exists());
}

#[test]
fn cpio_reads_the_initramfs() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    initramfs(None, &out).unwrap();
    for cpio in [&["cpio"][..], &["busybox", "cpio"]] {
        let mut command = Command::new(cpio[0]);
        command.args(&cpio[1..]).args(["-i", "-t"]);
        command.stdin(fs::File::open(&out).unwrap());
        let output = command.output().expect("tests/run installs it");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "rum\nrum/agent\n"
        );
    }
}

const SEED: Seed<'static> = Seed {
    name: Some("web_1"),
    instance: "web_1-5eed",
    user_data: Some("#!/bin/sh\necho \"of the user\"\n"),
    ssh_keys: &[
        "ssh-ed25519 AAAA \"me\" \\o/\n",
        "ssh-ed25519 BBBB rum-web_1",
    ],
};

#[test]
fn a_seed_disk_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("seed.img");
    seed_disk(&SEED, &out).unwrap();
    let first = fs::read(&out).unwrap();
    seed_disk(&SEED, &out).unwrap();
    assert!(fs::read(&out).unwrap() == first, "not the same bytes again");

    let disk =
        fatfs::FileSystem::new(std::io::Cursor::new(first), fatfs::FsOptions::new()).unwrap();
    assert_eq!(
        disk.read_volume_label_from_root_dir_as_bytes().unwrap(),
        Some(*b"CIDATA     ")
    );
    let read = |name: &str| {
        let mut content = Vec::new();
        let mut file = disk.root_dir().open_file(name).unwrap();
        file.read_to_end(&mut content).unwrap();
        content
    };
    let text = |name: &str| String::from_utf8(read(name)).unwrap();
    assert!(read("rum-agent") == agent());
    assert_eq!(text("install-rum-agent"), installer());
    assert_eq!(text("user-data"), SEED.user_data.unwrap());
    insta::assert_snapshot!("meta-data", text("meta-data"));
    insta::assert_snapshot!("vendor-data", text("vendor-data"));

    let image = out.to_str().unwrap();
    let (clean, said) = tool(&["fsck.vfat", "-n", image]);
    assert!(clean, "{said}");
    let (read, said) = tool(&["mdir", "-i", image, "::"]);
    assert!(read && said.contains("install-rum-agent"), "{said}");
    let (found, said) = tool(&["blkid", "-p", "-s", "LABEL", "-o", "value", image]);
    assert!(found && said == "CIDATA\n", "{said}");
}

#[test]
fn a_seed_without_the_users_part_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("seed.img");
    let seed = Seed {
        user_data: None,
        ssh_keys: &[],
        ..SEED
    };
    seed_disk(&seed, &out).unwrap();
    let disk = fatfs::FileSystem::new(
        fs::File::options()
            .read(true)
            .write(true)
            .open(&out)
            .unwrap(),
        fatfs::FsOptions::new(),
    )
    .unwrap();
    let mut text = String::new();
    let mut read = |name: &str| {
        disk.root_dir()
            .open_file(name)
            .unwrap()
            .read_to_string(&mut text)
    };
    read("user-data").unwrap();
    read("meta-data").unwrap();
    assert_eq!(
        text,
        "#cloud-config\n{}\ninstance-id: \"web_1-5eed\"\nlocal-hostname: \"web-1\"\n"
    );
}

#[test]
fn the_unit_is_one() {
    insta::assert_snapshot!("unit", unit());
    assert!(unit().contains(&format!("ExecStart={AGENT_PATH}\n")));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rum-agent.service");
    // Whether the program is installed on this machine is not what is asked.
    fs::write(&file, unit().replace(AGENT_PATH, "/bin/true")).unwrap();
    let (good, said) = tool(&["systemd-analyze", "verify", file.to_str().unwrap()]);
    assert!(good && !said.contains("rum-agent.service"), "{said}");
}

#[test]
fn what_installs_is_a_script_and_installs_where_the_unit_looks() {
    let hook = include_str!("boothook.sh");
    let hook = hook.strip_prefix("#cloud-boothook\n").unwrap();
    assert!(hook.contains(&format!("/{INSTALLER}\" --at-boot\n")));
    let installer = installer();
    assert!(installer.contains(&format!("\nagent={AGENT_PATH}\n")));
    assert!(installer.contains(&format!("\nunit={UNIT_PATH}\n")));
    assert!(installer.contains(&format!("put \"$unit\" 0644 <<'END'\n{}END\n", unit())));
    assert!(installer.contains(&format!("\ncommand={AGENT_PATH}\n")));
    assert!(!installer.contains("\n@"), "something is left out");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("script");
    let openrc = include_str!("rum-agent.openrc");
    for script in [hook, &*installer, openrc] {
        fs::write(&file, script).unwrap();
        for shell in ["/bin/sh", "busybox sh"] {
            let mut command: Vec<_> = shell.split(' ').collect();
            command.extend(["-n", file.to_str().unwrap()]);
            let (good, said) = tool(&command);
            assert!(good, "{said}");
        }
    }
}
