//! How far a pull is.

use std::fmt;
use std::sync::Arc;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Done in this phase; after an interruption it begins with what was kept, and falls when that had to be thrown away.
    pub done_bytes: u64,
    /// All there is to do in this phase, once it is known.
    pub total_bytes: Option<u64>,
}

/// Where a pull tells its progress: called from any thread, about once per megabyte or a few times a second, and it must
/// return quickly.
pub(crate) type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// Progress of one phase that goes through several parts.
pub(crate) struct Tracker {
    report: Report,
    phase: Phase,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Default)]
struct Part {
    done: u64,
    total: Option<u64>,
}

impl Tracker {
    /// `totals`: what is known of each part beforehand.
    pub(crate) fn new(report: Report, phase: Phase, totals: impl IntoIterator<Item = Option<u64>>) -> Self {
        Self {
            report,
            phase,
            parts: totals.into_iter().map(|total| Part { done: 0, total }).collect(),
        }
    }

    /// Part `index` is at `done` bytes; `total` replaces what was known of it.
    pub(crate) fn set(&mut self, index: usize, done: u64, total: Option<u64>) {
        let part = &mut self.parts[index];
        part.done = done;
        part.total = total.or(part.total);
        (self.report)(Progress {
            phase: self.phase,
            done_bytes: self.parts.iter().map(|p| p.done).sum(),
            total_bytes: self.parts.iter().map(|p| p.total).sum(),
        });
    }
}
