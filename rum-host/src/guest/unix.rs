//! Kind `unix`: a VM that rum did not start, whose vsock is a Unix socket of its VMM (Firecracker,
//! Cloud Hypervisor, vhost-device-vsock).

use std::path::Path;

use rum_shared::transport::Endpoint;

use super::GuestError;

/// The agent's endpoint.
pub fn endpoint(socket: &Path) -> Endpoint {
    let socket = socket.to_path_buf();
    Endpoint::Connect { socket }
}

/// Why the agent cannot be dialled. Checked without dialling: vhost-device-vsock exits for good
/// when a connection arrives while its guest boots.
pub fn in_the_way(socket: &Path) -> Option<GuestError> {
    let missing = endpoint(socket).missing()?;
    Some(GuestError::vm(missing).with_hint(
        "start the VM, or name the socket that its vsock device has: `socket = \"/run/vm.vsock\"`; \
         `rum up` waits for it",
    ))
}
