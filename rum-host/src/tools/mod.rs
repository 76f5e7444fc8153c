//! The small commands around `rum up`: each looks, prints and ends.
//!
//! | command | module |
//! |---|---|
//! | `rum init` | [`init`] |
//! | `rum check` | [`check`] |
//! | `rum doctor` | [`doctor`] |
//! | `rum completions` | [`completions`] |
//! | `rum man` | [`man`] |

pub mod check;
pub mod completions;
pub mod doctor;
pub mod init;
pub mod man;

use std::io::{self, Write};

use crate::error::RumError;

/// Writes `text` to stdout; colour is stripped where it is not wanted. A reader that has gone
/// away, as `head` does, is no error.
///
/// # Errors
/// What the write says otherwise, a full disk for instance.
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
