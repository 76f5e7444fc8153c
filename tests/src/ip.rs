//! ip(8), in the calling thread's network namespace.

use std::process::Command;

/// Runs it with `args`, which spaces separate.
///
/// # Panics
/// When it cannot be run, or fails.
pub fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status();
    assert!(status.expect("ip").success(), "ip {args}");
}
