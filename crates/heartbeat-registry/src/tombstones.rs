//! What members that said goodbye had sent last: a beat that the goodbye overtook on its way must not bring them back.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{record::Order, sharded::lock};

#[derive(Debug)]
pub(crate) struct Tombstones<K> {
    departed: Mutex<HashMap<Arc<K>, (Order, Instant)>>,
}

impl<K: Eq + Hash> Tombstones<K> {
    pub(crate) fn new() -> Self {
        Self {
            departed: Mutex::default(),
        }
    }

    /// A sender without an incarnation gets none: its next start looks like an old beat.
    pub(crate) fn put(&self, id: &Arc<K>, last: Order, now: Instant) {
        if last.is_known() {
            lock(&self.departed).insert(Arc::clone(id), (last, now));
        }
    }

    /// Whether the beat was sent before its sender's goodbye. If not, the sender is back and its tombstone falls.
    pub(crate) fn holds_back(&self, id: &K, order: Order) -> bool {
        let mut departed = lock(&self.departed);
        let Some((last, _)) = departed.get(id) else {
            return false;
        };
        if order.is_stale_after(*last) {
            return true;
        }
        departed.remove(id);
        false
    }

    pub(crate) fn forget(&self, now: Instant, retention: Duration) {
        lock(&self.departed).retain(|_, (_, since)| now.saturating_duration_since(*since) < retention);
    }
}
