//! Kind `vsock`: a VM that rum did not start, with an agent in it, addressed by its context id.

use std::time::Duration;

use rum_shared::transport::{Endpoint, Service, Transport};

use super::GuestError;

/// The kernel queues packets to a guest without a driver for two seconds (vhost/vsock.c).
const PATIENCE: Duration = Duration::from_secs(3);

/// The agent's endpoint.
pub fn endpoint(cid: u32) -> Endpoint {
    Endpoint::Vsock { cid }
}

/// Dials the agent; the error if that fails.
pub async fn in_the_way(cid: u32) -> Option<GuestError> {
    let dial = Transport::from(endpoint(cid));
    let dialled = tokio::time::timeout(PATIENCE, dial.dial(Service::Rpc)).await;
    let why = match dialled {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the VM with the CID {cid} does not answer yet"),
    };
    Some(GuestError::vm(why).with_hint(
        "start the VM with this `cid` and an agent in it (`rum agent install` tells how); `rum up` waits \
         for it",
    ))
}
