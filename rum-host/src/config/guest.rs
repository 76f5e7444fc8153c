//! `[guest]`: from its keys to a [`GuestKind`]. Each kind has keys of its own, and those of
//! another kind are refused.

use std::path::PathBuf;

use super::GuestKind;
use super::check::{Check, Place};
use super::raw::GuestConfig;
use super::values;
use crate::guest::qemu::{Accel, Boot, Spec, SshKey, is_public_key};
use crate::runtime_dir::isolation::Isolation;

/// CIDs 0 to 2 are the hypervisor, the loopback and the host (vsock(7)).
const FIRST_CID: i64 = 3;
/// `u32::MAX` is VMADDR_CID_ANY.
const LAST_CID: i64 = u32::MAX as i64 - 1;
/// Most processors of a VM: what QEMU's machines take without more ado.
const MAX_CPUS: i64 = 255;
/// Processors of a VM when it does not say.
const CPUS: i64 = 2;
/// Memory of a VM when it does not say.
const MEMORY: &str = "512M";

impl Check<'_> {
    pub(super) fn guest(&mut self, at: Place<'_>, raw: &GuestConfig) -> GuestKind {
        let kind = raw.kind.as_deref().unwrap_or("namespace");
        let setting = match kind {
            "namespace" => GuestKind::Namespace(Isolation {
                private_tmp: raw.private_tmp.unwrap_or_default(),
                private_pts: raw.private_pts.unwrap_or_default(),
                root: raw.root.unwrap_or_default(),
                privileged: raw.privileged.unwrap_or_default(),
            }),
            "vsock" => self.vsock(at, raw),
            "unix" => self.unix(at, raw),
            "qemu" => GuestKind::Qemu(Box::new(self.qemu(at, raw))),
            "libvirt" => GuestKind::Libvirt(self.libvirt(at, raw)),
            _ => {
                let message = format!("unknown guest kind `{kind}`");
                let hint = "write `kind = \"namespace\"`, `\"qemu\"`, `\"libvirt\"`, \
                            `\"vsock\"` or `\"unix\"`";
                self.problem(at, "kind", "not known here", message, hint);
                return GuestKind::Namespace(Isolation::default());
            }
        };
        for (key, kind_of) in [
            ("private_tmp", "namespace"),
            ("private_pts", "namespace"),
            ("root", "namespace"),
            ("privileged", "namespace"),
            ("cid", "vsock"),
            ("socket", "unix"),
            ("image", "qemu"),
            ("kernel", "qemu"),
            ("initrd", "qemu"),
            ("append", "qemu"),
            ("cpus", "qemu"),
            ("disk", "qemu"),
            ("uefi", "qemu"),
            ("memory", "qemu"),
            ("accel", "qemu"),
            ("args", "qemu"),
            ("user_data", "qemu"),
            ("ssh_key", "qemu"),
            ("domain", "libvirt"),
            ("uri", "libvirt"),
        ] {
            let both = key == "socket" && kind == "libvirt";
            if at.span(key).is_some() && kind != kind_of && !both {
                let message = format!("a {kind} guest has no `{key}`");
                let hint = format!("remove it, or write `kind = \"{kind_of}\"`");
                let label = format!("only for kind `{kind_of}`");
                self.problem(at, key, &label, message, hint);
            }
        }
        setting
    }

    fn vsock(&mut self, at: Place<'_>, raw: &GuestConfig) -> GuestKind {
        let cid = raw.cid.unwrap_or(FIRST_CID);
        if !(FIRST_CID..=LAST_CID).contains(&cid) {
            let who = match cid {
                0 => "CID 0 is the hypervisor",
                1 => "CID 1 is the loopback",
                2 => "CID 2 is the host itself",
                _ => "no guest has this CID",
            };
            let message = format!("`cid = {cid}` cannot be a guest");
            let hint = format!("a guest's CID goes from {FIRST_CID} to {LAST_CID}");
            self.problem(at, "cid", who, message, hint);
        }
        if raw.cid.is_none() {
            let message = "a vsock guest needs its `cid`";
            let hint = "write `cid = 3` below it";
            self.problem(at, "kind", "needs `cid`", message, hint);
        }
        GuestKind::Vsock {
            cid: u32::try_from(cid).unwrap_or_default(),
        }
    }

    fn unix(&mut self, at: Place<'_>, raw: &GuestConfig) -> GuestKind {
        let hint = "write the path of the VM's socket: `socket = \"/run/vm/vsock.sock\"`";
        if raw.socket.is_none() {
            let message = "a unix guest needs its `socket`";
            self.problem(at, "kind", "needs `socket`", message, hint);
        }
        let socket = self.path(at, "socket", raw.socket.as_deref(), hint);
        GuestKind::Unix {
            socket: socket.unwrap_or_default(),
        }
    }

    fn qemu(&mut self, at: Place<'_>, raw: &GuestConfig) -> Spec {
        let mut file = |key, value: &Option<String>| {
            let hint = format!("write a path: `{key} = \"…\"`; it starts at rum.toml's directory");
            self.path(at, key, value.as_deref(), &hint)
        };
        let image = file("image", &raw.image);
        let kernel = file("kernel", &raw.kernel);
        let initrd = file("initrd", &raw.initrd);
        let user_data = file("user_data", &raw.user_data);
        let boot = match (image, kernel) {
            (Some(image), None) => {
                for (key, present) in [
                    ("initrd", raw.initrd.is_some()),
                    ("append", raw.append.is_some()),
                ] {
                    self.only_with(at, key, present, "kernel", "an `image` brings its own");
                }
                Boot::Image(image)
            }
            (image, kernel) => {
                let hint = "write `image = \"debian.qcow2\"`, or `kernel` with `initrd`";
                if kernel.is_none() {
                    let message = "a qemu guest needs its `image` or its `kernel`";
                    self.problem(at, "kind", "boots from what?", message, hint);
                } else if image.is_some() {
                    let message = "a guest boots from its `image` or from a `kernel`";
                    let hint = "remove one of the two";
                    self.problem(at, "kernel", "beside `image`", message, hint);
                }
                for (key, present) in [
                    ("user_data", raw.user_data.is_some()),
                    ("ssh_key", raw.ssh_key.is_some()),
                ] {
                    let why = "cloud-init, which reads it, is in the `image`";
                    self.only_with(at, key, present && kernel.is_some(), "image", why);
                }
                let disk = raw.disk.is_some() && kernel.is_some();
                self.only_with(at, "disk", disk, "image", "a `kernel` has no disk");
                let uefi = raw.uefi.is_some() && kernel.is_some();
                self.only_with(at, "uefi", uefi, "image", "QEMU starts a `kernel` itself");
                Boot::Kernel {
                    kernel: kernel.unwrap_or_default(),
                    initrd,
                    append: self.no_nul(at, "append", raw.append.clone().unwrap_or_default()),
                }
            }
        };
        let cpus = raw.cpus.unwrap_or(CPUS);
        if !(1..=MAX_CPUS).contains(&cpus) {
            let message = format!("a VM cannot have {cpus} processors");
            let hint = format!("write a number from 1 to {MAX_CPUS}, such as `cpus = {CPUS}`");
            self.problem(at, "cpus", "too few or too many", message, hint);
        }
        let memory = raw.memory.as_deref().unwrap_or(MEMORY);
        let accel = match raw.accel.as_deref() {
            None | Some("auto") => Accel::Auto,
            Some("kvm") => Accel::Kvm,
            Some("tcg") => Accel::Tcg,
            Some(other) => {
                let message = format!("unknown accelerator `{other}`");
                let hint = "write \"auto\", \"kvm\", or \"tcg\", which works everywhere";
                self.problem(at, "accel", "not one of the three", message, hint);
                Accel::Auto
            }
        };
        let args = raw.args.clone().unwrap_or_default();
        Spec {
            boot,
            cpus: u16::try_from(cpus).unwrap_or_default(),
            disk_mib: raw
                .disk
                .as_deref()
                .map(|disk| self.text(at, "disk", disk, values::disk)),
            uefi: raw.uefi,
            memory_mib: self.text(at, "memory", memory, values::memory),
            accel,
            args: args
                .into_iter()
                .map(|arg| self.no_nul(at, "args", arg))
                .collect(),
            user_data,
            ssh_key: raw.ssh_key.as_ref().map(|key| self.ssh_key(at, key)),
        }
    }

    fn ssh_key(&mut self, at: Place<'_>, text: &str) -> SshKey {
        let text = text.trim();
        // No path begins as a key does.
        if is_public_key(text) {
            return SshKey::Text(text.to_owned());
        }
        let hint = "write the path of a public key, or the key: `ssh_key = \"ssh-ed25519 AAAA…\"`";
        if text.contains("PRIVATE KEY") {
            let message = "`ssh_key` is a private key";
            self.problem(at, "ssh_key", "must stay private", message, hint);
        }
        SshKey::File(
            self.path(at, "ssh_key", Some(text), hint)
                .unwrap_or_default(),
        )
    }

    fn only_with(&mut self, at: Place<'_>, key: &str, present: bool, other: &str, why: &str) {
        if present {
            let message = format!("`{key}` goes with `{other}`");
            let hint = format!("remove it: {why}");
            self.problem(at, key, &format!("only with `{other}`"), message, hint);
        }
    }

    /// The path that `key` says; a problem if it cannot be one.
    pub(super) fn path(
        &mut self,
        at: Place<'_>,
        key: &str,
        text: Option<&str>,
        hint: &str,
    ) -> Option<PathBuf> {
        let text = text?;
        if text.is_empty() || text.contains('\0') {
            self.problem(at, key, "no path", format!("`{key}` is not a path"), hint);
        }
        Some(PathBuf::from(text))
    }

    fn no_nul(&mut self, at: Place<'_>, key: &str, text: String) -> String {
        if text.contains('\0') {
            let message = format!("`{key}` has a zero byte in it");
            self.problem(at, key, "here", message, "remove it");
        }
        text
    }
}
