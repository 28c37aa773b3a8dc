//! The terminal: taken over at the start, given back whatever happens.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use crossterm::event::{Event, EventStream, KeyEventKind};
use daemon::Shutdown;
use futures_util::StreamExt;
use ratatui::DefaultTerminal;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::bar::Palette;
use super::feed::Update;
use super::input::Wish;
use super::{SECOND, Watch, view};
use crate::INTERRUPTED;

/// Least time between two frames that no key asked for.
const FRAME: Duration = Duration::from_millis(100);

/// The whole terminal. It is as it was when this is dropped, and also after a panic.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> anyhow::Result<Self> {
        Ok(Self(ratatui::try_init().context("take the terminal")?))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Draws until the user leaves.
pub(super) async fn run(mut updates: Receiver<Update>, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let palette = Palette {
        colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    let start = Instant::now();
    let mut watch = Watch::new();
    let mut screen = Screen::open()?;
    let mut keys = EventStream::new();
    let mut seconds = interval_at(start + SECOND, SECOND);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut frames = interval_at(start + FRAME, FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_stale = false;
    loop {
        tokio::select! {
            () = shutdown.requested() => return Ok(ExitCode::from(INTERRUPTED)),
            key = keys.next() => match key {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    let size = screen.0.size().context("ask the terminal for its size")?;
                    let extents = view::extents(&watch, size.height, start.elapsed());
                    if watch.ui.press(key, extents) == Wish::Leave {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
                // Among them: the terminal has another size.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("read from the terminal"),
                None => return Ok(ExitCode::SUCCESS),
            },
            Some(update) = updates.recv() => {
                watch.take(update, start.elapsed());
                is_stale = true;
                continue;
            }
            _ = seconds.tick() => {
                watch.fleet.sample();
                // Ages have grown.
                is_stale = true;
                continue;
            }
            _ = frames.tick(), if is_stale => {}
        }
        is_stale = false;
        let now = start.elapsed();
        screen
            .0
            .draw(|frame| view::draw(frame, &watch, palette, now))
            .context("draw on the terminal")?;
    }
}
