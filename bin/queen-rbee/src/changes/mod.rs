//! What happens in the fleet, told once to all readers of `GET /v1/heartbeats/stream`.
//!
//! Two kinds of news with two promises. A *change* (a member joined, changed its state, left) has a number and is kept in a
//! ring, so that a reader that was slow or away can go on where it was; if it was away for too long, it gets a snapshot. A
//! *pulse* (beats and telemetry since the last one, once a second) and the queen's own beat are told to whoever is there:
//! only the newest one counts.
//!
//! Each event is rendered once. No reader has a queue here: it pulls from the ring when its connection takes more.

mod feed;
mod frame;
mod ring;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;
use shared_contract::QueenId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub(crate) use feed::{follow, note_own_view, queen_beat};
pub(crate) use frame::frame;
pub(crate) use ring::Next;
use ring::Ring;

/// Changes that are kept.
pub(crate) const MAX_CHANGES: usize = 4_096;
/// Bytes that the kept changes may take: hives may have much to tell.
const MAX_CHANGE_BYTES: usize = 16 << 20;
/// Readers at one time.
pub(crate) const MAX_READERS: usize = 256;

/// The changes of the fleet and the newest pulse. All methods take `&self`.
#[derive(Debug)]
pub(crate) struct Changes {
    queen: QueenId,
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    pulse: watch::Sender<Arc<Pulse>>,
    queen_beat: watch::Sender<Bytes>,
    /// The newest snapshot with its place, until another pulse is gathered: that tells of the beats since this one only.
    snapshot: Mutex<Option<(u64, Bytes)>>,
    readers: Arc<Semaphore>,
    /// What readers were told last of whether the queen doubts her own view.
    is_degraded: Mutex<bool>,
}

/// The beats and the telemetry of one moment.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Number of the newest change at that moment: what comes later may contradict it.
    pub(crate) place: u64,
    /// Complete events, without an id.
    pub(crate) frames: Vec<Bytes>,
}

/// A reader's ear: wakes it when there is something new.
#[derive(Debug)]
pub(crate) struct Listener {
    newest: watch::Receiver<u64>,
    pulse: watch::Receiver<Arc<Pulse>>,
    queen_beat: watch::Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

/// What woke a reader.
#[derive(Debug)]
pub(crate) enum News {
    /// The ring has more.
    Changes,
    /// Beats and telemetry.
    Pulse(Arc<Pulse>),
    /// The queen's own beat, a complete event.
    QueenBeat(Bytes),
}

impl Changes {
    /// Empty, for this run of the queen.
    pub(crate) fn new(queen: QueenId) -> Self {
        Self {
            queen,
            ring: Mutex::new(Ring::new(MAX_CHANGES, MAX_CHANGE_BYTES)),
            newest: watch::Sender::new(0),
            pulse: watch::Sender::default(),
            queen_beat: watch::Sender::default(),
            snapshot: Mutex::default(),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
            is_degraded: Mutex::new(false),
        }
    }

    /// Tells of what happens from now on; `None` if [`MAX_READERS`] are told already.
    pub(crate) fn listen(&self) -> Option<Listener> {
        let place = Arc::clone(&self.readers).try_acquire_owned().ok()?;
        Some(Listener {
            newest: self.newest.subscribe(),
            pulse: self.pulse.subscribe(),
            queen_beat: self.queen_beat.subscribe(),
            _place: place,
        })
    }

    /// Whether anybody listens: what is told to nobody need not be rendered.
    fn has_readers(&self) -> bool {
        self.pulse.receiver_count() > 0
    }

    /// A snapshot with its place. `render` makes it of the place, unless another reader has just got the same one.
    ///
    /// Only one is rendered at a time: those who come meanwhile will share it.
    pub(crate) fn snapshot(&self, render: impl FnOnce(u64) -> Bytes) -> (u64, Bytes) {
        let mut kept = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        // The place first: what happens meanwhile is told again as a change, rather than not at all.
        let place = self.newest();
        match &*kept {
            Some(kept) if kept.0 == place => kept.clone(),
            _ => kept.insert((place, render(place))).clone(),
        }
    }

    /// Another pulse is gathered.
    fn forget_snapshot(&self) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The number of the newest change.
    pub(crate) fn newest(&self) -> u64 {
        self.ring().newest()
    }

    /// What follows a place.
    pub(crate) fn after(&self, place: u64) -> Next {
        self.ring().after(place)
    }

    /// The id of the event with this number; of a snapshot: of the newest change that it includes.
    pub(crate) fn event_id(&self, number: u64) -> String {
        format!("{}-{number}", self.queen)
    }

