//! Chaos: random steps against the real `rum up`, a real agent and a real guest, and a model that
//! says what must be so after each quiet moment.
//!
//! | file | |
//! |---|---|
//! | `step` | what can happen, as words; drawn from a seed |
//! | `model` | what the guest listens on, what is configured: so which host ports lead where |
//! | `world` | makes steps happen |
//! | `probe` | looks from outside: host ports, `rum ports`, descriptors, sockets, memory |
//! | `trace` | why a quiet moment came late |
//! | `report` | what a run came to |
//!
//! A step that makes no sense where things stand does nothing. So any part of a list of steps is a
//! list of steps, and a run that failed can be made shorter by leaving steps out ([`shrink`]).
//! Steps are drawn without a look at the world: the seed alone decides, and a list of words replays
//! it.
//!
//! After a [`Step::Quiet`] all faults are lifted and the world must come to what the model says: each
//! time within [`report::WORST`], nearly always within [`report::GOAL`] ([`Report::verdict`]). That
//! the machine is busy does not count: the time for which threads wait for a processor is taken off.

pub mod model;
pub mod probe;
pub mod report;
pub mod step;
pub mod trace;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use self::report::Report;
use self::step::Step;
use self::world::World;
use crate::netns::in_netns;

/// What kind of guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A namespace guest of rum's own: the agent hands sockets over, and dies with rum.
    Namespace,
    /// An agent behind a `CONNECT` device: framed connections, and a guest that outlives rum.
    Connect,
}

impl Kind {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Connect => "connect",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "namespace" => Ok(Self::Namespace),
            "connect" => Ok(Self::Connect),
            _ => Err("write `namespace` or `connect`".to_owned()),
        }
    }
}

/// A run that went wrong.
#[derive(Debug)]
pub struct Failure {
    /// The step at which it was seen, from 0.
    pub at: usize,
    /// What was seen.
    pub what: String,
}

/// Runs `steps` in a network namespace of its own. Each quiet moment has `deadline` to come; no
/// step is begun after `until`.
///
/// # Errors
/// [`Failure`].
pub fn run(
    kind: Kind,
    steps: impl IntoIterator<Item = Step> + Send,
    deadline: Duration,
    until: Option<Instant>,
) -> Result<Report, Failure> {
    let at = AtomicUsize::new(0);
    let body = || {
        in_netns(|| {
            let mut world = World::start(kind, deadline);
            let steps = steps
                .into_iter()
                .take_while(|_| until.is_none_or(|until| Instant::now() < until));
            for (index, step) in steps.enumerate() {
                at.store(index, Relaxed);
                world.step(&step)?;
            }
            world.finish()
        })
    };
    let what = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(what)) => what,
        Err(panic) => match panic.downcast_ref::<String>() {
            Some(text) => text.clone(),
            None => "a panic".to_owned(),
        },
    };
    let at = at.into_inner();
    Err(Failure { at, what })
}

/// Leaves out steps of a list that fails, as long as it still does. `fails` says at which step.
///
/// First all but the last few episodes, since those before have mostly come to nothing; then
/// ever smaller parts.
pub fn shrink(steps: &[Step], fails: impl Fn(&[Step]) -> Option<usize>) -> Vec<Step> {
    // What was done until it failed.
    let failing = |steps: &[Step]| {
        let at = fails(steps)?;
        Some(steps[..steps.len().min(at + 1)].to_vec())
    };
    let quiets = |at: &usize| matches!(steps[*at], Step::Quiet | Step::Home);
    let quiets: Vec<usize> = (0..steps.len()).rev().filter(quiets).collect();
    let powers = std::iter::successors(Some(1), |n| Some(n * 2));
    let mut ends = powers.map_while(|n: usize| quiets.get(n).map(|at| &steps[at + 1..]));
    let mut least = ends.find_map(failing).unwrap_or_else(|| steps.to_vec());
    let mut part = least.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < least.len() {
            let mut fewer = least.clone();
            fewer.drain(at..(at + part).min(least.len()));
            match failing(&fewer) {
                Some(fewer) => least = fewer,
                None => at += part,
            }
        }
        part /= 2;
    }
    least
}

/// The steps as one line, for `CHAOS_REPLAY`.
pub fn words(steps: &[Step]) -> String {
    let words: Vec<String> = steps.iter().map(Step::to_string).collect();
    words.join(" ")
}

/// As [`run`] with the steps of `seed`; a failure is made shorter and told with all that is needed
/// to see it again.
///
/// # Errors
/// The text for the user.
pub fn run_seed(kind: Kind, seed: u64, count: usize, deadline: Duration) -> Result<Report, String> {
    let steps: Vec<Step> = step::Steps::new(seed).take(count).collect();
    run_list(
        kind,
        &steps,
        deadline,
        &format!("CHAOS_SEED={seed} CHAOS_STEPS={count}"),
    )
}

/// As [`run_seed`] with these steps, which `origin` names.
///
/// # Errors
/// The text for the user.
pub fn run_list(
    kind: Kind,
    steps: &[Step],
    deadline: Duration,
    origin: &str,
) -> Result<Report, String> {
    /// A run that fails takes the whole deadline: a shorter one for the search.
    const PATIENCE: Duration = Duration::from_secs(5);
    /// Time for the search.
    const SEARCH: Duration = Duration::from_secs(120);
    let failure = match run(kind, steps.to_vec(), deadline, None) {
        Ok(report) => return Ok(report),
        Err(failure) => failure,
    };
    let seen = &steps[..steps.len().min(failure.at + 1)];
    let start = Instant::now();
    let least = shrink(seen, |steps| {
        if start.elapsed() < SEARCH {
            run(kind, steps.to_vec(), PATIENCE, None)
                .err()
                .map(|f| f.at)
        } else {
            None
        }
    });
    Err(format!(
        "step {} of kind {}: {}\n{origin} CHAOS_KIND={}\nsteps: {}\nfewest that fail: CHAOS_REPLAY=\"{}\"",
        failure.at,
        kind.word(),
        failure.what,
        kind.word(),
        words(seen),
        words(&least),
    ))
}

#[cfg(test)]
mod tests {
    use super::step::{Place, Steps};
    use super::*;

    #[test]
    fn the_fewest_steps_that_fail_are_left() {
        let opens = |step: &Step| matches!(step, Step::Open(5007, Place::Six));
        let kills = |step: &Step| matches!(step, Step::KillAgent(_));
        // A port that is lost with the agent.
        let fails = |steps: &[Step]| {
            let opened = steps.iter().position(opens)?;
            let killed = steps[opened..].iter().position(kills)?;
            let quiet = |step: &Step| *step == Step::Quiet;
            let seen = steps[opened + killed..].iter().position(quiet)?;
            Some(opened + killed + seen)
        };
        let steps: Vec<Step> = Steps::new(3).take(2000).collect();
        let at = fails(&steps).expect("there is one among so many");
        let least = shrink(&steps[..=at], fails);
        assert_eq!(least.len(), 3, "{}", words(&least));
        assert!(fails(&least).is_some());
    }
}
