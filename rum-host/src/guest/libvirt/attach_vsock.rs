//! A vsock device for a domain that has none, for those who install an agent in it.

use super::virsh::{DEADLINE, Failed, Refusal};
use super::{Domain, Spec};
use crate::error::RumError;
use crate::guest::libvirt::error::{DomainErrors, MAX_NAME, SNIPPET};
use rum_shared::text::clean;

/// What came of giving a domain a vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// It had one, or needs none.
    Nothing,
    /// It has one now.
    Now,
    /// It has one when it is started next, and not now, for this reason, cleaned.
    AtNextStart(String),
}

/// Gives the domain of `spec` a vsock device if it has none: in its configuration, and in the machine if that
/// runs.
///
/// # Errors
/// libvirt cannot be reached, has no such domain, or does not take the device.
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
