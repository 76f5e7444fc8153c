//! `[guest]` of kind `libvirt`.

use super::check::{Check, Place};
use super::raw::GuestConfig;
use crate::guest::libvirt::{DEFAULT_URI, Spec};

impl Check<'_> {
    pub(super) fn libvirt(&mut self, at: Place<'_>, raw: &GuestConfig) -> Spec {
        let hint = "write its name, as `virsh list --all` shows it: `domain = \"debian\"`";
        let domain = raw.domain.clone();
        if domain.is_none() {
            let message = "a libvirt guest needs its `domain`";
            self.problem(at, "kind", "needs `domain`", message, hint);
        }
        let domain = domain.unwrap_or_default();
        if raw.domain.is_some() && (domain.is_empty() || domain.contains(char::is_control)) {
            let message = "`domain` is not the name of a domain";
            self.problem(at, "domain", "no name", message, hint);
        }
        let uri = raw.uri.as_deref().unwrap_or(DEFAULT_URI);
        if uri.is_empty() || uri.contains(char::is_control) {
            let hint = "write \"qemu:///system\" for the machine's libvirt, or \
                        \"qemu:///session\" for your user's";
            let message = "`uri` does not name a libvirt";
            self.problem(at, "uri", "cannot be used as `uri`", message, hint);
        } else if let Some(host) = remote(uri) {
            // A CID is a number of this machine: it would lead to some other VM here.
            let message = format!("the libvirt of `{host}` has its domains on another machine");
            let hint = "rum reaches VMs of its own machine: run it there, with \
                        `uri = \"qemu:///system\"`";
            self.problem(at, "uri", "not this machine", message, hint);
        }
        let hint = "write the path of the domain's vhost-user vsock, or leave it out: \
                    `socket = \"/run/vm/vsock.sock\"`";
        let socket = self.path(at, "socket", raw.socket.as_deref(), hint);
        Spec {
            domain,
            uri: uri.to_owned(),
            socket,
        }
    }
}

/// The host of a URI of libvirt (libvirt.org/uri.html) that has one.
fn remote(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    (!host.is_empty()).then_some(host)
}
