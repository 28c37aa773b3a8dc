//! Which worker has the beginning of a prompt in its cache, as far as the requests tell that it was sent.
//!
//! A prompt is known by its bytes as the client wrote them, in blocks, each hashed together with all before it: two prompts
//! that begin alike have their first hashes in common. A hash that is wrong about a worker costs nothing but the cache.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap};

/// Bytes of a block: some hundred tokens, below which a cache saves little.
const BLOCK: usize = 512;
/// Blocks of a prompt that count. Prompts that differ only later have enough in common for one worker.
const MAX_BLOCKS: usize = 64;
/// Blocks known of one model in each of the two generations, of which the older is forgotten when the newer is full.
const MAX_KNOWN: usize = 8_192;

/// The beginning of a prompt: a hash for each block, of it and all before.
#[derive(Debug, Clone)]
pub(crate) struct Prefix(Arc<[u64]>);

/// A worker by its address in memory, and its place among those of its model at the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) worker: usize,
    pub(crate) place: usize,
}

/// What is known of one model's workers.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    newer: HashMap<u64, Known>,
    older: HashMap<u64, Known>,
}

impl Prefix {
    /// Whether a prompt is long enough to matter.
    pub(crate) fn is_worth_it(prompt: &[u8]) -> bool {
        prompt.len() >= BLOCK
    }

    /// `None` if it is too short to matter.
    pub(crate) fn of(prompt: &[u8], hasher: &DefaultHashBuilder) -> Option<Self> {
        let mut before = 0;
        let hashes = prompt.chunks_exact(BLOCK).take(MAX_BLOCKS).map(|block| {
            before = hasher.hash_one((before, block));
            before
        });
        let hashes: Arc<[u64]> = hashes.collect();
        (!hashes.is_empty()).then_some(Self(hashes))
    }
}

impl Affinity {
    /// Who was sent the longest beginning of this one.
    pub(crate) fn find(&self, prefix: &Prefix) -> Option<Known> {
        let known = |hash| self.newer.get(hash).or_else(|| self.older.get(hash));
        prefix.0.iter().rev().find_map(known).copied()
    }

    /// A worker is sent this one.
    pub(crate) fn note(&mut self, prefix: &Prefix, worker: Known) {
        if self.newer.len() + prefix.0.len() > MAX_KNOWN {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.extend(prefix.0.iter().map(|hash| (*hash, worker)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(prompt: &str, hasher: &DefaultHashBuilder) -> Prefix {
        Prefix::of(prompt.as_bytes(), hasher).unwrap()
    }

    fn worker(number: usize) -> Known {
        Known {
            worker: number,
            place: number,
        }
    }

    #[test]
    fn a_prompt_goes_where_the_longest_beginning_of_it_went() {
        let hasher = DefaultHashBuilder::default();
        let mut affinity = Affinity::default();
        let system = "s".repeat(2 * BLOCK);
        let (one, other) = (system.clone() + &"1".repeat(BLOCK), system.clone() + &"2".repeat(BLOCK));
        affinity.note(&prefix(&one, &hasher), worker(1));
        affinity.note(&prefix(&other, &hasher), worker(2));
        let find = |prompt: &str| affinity.find(&prefix(prompt, &hasher));
        assert_eq!(find(&(one + "and the next turn")), Some(worker(1)));
        assert_eq!(find(&(other + &"more".repeat(BLOCK))), Some(worker(2)));
        assert_eq!(
            find(&(system + &"3".repeat(BLOCK))),
            Some(worker(2)),
            "it was sent last"
        );
        assert_eq!(find(&"another".repeat(BLOCK)), None);
    }

    #[test]
    fn short_prompts_have_no_affinity() {
        assert!(Prefix::of(&[b'x'; BLOCK - 1], &DefaultHashBuilder::default()).is_none());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_newest_stays() {
        let hasher = DefaultHashBuilder::default();
        let mut affinity = Affinity::default();
        for number in 0..3 * MAX_KNOWN {
            let prompt = format!("{number:0BLOCK$}");
            let prefix = prefix(&prompt, &hasher);
            affinity.note(&prefix, worker(number));
            assert_eq!(affinity.find(&prefix), Some(worker(number)));
        }
        assert!(affinity.newer.len() <= MAX_KNOWN && affinity.older.len() <= MAX_KNOWN);
    }
}
