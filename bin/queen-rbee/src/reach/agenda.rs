//! Whom to call, and when: a plain function of what happens.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Pauses before the next tries at who did not answer.
pub(super) const RETRIES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// The same once those are used up.
pub(super) const REST: Duration = Duration::from_secs(30);
/// Calls under way at once, for each kind of members.
pub(super) const MAX_CALLS: usize = 64;
/// Those of them that may go to members who did not answer before: however many there are, whoever comes to an address finds
/// a place.
const MAX_RETRIES: usize = MAX_CALLS / 2;

/// Whom to call, and when. Holds nobody but those who are to be called, are being called, or did not answer.
///
/// First calls go before retries, which have a share of the places only.
pub(super) struct Agenda<Id> {
    entries: HashMap<Id, Entry>,
    /// Those whose turn is due, by time.
    first_calls: BTreeSet<(Instant, Id)>,
    /// The same for those who did not answer before.
    retries: BTreeSet<(Instant, Id)>,
    /// Calls under way.
    calling: usize,
    /// Those of them that are retries.
    retrying: usize,
}

/// A call that takes a place until it has [`ended`](Agenda::ended).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call<Id> {
    pub(super) id: Id,
    is_retry: bool,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    turn: Turn,
    /// Calls without an answer.
    failures: usize,
    /// Whether it is known not to answer.
    is_retry: bool,
}

/// `Due -> Calling -> Due` after each failure; an answer ends the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Due(Instant),
    Calling,
}

impl<Id> Default for Agenda<Id> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            first_calls: BTreeSet::new(),
            retries: BTreeSet::new(),
            calling: 0,
            retrying: 0,
        }
    }
}

impl<Id: Clone + Eq + Hash + Ord> Agenda<Id> {
    /// Plans a call now, as the first one of its kind. A call that is under way is left to end.
    pub(super) fn call(&mut self, id: &Id, now: Instant) {
        let is_planned = |entry: &Entry| match entry.turn {
            Turn::Due(at) => at <= now && !entry.is_retry,
            Turn::Calling => true,
        };
        if !self.entries.get(id).is_some_and(is_planned) {
            self.forget(id);
            self.plan(id, 0, false, now);
        }
    }

    /// Plans a call now for somebody who did not answer, unless a call is planned or under way.
    pub(super) fn call_unless_planned(&mut self, id: &Id, now: Instant) {
        if !self.entries.contains_key(id) {
            self.plan(id, 0, true, now);
        }
    }

