//! Adds a vsock device to a domain that has none, for installing an agent in it.

use super::virsh::{DEADLINE, Failed, Refusal};
use super::{Domain, Spec};
use crate::error::RumError;
use crate::guest::libvirt::error::{DomainErrors, MAX_NAME, SNIPPET};
use rum_shared::text::clean;

/// Result of adding a vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// The domain had a device, or needs none.
    Nothing,
    /// The domain has the device now.
    Now,
    /// The domain gets the device at its next start, for this reason (cleaned).
    AtNextStart(String),
}

/// Adds a vsock device to the domain of `spec` if it has none: to its configuration, and to the
/// running machine if there is one.
///
/// # Errors
/// libvirt cannot be reached, has no such domain, or refuses the device.
pub async fn give_vsock(spec: &Spec) -> Result<Given, RumError> {
    let trouble = DomainErrors::of(spec);
    let domain = Domain::find(spec).await?;
    let described = domain.describe().await;
    let described = described.map_err(|failed| trouble.look(failed))?;
    if described.vsock.is_some() {
        return Ok(Given::Nothing);
    }
    let attach = async |flags: &[&str]| {
        let file = "--file=/dev/stdin".to_owned();
        let flags = flags.iter().map(|flag| (*flag).to_owned());
        let options: Vec<_> = [domain.option(), file].into_iter().chain(flags).collect();
        let command = "attach-device";
        let attached = domain.virsh.run_with(command, &options, SNIPPET, DEADLINE);
        attached.await.map(drop)
    };
    let why = match described.run {
        None => "it does not run".to_owned(),
        Some(_) => match attach(&["--config", "--live"]).await {
            Ok(()) => return Ok(Given::Now),
            Err(Failed::Refused(Refusal(why))) => clean(&why, MAX_NAME),
            Err(Failed::Broken(error)) => return Err(error),
        },
    };
    let attached = attach(&["--config"]).await;
    attached.map_err(|failed| trouble.attach(failed))?;
    Ok(Given::AtNextStart(why))
}
