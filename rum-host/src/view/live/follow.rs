//! The connection to `rum up`, and the search for it when it is gone.
//!
//! One future runs at any time: the next update, or the search for another `rum up`. It lives on
//! while keys come in, so a deadline in it, such as that of a silent `rum up`, counts from its own
//! start.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::control::client::{Control, ControlError, Feed};
use crate::control::find;
use crate::runtime_dir::RunningGuest;
use crate::status::model::{Since, Stay, Update};

/// Pause between two searches for a `rum up`.
const LOOK: Duration = Duration::from_millis(500);

/// News about the `rum up`.
#[derive(Debug)]
pub enum Told {
    /// It sent an update.
    Update(Box<Update>),
    /// It is gone, for this reason; the search for it starts.
    Gone(String),
    /// It answers but cannot be used, for this reason; the search for another starts.
    Useless(String),
}

type Next = Pin<Box<dyn Future<Output = (Option<Feed>, Told)> + Send>>;

/// A watch on the guest of a name, which outlives the guest's `rum up`.
pub struct Link {
    name: String,
    all: bool,
    /// The latest event, and its boot.
    since: Option<Since>,
    next: Next,
    hurry: Arc<Notify>,
}

impl Link {
    /// Follows `feed`.
    pub fn new(name: &str, feed: Feed, all: bool) -> Self {
        Self {
            name: name.to_owned(),
            all,
            since: None,
            next: follow(feed),
            hurry: Arc::default(),
        }
    }

    /// The next news. Cancel-safe.
    pub async fn next(&mut self) -> Told {
        let (feed, news) = (&mut self.next).await;
        let seq = match &news {
            Told::Update(update) => match &**update {
                Update::Snapshot { seq, .. } => Some(*seq),
                Update::Events(events) => events.last().map(|event| event.seq),
            },
            Told::Gone(_) | Told::Useless(_) => None,
        };
        self.next = match feed {
            Some(feed) => {
                let boot = &feed.info().boot;
                if let Some(seq) = seq {
                    let boot = boot.clone();
                    self.since = Some(Since { boot, seq });
                }
                follow(feed)
            }
            None => self.search(true),
        };
        news
    }

    /// Starts a new watch, with or without hidden ports.
    pub fn watch(&mut self, all: bool) {
        self.all = all;
        // Another set of ports needs another snapshot.
        self.since = None;
        self.next = self.search(false);
    }

    /// Searches for `rum up` at once, if a search is running.
    pub fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    /// Searches until a `rum up` answers. If its loss is not `known_gone` yet, the search starts at
    /// once, and reports the loss.
    fn search(&self, known_gone: bool) -> Next {
        let (name, all, since) = (self.name.clone(), self.all, self.since.clone());
        let hurry = self.hurry.clone();
        Box::pin(async move {
            loop {
                if known_gone {
                    tokio::select! {
                        () = tokio::time::sleep(LOOK) => {}
                        () = hurry.notified() => {}
                    }
                }
                let why = match open(&name, all, since.clone()).await {
                    Ok((feed, first)) => return (Some(feed), Told::Update(Box::new(first))),
                    Err(Told::Gone(_)) if known_gone => continue,
                    Err(why) => why,
                };
                return (None, why);
            }
        })
    }
}

/// Opens a watch on the `rum up` of guest `name`, and waits for its first update.
async fn open(name: &str, all: bool, since: Option<Since>) -> Result<(Feed, Update), Told> {
    let guest = find(Some(name)).map_err(|error| Told::Gone(error.to_string()))?;
    let opened = async {
        let mut feed = Feed::open(&guest, all, Some(Stay::Follow), since).await?;
        let first = feed.next().await?;
        Ok((feed, first))
    };
    opened.await.map_err(|error| match error {
        ControlError::Gone { why, .. } => Told::Gone(why),
        error => Told::Useless(error.to_string()),
    })
}

fn follow(mut feed: Feed) -> Next {
    Box::pin(async move {
        match feed.next().await {
            Ok(update) => (Some(feed), Told::Update(Box::new(update))),
            Err(ControlError::Gone { why, .. }) => (None, Told::Gone(why)),
            Err(error) => (None, Told::Gone(error.to_string())),
        }
    })
}

/// Asks the `rum up` of `guest` to try its agent at once. Returns a message for the user on
/// failure.
pub async fn retry(guest: RunningGuest) -> Option<String> {
    let asked = async { Control::connect(&guest).await?.retry().await };
    asked.await.err().map(|error| error.to_string())
}
