//! Who has left: an old beat that is still on its way must not bring anybody back.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{LeaveReason, record::Order, sharded::lock};

/// Departures kept; beyond, the oldest are forgotten first. A few megabytes.
const LIMIT: usize = 20_000;

/// Somebody who has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departed<K> {
    /// Who.
    pub id: Arc<K>,
    /// Why.
    pub reason: LeaveReason,
    /// When, by the receiver's monotonic clock.
    pub at: Instant,
}

#[derive(Debug)]
struct Stone {
    /// Nothing up to this brings it back.
    last: Order,
    reason: LeaveReason,
    at: Instant,
    /// The same in listening time.
    heard: Duration,
    /// Tells this stone from an earlier one of the same id.
    number: u64,
}

#[derive(Debug)]
struct Stones<K> {
    by_id: HashMap<Arc<K>, Stone>,
    /// In the order in which they were put, with stones that have fallen since.
    in_order: VecDeque<(u64, Arc<K>)>,
    next: u64,
}

#[derive(Debug)]
pub(crate) struct Tombstones<K>(Mutex<Stones<K>>);

impl<K: Eq + Hash> Tombstones<K> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Stones {
            by_id: HashMap::new(),
            in_order: VecDeque::new(),
            next: 0,
        }))
    }

    /// Notes a departure. A sender without an incarnation cannot be held back: its next start looks like an old beat.
    pub(crate) fn put(&self, id: &Arc<K>, last: Order, reason: LeaveReason, at: Instant, heard: Duration) {
        let mut stones = lock(&self.0);
        // One that left before under the same id must not come back, either.
        let last = match stones.by_id.get(id) {
            Some(stone) if stone.last.is_after(last) => stone.last,
            _ => last,
        };
        let number = stones.next;
        stones.next += 1;
        let stone = Stone {
            last,
            reason,
            at,
            heard,
            number,
        };
        stones.by_id.insert(Arc::clone(id), stone);
        stones.in_order.push_back((number, Arc::clone(id)));
        while stones.by_id.len() > LIMIT || stones.in_order.len() > 2 * LIMIT {
            stones.drop_oldest();
        }
    }

    /// The incarnation above which a beat would bring its sender back, if this one cannot. If it can, the sender is back and
    /// its tombstone falls.
    pub(crate) fn hold_back(&self, id: &K, order: Order) -> Option<u64> {
        let mut stones = lock(&self.0);
        let last = stones.by_id.get(id)?.last;
        if order.stale_after(last).is_some() {
            return Some(last.incarnation);
        }
        stones.by_id.remove(id);
        None
    }

    /// Forgets what is older than `age` in listening time.
    pub(crate) fn forget(&self, heard: Duration, age: Duration) {
        let mut stones = lock(&self.0);
        while let Some((number, id)) = stones.in_order.front() {
            let is_young = stones
                .by_id
                .get(id)
                .is_some_and(|stone| stone.number == *number && heard.saturating_sub(stone.heard) < age);
            if is_young {
                return;
            }
            stones.drop_oldest();
        }
    }

    /// The newest first.
    pub(crate) fn list(&self, limit: usize) -> Vec<Departed<K>> {
        let stones = lock(&self.0);
        let standing = stones.in_order.iter().rev().filter_map(|(number, id)| {
            let stone = stones.by_id.get(id).filter(|stone| stone.number == *number)?;
            Some(Departed {
                id: Arc::clone(id),
                reason: stone.reason,
                at: stone.at,
            })
        });
        standing.take(limit).collect()
    }
}

impl<K: Eq + Hash> Stones<K> {
    fn drop_oldest(&mut self) {
        if let Some((number, id)) = self.in_order.pop_front()
            && self.by_id.get(&id).is_some_and(|stone| stone.number == number)
        {
            self.by_id.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(stones: &Tombstones<u32>, id: u32, last: (u64, u64), heard: u64) {
        let heard = Duration::from_secs(heard);
        stones.put(&Arc::new(id), last.into(), LeaveReason::Goodbye, Instant::now(), heard);
    }

    fn hold_back(stones: &Tombstones<u32>, id: u32, order: (u64, u64)) -> Option<u64> {
        stones.hold_back(&id, order.into())
    }

    fn ids(stones: &Tombstones<u32>) -> Vec<u32> {
        stones.list(usize::MAX).iter().map(|departed| *departed.id).collect()
    }

    #[test]
    fn what_was_sent_before_the_departure_is_held_back_and_what_came_after_brings_the_sender_back() {
        let stones = Tombstones::new();
        put(&stones, 1, (5, 3), 0);
        assert_eq!(hold_back(&stones, 1, (4, 9)), Some(5));
        assert_eq!(hold_back(&stones, 1, (5, 3)), Some(5));
        assert_eq!(hold_back(&stones, 2, (1, 1)), None);
        assert_eq!(ids(&stones), [1]);
        assert_eq!(hold_back(&stones, 1, (5, 4)), None);
        assert!(ids(&stones).is_empty());
    }

    #[test]
    fn an_older_one_that_leaves_later_does_not_let_the_newer_one_back() {
        let stones = Tombstones::new();
        put(&stones, 1, (5, 3), 0);
        put(&stones, 1, (4, 9), 1);
        assert_eq!(hold_back(&stones, 1, (5, 3)), Some(5));
    }

    #[test]
    fn the_old_ones_fall_and_the_newest_come_first() {
        let stones = Tombstones::new();
        put(&stones, 1, (1, 1), 0);
        put(&stones, 2, (1, 1), 10);
        put(&stones, 1, (2, 1), 20);
        assert_eq!(ids(&stones), [1, 2]);
        stones.forget(Duration::from_secs(25), Duration::from_secs(10));
        assert_eq!(ids(&stones), [1], "the younger stone of an id stands");
    }

    #[test]
    fn there_are_never_more_than_the_limit() {
        let stones = Tombstones::new();
        for id in 0..LIMIT as u32 + 5 {
            put(&stones, id, (1, 1), 0);
        }
        assert_eq!(ids(&stones).len(), LIMIT);
        assert_eq!(hold_back(&stones, 4, (1, 1)), None, "the oldest is forgotten");
        assert_eq!(hold_back(&stones, 5, (1, 1)), Some(1));
    }
}
