//! The RPC on the control socket. `rum up` serves it, other `rum` processes of the user call.

use std::time::Duration;

use rum_shared::stream::session::Limits;

pub use rpc::*;

/// Something is sent on a watch at least this often, so that a reader finds out about a `rum up`
/// that is stopped (SIGSTOP) or hangs.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// A watch that is silent for this long is dead: a few heartbeats, with room for a stall.
pub const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(4);
/// Both ends are the same user's: a snapshot of all 65,535 ports has about 30 MB.
pub const LIMITS: Limits = Limits {
    frame: 64 * 1024 * 1024,
    bytes: 256 * 1024 * 1024,
    ..Limits::HOST
};

/// The service macro generates items without documentation, so it has a module of its own.
#[allow(missing_docs)]
mod rpc {
    use roam::{Rx, Tx};

    use crate::status::model::{ControlInfo, Stay, Update, WatchRequest};

    /// What `rum up` offers on its control socket.
    #[roam::service]
    pub trait RumControl {
        /// Introduces the two; the first call of a session.
        async fn hello(&self, protocol: u32) -> ControlInfo;
        /// Gives `reader`, a number that it chose, a place for as long as a session of it lives: before a
        /// watch that is to last.
        async fn stay(&self, stay: Stay, reader: u64) -> Result<(), String>;
        /// Streams updates until `stop` closes or the session ends.
        async fn watch(
            &self,
            request: WatchRequest,
            updates: Tx<Update>,
            stop: Rx<()>,
        ) -> Result<(), String>;
        /// Tries a lost agent at once.
        async fn retry(&self) -> Result<(), String>;
        /// Ends `rum up` as SIGTERM does, but with exit code 0; again, or with `force`, at once.
        async fn stop(&self, force: bool) -> Result<(), String>;
    }
}
