//! Kind `vsock`: a VM that somebody else runs, with an agent in it, reached by its context id.

use rum_shared::transport::Endpoint;

/// Where its agent is.
pub fn endpoint(cid: u32) -> Endpoint {
    Endpoint::Vsock { cid }
}
