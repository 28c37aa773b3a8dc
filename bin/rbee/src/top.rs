//! `rbee top`: the fleet as it lives, until the user has seen enough.

mod bar;
mod feed;
mod input;
mod json;
mod rows;
mod screen;
mod state;
mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use chrono::Utc;
use daemon::Shutdown;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::feed::Update;
use self::input::Ui;
use self::state::Fleet;
use crate::cli::{Global, TopArgs};
use crate::fleet::Client;
use crate::{INTERRUPTED, render};

/// Pause between two samples of the rates, and between two lines of JSON.
const SECOND: Duration = Duration::from_secs(1);
/// Updates on their way to the screen; beyond these, the queen's stream waits.
const PENDING: usize = 64;

/// Whether the queen is heard.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    Live,
    /// No longer.
    Broken {
        since: Duration,
        why: String,
    },
}

/// All that the picture is made of.
#[derive(Debug)]
struct Watch {
    fleet: Fleet,
    link: Link,
    ui: Ui,
}

impl Watch {
    fn new() -> Self {
        Self {
            fleet: Fleet::default(),
            link: Link::Live,
            ui: Ui::default(),
        }
    }

    fn take(&mut self, update: Update, now: Duration) {
        match update {
            Update::Connected => self.link = Link::Live,
            Update::Event(event) => self.fleet.apply(event, now),
            Update::Broken(why) => {
                let since = match self.link {
                    Link::Live => now,
                    Link::Broken { since, .. } => since,
                };
                self.link = Link::Broken { since, why };
            }
        }
    }
}

/// `rbee top`.
pub(crate) async fn top(global: &Global, args: &TopArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let queen = Client::new(global)?.queen();
    let first = feed::open(&queen).await?;
    let (sender, updates) = mpsc::channel(PENDING);
    tokio::spawn(feed::follow(queen, first, sender));
    if args.once || global.json || !io::stdout().is_terminal() {
        return lines(args.once, updates, shutdown).await;
    }
    screen::run(updates, shutdown).await
}

/// One JSON object a second, or only one.
async fn lines(once: bool, mut updates: Receiver<Update>, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut watch = Watch::new();
    let mut seconds = interval_at(start + SECOND, SECOND);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_greeted = false;
    loop {
        let is_due = tokio::select! {
            () = shutdown.requested() => return Ok(ExitCode::from(INTERRUPTED)),
            Some(update) = updates.recv() => {
                watch.take(update, start.elapsed());
                // The queen's own figures come right behind the snapshot.
                !std::mem::replace(&mut is_greeted, watch.fleet.queen.is_some()) && is_greeted
            }
            _ = seconds.tick() => is_greeted,
        };
        if is_due {
            render::json_line(&json::Line::new(&watch, Utc::now(), start.elapsed()))?;
            seconds.reset();
            if once {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_is_counted_from_its_beginning() {
        let mut watch = Watch::new();
        watch.take(Update::Broken("refused".into()), Duration::from_secs(5));
        watch.take(Update::Broken("timed out".into()), Duration::from_secs(9));
        let since = Duration::from_secs(5);
        let why = "timed out".to_owned();
        assert_eq!(watch.link, Link::Broken { since, why });
        watch.take(Update::Connected, Duration::from_secs(10));
        assert_eq!(watch.link, Link::Live);
    }
}