    /// Who is to be called now, if there is a place for it. Whoever is taken is being called until
    /// [`failed`](Self::failed) or [`forget`](Self::forget).
    pub(super) fn take(&mut self, now: Instant) -> Option<Call<Id>> {
        let is_due = |due: &BTreeSet<(Instant, Id)>| due.first().is_some_and(|(at, _)| *at <= now);
        let is_retry = match self.places() {
            (true, _) if is_due(&self.first_calls) => false,
            (_, true) if is_due(&self.retries) => true,
            _ => return None,
        };
        let (_, id) = self.due(is_retry).pop_first()?;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.turn = Turn::Calling;
        }
        self.calling += 1;
        self.retrying += usize::from(is_retry);
        Some(Call { id, is_retry })
    }

    /// When the next call is due for which there is a place.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let (for_first_call, for_retry) = self.places();
        let first_call = self.first_calls.first().filter(|_| for_first_call);
        let retry = self.retries.first().filter(|_| for_retry);
        first_call.into_iter().chain(retry).map(|(at, _)| *at).min()
    }

    /// A call is over, however it went: its place is free.
    pub(super) fn ended(&mut self, call: &Call<Id>) {
        self.calling -= 1;
        self.retrying -= usize::from(call.is_retry);
    }

    /// A call got no answer.
    pub(super) fn failed(&mut self, id: &Id, now: Instant) {
        let Some(entry) = self.entries.get(id) else { return };
        if entry.turn != Turn::Calling {
            return;
        }
        let pause = RETRIES.get(entry.failures).copied().unwrap_or(REST);
        let failures = entry.failures + 1;
        self.plan(id, failures, true, now + pause);
    }

    /// It answered, has left, or need not be called for another reason.
    pub(super) fn forget(&mut self, id: &Id) {
        if let Some(Entry {
            turn: Turn::Due(at),
            is_retry,
            ..
        }) = self.entries.remove(id)
        {
            self.due(is_retry).remove(&(at, id.clone()));
        }
    }

    fn plan(&mut self, id: &Id, failures: usize, is_retry: bool, at: Instant) {
        let entry = Entry {
            turn: Turn::Due(at),
            failures,
            is_retry,
        };
        self.entries.insert(id.clone(), entry);
        self.due(is_retry).insert((at, id.clone()));
    }

    fn due(&mut self, is_retry: bool) -> &mut BTreeSet<(Instant, Id)> {
        if is_retry {
            &mut self.retries
        } else {
            &mut self.first_calls
        }
    }

    /// Whether there is a place for a first call, and for a retry.
    fn places(&self) -> (bool, bool) {
        let is_free = self.calling < MAX_CALLS;
        (is_free, is_free && self.retrying < MAX_RETRIES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is called now; the call is left to go on.
    fn taken(agenda: &mut Agenda<u32>, now: Instant) -> Option<u32> {
        agenda.take(now).map(|call| call.id)
    }

    /// Calls whoever is due, without an answer; tells how many there were.
    fn fail_all(agenda: &mut Agenda<u32>, now: Instant) -> usize {
        let calls: Vec<_> = std::iter::from_fn(|| agenda.take(now)).collect();
        for call in &calls {
            agenda.ended(call);
            agenda.failed(&call.id, now);
        }
        calls.len()
    }

    /// Seconds after `start` at which the next calls are made, each of which fails at once.
    fn calls(agenda: &mut Agenda<u32>, start: Instant) -> Vec<u64> {
        let mut times = Vec::new();
        for _ in 0..8 {
            let at = agenda.next_at().unwrap();
            assert_eq!(fail_all(agenda, at), 1);
            times.push((at - start).as_secs());
        }
        times
    }

    #[test]
    fn who_does_not_answer_is_called_after_growing_pauses_and_then_twice_a_minute() {
        let (mut agenda, start) = (Agenda::default(), Instant::now());
        agenda.call(&7, start);
        assert_eq!(calls(&mut agenda, start), [0, 1, 3, 7, 15, 31, 61, 91]);
    }

    #[test]
    fn news_of_who_did_not_answer_does_not_hurry_the_next_try_and_a_new_address_does() {
        let (mut agenda, start) = (Agenda::default(), Instant::now());
        agenda.call(&7, start);
        assert_eq!(fail_all(&mut agenda, start), 1);
        agenda.call_unless_planned(&7, start);
        assert_eq!(agenda.take(start), None, "the next try is planned");
        agenda.call(&7, start);
        assert_eq!(calls(&mut agenda, start)[..3], [0, 1, 3], "as if it was new");
    }

    #[test]
    fn nobody_is_called_twice_at_once_and_who_answered_is_not_called_again() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        agenda.call(&7, now);
        agenda.call(&7, now);
        let call = agenda.take(now).unwrap();
        agenda.call(&7, now);
        agenda.call_unless_planned(&7, now);
        assert_eq!(agenda.take(now), None);
        agenda.ended(&call);
        agenda.forget(&7);
        assert!(agenda.entries.is_empty() && agenda.first_calls.is_empty() && agenda.calling == 0);
        agenda.failed(&7, now);
        assert_eq!(agenda.next_at(), None, "it has left while it was called");
    }

    #[test]
    fn whose_turn_comes_first_is_called_first() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        agenda.call(&1, later);
        agenda.call(&2, now);
        assert_eq!((taken(&mut agenda, now), taken(&mut agenda, now)), (Some(2), None));
        assert_eq!(taken(&mut agenda, later), Some(1));
    }

    #[test]
    fn however_many_do_not_answer_whoever_is_new_is_called_at_once() {
        const DEAF: u32 = 500;
        let (mut agenda, start) = (Agenda::default(), Instant::now());
        for id in 0..DEAF {
            agenda.call(&id, start);
        }
        while fail_all(&mut agenda, start) > 0 {}
        let now = start + RETRIES[0];
        let retries: Vec<_> = std::iter::from_fn(|| agenda.take(now)).collect();
        assert_eq!(retries.len(), MAX_RETRIES);
        assert_eq!(agenda.next_at(), None, "there is no place for another retry");

        for new in DEAF..DEAF + 100 {
            agenda.call(&new, now);
        }
        let first: Vec<_> = std::iter::from_fn(|| agenda.take(now)).collect();
        assert!(first.iter().all(|call| call.id >= DEAF));
        assert_eq!(first.len(), MAX_CALLS - MAX_RETRIES);

        // As places become free, those who are new take them before those who did not answer.
        for call in &retries {
            agenda.ended(call);
            agenda.failed(&call.id, now);
            assert!(taken(&mut agenda, now).is_some_and(|id| id >= DEAF));
        }
        assert_eq!(agenda.take(now), None);
    }

    #[test]
    fn one_who_did_not_answer_and_comes_to_a_new_address_waits_behind_no_retry() {
        let (mut agenda, start) = (Agenda::default(), Instant::now());
        for id in 0..=MAX_RETRIES as u32 {
            agenda.call(&id, start);
        }
        while fail_all(&mut agenda, start) > 0 {}
        let now = start + RETRIES[0];
        while agenda.take(now).is_some() {}
        let waiting = agenda.retries.first().unwrap().1;
        agenda.call(&waiting, now);
        assert_eq!(taken(&mut agenda, now), Some(waiting));
    }
}
