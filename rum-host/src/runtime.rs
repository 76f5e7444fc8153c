//! The small tokio runtime of all commands but `rum up`.

use crate::error::RumError;

/// A runtime for commands that only talk to a `rum up`.
pub(crate) fn small() -> Result<tokio::runtime::Runtime, RumError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| RumError::new("cannot start the runtime").caused_by(error))
}
