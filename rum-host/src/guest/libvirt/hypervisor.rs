//! Checks whether libvirt is available.

use std::time::Duration;

use super::DEFAULT_URI;
use super::virsh::{Failed, Virsh};
use crate::error::RumError;

/// Precedes the name and version of the hypervisor in virsh's output.
const RUNNING: &str = "Running hypervisor: ";

/// The hypervisor of libvirt at [`DEFAULT_URI`], in virsh's words. Changes nothing, except that it
/// may start a libvirt that is activated on demand.
///
/// # Errors
/// There is no virsh, or virsh's reason why it cannot reach libvirt.
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
