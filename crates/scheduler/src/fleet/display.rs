//! A decision in words.

use std::fmt;

use super::{Choice, Criterion, Decision, Outcome, Verdict};

/// Devices named in the short form.
const NAMED: usize = 5;

/// The short form, one clause for each of the first few devices: for a log line or the message of a refusal. Names hosts,
/// devices and workers, and no addresses.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(choice) = &self.choice {
            return choice.fmt(f);
        }
        if self.verdicts.is_empty() {
            return f.write_str("there is no device");
        }
        for (number, verdict) in self.verdicts.iter().take(NAMED).enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{verdict}")?;
        }
        match self.verdicts.len().saturating_sub(NAMED) {
            0 => Ok(()),
            1 => f.write_str("; and 1 device more"),
            more => write!(f, "; and {more} devices more"),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.host, self.device)?;
        match self.evict.as_slice() {
            [] => Ok(()),
            evict => write!(f, " in the place of {}", evict.join(", ")),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.host, self.device, self.outcome)?;
        if let Some(criterion) = self.lost_by {
            write!(f, ", but {criterion}")?;
        }
        if !matches!(self.outcome, Outcome::TooSmall { .. }) {
            return Ok(());
        }
        write!(
            f,
            " (it takes {} MiB, {} of {} MiB are free)",
            self.needs_bytes.div_ceil(1 << 20),
            self.free_bytes >> 20,
            self.total_bytes >> 20
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chosen => f.write_str("chosen"),
            Self::Fits => f.write_str("fits"),
            Self::FitsAfterEviction { evict, .. } => write!(f, "fits in the place of {}", evict.join(", ")),
            Self::TooSmall {
                evictable_bytes,
                busy,
                pinned,
            } => {
                f.write_str("too little room")?;
                if *evictable_bytes > 0 {
                    write!(
                        f,
                        ", even without idle workers, which hold {} MiB",
                        evictable_bytes >> 20
                    )?;
                }
                match (busy, pinned) {
                    (0, 0) => Ok(()),
                    (busy, 0) => write!(f, ", {busy} busy there"),
                    (0, pinned) => write!(f, ", {pinned} pinned there"),
                    (busy, pinned) => write!(f, ", {busy} busy and {pinned} pinned there"),
                }
            }
            Self::Closed { why } => f.write_str(why),
        }
    }
}

/// What speaks for the chosen device, as a clause.
impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEviction => "the chosen one needs no eviction",
            Self::Gpu => "the chosen one is a GPU",
            Self::FewerEvictions => "the chosen one needs fewer evictions",
            Self::SpareEvictions => "on the chosen one go workers whose models run elsewhere, too",
            Self::OtherHost => "the chosen host has fewer workers of the model",
            Self::HasFile => "the chosen host has the file",
            Self::LargerCache => "the chosen one has room for a larger cache",
            Self::LongerIdle => "on the chosen one go workers that were idle for longer",
            Self::FreeShare => "a larger share of the chosen one is free",
            Self::Tighter => "less is free on the chosen one",
            Self::Order => "the chosen one comes first",
        })
    }
}
