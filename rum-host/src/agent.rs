//! The host's view of an agent, and the functions that forward its ports.
//!
//! [`crate::stream::client`] keeps the connections (step 3); [`start_port_forwards`] and
//! [`start_auto_forwards`] run the supervisor (steps 4 to 6) for callers that want forwards
//! without the rest of `rum up`, which runs the same one.

use rum_shared::range::{PortRange, PortRanges};
use rum_shared::transport::Endpoint;
use tokio::task::JoinHandle;

use crate::config::values;
use crate::error::RumError;
use crate::plan::{AutoPolicy, Policy, StaticForward};
use crate::supervisor::{Options, Stop, Supervisor};

/// Binds `forwards` on the host, each leading to a port of `guest`, until the handle is aborted. A
/// host port that is in use is bound as soon as it is free.
///
/// # Errors
/// When `forwards` is empty. Must be called within a tokio runtime.
pub fn start_port_forwards(
    guest: &Endpoint,
    forwards: &[StaticForward],
) -> Result<JoinHandle<()>, RumError> {
    if forwards.is_empty() {
        let hint = "name at least one host port and guest port";
        return Err(RumError::usage("no port to forward").hint(hint));
    }
    Ok(start(
        guest,
        Policy {
            statics: forwards.to_vec(),
            ..Policy::default()
        },
    ))
}

/// Forwards every port from `min_port` to `max_port` that a program in `guest` listens on. Each
/// gets the same port of the host addresses `bind`, until the handle is aborted.
///
/// # Errors
/// When the range is empty, reversed or has port 0, or `bind` is neither `localhost` nor a
/// comma-separated list of IP addresses. Must be called within a tokio runtime.
pub fn start_auto_forwards(
    guest: &Endpoint,
    min_port: u16,
    max_port: u16,
    bind: &str,
) -> Result<JoinHandle<()>, RumError> {
    let range =
        PortRange::new(min_port, max_port).map_err(|error| RumError::usage(error.to_string()))?;
    let bind = values::binds(bind)
        .map_err(|invalid| RumError::usage(invalid.message).hint(invalid.hint))?;
    let auto = AutoPolicy {
        bind,
        ..AutoPolicy::new(PortRanges::new([range]))
    };
    Ok(start(
        guest,
        Policy {
            auto: Some(auto),
            ..Policy::default()
        },
    ))
}

fn start(guest: &Endpoint, policy: Policy) -> JoinHandle<()> {
    let supervisor = Supervisor::new(Options::new(guest.clone(), policy));
    tokio::spawn(async move {
        // `Stop` never changes: the caller aborts the handle, which drops everything.
        let (_run, stop) = tokio::sync::watch::channel(Stop::Run);
        supervisor
            .run(stop, |notice| tracing::info!("{notice}"))
            .await;
    })
}