    /// The place that an event id stands for, if this run of the queen gave it.
    pub(crate) fn place(&self, event_id: &str) -> Option<u64> {
        let (queen, number) = event_id.rsplit_once('-')?;
        number.parse().ok().filter(|_| queen == self.queen.as_str())
    }

    /// Adds a change: an event of this name.
    pub(crate) fn push(&self, event: &str, data: &impl Serialize) {
        // Before the lock, which readers take, too.
        let json = frame::json(data);
        let mut ring = self.ring();
        ring.push(|number| frame::of_json(event, Some(&self.event_id(number)), &json));
        // Still under the lock, so that the numbers come in order.
        self.newest.send_replace(ring.newest());
    }

    /// Changes were missed: all readers get a new snapshot.
    pub(crate) fn break_off(&self) {
        let mut ring = self.ring();
        ring.break_off();
        self.newest.send_replace(ring.newest());
    }

    /// Tells the beats and the telemetry of this moment.
    pub(crate) fn publish_pulse(&self, frames: Vec<Bytes>) {
        let place = self.newest();
        self.pulse.send_replace(Arc::new(Pulse { place, frames }));
    }

    fn publish_queen_beat(&self, frame: Bytes) {
        self.queen_beat.send_replace(frame);
    }

    /// Notes whether the queen doubts her view; true if readers were told otherwise.
    fn note_degraded(&self, is_degraded: bool) -> bool {
        let mut told = self.is_degraded.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *told, is_degraded) != is_degraded
    }

    /// Held for a push or a look, never across an await.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// The newest pulse, unless this listener has had it.
    pub(crate) fn take_pulse(&mut self) -> Option<Arc<Pulse>> {
        let is_new = self.pulse.has_changed().unwrap_or(false);
        is_new.then(|| Arc::clone(&self.pulse.borrow_and_update()))
    }

    /// Waits for something that this listener has not been woken by.
    pub(crate) async fn news(&mut self) -> News {
        tokio::select! {
            Ok(()) = self.newest.changed() => News::Changes,
            Ok(()) = self.queen_beat.changed() => News::QueenBeat(self.queen_beat.borrow_and_update().clone()),
            Ok(()) = self.pulse.changed() => News::Pulse(Arc::clone(&self.pulse.borrow_and_update())),
            // The senders are gone, and with them the queen.
            else => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes() -> Changes {
        Changes::new(QueenId::new("queen-1a2b").unwrap())
    }

    #[test]
    fn only_ids_of_this_run_stand_for_a_place() {
        let changes = changes();
        assert_eq!(changes.event_id(7), "queen-1a2b-7");
        assert_eq!(changes.place("queen-1a2b-7"), Some(7));
        for id in [
            "queen-ffff-7",
            "queen-1a2b",
            "7",
            "",
            "queen-1a2b-",
            "queen-1a2b--7",
            "queen-1a2b-x",
        ] {
            assert_eq!(changes.place(id), None, "{id}");
        }
    }

    #[test]
    fn a_change_is_a_complete_event_with_its_id() {
        let changes = changes();
        changes.push("worker", &serde_json::json!({"a": "line\nbreak"}));
        let Next::Change(frame) = changes.after(0) else {
            panic!("no change")
        };
        assert_eq!(
            frame,
            "event: worker\nid: queen-1a2b-1\ndata: {\"a\":\"line\\nbreak\"}\n\n"
        );
    }

    #[tokio::test]
    async fn a_listener_is_woken_by_what_came_since_and_only_the_newest_pulse_is_kept() {
        let changes = changes();
        changes.push("worker", &1);
        let mut listener = changes.listen().unwrap();
        changes.publish_pulse(vec![Bytes::from_static(b"old")]);
        changes.publish_pulse(vec![Bytes::from_static(b"new")]);
        let News::Pulse(pulse) = listener.news().await else {
            panic!("no pulse")
        };
        assert_eq!((pulse.place, &pulse.frames[..]), (1, &[Bytes::from_static(b"new")][..]));
        changes.push("worker", &2);
        changes.push("worker", &3);
        assert!(matches!(listener.news().await, News::Changes));
        changes.publish_queen_beat(Bytes::from_static(b"beat"));
        assert!(matches!(listener.news().await, News::QueenBeat(_)));
    }

    #[test]
    fn the_queens_doubt_is_news_once() {
        let changes = changes();
        assert!(!changes.note_degraded(false));
        assert!(changes.note_degraded(true));
        assert!(!changes.note_degraded(true));
        assert!(changes.note_degraded(false));
    }
}
