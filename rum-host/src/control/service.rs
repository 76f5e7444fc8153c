//! The RPC on the control socket. `rum up` serves it; other `rum` processes of the user call it.

use std::time::Duration;

use rum_shared::stream::session::Limits;

pub use rpc::*;

/// Longest time between two items of a watch, so that a reader notices a `rum up` that is stopped
/// (SIGSTOP) or hangs.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// A watch that is silent for this long is dead: a few heartbeats, with room for a stall.
pub const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(4);
/// Both ends belong to the same user. A snapshot of all 65,535 ports has about 30 MB.
pub const LIMITS: Limits = Limits {
    frame: 64 * 1024 * 1024,
    bytes: 256 * 1024 * 1024,
    ..Limits::HOST
};

/// The service macro generates items without documentation, so it is in a module of its own.
#[allow(missing_docs)]
mod rpc {
    use roam::{Rx, Tx};

    use crate::status::model::{ControlInfo, Stay, Update, WatchRequest};

    /// What `rum up` offers on its control socket.
    #[roam::service]
    pub trait RumControl {
        /// Exchanges versions; the first call of a session.
        async fn hello(&self, protocol: u32) -> ControlInfo;
        /// Gives `reader`, a number that the client chose, a place for as long as one of its
        /// sessions lives. To be called before a lasting watch.
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
        /// Ends `rum up` as SIGTERM does, but with exit code 0. A second call, or `force`, ends it
        /// at once.
        async fn stop(&self, force: bool) -> Result<(), String>;
    }
}
