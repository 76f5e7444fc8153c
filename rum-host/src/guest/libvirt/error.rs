//! Errors about a domain in the user's terms, with what to do about them.

use std::path::Path;

use rum_shared::text::clean;

use super::Spec;
use super::virsh::{Failed, Refusal};
use crate::error::RumError;

/// Longest name, state or other text that is shown.
pub const MAX_NAME: usize = 100;
/// Most domains that an error names.
const MAX_NAMES: usize = 10;

/// Makes errors about one domain.
#[derive(Debug)]
pub struct DomainErrors<'a> {
    spec: &'a Spec,
    domain: String,
    /// There is no /dev/vhost-vsock.
    no_vhost: bool,
}

impl<'a> DomainErrors<'a> {
    /// For the domain of `spec`, on this machine.
    pub fn of(spec: &'a Spec) -> Self {
        Self::with(spec, !Path::new("/dev/vhost-vsock").exists())
    }

    pub(super) fn with(spec: &'a Spec, no_vhost: bool) -> Self {
        let domain = clean(&spec.domain, MAX_NAME);
        Self {
            spec,
            domain,
            no_vhost,
        }
    }

    /// libvirt cannot be reached.
    pub fn connect(&self, failed: Failed) -> RumError {
        let refusal = match failed {
            Failed::Refused(refusal) => refusal,
            Failed::Broken(error) => return error,
        };
        let uri = clean(&self.spec.uri, MAX_NAME);
        let hint = self.connect_hint(&refusal);
        RumError::new(format!("cannot reach libvirt at `{uri}`"))
            .caused_by(refusal)
            .hint(hint)
    }

    fn connect_hint(&self, Refusal(said): &Refusal) -> String {
        let any = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
        if any(&["Permission denied", "authentication", "polkit"]) {
            "this user may not manage its domains: join the group `libvirt` \
             (`sudo usermod -aG libvirt $USER`) and log in again, or use domains of your own \
             with `uri = \"qemu:///session\"`"
                .to_owned()
        } else if any(&["No such file or directory", "Connection refused"]) {
            "libvirt does not run here: start it with `sudo systemctl start libvirtd` \
             (`virtqemud.socket` on newer systems), or install it"
                .to_owned()
        } else {
            "check `uri` in [guest]: the machine's libvirt is \"qemu:///system\", that of your \
             user \"qemu:///session\""
                .to_owned()
        }
    }

