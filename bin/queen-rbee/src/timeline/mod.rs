//! What changed in the fleet lately, one sentence each: `GET /v1/timeline`, and the `timeline` event of the stream.
//!
//! A change of the stream says how a member is now; an entry here says what became of it, why, and whether that is good. It is
//! fed with the registries' events (`members`), what came of the supply's decisions, and operators' words.

mod entry;
mod members;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

pub use entry::{TimelineChange, TimelineEntry, TimelineKind, TimelineView, Tone};

pub(crate) use entry::Note;

use self::members::Members;
use crate::changes::Changes;

/// Entries that are kept,
const MAX_ENTRIES: usize = 2_000;
/// and for how long.
const KEPT_FOR: Duration = Duration::from_secs(3_600);
/// Letters of one entry's text,
const MAX_TEXT: usize = 600;
/// and of its device: what workers say of theirs is not limited elsewhere.
const MAX_DEVICE: usize = 64;
/// What goes on for longer is told again after this.
const SAME_AGAIN: Duration = Duration::from_secs(600);

/// The last hour. All methods take `&self`.
#[derive(Debug)]
pub(crate) struct Timeline {
    kept: Mutex<Kept>,
    members: Mutex<Members>,
    changes: Arc<Changes>,
}

/// Oldest first.
#[derive(Debug)]
struct Kept {
    entries: VecDeque<(Instant, TimelineEntry)>,
    /// The id of the newest entry.
    newest: u64,
    /// From when on nothing is missing.
    whole_since: DateTime<Utc>,
}

impl Timeline {
    /// Nothing has happened yet. Entries are told to the readers of `changes`, too.
    pub(crate) fn new(changes: Arc<Changes>) -> Self {
        Self {
            kept: Mutex::new(Kept::since(Utc::now())),
            members: Mutex::default(),
            changes,
        }
    }

    /// Something happened.
    pub(crate) fn note(&self, note: Note) {
        self.enter(&mut self.kept(), note);
    }

    /// Something goes on: told unless it is what was told last of its subject, a while ago at most.
    pub(crate) fn note_once(&self, note: Note) {
        let mut kept = self.kept();
        if !kept.repeats(&note, Instant::now()) {
            self.enter(&mut kept, note);
        }
    }

    /// Told under the lock, so that readers of the stream get the ids in order.
    fn enter(&self, kept: &mut Kept, note: Note) {
        let entry = kept.keep(note, (Instant::now(), Utc::now()));
        self.changes.push("timeline", &entry);
    }

    /// More happened than could be followed.
    fn missed(&self) {
        self.kept().whole_since = Utc::now();
    }

