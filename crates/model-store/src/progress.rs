//! How far a pull is.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use crate::speed::Speed;

/// What a pull is doing. Phases come in this order; those with nothing to do are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Another pull of the same model, here or in another process, is at work; this one waits for its result.
    Wait,
    /// Asking the source where the file is and how large.
    Resolve,
    /// Bytes arrive.
    Download,
    /// The file is taken out of what was downloaded.
    Extract,
    /// Size and checksum of the whole are compared.
    Verify,
    /// The model is there.
    Done,
}

impl Phase {
    /// The word for events and progress bars.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Resolve => "resolve",
            Self::Download => "download",
            Self::Extract => "extract",
            Self::Verify => "verify",
            Self::Done => "done",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a pull is in its present phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Done in this phase; after an interruption it begins with what was kept, and falls when that had to be thrown away.
    pub done_bytes: u64,
    /// All there is to do in this phase, once it is known.
    pub total_bytes: Option<u64>,
    /// Bytes per second over the last seconds; only of a download, and not at its very beginning.
    pub per_second: Option<u64>,
    /// Seconds that the rest of the phase will take at this speed.
    pub eta_s: Option<u64>,
    /// From where the bytes come, for people: `hive NAME`, a host's name, or `pip`.
    pub source: Option<Arc<str>>,
}

impl Progress {
    /// So much is done; nothing is said of speed and source.
    pub(crate) fn new(phase: Phase, done_bytes: u64, total_bytes: Option<u64>) -> Self {
        Self {
            phase,
            done_bytes,
            total_bytes,
            per_second: None,
            eta_s: None,
            source: None,
        }
    }
}

/// Where a pull tells its progress: called from any thread, about once per megabyte or a few times a second, and it must
/// return quickly.
pub(crate) type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// Progress of one phase that goes through several parts.
pub(crate) struct Tracker {
    report: Report,
    phase: Phase,
    parts: Vec<Part>,
    source: Option<Arc<str>>,
    start: Instant,
    speed: Speed,
}

#[derive(Clone, Copy, Default)]
struct Part {
    done: u64,
    total: Option<u64>,
    /// What was there before; `None` until the first word of this part.
    kept: Option<u64>,
}

impl Tracker {
    /// `totals`: what is known of each part beforehand.
    pub(crate) fn new(report: Report, phase: Phase, totals: impl IntoIterator<Item = Option<u64>>) -> Self {
        Self {
            report,
            phase,
            parts: totals
                .into_iter()
                .map(|total| Part {
                    total,
                    ..Part::default()
                })
                .collect(),
            source: None,
            start: Instant::now(),
            speed: Speed::default(),
        }
    }

    /// Where the bytes come from, from here on.
    pub(crate) fn set_source(&mut self, source: Option<Arc<str>>) {
        self.source = source;
    }

    /// Part `index` is at `done` bytes; `total` replaces what was known of it. What the first call for a part tells was
    /// kept from earlier.
    pub(crate) fn set(&mut self, index: usize, done: u64, total: Option<u64>) {
        let part = &mut self.parts[index];
        part.done = done;
        part.total = total.or(part.total);
        part.kept = Some(part.kept.map_or(done, |kept| kept.min(done)));
        let came = self.parts.iter().map(|part| part.done - part.kept.unwrap_or(0)).sum();
        let done_bytes = self.parts.iter().map(|part| part.done).sum();
        let total_bytes = self.parts.iter().map(|part| part.total).sum();
        self.speed.observe(self.start.elapsed(), came);
        (self.report)(Progress {
            phase: self.phase,
            done_bytes,
            total_bytes,
            per_second: self.speed.per_second(),
            eta_s: total_bytes.and_then(|total: u64| self.speed.eta_s(total.saturating_sub(done_bytes))),
            source: self.source.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn speed_and_remaining_time_are_those_of_what_comes_and_not_of_what_was_kept() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&heard);
        let report: Report = Arc::new(move |progress| keep.lock().unwrap().push(progress));
        let mut tracker = Tracker::new(report, Phase::Download, [Some(10_000), Some(5_000)]);
        tracker.set_source(Some("hive box-2".into()));
        tracker.set(0, 9_000, None);
        tokio::time::advance(Duration::from_secs(1)).await;
        tracker.set(0, 10_000, None);
        tracker.set(1, 4_000, None);
        let heard = heard.lock().unwrap();
        assert_eq!((heard[0].per_second, heard[0].eta_s), (None, None));
        assert_eq!((heard[1].per_second, heard[1].eta_s), (Some(1_000), Some(5)));
        let last = Progress {
            phase: Phase::Download,
            done_bytes: 14_000,
            total_bytes: Some(15_000),
            per_second: Some(1_000),
            eta_s: Some(1),
            source: Some("hive box-2".into()),
        };
        assert_eq!(heard[2], last);
    }
}
