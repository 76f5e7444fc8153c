//! A guest in which programs are run, and what is said of their ports.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::process::{Child, Command, Stdio};

use rum_tests::client::host;
use rum_tests::rum::{Rum, Setup, agent_below};
use rum_tests::wait::until;
use serde_json::Value;

/// Of the system: a version manager may have put a script in its place.
pub const PYTHON: &str = "/usr/bin/python3";

/// `rum up` without a command, and what runs in its guest.
pub struct Stage {
    pub setup: Setup,
    pub rum: Rum,
    programs: Vec<Child>,
}

impl Stage {
    pub fn new(setup: Setup, config: &str) -> Self {
        fs::write(setup.path().join("rum.toml"), config).expect("a file");
        let rum = setup.start(["up"]);
        rum.stderr.wait("connected");
        Self {
            setup,
            rum,
            programs: Vec::new(),
        }
    }

    /// Starts `command` in the guest. It is killed with the stage, if it has not ended by then.
    pub fn run(&mut self, command: &[&str]) {
        let mut exec = self.setup.rum(["exec", "--"]);
        let exec = exec.args(command).stdin(Stdio::null()).spawn();
        self.programs.push(exec.expect("exec starts"));
    }

    /// Writes a Python program, and starts it in the guest.
    pub fn python(&mut self, name: &str, program: &str, args: &[&str]) {
        self.write(name, program);
        self.run(&[&[PYTHON, name], args].concat());
    }

    pub fn write(&self, name: &str, text: &str) {
        let file = self.setup.path().join(name);
        fs::write(&file, text).expect("a file");
        let owner = fs::metadata(self.setup.path()).expect("a directory");
        let owner = std::os::unix::fs::MetadataExt::uid(&owner);
        chown(&file, Some(owner), Some(owner)).expect("these tests run as root");
    }

    /// Runs a line of shell in the guest to its end.
    pub fn shell(&self, line: &str) {
        let mut exec = self.setup.rum(["exec", "--", "sh", "-ec", line]);
        let status = exec.stdin(Stdio::null()).status().expect("exec starts");
        assert!(status.success(), "{line}: {status}");
    }

    /// Runs a line of shell as the machine's root in the guest's network namespace.
    pub fn network(&self, line: &str) {
        let agent = until("an agent", || agent_below(self.rum.child.id()));
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{agent}/ns/net"));
        let status = command.args(["sh", "-ec", line]).status();
        assert!(status.expect("nsenter, of util-linux").success(), "{line}");
    }

    /// Waits until what is said of `port` is as `wanted`.
    pub fn until(&self, port: u16, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until(what, || {
            let output = self.setup.rum(["ports", "--json"]).output();
            let output = output.expect("rum ports");
            let all: Value = serde_json::from_slice(&output.stdout).ok()?;
            let mut ports = all["ports"].as_array()?.iter();
            ports.find(|p| p["port"] == port && wanted(p)).cloned()
        })
    }

    /// Waits until the process that is shown for `port` has this name; its id.
    pub fn until_named(&self, port: u16, name: &str) -> u64 {
        let shown = self.until(port, name, |port| port["process"]["name"] == name);
        shown["process"]["pid"].as_u64().expect("a number")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.rum.child.kill();
        for program in &mut self.programs {
            let _ = program.wait();
        }
    }
}

/// What the server behind host port `port` says.
pub fn read_from(port: u16) -> String {
    let mut said = String::new();
    let stream = TcpStream::connect(host(port));
    let read = stream.and_then(|mut stream| stream.read_to_string(&mut said));
    match read {
        Ok(_) => said,
        Err(error) => format!("{error}"),
    }
}
