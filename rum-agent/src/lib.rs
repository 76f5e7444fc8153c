//! The agent: runs in the guest and tells the host what listens there.
//!
//! It follows steps 1 to 3 of the data flow and ends step 5's channels:
//!
//! | step | module |
//! |---|---|
//! | 1 kernel hint | [`hint`] over [`kernel`]'s events; [`schedule`] says when to dump |
//! | 2 port set | [`port_set`]: `source` dumps, `socket_table` folds, `watcher` is the loop around them, `hub` hands changes out |
//! | 3 RPC stream | [`stream`]: `service` serves the changes, `knock` tells a host that waits |
//! | 5, 6 channel | [`forward`] dials the listener where `port_set::reach` says, and relays |
//!
//! [`server`] accepts sessions and channels and holds everything together, [`cli`] is the command line, [`boot`] how it starts as a guest's first process.
//!
//! Invariants: one loop owns the set; the agent connects to nothing but listeners of its own
//! machine, and only when the host asks; its own sockets are vsock or Unix sockets, so it never
//! reports itself.

mod blocking;
pub mod boot;
pub mod cli;
pub mod forward;
pub mod hint;
pub mod kernel;
pub mod port_set;
pub mod schedule;
pub mod server;
pub mod stream;

pub use server::{AgentError, Config, run};

/// Processor time that was used so far, by this process or this thread as `clock` says.
pub(crate) fn used(clock: rustix::time::ClockId) -> std::time::Duration {
    let time = rustix::time::clock_gettime(clock);
    std::time::Duration::try_from(time).unwrap_or_default()
}

/// `error` and everything that caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}
