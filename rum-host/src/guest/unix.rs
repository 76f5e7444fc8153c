//! Kind `unix`: a VM that somebody else runs, whose vsock is a Unix socket of its VMM
//! (Firecracker, Cloud Hypervisor, vhost-device-vsock).

use std::path::Path;

use rum_shared::transport::Endpoint;

/// Where its agent is.
pub fn endpoint(socket: &Path) -> Endpoint {
    Endpoint::connect(socket)
}
