//! Guests with the real `rum`, and a PostgreSQL to put into them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rum_tests::rum::{Rum, Setup};

/// The user `nobody`, as whom the servers run.
pub const NOBODY: u32 = 65_534;

/// Whose guests they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    Root,
    User,
}

/// Each test for root and for an ordinary user, in a network namespace of its own.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod as_root { $(#[test] fn $name() {
            rum_tests::netns::in_netns(|| super::$name($crate::support::Who::Root));
        })* }
        mod as_user { $(#[test] fn $name() {
            rum_tests::netns::in_netns(|| super::$name($crate::support::Who::User));
        })* }
    };
}
pub(crate) use both;

/// Where guests are started.
pub struct House {
    pub who: Who,
    pub setup: Setup,
}

impl House {
    pub fn new(who: Who) -> Self {
        let setup = match who {
            Who::Root => Setup::new(),
            Who::User => Setup::ordinary_user(),
        };
        // For servers that are not root's; the runtime directory in it lets nobody in by itself.
        fs::set_permissions(setup.path(), Permissions::from_mode(0o755)).unwrap();
        Self { who, setup }
    }

    /// Starts the guest `name` and waits for its agent.
    pub fn up(&self, name: &str, more: &[&str]) -> Rum {
        let mut args = vec!["up", "--name", name];
        if !more.contains(&"--range") {
            args.extend(["--range", "5000-5999"]);
        }
        args.extend(more);
        let rum = self.setup.start(args);
        rum.stderr.wait("connected");
        rum
    }

    /// Runs `command` in the guest `name`.
    pub fn exec(&self, name: &str, command: &[&str]) -> Output {
        let mut rum = self
            .setup
            .rum(["exec", "--name", name, "--workdir", "/", "--"]);
        rum.args(command).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs `command` outside.
    pub fn outside(&self, command: &[&str]) -> Output {
        let mut outside = self.setup.command(command[0]);
        outside.args(&command[1..]).stdin(Stdio::null());
        outside.output().unwrap()
    }
}

/// Everything that it said.
pub fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// A data directory, and the programs of PostgreSQL.
pub struct Postgres {
    bin: PathBuf,
    pub dir: PathBuf,
    who: Who,
}

impl Postgres {
    pub fn new(house: &House, name: &str) -> Self {
        Self::new_in(house, &house.setup.path().join(name))
    }

    /// With its directory at `dir`, which is made.
    pub fn new_in(house: &House, dir: &Path) -> Self {
        let versions = fs::read_dir("/usr/lib/postgresql").unwrap();
        let newest = versions.map(|entry| entry.unwrap().path()).max().unwrap();
        fs::create_dir(dir).unwrap();
        chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
        let this = Self {
            bin: newest.join("bin"),
            dir: dir.to_owned(),
            who: house.who,
        };
        let data = this.data();
        let made = house.outside(&words(
            &this.tool(&["initdb", "-A", "trust", "-N", "-D", &data]),
        ));
        assert!(made.status.success(), "{made:?}");
        this
    }

    pub fn data(&self) -> String {
        self.dir.join("data").to_str().unwrap().to_owned()
    }

    /// The command line of one of its programs, as the user that may run it.
    pub fn tool(&self, command: &[&str]) -> Vec<String> {
        let program = self.bin.join(command[0]);
        let mut line: Vec<String> = match self.who {
            Who::User => vec![],
            Who::Root => [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        line.push(program.to_str().unwrap().to_owned());
        line.extend(command[1..].iter().map(|word| (*word).to_owned()));
        line
    }

    /// Starts the server on `port`, with its Unix socket in `sockets`, and waits until it is up.
    pub fn start(&self, port: u16, sockets: &str) -> Vec<String> {
        let options = format!("-h 127.0.0.1 -p {port} -k {sockets}");
        let log = self.dir.join("log");
        let log = log.to_str().unwrap();
        self.tool(&[
            "pg_ctl",
            "-D",
            &self.data(),
            "-l",
            log,
            "-w",
            "-o",
            &options,
            "start",
        ])
    }

    pub fn stop(&self) -> Vec<String> {
        self.tool(&[
            "pg_ctl",
            "-D",
            &self.data(),
            "-m",
            "immediate",
            "-w",
            "stop",
        ])
    }

    pub fn clear_log(&self) {
        fs::write(self.dir.join("log"), "").unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

pub fn words(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

/// The id in what `ipcmk` says.
pub fn made(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    let text = said(output);
    text.trim().rsplit(' ').next().unwrap().to_owned()
}

/// Whether there is a shared memory segment `id`.
pub fn has_segment(id: &str) -> bool {
    let output = Command::new("ipcs")
        .args(["-m", "-i", id])
        .output()
        .unwrap();
    said(&output).contains("bytes=")
}
