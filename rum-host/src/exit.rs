//! The exit codes of `rum`, a promise to scripts.

/// All went well, or it was stopped as asked.
pub const OK: u8 = 0;
/// The start failed, or the guest did.
pub const FAILED: u8 = 1;
/// The command line or `rum.toml` is wrong.
pub const USAGE: u8 = 2;
/// `wait`: the time is over, as of timeout(1).
pub const TIMEOUT: u8 = 124;
/// `wait`: `rum up` ended, or rum failed.
pub const LOST: u8 = 125;
/// `exec` and `shell`: rum itself failed, so that the command never ran.
pub const NOT_RUN: u8 = 125;
/// `ssh`: rum or ssh failed, as ssh(1) has it.
pub const SSH: u8 = 255;
/// The command was found but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;
/// Plus the signal's number: ended by that signal.
pub const SIGNAL_BASE: u8 = 128;