    /// What is kept, the newest first; with `after`, only what came after that entry. Everything, if no entry of that id was
    /// told yet: the asker has it from a queen whose clock was ahead.
    pub(crate) fn view(&self, after: Option<u64>) -> TimelineView {
        self.kept().view(after, (Instant::now(), Utc::now()))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Nothing, with nothing missing since then. Ids go on above those of an earlier queen, unless she told of more than one
    /// thing in each millisecond of her life, or the clock was set back; numbers of this size are exact in JavaScript, too.
    fn since(now: DateTime<Utc>) -> Self {
        Self {
            entries: VecDeque::new(),
            newest: now.timestamp_millis().max(0).cast_unsigned(),
            whole_since: now,
        }
    }

    fn repeats(&self, note: &Note, now: Instant) -> bool {
        let newest_first = self.entries.iter().rev();
        let mut lately = newest_first.take_while(|(at, _)| now.saturating_duration_since(*at) < SAME_AGAIN);
        lately.find_map(|(_, entry)| note.repeats(entry)).unwrap_or(false)
    }

    fn keep(&mut self, mut note: Note, (now, wall): (Instant, DateTime<Utc>)) -> TimelineEntry {
        self.forget(now);
        self.newest += 1;
        shorten(&mut note.text, MAX_TEXT);
        if let Some(device) = &mut note.device {
            shorten(device, MAX_DEVICE);
        }
        let entry = note.at(self.newest, wall);
        self.entries.push_back((now, entry.clone()));
        if self.entries.len() > MAX_ENTRIES
            && let Some((_, oldest)) = self.entries.pop_front()
        {
            self.whole_since = oldest.timestamp;
        }
        entry
    }

    fn forget(&mut self, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= KEPT_FOR;
        while self.entries.front().is_some_and(|(at, _)| is_old(*at)) {
            self.entries.pop_front();
        }
    }

    fn view(&mut self, after: Option<u64>, (now, wall): (Instant, DateTime<Utc>)) -> TimelineView {
        self.forget(now);
        let after = after.filter(|id| *id <= self.newest).unwrap_or(0);
        let newest_first = self.entries.iter().rev();
        TimelineView {
            now: wall,
            kept_since: self
                .whole_since
                .max(wall - TimeDelta::seconds(KEPT_FOR.as_secs().cast_signed())),
            entries: newest_first
                .map(|(_, entry)| entry)
                .take_while(|entry| entry.id > after)
                .cloned()
                .collect(),
        }
    }
}

fn shorten(text: &mut String, letters: usize) {
    if let Some((end, _)) = text.char_indices().nth(letters) {
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use shared_contract::QueenId;

    use super::*;

    fn kept() -> Kept {
        Kept::since(DateTime::UNIX_EPOCH)
    }

    fn note(text: impl Into<String>) -> Note {
        Note::queen(TimelineChange::Degraded, Tone::Warn, text)
    }

    fn ids(view: &TimelineView) -> Vec<u64> {
        view.entries.iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn the_newest_comes_first_and_whoever_has_some_gets_the_newer_ones_only() {
        let (mut kept, clock) = (kept(), (Instant::now(), DateTime::UNIX_EPOCH));
        for _ in 0..3 {
            kept.keep(note("x"), clock);
        }
        assert_eq!(ids(&kept.view(None, clock)), [3, 2, 1]);
        assert_eq!(ids(&kept.view(Some(1), clock)), [3, 2]);
        assert_eq!(ids(&kept.view(Some(3), clock)), [0; 0]);
    }

    #[test]
    fn who_comes_from_an_earlier_queen_misses_nothing_of_this_one() {
        let now = Instant::now();
        let told = |wall: DateTime<Utc>, after: Option<u64>| {
            let mut kept = Kept::since(wall);
            kept.keep(note("x"), (now, wall));
            ids(&kept.view(after, (now, wall)))
        };
        let (earlier, later) = (DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH + TimeDelta::hours(1));
        let (first, second) = (told(earlier, None), told(later, None));
        assert_eq!(told(later, Some(first[0])), second);
        assert_eq!(told(earlier, Some(second[0])), first, "the clock was set back");
    }

    #[test]
    fn what_goes_on_is_told_once_until_something_else_happens_or_time_passes() {
        let (mut kept, now, wall) = (kept(), Instant::now(), DateTime::UNIX_EPOCH);
        assert!(!kept.repeats(&note("x"), now));
        kept.keep(note("x"), (now, wall));
        assert!(kept.repeats(&note("in other words"), now));
        assert!(!kept.repeats(&note("x"), now + SAME_AGAIN));
        kept.keep(Note::queen(TimelineChange::Whole, Tone::Good, "y"), (now, wall));
        assert!(!kept.repeats(&note("x"), now));
    }

    #[test]
    fn after_a_flood_the_timeline_says_that_something_is_missing() {
        let timeline = Timeline::new(Arc::new(Changes::new(QueenId::new("queen-1").unwrap())));
        let before = timeline.view(None).kept_since;
        timeline.missed();
        assert!(timeline.view(None).kept_since > before);
    }

    #[test]
    fn what_is_older_than_an_hour_is_forgotten() {
        let (mut kept, begin) = (kept(), Instant::now());
        let clock = |minutes: u32| {
            let wall = DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes.into());
            (begin + Duration::from_secs(60) * minutes, wall)
        };
        kept.keep(note("old"), clock(0));
        kept.keep(note("new"), clock(30));
        assert_eq!(ids(&kept.view(None, clock(59))), [2, 1]);
        assert_eq!(kept.view(None, clock(59)).kept_since, DateTime::UNIX_EPOCH);
        let later = kept.view(None, clock(75));
        assert_eq!(ids(&later), [2]);
        assert_eq!(later.kept_since, clock(15).1);
    }

    #[test]
    fn the_timeline_is_bounded_and_says_from_when_on_it_is_whole() {
        let (mut kept, now) = (kept(), Instant::now());
        let wall = |seconds: i64| DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
        for seconds in 0..=MAX_ENTRIES as i64 {
            let note = note("ä".repeat(2 * MAX_TEXT)).on(None, Some(&"ö".repeat(2 * MAX_DEVICE)));
            kept.keep(note, (now, wall(seconds)));
        }
        let view = kept.view(None, (now, wall(MAX_ENTRIES as i64)));
        assert_eq!(view.entries.len(), MAX_ENTRIES);
        assert_eq!(view.kept_since, wall(0));
        let entry = &view.entries[0];
        assert_eq!(entry.text.chars().count(), MAX_TEXT + 1);
        assert_eq!(entry.device.as_ref().unwrap().chars().count(), MAX_DEVICE + 1);
    }
}
