//! Live reload: `rum.toml` is read again when it changes, and on SIGHUP.
//!
//! The directory of the file is watched, not the file: editors write a new file and rename it
//! over the old one. If the file is a symbolic link, so is the directory of its target. Events
//! come in bursts, so the file is read once it has been left alone for [`SETTLE`]. What is read
//! goes through the same checks as at the start, with the command line over it; only then does
//! the supervisor get it. A file that is missing or wrong changes nothing: its error is told,
//! once for each content, and again when SIGHUP asks.
//!
//! Invariants: no event is believed, the file's content decides; a change between start and
//! watch is not lost, since the file is read after each time that a watch was set up.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use rum_shared::text::clean;
use tokio::sync::{Notify, watch};

use crate::config::{self, Content, Overrides, Settings};
use crate::error::RumError;
use crate::guest::GuestKind;
use crate::plan::policy::Policy;
use crate::status::journal::{Journal, timestamp};
use crate::status::model::ConfigStatus;
use crate::ui::notice::Notice;

/// A file is read when nothing has happened to it for this long: editors write in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// A file that is written all the time is read after this many times [`SETTLE`] all the same.
const MAX_SETTLES: u32 = 10;
/// Longest error in the journal, in characters.
const MAX_ERROR: usize = 300;

/// What the user is told.
#[derive(Debug)]
pub enum Report {
    /// A line.
    Notice(Box<Notice>),
    /// Why the file can't be used.
    Error(RumError),
}

/// The configuration in force, and where a newer one comes from.
#[derive(Debug)]
pub struct Reload {
    file: PathBuf,
    overrides: Overrides,
    policy: watch::Sender<Policy>,
    journal: Arc<Journal>,
    status: ConfigStatus,
    /// Name and guest of the running `rum up`.
    running: (String, GuestKind),
    /// Those of the latest good file.
    latest: (String, GuestKind),
    /// What was read last; None before the first time.
    seen: Option<Content>,
    asked: Arc<Notify>,
}

/// The configuration `settings`, as it is shown.
pub fn status(settings: &Settings) -> ConfigStatus {
    let file = settings.origin.as_ref().map(|file| {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        clean(&file.display().to_string(), MAX_ERROR)
    });
    let auto = settings.policy.auto.as_ref();
    ConfigStatus {
        file,
        loaded: timestamp(),
        range: auto.map(|auto| auto.ranges.to_string()),
        error: None,
    }
}

impl Reload {
    /// For the file that `settings` were read from; `None` if there was none. New policies go
    /// to `policy`, what readers of the journal should know goes there.
    pub fn new(
        settings: &Settings,
        overrides: Overrides,
        policy: watch::Sender<Policy>,
        journal: Arc<Journal>,
    ) -> Option<Self> {
        let running = (settings.name.clone(), settings.guest.clone());
        Some(Self {
            file: settings.origin.clone()?,
            overrides,
            policy,
            journal,
            status: status(settings),
            latest: running.clone(),
            running,
            seen: None,
            asked: Arc::default(),
        })
    }

    /// Notified, it makes [`Reload::run`] read the file now and say what it found.
    pub fn asked(&self) -> Arc<Notify> {
        self.asked.clone()
    }

    /// Reads the file whenever it changes, until dropped.
    pub async fn run(mut self, mut tell: impl FnMut(Report) + Send) {
        let touched = Arc::new(Notify::new());
        let mut watched = Watched::default();
        let mut asked = false;
        loop {
            watched.renew(&self.file, &touched);
            let (file, overrides) = (self.file.clone(), self.overrides.clone());
            let read = tokio::task::spawn_blocking(move || config::load_again(&file, &overrides));
            match read.await {
                Ok((content, result)) => {
                    for told in self.consider(content, result, asked) {
                        tell(told);
                    }
                }
                Err(error) => tracing::error!(%error, "reading the configuration failed"),
            }
            asked = tokio::select! {
                () = self.asked.notified() => true,
                () = touched.notified() => self.settled(&touched).await,
            };
        }
    }

