//! A map for many readers: each shard is copied on write, so a read is one pointer load and an insert costs one shard.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};

type Map<K, V> = HashMap<Arc<K>, V>;

pub(crate) struct ShardedMap<K, V> {
    shards: Box<[Shard<K, V>]>,
    /// Entries in all shards.
    len: AtomicUsize,
    hasher: RandomState,
}

struct Shard<K, V> {
    map: ArcSwap<Map<K, V>>,
    writer: Mutex<()>,
}

impl<K: Eq + Hash, V: Clone> ShardedMap<K, V> {
    pub(crate) fn new(shards: usize) -> Self {
        let shard = |_| Shard {
            map: ArcSwap::from_pointee(Map::new()),
            writer: Mutex::new(()),
        };
        Self {
            shards: (0..shards.max(1)).map(shard).collect(),
            len: AtomicUsize::new(0),
            hasher: RandomState::new(),
        }
    }

    fn shard(&self, key: &K) -> &Shard<K, V> {
        let hash = self.hasher.hash_one(key);
        &self.shards[(hash % self.shards.len() as u64) as usize]
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.shard(key).map.load().get(key).cloned()
    }

    /// What is there under the key, or else what `make` returns, then inserted and given with true. `make` runs at most once,
    /// under the shard's lock.
    pub(crate) fn get_or_insert(&self, key: &K, make: impl FnOnce() -> (Arc<K>, V)) -> (V, bool) {
        let shard = self.shard(key);
        let _writer = lock(&shard.writer);
        let map = shard.map.load();
        if let Some(value) = map.get(key) {
            return (value.clone(), false);
        }
        let (key, value) = make();
        let mut copy = Map::clone(&map);
        copy.insert(key, value.clone());
        shard.map.store(Arc::new(copy));
        self.len.fetch_add(1, Ordering::Relaxed);
        (value, true)
    }

    /// Removes what is there under the key and then calls `done`, before anybody can insert under that key again.
    pub(crate) fn remove(&self, key: &K, done: impl FnOnce()) {
        let shard = self.shard(key);
        let _writer = lock(&shard.writer);
        let map = shard.map.load();
        if map.contains_key(key) {
            let mut copy = Map::clone(&map);
            copy.remove(key);
            shard.map.store(Arc::new(copy));
            self.len.fetch_sub(1, Ordering::Relaxed);
            done();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Calls `visit` with each entry of each shard; shards are taken one after the other.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&Arc<K>, &V)) {
        for shard in &self.shards {
            let map: Guard<Arc<Map<K, V>>> = shard.map.load();
            for (key, value) in map.iter() {
                visit(key, value);
            }
        }
    }
}

/// A writer that panicked left whole values behind: each of them is swapped in by one store.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
