//! Kind `unix`: a VM that somebody else runs, whose vsock is a Unix socket of its VMM
//! (Firecracker, Cloud Hypervisor, vhost-device-vsock).

use std::path::Path;

use rum_shared::transport::Endpoint;

use super::GuestError;

/// Where its agent is.
pub fn endpoint(socket: &Path) -> Endpoint {
    let socket = socket.to_path_buf();
    Endpoint::Connect { socket }
}

/// Why the agent cannot be dialled. Not tried by dialling: vhost-device-vsock ends for good when that
/// comes while its guest boots.
pub fn in_the_way(socket: &Path) -> Option<GuestError> {
    let missing = endpoint(socket).missing()?;
    Some(GuestError::vm(missing).with_hint(
        "start the VM, or name the socket that its vsock device has: `socket = \"/run/vm.vsock\"`; \
         `rum up` waits for it",
    ))
}
