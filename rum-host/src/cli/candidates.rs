//! Shell completions that depend on the current state: running guests and their ports.
//!
//! Invariant: guests that cannot be listed are not offered, without an error; a shell's prompt is
//! no place for one.

use std::time::Duration;

use clap_complete::engine::CompletionCandidate;

use crate::control::client::Feed;
use crate::runtime;
use crate::runtime_dir::{self, RunningGuest};
use crate::status::model::{State, Update};

/// How long a completion waits for a guest's ports.
const PATIENCE: Duration = Duration::from_millis(500);

/// The running guests, for `--name`.
pub(crate) fn guests() -> Vec<CompletionCandidate> {
    let running = runtime_dir::list().unwrap_or_default();
    running
        .into_iter()
        .map(|guest| {
            let kind = guest.kind.map(|kind| {
                let kind = rum_shared::text::clean(&kind, rum_shared::listener::MAX_NAME);
                format!("guest of kind {kind}").into()
            });
            CompletionCandidate::new(guest.name).help(kind)
        })
        .collect()
}

/// The ports of all running guests, for commands that take one. An option `--name` on the same
/// line is not known here, so that a port may be offered that another guest has.
pub fn ports() -> Vec<CompletionCandidate> {
    let running = runtime_dir::list().unwrap_or_default();
    let mut ports: Vec<_> = running.iter().flat_map(running_ports).collect();
    ports.sort_by_key(|(port, _)| *port);
    ports.dedup_by_key(|(port, _)| *port);
    let candidate = |(port, state): (u16, State)| {
        CompletionCandidate::new(port.to_string()).help(Some(state.as_str().into()))
    };
    ports.into_iter().map(candidate).collect()
}

/// The known ports of `guest`; empty if its `rum up` does not answer at once.
fn running_ports(guest: &RunningGuest) -> Vec<(u16, State)> {
    let ask = async {
        let mut feed = Feed::open(guest, false, None, None).await.ok()?;
        match feed.next().await.ok()? {
            Update::Snapshot { ports, .. } => {
                Some(ports.iter().map(|p| (p.port, p.state)).collect())
            }
            Update::Events(_) => None,
        }
    };
    let Ok(runtime) = runtime::small() else {
        return Vec::new();
    };
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await });
    answer.ok().flatten().unwrap_or_default()
}
