//! A libvirtd of a test's own, and the parts of a domain that boots.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rum_tests::assets::assets;
use rum_tests::rum::{Rum, Setup, binary};
use rum_tests::wait::until;
use rustix::process::{Pid, Signal};

/// A set-up with a libvirtd. Everything that this starts is gone when it is dropped.
pub struct Libvirt {
    pub setup: Setup,
    namespaces: Child,
}

impl Libvirt {
    pub fn start() -> Self {
        let setup = Setup::new();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["bash", "-c", include_str!("libvirtd.sh"), "libvirtd"])
            .arg(setup.path())
            .stdin(Stdio::null());
        let namespaces = with_us(&mut command).spawn().expect("unshare starts");
        let this = Self { setup, namespaces };
        this.until_it_answers();
        this
    }

    pub fn uri(&self) -> String {
        let dir = self.setup.path().display();
        format!("qemu:///system?socket={dir}/libvirt-sock")
    }

    fn until_it_answers(&self) {
        until("libvirtd to answer", || {
            let answer = self.try_virsh(&["list"]);
            answer.status.success().then_some(())
        });
    }

    pub fn try_virsh(&self, args: &[&str]) -> Output {
        let mut virsh = Command::new("virsh");
        virsh.args(["--quiet", "--connect", &self.uri()]).args(args);
        virsh.env("LC_ALL", "C").output().expect("virsh runs")
    }

    pub fn virsh(&self, args: &[&str]) -> String {
        let answer = self.try_virsh(args);
        let said = String::from_utf8_lossy(&answer.stderr);
        assert!(answer.status.success(), "virsh {args:?}: {said}");
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    }

    pub fn define(&self, xml: &str) {
        let file = self.setup.path().join("domain.xml");
        std::fs::write(&file, xml).expect("a file");
        self.virsh(&["define", &file.display().to_string()]);
    }

    /// For instance `running (booted)`.
    pub fn state(&self, domain: &str) -> String {
        self.virsh(&["domstate", domain, "--reason"])
    }

    /// Kills libvirtd, which is started again. Its domains run on.
    pub fn restart(&self) {
        let shell = children(self.namespaces.id())[0];
        let daemon = until("libvirtd", || {
            let named = |pid: &u32| {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                name.is_ok_and(|name| name.trim() == "libvirtd")
            };
            children(shell).into_iter().find(named)
        });
        let pid = Pid::from_raw(daemon as i32).expect("not 0");
        rustix::process::kill_process(pid, Signal::KILL).expect("it runs");
        until("another libvirtd", || {
            (!children(shell).contains(&daemon)).then_some(())
        });
        self.until_it_answers();
    }

    /// Starts `rum up` for `domain`, with `more` in [guest].
    pub fn start_rum(&self, domain: &str, more: &str) -> Rum {
        let uri = self.uri();
        let config = format!(
            "[guest]\nkind = \"libvirt\"\ndomain = \"{domain}\"\nuri = \"{uri}\"\n{more}\n\
             [auto_ports]\nrange = \"5000-6000\"\n"
        );
        let file = self.setup.path().join("rum.toml");
        std::fs::write(file, config).expect("a file");
        self.setup.start(["up"])
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.setup.path().join("log"));
            eprintln!("--- libvirtd\n{}", log.unwrap_or_default());
        }
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let all = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let all = all.unwrap_or_default();
    all.split_whitespace()
        .filter_map(|p| p.parse().ok())
        .collect()
}

/// Lets `command` end with the thread that starts it.
fn with_us(command: &mut Command) -> &mut Command {
    let ask = || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    };
    // SAFETY: one system call, which is safe between fork and exec.
    unsafe { command.pre_exec(ask) }
}

/// A process that is killed when this is dropped.
pub struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// PID 1 of a domain that boots: the agent, something to forward, and the power button.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in $(cat /modules/order) button.ko evdev.ko; do insmod /modules/$module; done
ip link set lo up
rum-agent -v &
echo 'from the domain' >/www/file
httpd -p 127.0.0.1:5000 -h /www
button=$(basename /sys/devices/LNXSYSTM:00/LNXPWRBN:00/input/input*/event*)
dd if=/dev/input/$button of=/dev/null bs=64 count=1
poweroff -f
"#;

/// Kernel, initial file system and vsock of a domain that boots, in a directory.
pub struct Machine {
    _vsock: Killed,
    dir: PathBuf,
    kernel: PathBuf,
}

