//! Which members serve a model, as dense lists that a scheduler can draw from.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use shared_contract::{HeartbeatItem, ModelId};

use crate::{
    Member,
    sharded::{ShardedMap, lock},
};

/// Members in one chunk: what an insert or removal copies, besides one pointer for each other chunk.
const CHUNK: usize = 256;
const SHARDS: usize = 16;

/// The members that serve a model at one moment, in no order and whatever their liveness. Taking it and cloning it is cheap
/// and does not depend on how many there are.
#[derive(Debug)]
pub struct Members<T: HeartbeatItem> {
    /// All but the last chunk are full, no chunk is empty.
    chunks: Arc<Chunks<T>>,
}

type Chunks<T> = Vec<Arc<Vec<Arc<Member<T>>>>>;

// Derived, it would demand the same of `T`.
impl<T: HeartbeatItem> Clone for Members<T> {
    fn clone(&self) -> Self {
        Self {
            chunks: Arc::clone(&self.chunks),
        }
    }
}

impl<T: HeartbeatItem> Default for Members<T> {
    fn default() -> Self {
        Self {
            chunks: Arc::new(Vec::new()),
        }
    }
}

impl<T: HeartbeatItem> Members<T> {
    /// How many.
    pub fn len(&self) -> usize {
        self.chunks
            .last()
            .map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The member at a place below [`len`](Self::len).
    pub fn get(&self, place: usize) -> Option<&Arc<Member<T>>> {
        self.chunks.get(place / CHUNK)?.get(place % CHUNK)
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Member<T>>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    fn pushed(&self, member: Arc<Member<T>>) -> Self {
        let mut chunks = Chunks::clone(&self.chunks);
        match chunks.last_mut().filter(|last| last.len() < CHUNK) {
            Some(last) => Arc::make_mut(last).push(member),
            None => chunks.push(Arc::new(vec![member])),
        }
        Self {
            chunks: Arc::new(chunks),
        }
    }

    /// Without the member at `place`, which the last one takes; also that last one, if it moved.
    fn swap_removed(&self, place: usize) -> (Self, Option<Arc<Member<T>>>) {
        let mut chunks = Chunks::clone(&self.chunks);
        let moved = chunks.last_mut().and_then(|last| Arc::make_mut(last).pop());
        if chunks.last().is_some_and(|last| last.is_empty()) {
            chunks.pop();
        }
        let moved = moved.filter(|_| place + 1 < self.len());
        if let Some(moved) = &moved {
            Arc::make_mut(&mut chunks[place / CHUNK])[place % CHUNK] = Arc::clone(moved);
        }
        (
            Self {
                chunks: Arc::new(chunks),
            },
            moved,
        )
    }
}

type Entry<T> = Arc<ArcSwap<Members<T>>>;

/// The model under which each indexed member stands, and its place in that list.
type Places<Id> = HashMap<Arc<Id>, (ModelId, usize)>;

pub(crate) struct ModelIndex<T: HeartbeatItem> {
    models: ShardedMap<ModelId, Entry<T>>,
    /// Also the lock of all writers of the index.
    places: Mutex<Places<T::Id>>,
}

impl<T: HeartbeatItem> ModelIndex<T> {
    pub(crate) fn new() -> Self {
        Self {
            models: ShardedMap::new(SHARDS),
            places: Mutex::default(),
        }
    }

    pub(crate) fn find(&self, model: &ModelId) -> Members<T> {
        self.models
            .get(model)
            .map(|entry| Members::clone(&entry.load()))
            .unwrap_or_default()
    }

    pub(crate) fn models(&self) -> Vec<ModelId> {
        let mut models = Vec::new();
        self.models.for_each(|model, _| models.push(ModelId::clone(model)));
        models.sort_unstable();
        models
    }

    /// Puts the member under `model`, or under none, wherever it stood before.
    pub(crate) fn place(&self, member: &Arc<Member<T>>, model: Option<&ModelId>) {
        let mut places = lock(&self.places);
        if let Some((old, place)) = places.remove(&member.id) {
            self.take_out(&mut places, &old, place);
        }
        let Some(model) = model else { return };
        let (entry, _) = self
            .models
            .get_or_insert(model, || (Arc::new(model.clone()), Entry::<T>::default()));
        let members = entry.load();
        places.insert(Arc::clone(&member.id), (model.clone(), members.len()));
        entry.store(Arc::new(members.pushed(Arc::clone(member))));
    }

    fn take_out(&self, places: &mut Places<T::Id>, model: &ModelId, place: usize) {
        let Some(entry) = self.models.get(model) else { return };
        let (left, moved) = entry.load().swap_removed(place);
        if let Some((_, moved_to)) = moved.and_then(|moved| places.get_mut(&moved.id)) {
            *moved_to = place;
        }
        let is_empty = left.is_empty();
        entry.store(Arc::new(left));
        if is_empty {
            self.models.remove(model, || {});
        }
    }
}
