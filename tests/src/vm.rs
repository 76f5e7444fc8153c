//! A real virtual machine: QEMU without KVM, a Debian kernel, an initramfs of our own with
//! busybox, the static agent that `rum` carries, the `guest` program, and a vsock by
//! vhost-device-vsock. It is up about three seconds after its start.
//!
//! The agent and the guest program are started again whenever they end. The guest program calls
//! the host, since a connect to a guest that is still booting breaks the device for good.
//!
//! What it is made of comes from `tests/vm-assets` and from this build. The `guest` program is the
//! one of the other tests, stripped and with its libraries: a static one would need a second
//! build of everything.
//!
//! Invariants: a VM ends with its [`Vm`], and with the thread that started it at the latest;
//! nothing of it is shared, so tests with VMs run side by side.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::assets::assets;
use crate::guest::Guest;
use crate::rum::binary;
use crate::wait::until;

/// Where the guest program calls the host. A high number: vhost-device-vsock 0.3.0 numbers the connections
/// of the host from 0 on, and refuses all once it comes to the number of such a port that is in use.
const CONTROL_PORT: u32 = 3_000_000_000;
/// PID 1 of the guest.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
ip link set lo up
ulimit -n 8192
keep() { while :; do "$@"; echo "init: $1 ended with $?"; sleep 0.1; done; }
keep rum-agent $AGENT_ARGS &
keep guest vsock $CONTROL_PORT &
while :; do wait; sleep 1; done
"#;

/// A running VM.
pub struct Vm {
    qemu: Child,
    vsock: Child,
    control: UnixListener,
    dir: TempDir,
}

impl Vm {
    /// Starts a VM whose agent gets `agent_args`, with more `programs` of this workspace in it.
    /// It boots when this returns: see [`Vm::guest`].
    ///
    /// # Panics
    /// When something that it needs is missing, or QEMU does not start.
    pub fn start(agent_args: &str, programs: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("rum-vm-").tempdir();
        let dir = dir.expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        let cache = assets();
        initramfs(&cache, programs, dir.path());
        let control = UnixListener::bind(path(&format!("vm.vsock_{CONTROL_PORT}")));
        let control = control.expect("a new directory");
        control.set_nonblocking(true).expect("a socket");
        let mut vsock = command(cache.join("bin/vhost-device-vsock"), dir.path());
        vsock.env("RUST_LOG", "debug");
        vsock.args(["--vm", "guest-cid=3,socket=vhost.sock,uds-path=vm.vsock"]);
        let vsock = vsock.spawn().expect("vhost-device-vsock starts");
        until("the vsock device", || {
            path("vhost.sock").exists().then_some(())
        });
        let qemu = qemu(&cache, dir.path(), agent_args).spawn();
        Self {
            qemu: qemu.expect("QEMU starts"),
            vsock,
            control,
            dir,
        }
    }

    /// The vsock device's socket, which speaks `CONNECT`.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("vm.vsock")
    }

    /// The guest program, once it calls: after the boot, and again after it was ended.
    ///
    /// # Panics
    /// When it does not.
    pub fn guest(&self) -> Guest {
        let stream = until("the guest program to call", || {
            self.control.accept().ok().map(|(stream, _)| stream)
        });
        stream.set_nonblocking(false).expect("a socket");
        Guest::over(stream).expect("a socket")
    }

    /// Stops QEMU: nothing in the guest moves, nothing of it is closed.
    ///
    /// # Panics
    /// When QEMU is gone.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets QEMU go on.
    ///
    /// # Panics
    /// When QEMU is gone.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.qemu), signal).expect("QEMU runs");
    }

    /// Kills QEMU, as when a machine loses its power.
    pub fn kill(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
        let _ = self.vsock.kill();
        let _ = self.vsock.wait();
        if std::thread::panicking() {
            for name in ["console", "log"] {
                let text = fs::read(self.dir.path().join(name)).unwrap_or_default();
                eprintln!("--- the VM's {name}");
                for line in String::from_utf8_lossy(&text).lines() {
                    eprintln!("{}", rum_shared::text::clean(line, 200));
                }
            }
        }
    }
}

/// A command that is killed when the calling thread ends.
///
/// # Panics
/// When there is no `dir`, where it works and logs.
pub fn command(program: impl AsRef<Path>, dir: &Path) -> Command {
    let log = || {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"));
        log.expect("a file in a new directory")
    };
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(program.as_ref())
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log())
        .stderr(log());
    command
}

fn qemu(cache: &Path, dir: &Path, agent_args: &str) -> Command {
    let mut qemu = command("qemu-system-x86_64", dir);
    qemu.args(["-machine", "q35,memory-backend=mem", "-m", "256"])
        .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-serial", "file:console"])
        .args(["-chardev", "socket,id=vs,path=vhost.sock"])
        .args(["-device", "vhost-user-vsock-pci,chardev=vs"])
        .arg("-kernel")
        .arg(cache.join("vmlinuz"))
        .args(["-initrd", "initramfs"])
        // Words with `=` that the kernel does not know become the environment of init.
        .arg("-append")
        .arg(format!(
            "console=ttyS0 quiet panic=-1 CONTROL_PORT={CONTROL_PORT} \"AGENT_ARGS={agent_args}\""
        ));
    qemu
}

/// Makes `dir/initramfs`.
fn initramfs(cache: &Path, programs: &[&str], dir: &Path) {
    let root = dir.join("root");
    for name in ["bin", "dev", "proc", "sys", "tmp", "modules"] {
        fs::create_dir_all(root.join(name)).expect("a new directory");
    }
    let copy = |from: &Path, to: &str| {
        if let Err(error) = fs::copy(from, root.join(to)) {
            panic!("{}: {error}: run tests/vm-assets", from.display());
        }
    };
    copy(&cache.join("busybox"), "bin/busybox");
    let modules = fs::read_to_string(cache.join("modules/order"));
    for name in modules
        .expect("tests/vm-assets has run")
        .lines()
        .chain(["order"])
    {
        copy(
            &cache.join("modules").join(name),
            &format!("modules/{name}"),
        );
    }
    fs::write(
        root.join("bin/rum-agent"),
        rum_host::guest::payload::agent(),
    )
    .expect("a new directory");
    for program in ["guest"].iter().chain(programs) {
        install(&binary(program), &format!("bin/{program}"), &root);
    }
    fs::write(root.join("init"), INIT).expect("a new directory");
    let script = "chmod 755 init bin/*; find . | cpio --quiet -o -H newc >../initramfs";
    let done = Command::new("sh")
        .args(["-ec", script])
        .current_dir(&root)
        .status();
    assert!(done.is_ok_and(|status| status.success()), "cpio failed");
    fs::remove_dir_all(root).expect("ours");
}

/// Puts `program` into `root` as `to`, without its debug information, and the libraries that it
/// loads where it looks for them.
///
/// # Panics
/// When it cannot be read, or nothing be written.
pub fn install(program: &Path, to: &str, root: &Path) {
    let script = r#"
        mkdir -p "$(dirname "$3/$2")"
        strip -o "$3/$2" "$1"
        ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
            mkdir -p "$3${library%/*}"
            cp -L "$library" "$3$library"
        done"#;
    let done = Command::new("sh")
        .args(["-euc", script, "sh"])
        .args([program, Path::new(to), root])
        .status();
    let done = done.is_ok_and(|status| status.success());
    assert!(done, "{} cannot be packed", program.display());
}