    /// Waits until the file is left alone. Returns whether somebody asks for it meanwhile.
    async fn settled(&self, touched: &Notify) -> bool {
        for _ in 0..MAX_SETTLES {
            tokio::select! {
                () = self.asked.notified() => return true,
                () = touched.notified() => {}
                () = tokio::time::sleep(SETTLE) => break,
            }
        }
        false
    }

    /// What to do about a file that was read.
    fn consider(
        &mut self,
        content: Content,
        result: Result<Settings, RumError>,
        asked: bool,
    ) -> Vec<Report> {
        let seen = self.seen.replace(content);
        if seen == self.seen && !asked {
            return Vec::new();
        }
        let settings = match result {
            Ok(settings) => settings,
            Err(error) => {
                self.status.error = Some(clean(&error.to_string(), MAX_ERROR));
                self.journal.put_config(self.status.clone());
                return vec![
                    Report::Error(error),
                    Report::Notice(Box::new(Notice::NotReloaded)),
                ];
            }
        };
        let mut told = Vec::new();
        let identity = (settings.name.clone(), settings.guest.clone());
        if identity != self.latest && identity != self.running {
            told.push(Report::Notice(Box::new(Notice::RestartNeeded)));
        }
        self.latest = identity;
        let changed = self.policy.send_if_modified(|policy| {
            let changed = *policy != settings.policy;
            policy.clone_from(&settings.policy);
            changed
        });
        // The first look only finds what was read at the start, as a rule.
        if seen.is_none() && !changed {
            return told;
        }
        if !changed {
            told.push(Report::Notice(Box::new(Notice::Unchanged)));
        }
        self.status = status(&settings);
        self.journal.put_config(self.status.clone());
        told
    }
}

/// The watch on the file's directory, and that of its target.
#[derive(Default)]
struct Watched {
    files: BTreeSet<PathBuf>,
    watcher: Option<RecommendedWatcher>,
}

impl Watched {
    /// Watches what `file` is now. Without a watch SIGHUP still works.
    fn renew(&mut self, file: &Path, touched: &Arc<Notify>) {
        let absolute = std::path::absolute(file).ok();
        let target = std::fs::canonicalize(file).ok();
        let mut files: BTreeSet<_> = absolute.into_iter().chain(target).collect();
        if !file.exists() {
            // It may come back as the link that it was.
            files.append(&mut self.files.clone());
        }
        if files == self.files {
            return;
        }
        let watcher = watch(&files, touched.clone());
        self.watcher = watcher
            .inspect_err(|error| {
                let file = file.display();
                tracing::warn!(%error, "cannot watch {file}: SIGHUP makes rum read it again");
            })
            .ok();
        self.files = files;
    }
}

