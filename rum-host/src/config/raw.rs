//! `rum.toml` as it is written: the structs that facet-toml fills.
//!
//! Numbers are wide (`i64`) and texts unparsed on purpose. facet-toml narrows silently, so the
//! ranges are checked afterwards, in [`super::check`], where line and column are known.
//!
//! Invariant: these structs are the only description of the file. [`super::shape`] reads their
//! reflection to find unknown keys and wrong types, and the doc comment of a field is the hint
//! that a user sees; so the comment is one sentence without a full stop, with an example.

use facet::Facet;

use super::DEFAULT_BIND;
use crate::plan::OnConflict;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Config {
    /// `name` tells guests apart, such as `name = "dev"`
    pub name: Option<String>,
    /// `drain` is how long open connections may go on when rum ends their forward, such as `drain = "10s"`
    pub drain: Option<String>,
    /// `keepalive` is after how much silence a client is asked whether it is still there, such as `keepalive = "30s"`
    pub keepalive: Option<String>,
    /// `[guest]` says what to forward from, such as `kind = "namespace"` in it
    pub guest: Option<GuestConfig>,
    /// `[[ports]]` is one static forward, with `host = 8080` and `guest = 80` in it
    #[facet(default)]
    pub ports: Vec<PortConfig>,
    /// `[auto_ports]` forwards what the guest listens on, with `range = "5000-6000"` in it
    pub auto_ports: Option<AutoPortsConfig>,
}

/// One text, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[facet(untagged)]
#[repr(u8)]
pub enum Texts {
    /// `"localhost"`
    One(String),
    /// `["127.0.0.1", "::1"]`
    Many(Vec<String>),
}

impl Default for Texts {
    /// What `bind` is when nothing else is said.
    fn default() -> Self {
        Self::One(DEFAULT_BIND.to_owned())
    }
}

/// A port, or an address with one.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[facet(untagged)]
#[repr(u8)]
pub enum PortOrAddress {
    /// `80`
    Port(i64),
    /// `"172.17.0.2:80"`
    Address(String),
}

/// `[guest]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Facet)]
pub struct GuestConfig {
    /// `kind` is the kind of guest, such as `kind = "namespace"`
    pub kind: Option<String>,
    /// `private_tmp` gives the guest a /tmp and a /var/tmp of its own: `private_tmp = true`
    pub private_tmp: Option<bool>,
    /// `private_pts` gives the guest terminals of its own, for sshd of an ordinary user: `private_pts = true`
    pub private_pts: Option<bool>,
    /// `root` makes an ordinary user root in the guest: `root = true`
    pub root: Option<bool>,
    /// `privileged` leaves root's programs all of root's capabilities: `privileged = true`
    pub privileged: Option<bool>,
    /// `cid` is the context id of a running VM, such as `cid = 3`
    pub cid: Option<i64>,
    /// `socket` is the path of the VM's vsock device, such as `socket = "/run/vm/vsock.sock"`
    pub socket: Option<String>,
    /// `domain` is a domain of libvirt, such as `domain = "debian"`
    pub domain: Option<String>,
    /// `uri` is the libvirt that has the domain, such as `uri = "qemu:///system"`
    pub uri: Option<String>,
    /// `image` is the disk to boot from, which stays as it is, such as `image = "debian.qcow2"`
    pub image: Option<String>,
    /// `kernel` is the Linux kernel to boot, such as `kernel = "vmlinuz"`
    pub kernel: Option<String>,
    /// `initrd` is the kernel's initial file system, such as `initrd = "initrd.img"`
    pub initrd: Option<String>,
    /// `append` is what to add to the kernel's command line, such as `append = "quiet"`
    pub append: Option<String>,
    /// `cpus` is the number of the VM's processors, such as `cpus = 2`
    pub cpus: Option<i64>,
    /// `disk` is the size that the VM's disk has at least, such as `disk = "20G"`
    pub disk: Option<String>,
    /// `uefi` has the VM boot by UEFI firmware and not by a BIOS: `uefi = true`
    pub uefi: Option<bool>,
    /// `memory` is the size of the VM's memory, such as `memory = "512M"`
    pub memory: Option<String>,
    /// `accel` is how the VM is run: `accel = "auto"`, `"kvm"` or `"tcg"`
    pub accel: Option<String>,
    /// `args` is more arguments for QEMU, such as `args = ["-device", "virtio-balloon-pci"]`
    pub args: Option<Vec<String>>,
    /// `user_data` is a cloud-init file for the VM, such as `user_data = "user-data.yaml"`
    pub user_data: Option<String>,
    /// `ssh_key` is a public key, or its file, such as `ssh_key = "~/.ssh/id_ed25519.pub"`
    pub ssh_key: Option<String>,
}

/// One `[[ports]]`.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct PortConfig {
    /// `host` is the port on this machine, from 1 to 65535, such as `host = 8080`
    pub host: i64,
    /// `guest` is the port in the guest, from 1 to 65535, such as `guest = 80`, or an address in its networks with a port, such as `guest = "172.17.0.2:80"`
    pub guest: PortOrAddress,
    /// `bind` is the addresses of this machine to listen on, such as `bind = "localhost"` or `bind = ["127.0.0.1", "192.0.2.1"]`
    #[facet(default)]
    pub bind: Texts,
    /// `label` is what you call it, such as `label = "web"`
    pub label: Option<String>,
}

/// `[auto_ports]`.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct AutoPortsConfig {
    /// `range` is the ports to forward, such as `range = "5000-6000"`
    pub range: String,
    /// `exclude` is the ports of the range to leave alone, such as `exclude = "5432,9000-9100"`
    pub exclude: Option<String>,
    /// `bind` is the addresses of this machine to listen on, such as `bind = "localhost"` or `bind = ["127.0.0.1", "192.0.2.1"]`
    #[facet(default)]
    pub bind: Texts,
    /// `on_conflict` is what to do when a host port is taken: `on_conflict = "wait"` or `"next"`
    #[facet(default = OnConflict::default().as_str().to_owned())]
    pub on_conflict: String,
    /// `drain` is how long open connections may go on when their listener closes or their forward ends, such as `drain = "10s"`
    pub drain: Option<String>,
    /// `[[auto_ports.rule]]` says what differs for some ports, with `guest = "5000-5100"`, `process = "postgres*"` or `command = "*vite*"` in it
    #[facet(default)]
    pub rule: Vec<RuleConfig>,
}

/// One `[[auto_ports.rule]]`.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct RuleConfig {
    /// `guest` is the guest ports that the rule is for, such as `guest = "5000-5100"`
    pub guest: Option<String>,
    /// `process` is the name of the processes that the rule is for, such as `process = "postgres*"`
    pub process: Option<String>,
    /// `command` is the command line of the processes that the rule is for, such as `command = "*vite*"`
    pub command: Option<String>,
    /// `action` is what to do with them: `action = "forward"` or `"ignore"`
    #[facet(default = "forward".to_owned())]
    pub action: String,
    /// `host` is the host port of the first port of `guest`, such as `host = 15000`
    pub host: Option<i64>,
    /// `bind` is the addresses of this machine to listen on, such as `bind = "localhost"` or `bind = ["127.0.0.1", "192.0.2.1"]`
    pub bind: Option<Texts>,
    /// `label` is what you call these ports, such as `label = "database"`
    pub label: Option<String>,
    /// `drain` is how long open connections to these ports may go on when their listener closes, such as `drain = "10s"`
    pub drain: Option<String>,
}
