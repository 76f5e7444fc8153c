//! The command lines of QEMU and of the vsock device beside it. Pure: files are named, not opened.
//!
//! Every machine has: no default devices and no user configuration, no display, a serial console on
//! a socket (also written to a log), QMP on a socket, a vsock device. Nothing listens on a network
//! of the host: there is no `hostfwd`, and an image's network is QEMU's user mode, which only makes
//! connections. A kernel gets no network. If `args` configure a network (`-nic none` too), rum adds
//! none.
//!
//! The memory is shared (memfd), since a vsock device in another process has to read it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::arch::Arch;
use super::firmware::Firmware;
use super::spec::{Boot, Spec};
use crate::guest::payload;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Engine {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        }
    }
}

/// The vsock device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The kernel's, with this CID.
    Vhost {
        /// The guest's CID.
        cid: u32,
    },
    /// `vhost-device-vsock`, a process of its own.
    User,
}

/// Where a machine's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// QMP, a socket.
    pub qmp: PathBuf,
    /// The serial console, a socket.
    pub console: PathBuf,
    /// What the console said.
    pub console_log: PathBuf,
    /// Between QEMU and `vhost-device-vsock`, a socket.
    pub vhost: PathBuf,
    /// Between `vhost-device-vsock` and rum, a socket.
    pub vsock: PathBuf,
    /// The kernel's initramfs with the agent in it.
    pub initramfs: PathBuf,
    /// The UEFI firmware's variables.
    pub uefi_vars: PathBuf,
    /// What the guest wrote to its image.
    pub overlay: PathBuf,
    /// The disk that brings the agent to an image.
    pub seed: PathBuf,
}

/// A machine to be started.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    /// The guest's name.
    pub name: &'a str,
    /// Its architecture.
    pub arch: Arch,
    /// What it is to be.
    pub spec: &'a Spec,
    /// What executes it.
    pub engine: Engine,
    /// Whether this QEMU can confine itself with seccomp.
    pub sandbox: bool,
    /// Its vsock device.
    pub device: Device,
    /// The UEFI firmware that boots it.
    pub firmware: Option<&'a Firmware>,
    /// Its files.
    pub files: &'a Files,
}

/// QEMU's seccomp filter: only what a running machine needs; no exec, no set-uid, no obsolete
/// system calls.
pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// QEMU's command line, program included.
pub fn qemu(machine: &Machine<'_>) -> Vec<OsString> {
    let Machine { arch, files, .. } = machine;
    let spec = machine.spec;
    let (accel, cpu) = match machine.engine {
        Engine::Kvm => ("kvm", "host"),
        Engine::Tcg => ("tcg,thread=multi", "max"),
    };
    let memory = format!("{}M", spec.memory_mib);
    let mut line = Line(vec![arch.program().into()]);
    line.add("-name", machine.name);
    let mut board = format!("{},memory-backend=mem", arch.machine());
    if let Some(firmware) = machine.firmware {
        board += ",pflash0=uefi-code";
        if firmware.vars.is_some() {
            board += ",pflash1=uefi-vars";
        }
    }
    line.add("-machine", board);
    line.add("-accel", accel);
    line.add("-cpu", cpu);
    line.add("-smp", spec.cpus.to_string());
    line.add("-m", &memory);
    let backend = format!("memory-backend-memfd,id=mem,size={memory},share=on");
    line.add("-object", backend);
    line.0
        .extend(["-nodefaults".into(), "-no-user-config".into()]);
    line.add("-display", "none");
    if machine.sandbox {
        line.add("-sandbox", SANDBOX);
    }
    let socket = |id: &str, path| with(format!("socket,id={id},server=on,wait=off,path="), path);
    line.add("-chardev", socket("qmp", &files.qmp));
    line.add("-mon", "chardev=qmp,mode=control");
    let mut console = socket("console", &files.console);
    console.push(with(",logappend=on,logfile=", &files.console_log));
    line.add("-chardev", console);
    line.add("-serial", "chardev:console");
    line.add("-device", "virtio-rng-pci");
    match machine.device {
        Device::Vhost { cid } => line.add("-device", format!("vhost-vsock-pci,guest-cid={cid}")),
        Device::User => {
            line.add("-chardev", with("socket,id=vsock,path=", &files.vhost));
            line.add("-device", "vhost-user-vsock-pci,chardev=vsock");
        }
    }
    // A reboot ends QEMU, and rum starts it again: see `mod`.
    line.add("-action", "reboot=shutdown");
    match &spec.boot {
        Boot::Image(_) => boot_image(&mut line, machine),
        Boot::Kernel { kernel, append, .. } => boot_kernel(&mut line, machine, kernel, append),
    }
    line.0.extend(spec.args.iter().map(OsString::from));
    line.0
}

/// The content `path` of a disk or a chip, in `format`, as the node `name`.
fn node(line: &mut Line, name: &str, path: &Path, format: &str, options: &str) {
    let file = format!("driver=file,node-name={name}-file{options},filename=");
    line.add("-blockdev", with(file, path));
    let format = format!("driver={format},node-name={name},file={name}-file{options}");
    line.add("-blockdev", format);
}

fn boot_image(line: &mut Line, machine: &Machine<'_>) {
    const READ_ONLY: &str = ",read-only=on";
    let Machine { files, spec, .. } = machine;
    if let Some(Firmware { code, vars }) = machine.firmware {
        let file = Path::new(&code.file);
        node(line, "uefi-code", file, &code.format, READ_ONLY);
        if let Some(vars) = vars {
            node(line, "uefi-vars", &files.uefi_vars, &vars.format, "");
        }
    }
    node(line, "overlay", &files.overlay, "qcow2", ",discard=unmap");
    line.add("-device", "virtio-blk-pci,drive=overlay,bootindex=0");
    node(line, "seed", &files.seed, "raw", READ_ONLY);
    line.add("-device", "virtio-blk-pci,drive=seed");
    let network = |arg: &String| ["-nic", "-net", "-netdev"].contains(&&*arg.replace("--", "-"));
    if !spec.args.iter().any(network) {
        line.add("-netdev", "user,id=net");
        // Without its boot ROM, which is in a package of its own and would try to boot from the
        // network.
        line.add("-device", "virtio-net-pci,netdev=net,romfile=");
    }
}

fn boot_kernel(line: &mut Line, machine: &Machine<'_>, kernel: &Path, append: &str) {
    line.add("-kernel", kernel);
    line.add("-initrd", &machine.files.initramfs);
    // The user's parameters come last, and so win.
    let parameters = format!(
        "console={} panic=-1 rdinit={} {append}",
        machine.arch.console(),
        payload::RDINIT,
    );
    line.add("-append", parameters.trim_end());
}

/// The command line of `vhost-device-vsock`, program included.
pub fn vsock_device(program: &Path, files: &Files) -> Vec<OsString> {
    // Each VM has a device of its own, so the CID only has to be unique there.
    let mut vm = OsString::from("guest-cid=3,socket=");
    vm.push(&files.vhost);
    vm.push(",uds-path=");
    vm.push(&files.vsock);
    vec![program.into(), "--vm".into(), vm]
}

struct Line(Vec<OsString>);

impl Line {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

/// `options` with `path` appended. In QEMU's options a comma in a value is doubled.
fn with(options: impl Into<OsString>, path: &Path) -> OsString {
    let mut bytes = options.into().into_vec();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        bytes.extend((*byte == b',').then_some(b','));
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests;
