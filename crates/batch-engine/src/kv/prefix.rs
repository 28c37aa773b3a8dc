//! Which block holds which tokens after which other block.
//!
//! A block is known by the block before it and its own tokens. Both are compared, so two prefixes are never taken for
//! one another, whatever their hashes are; and as the block before it is found in the same way, the whole prefix is.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::KvLayout;

/// Says that a block is a sequence's first.
const ROOT: u32 = u32::MAX;

/// The full blocks that may be shared.
#[derive(Debug)]
pub(super) struct PrefixIndex {
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
    block_tokens: usize,
    // By block; of blocks in the table.
    parents: Vec<u32>,
    hashes: Vec<u64>,
    /// `block_tokens` of each block.
    tokens: Vec<u32>,
}

impl PrefixIndex {
    pub(super) fn new(layout: KvLayout) -> Self {
        Self {
            table: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            block_tokens: layout.block_tokens,
            parents: vec![ROOT; layout.blocks],
            hashes: vec![0; layout.blocks],
            tokens: vec![0; layout.blocks * layout.block_tokens],
        }
    }

    /// The block that holds `tokens` after `parent`; `None` means a sequence's start.
    pub(super) fn find(&self, parent: Option<u32>, tokens: &[u32]) -> Option<u32> {
        let parent = parent.unwrap_or(ROOT);
        let is_same = |&block: &u32| self.parents[block as usize] == parent && self.tokens_of(block) == tokens;
        self.table.find(self.hash(parent, tokens), is_same).copied()
    }

    /// Enters a block that is not there; nor is one of the same parent and tokens.
    pub(super) fn insert(&mut self, block: u32, parent: Option<u32>, tokens: &[u32]) {
        let parent = parent.unwrap_or(ROOT);
        let hash = self.hash(parent, tokens);
        let index = block as usize;
        self.parents[index] = parent;
        self.hashes[index] = hash;
        self.tokens[index * self.block_tokens..][..self.block_tokens].copy_from_slice(tokens);
        let hashes = &self.hashes;
        self.table.insert_unique(hash, block, |&other| hashes[other as usize]);
    }

    /// Takes out a block that is there and that no other follows.
    pub(super) fn remove(&mut self, block: u32) {
        if let Ok(entry) = self
            .table
            .find_entry(self.hashes[block as usize], |&other| other == block)
        {
            entry.remove();
        }
    }

    /// The block before a block that is there.
    pub(super) fn parent(&self, block: u32) -> Option<u32> {
        Some(self.parents[block as usize]).filter(|&parent| parent != ROOT)
    }

    fn hash(&self, parent: u32, tokens: &[u32]) -> u64 {
        self.hasher.hash_one((parent, tokens))
    }

    fn tokens_of(&self, block: u32) -> &[u32] {
        &self.tokens[block as usize * self.block_tokens..][..self.block_tokens]
    }

    /// All blocks that are there.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> impl Iterator<Item = u32> + '_ {
        self.table.iter().copied()
    }
}