    /// No domain has that name; `known` are the existing ones.
    pub fn unknown<'n>(&self, known: impl Iterator<Item = &'n str>) -> RumError {
        let mut names: Vec<_> = known
            .map(|name| format!("`{}`", clean(name, MAX_NAME)))
            .collect();
        names.sort();
        let more = names.len().saturating_sub(MAX_NAMES);
        names.truncate(MAX_NAMES);
        let uri = clean(&self.spec.uri, MAX_NAME);
        let hint = match (names.join(", "), more) {
            (none, 0) if none.is_empty() => {
                let others = if self.spec.is_session() {
                    "\"qemu:///system\" for those of the machine"
                } else {
                    "\"qemu:///session\" for those of your user"
                };
                format!(
                    "it has none at all; other domains are behind another `uri`, such as {others}"
                )
            }
            (names, 0) => format!("there is {names}"),
            (names, more) => format!("there is {names} and {more} more"),
        };
        RumError::new(format!(
            "libvirt at `{uri}` has no domain `{}`",
            self.domain
        ))
        .hint(hint)
    }

    /// The domain exists, but cannot be queried.
    pub fn look(&self, failed: Failed) -> RumError {
        self.failed("cannot look at", failed)
    }

    /// The domain refuses a vsock device.
    pub fn attach(&self, failed: Failed) -> RumError {
        self.failed("cannot give a vsock device to", failed)
    }

    /// No source has an address of the domain.
    pub fn no_address(&self) -> RumError {
        let hint = if self.spec.is_session() {
            format!(
                "a domain of your user mostly has QEMU's user network, into which nothing leads from here: make a \
                 new one with the disk of `rum agent seed`, or log in on its console (`{}`) and do there what \
                 `rum agent install` tells",
                self.virsh("console")
            )
        } else {
            format!(
                "it has one when it runs and is in a network of libvirt's (`{}`); else find it on its console \
                 (`{}`), and use `rum agent install --ssh root@ADDRESS`",
                self.virsh("start"),
                self.virsh("console")
            )
        };
        RumError::new(format!(
            "libvirt knows no address of the domain `{}`",
            self.domain
        ))
        .hint(hint)
    }

    /// The domain cannot be resumed.
    pub fn resume(&self, failed: Failed) -> RumError {
        self.failed("cannot resume", failed)
    }

    /// The domain cannot be started.
    pub fn start(&self, failed: Failed) -> RumError {
        let about_vsock =
            matches!(&failed, Failed::Refused(Refusal(said)) if said.contains("vsock"));
        let may_not = about_vsock && !self.no_vhost && self.spec.is_session();
        let error = self.failed("cannot start", failed);
        match (about_vsock && self.no_vhost, &self.spec.socket) {
            (true, None) => error.hint(NO_VHOST),
            (true, Some(_)) => error.hint(format!(
                "this machine has no /dev/vhost-vsock, and with `socket` in [guest] the domain's \
                 <vsock> is not needed: remove it by `{}`",
                self.virsh("edit")
            )),
            (false, _) if may_not => error.hint(
                "QEMU opens /dev/vhost-vsock as your user here: join the group that `ls -l /dev/vhost-vsock` shows \
                 (`sudo usermod -aG kvm $USER`) and log in again",
            ),
            (false, _) => error,
        }
    }

    fn failed(&self, what: &str, failed: Failed) -> RumError {
        match failed {
            Failed::Refused(refusal) => {
                RumError::new(format!("{what} the domain `{}`", self.domain)).caused_by(refusal)
            }
            Failed::Broken(error) => error,
        }
    }

    /// The domain is in a state that the user has to end, with the virsh command `helps` if there
    /// is one.
    pub fn state(&self, state: &str, helps: Option<&str>) -> RumError {
        let error = RumError::new(format!("the domain `{}` is {state}", self.domain));
        match helps {
            Some(command) => error.hint(format!(
                "end that with `{}`, then run `rum up` again",
                self.virsh(command)
            )),
            None => error.hint("run `rum up` again when it is running or shut off"),
        }
    }

    /// The domain was started, but does not run.
    pub fn ended_at_once(&self, state: &str) -> RumError {
        let message = format!(
            "the domain `{}` ended as soon as it ran: it is {state}",
            self.domain
        );
        RumError::new(message).hint(format!(
            "see how it does by hand, with `{} --console`",
            self.virsh("start")
        ))
    }

    /// The domain's `<vsock>` has no CID.
    pub fn no_cid(&self) -> RumError {
        let message = format!(
            "the vsock device of the domain `{}` has no CID",
            self.domain
        );
        RumError::new(message)
            .hint(format!(
                "let libvirt choose one, by `{}`:",
                self.virsh("edit")
            ))
            .example(SNIPPET)
    }

    /// The domain has no `<vsock>`.
    pub fn no_vsock(&self, running: bool) -> RumError {
        let message = format!(
            "the domain `{}` has no vsock device, over which rum talks to its agent",
            self.domain
        );
        // One line for a shell; a running domain gets the device at once.
        let flags = if running {
            "--config --live"
        } else {
            "--config"
        };
        let device: String = SNIPPET.lines().map(str::trim).collect();
        let attach = format!(
            "echo \"{device}\" | {} /dev/stdin {flags}",
            self.virsh("attach-device")
        );
        let hint = if self.no_vhost {
            format!("{NO_VHOST}. With /dev/vhost-vsock, give it one by this:")
        } else {
            "give it one by this, then run `rum up` again:".to_owned()
        };
        RumError::new(message).hint(hint).example(attach)
    }

    fn virsh(&self, command: &str) -> String {
        let uri = quoted(&clean(&self.spec.uri, MAX_NAME));
        format!("virsh --connect={uri} {command} {}", quoted(&self.domain))
    }
}

/// Without double quotes, so that it fits into a shell's.
pub const SNIPPET: &str = "<vsock model='virtio'>\n  <cid auto='yes'/>\n</vsock>";

/// Follows "hint: ".
const NO_VHOST: &str = "this machine has no /dev/vhost-vsock: load it by \
     `sudo modprobe vhost_vsock`, or give the domain a vhost-device-vsock by <qemu:commandline> \
     and name its Unix socket in [guest], as in `socket = \"/run/vm.vsock\"`";

/// `text` quoted as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:+@%=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
