//! Which users and groups there are in an ordinary user's guest, and what that makes of terminals.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup, binary};

use crate::support::{House, NOBODY, Who, said};

/// Runs a command as a user to whom ids are given and a shell.
const GIVEN: &str = "cd \"$0\" && for file in subuid subgid passwd; do \
                     mount --bind $file /etc/$file || exit; done; \
                     exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";

/// An ordinary user to whom /etc/subuid and /etc/subgid give ids.
pub struct Given {
    pub house: House,
}

impl Given {
    pub fn new() -> Self {
        let house = House::new(Who::User);
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let others = passwd.lines().filter(|line| !line.starts_with("nobody:"));
        let mut passwd: Vec<_> = others.collect();
        // Not `nobody`, whom some systems lock whatever the files say.
        passwd.push("somebody:x:65534:65534::/:/bin/sh\n");
        for (file, text) in [
            ("passwd", passwd.join("\n")),
            ("subuid", "somebody:200000:65536\n".to_owned()),
            ("subgid", "somebody:300000:65536\n".to_owned()),
        ] {
            fs::write(house.setup.path().join(file), text).unwrap();
        }
        Self { house }
    }

    pub fn up(&self, guest: &str, command: &[&str]) -> Rum {
        let file = self.file("rum.toml");
        let text = format!("name = \"a\"\n[guest]\n{guest}[auto_ports]\nrange = \"5000-5999\"\n");
        fs::write(&file, text).unwrap();
        let root = Setup {
            uid: None,
            ..self.house.setup.clone()
        };
        let mut unshare = root.command("unshare");
        unshare.args(["-m", "sh", "-c", GIVEN]).arg(root.path());
        unshare.arg(binary("rum")).args(["up", "-c"]).arg(file);
        unshare.arg("--").args(command);
        self.house.setup.start_command(&mut unshare)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.house.setup.path().join(name)
    }
}

#[test]
fn the_user_s_ids_are_his_own_and_the_others_those_given() {
    in_netns(|| {
        let given = Given::new();
        let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; \
                      echo mine >\"$0\"; stat -c %u:%g \"$0\"";
        let file = given.file("mine");
        let mut rum = given.up("", &["sh", "-c", script, file.to_str().unwrap()]);
        assert_eq!(rum.wait().code(), Some(0));
        let seen: Vec<String> = rum.stdout.all();
        let seen: Vec<String> = seen
            .iter()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let want = [
            "65534",
            "65534",
            "65534 65534 1",
            "0 200000 65534",
            "65535 265534 2",
            "65534 65534 1",
            "0 300000 65534",
            "65535 365534 2",
            "65534:65534",
        ];
        assert_eq!(seen, want);
    });
}

#[test]
fn sshd_of_an_ordinary_user_gives_a_terminal() {
    in_netns(|| {
        let given = Given::new();
        for key in ["host", "id"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(given.file(key))
                .status()
                .unwrap();
            assert!(made.success());
        }
        fs::copy(given.file("id.pub"), given.file("authorized")).unwrap();
        for file in ["host", "authorized"] {
            chown(given.file(file), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        fs::set_permissions(given.file("id"), Permissions::from_mode(0o600)).unwrap();
        let option = |name: &str, file: &str| format!("-o{name}={}", given.file(file).display());
        let [host, keys] = [
            option("HostKey", "host"),
            option("AuthorizedKeysFile", "authorized"),
        ];
        let sshd = [
            "/usr/sbin/sshd",
            "-De",
            "-f",
            "/dev/null",
            "-p",
            "5000",
            &host,
            &keys,
            "-oStrictModes=no",
            "-oUsePAM=no",
            "-oPidFile=none",
        ];
        let rum = given.up("private_pts = true\n", &sshd);
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let output = ssh(&given.file("id"), "tty; stat -c %G $(tty)");
        let text = said(&output).replace('\r', "");
        assert!(output.status.success(), "{text}");
        assert!(text.contains("/dev/pts/0\ntty\n"), "{text}");
    });
}

fn ssh(key: &Path, command: &str) -> Output {
    let mut ssh = Command::new("ssh");
    ssh.args(["-tt", "-q", "-p", "5000", "-i"]).arg(key);
    ssh.args([
        "-oBatchMode=yes",
        "-oStrictHostKeyChecking=no",
        "-oUserKnownHostsFile=/dev/null",
    ]);
    ssh.args(["-F", "/dev/null", "somebody@127.0.0.1", command]);
    ssh.stdin(Stdio::null()).output().unwrap()
}

/// Without ids there is nobody to give a terminal to.
#[test]
fn own_terminals_need_the_group() {
    in_netns(|| {
        let house = House::new(Who::User);
        let file = house.setup.path().join("rum.toml");
        let text = "[guest]\nprivate_pts = true\n[auto_ports]\nrange = \"5000\"\n";
        fs::write(&file, text).unwrap();
        let mut rum = house.setup.rum(["up", "-c"]);
        let output = rum.arg(&file).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = said(&output);
        assert!(text.contains("the group tty (5) is not mapped"), "{text}");
        assert!(text.contains("hint: install newuidmap"), "{text}");
    });
}
