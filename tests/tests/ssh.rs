//! `rum ssh` into a VM that rum did not make: the real ssh and scp, a real sshd beside a real agent, and
//! between them a `CONNECT` device. No forward is configured, and sshd's port is in no range.
//!
//! The VM whose key is rum's own is in the suite `image`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rum_tests::device::Defects;
use rum_tests::machine::Machine;
use rum_tests::netns::{self, in_netns};
use rum_tests::rum::Rum;
use rum_tests::wait::until;

/// The caller's ssh: with a key and a configuration of the test's own.
const SSH: &str = r#"#!/bin/sh
exec /usr/bin/ssh -F "$CONFIG" -i "$KEY" "$@"
"#;
/// More than any buffer on the way holds.
const LARGE: usize = 8 << 20;

/// A machine with an agent, and a `rum` that is connected to it.
struct Place {
    machine: Machine,
    rum: Rum,
    _agent: Rum,
}

impl Place {
    fn new() -> Self {
        let rest = "name = \"dev\"\n[auto_ports]\nrange = \"5000-6000\"\n";
        let machine = Machine::boot(Defects::default(), rest);
        let agent = machine.start_agent(&[]);
        let rum = machine.start_rum();
        rum.stderr.wait("connected (events");
        let place = Self {
            machine,
            rum,
            _agent: agent,
        };
        for key in ["key", "host-key"] {
            let mut keygen = place.machine.setup.command("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", key]);
            assert!(keygen.status().expect("tests/run installs it").success());
        }
        fs::create_dir(place.path("bin")).expect("ours");
        fs::write(place.path("bin/ssh"), SSH).expect("ours");
        fs::set_permissions(place.path("bin/ssh"), Permissions::from_mode(0o755)).expect("ours");
        fs::write(place.path("config"), "").expect("ours");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.machine.setup.path().join(name)
    }

    /// sshd in the guest, which lets the test's key in as root.
    fn start_sshd(&self) -> Rum {
        let path = |name| self.path(name).display().to_string();
        let config = format!(
            "Port 22\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nSubsystem sftp internal-sftp\n",
            path("host-key"),
            path("key.pub"),
        );
        fs::write(self.path("sshd_config"), config).expect("ours");
        // Its privilege separation wants it, and nothing else makes it here.
        fs::create_dir_all("/run/sshd").expect("root");
        let mut sshd = self.machine.setup.command("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(self.path("sshd_config"));
        sshd.stdin(Stdio::null()).stdout(Stdio::null());
        let namespace = netns::of(self.machine.program.child.id());
        let sshd = netns::inside(&namespace, || self.machine.setup.spawn(&mut sshd));
        sshd.stderr.wait("Server listening");
        sshd
    }

    /// `program ARGS`, which finds the test's ssh and `rum`'s guest.
    fn run(&self, mut command: Command) -> Output {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = [self.path("bin")]
            .into_iter()
            .chain(std::env::split_paths(&path));
        command.env(
            "PATH",
            std::env::join_paths(dirs).expect("no colon in them"),
        );
        command
            .env("KEY", self.path("key"))
            .env("CONFIG", self.path("config"));
        command
            .stdin(Stdio::null())
            .output()
            .expect("it can be run")
    }

    fn rum(&self, args: &[&str]) -> Output {
        self.run(self.machine.setup.rum(args))
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_program_runs_in_a_vm_and_its_exit_code_comes_back() {
    in_netns(|| {
        let place = Place::new();
        let none = place.rum(&["ssh", "root@", "--", "true"]);
        assert_eq!(none.status.code(), Some(255), "{none:?}");
        let said = stderr(&none);
        assert!(
            said.contains("port 22 of `dev`: nothing listens on it"),
            "{said}"
        );
        assert!(said.contains("hint: it needs an sshd"), "{said}");

        let _sshd = place.start_sshd();
        let output = place.rum(&["ssh", "root@", "--", "readlink /proc/self/ns/net; exit 7"]);
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        let namespace = format!("/proc/{}/ns/net", place.machine.program.child.id());
        let guests = fs::read_link(namespace).expect("it runs");
        assert_eq!(stdout(&output).trim(), guests.to_string_lossy());

        // Whose key that was is remembered, and not where the caller's are.
        let known = fs::read_to_string(place.path("state/dev/known_hosts")).expect("a key");
        assert!(known.starts_with("rum-dev ssh-ed25519 "), "{known}");
        assert!(!place.path(".ssh").exists());
        assert!(!stderr(&place.rum(&["ssh", "root@", "--", "true"])).contains("added"));
        // Somebody else on its port is not let pass for it.
        let other = format!(
            "rum-dev {}",
            fs::read_to_string(place.path("key.pub")).expect("ours")
        );
        fs::write(place.path("state/dev/known_hosts"), other).expect("ours");
        let refused = place.rum(&["ssh", "root@", "--", "true"]);
        assert_eq!(refused.status.code(), Some(255), "{refused:?}");
        assert!(stderr(&refused).contains("HOST IDENTIFICATION HAS CHANGED"));
    });
}

#[test]
fn other_programs_use_the_block_of_ssh_config() {
    in_netns(|| {
        let place = Place::new();
        let _sshd = place.start_sshd();
        let block = place.rum(&["ssh-config", "root@"]);
        assert!(block.status.success(), "{block:?}");
        fs::write(place.path("config"), &block.stdout).expect("ours");
        let large: Vec<u8> = (0..LARGE).map(|at| ((at * at) >> 7) as u8).collect();
        fs::write(place.path("large"), &large).expect("space");
        let there = format!("rum-dev:{}", place.path("there").display());
        for (from, to) in [("large", there.as_str()), (there.as_str(), "back")] {
            let mut scp = place.machine.setup.command("scp");
            // What the block says is found without what `rum` sets.
            scp.env_remove("RUM_RUNTIME_DIR")
                .env_remove("RUM_STATE_DIR");
            scp.arg("-S").arg(place.path("bin/ssh")).args([from, to]);
            let copied = place.run(scp);
            assert!(copied.status.success(), "{copied:?}");
        }
        assert!(fs::read(place.path("back")).expect("it came") == large);
    });
}

#[test]
fn a_socket_that_was_removed_is_made_anew_and_rum_down_ends_what_goes_through_it() {
    in_netns(|| {
        let mut place = Place::new();
        let _sshd = place.start_sshd();
        let socket = place.path("run/dev/streams.sock");
        let mode = fs::metadata(&socket)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(&socket).expect("ours");
        until("the socket", || socket.exists().then_some(()));
        let mut shell = place
            .machine
            .setup
            .rum(["ssh", "root@", "--", "echo in; exec cat"]);
        shell.env(
            "PATH",
            format!("{}:/usr/bin:/bin", place.path("bin").display()),
        );
        shell
            .env("KEY", place.path("key"))
            .env("CONFIG", place.path("config"));
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let setup = place.machine.setup.clone();
        let mut shell = setup.spawn(&mut shell);
        let mut out = shell.child.stdout.take().expect("piped");
        let mut said = [0; 3];
        std::io::Read::read_exact(&mut out, &mut said).expect("the guest speaks");
        assert!(place.rum(&["down"]).status.success());
        assert!(place.rum.wait().success());
        assert_eq!(shell.wait().code(), Some(255));
        let gone = place.rum(&["ssh"]);
        assert_eq!(gone.status.code(), Some(255));
        assert!(
            stderr(&gone).contains("hint: start one with `rum up`"),
            "{gone:?}"
        );
    });
}

#[test]
fn a_namespace_guest_needs_no_ssh() {
    in_netns(|| {
        let setup = rum_tests::rum::Setup::new();
        let rum = setup.start(["up", "--name", "dev", "--range", "5000-6000"]);
        rum.stderr.wait("connected (events");
        for command in ["ssh", "ssh-config"] {
            let output = setup.rum([command]).output().expect("rum");
            let said = stderr(&output);
            assert!(
                said.contains("hint: `rum shell --name dev` opens a shell in it"),
                "{said}"
            );
        }
        assert!(!setup.path().join("run/dev/streams.sock").exists());
    });
}
