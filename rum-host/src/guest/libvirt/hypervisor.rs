//! Whether there is a libvirt at all.

use std::time::Duration;

use super::DEFAULT_URI;
use super::virsh::{Failed, Virsh};
use crate::error::RumError;

/// Before the name and version of what runs the domains.
const RUNNING: &str = "Running hypervisor: ";

/// What libvirt at [`DEFAULT_URI`] runs its domains with, in virsh's words. Nothing is changed, but that a
/// libvirt which is started on demand is.
///
/// # Errors
/// There is no virsh, or it says why it cannot reach libvirt.
pub async fn hypervisor(deadline: Duration) -> Result<String, RumError> {
    match Virsh::new(DEFAULT_URI).run("version", &[], deadline).await {
        Ok(text) => {
            let running = text.lines().find_map(|line| line.strip_prefix(RUNNING));
            Ok(format!("{} at {DEFAULT_URI}", running.unwrap_or("libvirt")))
        }
        Err(Failed::Refused(refusal)) => Err(RumError::new(refusal.0)),
        Err(Failed::Broken(error)) => Err(error),
    }
}
