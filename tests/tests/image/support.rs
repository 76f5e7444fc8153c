//! A Debian from an image, and two ways into it: ssh through a port that rum forwards, with the user's key,
//! and `rum ssh` with rum's.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rum_tests::Fnv;
use rum_tests::assets::{assets, debian};
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until_within;

/// A boot takes a minute where nothing else runs; translated on a machine with a load of 40 it took
/// 15. Only how long a failure hangs depends on this.
pub const BOOT: Duration = Duration::from_secs(600);

/// What the user wants of cloud-init: a service that listens, from the first boot on.
const USER_DATA: &str = r#"#cloud-config
write_files:
- path: /etc/systemd/system/web.service
  content: |
    [Service]
    ExecStart=/usr/bin/python3 -m http.server 5000 --directory /srv
    [Install]
    WantedBy=multi-user.target
- path: /srv/index.html
  content: of the user
runcmd:
- systemctl enable --now --no-block web.service
"#;

/// ssh(1) for whoever asks for it: with the test's key, and no keys of hosts kept.
const SSH: &str = r#"#!/bin/sh
exec /usr/bin/ssh -q -i "$KEY" -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
    -o UserKnownHostsFile=/dev/null -o ConnectTimeout=120 -o ConnectionAttempts=1 "$@"
"#;

/// What the guest's disk has: more than its image.
pub const DISK_MIB: u32 = 1024;

/// A place for the guest.
pub struct Debian {
    /// Where it runs, with a `rum.toml`.
    pub setup: Setup,
}

impl Debian {
    /// Copies the image, which a test is free to spoil then.
    pub fn new() -> Self {
        let setup = Setup::new();
        let path = |name: &str| setup.path().join(name);
        fs::copy(debian(), path("debian.qcow2")).expect("space for an image");
        fs::write(path("user-data"), USER_DATA).expect("ours");
        let config = format!(
            "[guest]\nkind = \"qemu\"\naccel = \"tcg\"\nimage = \"debian.qcow2\"\n\
             disk = \"{DISK_MIB}M\"\ncpus = 1\nmemory = \"768M\"\nuser_data = \"user-data\"\nssh_key = \"key.pub\"\n\
             [[ports]]\nhost = 2022\nguest = 22\n\
             [auto_ports]\nrange = \"5000-5010\"\n"
        );
        fs::write(path("rum.toml"), config).expect("ours");
        fs::create_dir(path("bin")).expect("ours");
        fs::write(path("bin/ssh"), SSH).expect("ours");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(path("bin/ssh"), mode).expect("ours");
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        let made = keygen.arg(path("key")).status();
        assert!(made.expect("ssh, which tests/run installs").success());
        Self { setup }
    }

    /// Sets a key of `[guest]`.
    pub fn set(&self, line: &str) {
        let file = self.setup.path().join("rum.toml");
        let config = fs::read_to_string(&file).expect("ours");
        let config = config.replacen("[guest]\n", &format!("[guest]\n{line}\n"), 1);
        fs::write(file, config).expect("ours");
    }

    fn path(&self) -> OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let ours = [self.setup.path().join("bin"), assets().join("bin")];
        let dirs = ours.into_iter().chain(std::env::split_paths(&path));
        std::env::join_paths(dirs).expect("no colon in them")
    }

    /// `rum ARGS`.
    pub fn rum(&self, args: &[&str]) -> Command {
        let mut command = self.setup.rum(args);
        command.env("PATH", self.path()).stdin(Stdio::null());
        command.env("KEY", self.setup.path().join("key"));
        command
    }

    /// `rum ssh -- SCRIPT`, with the system's ssh and rum's own key.
    pub fn rum_ssh(&self, script: &str) -> Command {
        let mut command = self.setup.rum(["ssh", "--", script]);
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `rum up ARGS`.
    pub fn up(&self, args: &[&str]) -> Rum {
        let mut all = vec!["up"];
        all.extend(args);
        self.setup.start_command(&mut self.rum(&all))
    }

    /// Waits until `rum` says `text`, for as long as a boot takes.
    pub fn until_said(&self, rum: &Rum, text: &str) {
        until_within(BOOT, text, || {
            let lines = rum.stderr.all();
            lines.iter().any(|line| line.contains(text)).then_some(())
        });
    }

    /// What a command in the guest writes, its user logged in by key; None if that or the command
    /// fails.
    pub fn try_ssh(&self, script: &str) -> Option<String> {
        let mut ssh = self.setup.command(self.setup.path().join("bin/ssh"));
        ssh.env("KEY", self.setup.path().join("key"));
        ssh.args(["-p", "2022", "debian@127.0.0.1", script]);
        let output = ssh.stdin(Stdio::null()).output().expect("a shell");
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// As [`Debian::try_ssh`], once it can be: sshd comes late in a boot.
    pub fn ssh(&self, script: &str) -> String {
        until_within(BOOT, script, || self.try_ssh(script))
    }

    /// What `rum ports --json` says, nothing while it cannot.
    pub fn ports(&self) -> String {
        let output = self.rum(&["ports", "--json"]).output().expect("rum");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A file of the guest's state directory.
    pub fn state(&self, name: &str) -> PathBuf {
        self.setup.path().join("state/default").join(name)
    }

    /// The image.
    pub fn image(&self) -> PathBuf {
        self.setup.path().join("debian.qcow2")
    }

    /// A hash of the image.
    pub fn hash(&self) -> u64 {
        let mut file = File::open(self.image()).expect("it is there");
        let (mut hash, mut block) = (Fnv::default(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut block).expect("a file") {
                0 => return hash.value(),
                n => hash.update(&block[..n]),
            }
        }
    }
}