impl Machine {
    /// Makes them in `dir`.
    pub fn new(dir: &Path) -> Self {
        let cache = assets();
        initramfs(&cache, dir);
        let mut vsock = Command::new(cache.join("bin/vhost-device-vsock"));
        vsock
            .current_dir(dir)
            .args(["--vm", "guest-cid=3,socket=vhost.sock,uds-path=vm.vsock"]);
        let vsock = with_us(&mut vsock).spawn();
        let vsock = Killed(vsock.expect("vhost-device-vsock starts"));
        until("the vsock device", || {
            dir.join("vhost.sock").exists().then_some(())
        });
        Self {
            _vsock: vsock,
            dir: dir.to_owned(),
            kernel: cache.join("vmlinuz"),
        }
    }

    /// The vsock device's socket, which speaks `CONNECT`.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("vm.vsock")
    }

    /// Its description, for a domain called `name`.
    pub fn domain(&self, name: &str) -> String {
        let dir = self.dir.display();
        let os = format!(
            "<kernel>{}</kernel><initrd>{dir}/initramfs</initrd>\
             <cmdline>console=ttyS0 quiet panic=-1</cmdline>",
            self.kernel.display()
        );
        let device = format!("<serial type='file'><source path='{dir}/console'/></serial>");
        let mut qemu = String::new();
        for arg in [
            "-chardev",
            &format!("socket,id=vs,path={dir}/vhost.sock"),
            "-device",
            "vhost-user-vsock-pci,chardev=vs",
        ] {
            write!(qemu, "<qemu:arg value='{arg}'/>").expect("a String");
        }
        domain(name, 256, &os, &device, &qemu)
    }

    /// What it wrote to its console.
    pub fn console(&self) -> String {
        std::fs::read_to_string(self.dir.join("console")).unwrap_or_default()
    }
}

/// A domain that boots nothing: its firmware waits for ever.
pub fn empty_domain(name: &str) -> String {
    domain(name, 64, "", "", "")
}

/// A domain, with more in its elements.
pub fn domain(name: &str, mib: u32, os: &str, devices: &str, qemu: &str) -> String {
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
         <name>{name}</name><memory unit='MiB'>{mib}</memory><vcpu>1</vcpu>\
         <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\
         <os><type arch='x86_64' machine='q35'>hvm</type>{os}</os>\
         <features><acpi/></features><cpu mode='maximum'/>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}\
         <controller type='usb' model='none'/><memballoon model='none'/></devices>\
         <qemu:commandline>{qemu}</qemu:commandline></domain>"
    )
}

/// Packs busybox, modules, the agent and what it is linked to into `dir`/initramfs.
fn initramfs(cache: &Path, dir: &Path) {
    let root = dir.join("root");
    let copy = |from: &Path, to: &str| {
        let to = root.join(to);
        std::fs::create_dir_all(to.parent().expect("it is in root")).expect("a directory");
        let done = std::fs::copy(from, to);
        done.unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    };
    for empty in ["dev", "proc", "sys", "www"] {
        std::fs::create_dir_all(root.join(empty)).expect("a directory");
    }
    copy(&cache.join("busybox"), "bin/busybox");
    copy(&binary("rum-agent"), "bin/rum-agent");
    let linked = Command::new("ldd").arg(binary("rum-agent")).output();
    let linked = linked.expect("ldd runs").stdout;
    for word in String::from_utf8_lossy(&linked).split_whitespace() {
        if let Some(path) = word.strip_prefix('/') {
            copy(Path::new(word), path);
        }
    }
    for module in std::fs::read_dir(cache.join("modules")).expect("modules") {
        let module = module.expect("a directory");
        let to = format!("modules/{}", module.file_name().display());
        copy(&module.path(), &to);
    }
    let versions = std::fs::read_dir(cache.join("kernel/lib/modules")).expect("a kernel");
    let version = versions.map_while(Result::ok).next().expect("its modules");
    for module in ["acpi/button.ko", "input/evdev.ko"] {
        let from = version.path().join("kernel/drivers").join(module);
        let name = from.file_name().expect("a file").display().to_string();
        copy(&from, &format!("modules/{name}"));
    }
    std::fs::write(root.join("init"), INIT).expect("a file");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(root.join("init"), executable).expect("a file");
    let pack = "find . | cpio --quiet -o -H newc >../initramfs";
    let mut shell = Command::new("sh");
    let packed = shell.args(["-c", pack]).current_dir(&root).status();
    assert!(packed.expect("sh runs").success(), "{pack}");
}