fn watch(files: &BTreeSet<PathBuf>, touched: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let names: BTreeSet<_> = files.iter().filter_map(|f| f.file_name()).collect();
    let names: Vec<_> = names.into_iter().map(ToOwned::to_owned).collect();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let is_ours = |path: &PathBuf| names.iter().any(|name| path.file_name() == Some(name));
        let touches = match event {
            Ok(event) if event.need_rescan() => true,
            Ok(event) => writes(event.kind) && event.paths.iter().any(is_ours),
            Err(_) => true,
        };
        if touches {
            touched.notify_one();
        }
    })?;
    let directories: BTreeSet<_> = files.iter().filter_map(|f| f.parent()).collect();
    for directory in directories {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Reading a file is an event as well, and our own.
fn writes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_once_it_is_left_alone() {
        let fixture = Fixture::new();
        let touched = Notify::new();
        let start = tokio::time::Instant::now();
        let part = SETTLE / 2;
        let write = async {
            for _ in 0..6 {
                tokio::time::sleep(part).await;
                touched.notify_one();
            }
        };
        let (asked, ()) = tokio::join!(fixture.reload.settled(&touched), write);
        assert!(!asked);
        assert_eq!(start.elapsed(), part * 6 + SETTLE);
        // One that is never left alone is read all the same.
        let start = tokio::time::Instant::now();
        let write = async {
            loop {
                tokio::time::sleep(part).await;
                touched.notify_one();
            }
        };
        tokio::select! {
            asked = fixture.reload.settled(&touched) => assert!(!asked),
            () = write => {}
        }
        assert_eq!(start.elapsed(), part * MAX_SETTLES);
        // And at once when somebody asks.
        let start = tokio::time::Instant::now();
        fixture.reload.asked().notify_one();
        assert!(fixture.reload.settled(&touched).await);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    const GOOD: &str = "[auto_ports]\nrange = \"5000-6000\"\n";

    struct Fixture {
        dir: tempfile::TempDir,
        reload: Reload,
        policy: watch::Receiver<Policy>,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("rum.toml");
            std::fs::write(&file, GOOD).unwrap();
            let overrides = Overrides::default();
            let settings = config::load(Some(&file), &overrides).unwrap();
            let (sender, policy) = watch::channel(settings.policy.clone());
            let journal = Arc::new(Journal::new("boot".into(), status(&settings)));
            let reload = Reload::new(&settings, overrides, sender, journal).unwrap();
            Self {
                dir,
                reload,
                policy,
            }
        }

        /// What is told of this content.
        fn read(&mut self, text: Option<&str>, asked: bool) -> Vec<String> {
            let file = self.dir.path().join("rum.toml");
            match text {
                Some(text) => std::fs::write(&file, text).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            let (content, result) = config::load_again(&file, &Overrides::default());
            let told = self.reload.consider(content, result, asked);
            let dir = format!("{}/", self.dir.path().display());
            let text = |told| match told {
                Report::Notice(notice) => notice.to_string(),
                Report::Error(error) => error.to_string().replace(&dir, ""),
            };
            told.into_iter().map(text).collect()
        }

        fn range(&mut self) -> Option<String> {
            let changed = self.policy.has_changed().unwrap();
            let policy = self.policy.borrow_and_update();
            changed.then(|| policy.auto.as_ref().unwrap().ranges.to_string())
        }
    }

    #[test]
    fn only_what_differs_is_told_and_sent() {
        let mut f = Fixture::new();
        let nothing = Vec::<String>::new();
        assert_eq!(f.read(Some(GOOD), false), nothing, "the first look");
        assert_eq!(f.read(Some(GOOD), false), nothing, "touched");
        let said = f.read(Some(GOOD), true);
        assert_eq!(said, ["Configuration reloaded: nothing changed"]);
        let said = f.read(Some(&format!("{GOOD}# why\n")), false);
        assert_eq!(said, ["Configuration reloaded: nothing changed"]);
        assert_eq!(f.range(), None);
        // The supervisor tells of this one.
        assert_eq!(f.read(Some(&GOOD.replace('6', "7")), false), nothing);
        assert_eq!(f.range().as_deref(), Some("5000-7000"));
    }

    #[test]
    fn an_error_is_told_once_and_changes_nothing() {
        let mut f = Fixture::new();
        f.read(Some(GOOD), false);
        let kept = "Configuration not reloaded: the one from before stays in force";
        let said = f.read(Some("range = 1"), false);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("rum.toml:1:1"), "{said:?}");
        assert_eq!(said[1], kept);
        assert_eq!(f.read(Some("range = 1"), false), Vec::<String>::new());
        assert_eq!(f.read(Some("range = 1"), true).len(), 2);
        assert_eq!(f.read(None, false), ["rum.toml is gone", kept]);
        assert_eq!(f.range(), None);
        assert_eq!(f.reload.status.range.as_deref(), Some("5000-6000"));
        assert!(f.reload.status.error.is_some());
        let said = f.read(Some(GOOD), false);
        assert_eq!(said, ["Configuration reloaded: nothing changed"]);
        assert_eq!(f.reload.status.error, None);
    }

    #[test]
    fn what_has_to_wait_is_told_once() {
        let mut f = Fixture::new();
        f.read(Some(GOOD), false);
        let next = "name and [guest] take effect with the next `rum up`";
        let said = f.read(Some(&format!("name = \"other\"\n{GOOD}")), false);
        assert_eq!(said, [next, "Configuration reloaded: nothing changed"]);
        let said = f.read(Some(&format!("name = \"other\" # still\n{GOOD}")), false);
        assert_eq!(said, ["Configuration reloaded: nothing changed"]);
        let said = f.read(Some(GOOD), false);
        assert_eq!(said, ["Configuration reloaded: nothing changed"]);
    }
}
