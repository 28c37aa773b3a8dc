//! Where a request stands while it has no answer, for its client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::line::Line;
use crate::supply::{Prospect, Supply};

/// Where a request stands. Readable while the request goes on.
pub(crate) struct Situation {
    line: Arc<Line>,
    supply: Arc<dyn Supply>,
    /// Its number in the line; 0 while it waits for none.
    place: AtomicU64,
}

impl Situation {
    pub(crate) fn new(line: Arc<Line>, supply: Arc<dyn Supply>) -> Self {
        Self {
            line,
            supply,
            place: AtomicU64::new(0),
        }
    }

    /// It waits at this place.
    pub(crate) fn waits(&self, place: u64) {
        self.place.store(place, Ordering::Relaxed);
    }

    /// It has a worker, or is past help.
    pub(crate) fn waits_no_longer(&self) {
        self.place.store(0, Ordering::Relaxed);
    }

    /// One line in words: `waiting, place 3 of 5`, `loading smollm2-135m-instruct, download 43 %`.
    pub(crate) fn words(&self) -> String {
        let place = self.place.load(Ordering::Relaxed);
        let Some((rank, count)) = self.line.rank(place) else {
            return "waiting for the first token".to_owned();
        };
        let mut text = match self.supply.prospect(self.line.model()) {
            Prospect::Coming { words, progress, .. } => {
                let mut text = format!("loading {}, {words}", self.line.model());
                if let Some(progress) = progress {
                    text.push_str(&format!(" {:.0} %", progress.clamp(0.0, 1.0) * 100.0));
                }
                text
            }
            Prospect::None { .. } => format!("waiting, place {rank} of {count}"),
        };
        // It becomes a comment, which ends with its line.
        text.retain(|letter| !letter.is_control());
        text
    }
}
