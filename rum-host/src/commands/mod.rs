//! The small commands around `rum up`: each inspects, prints and ends.
//!
//! | command | module |
//! |---|---|
//! | `rum agent` | [`agent`] |
//! | `rum init` | [`init`] |
//! | `rum check` | [`check`] |
//! | `rum doctor` | [`doctor`] |
//! | `rum completions` | [`completions`] |
//! | `rum man` | [`man`] |

pub mod agent;
pub mod check;
pub mod completions;
pub(crate) mod console;
pub mod doctor;
pub(crate) mod down;
pub mod exec;
pub mod init;
pub mod man;
pub(crate) mod ports;
pub(crate) mod ssh;
pub(crate) mod up;
pub(crate) mod wait;

use std::io::{self, Write};

use crate::error::RumError;

/// Writes `text` to stdout; strips colour where it is not wanted. A closed reader, such as `head`,
/// is not an error.
///
/// # Errors
/// Any other error of the write, for instance a full disk.
pub(crate) fn print(text: &str) -> Result<(), RumError> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(RumError::new("cannot write to stdout").caused_by(error))
        }
        _ => Ok(()),
    }
}

/// `text` without colour.
#[cfg(test)]
pub(crate) fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}
