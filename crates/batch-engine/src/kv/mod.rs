//! The KV blocks: who holds which, which are promised, and which the prefix cache keeps.
//!
//! A block is *free*, *held* by one sequence or several, or *kept*: held by none, but full, and in the prefix cache until
//! somebody needs its room. At admission a sequence is promised all blocks that it may come to need; it takes them one by
//! one as it grows, so what is kept goes as late as it can. Free and kept blocks together are never fewer than the
//! promised ones, so a running sequence cannot run out.
//!
//! A full block is entered into the prefix cache and is never written again. Where the cache has the same block already,
//! a sequence swaps its own for that one. So every block of a sequence's first ones that are in the cache follows, in
//! the cache, the one before it, and who holds a block holds all before it.

mod lru;
mod prefix;

use std::ops::Range;

use crate::KvLayout;
use lru::LruList;
use prefix::PrefixIndex;

/// All blocks of a model.
#[derive(Debug)]
pub(crate) struct KvBlocks {
    layout: KvLayout,
    caches: bool,
    /// How many sequences hold each block.
    holders: Vec<u32>,
    free: Vec<u32>,
    kept: LruList,
    prefixes: PrefixIndex,
    held: usize,
    promised: usize,
    evicted: u64,
}

/// A sequence's blocks. Must be given back to [`KvBlocks::release`].
#[derive(Debug)]
pub(crate) struct BlockTable {
    blocks: Vec<u32>,
    /// The first so many blocks are full, and in the prefix cache.
    cached: usize,
    /// Blocks that it may still take.
    promised: usize,
    caches: bool,
}

impl BlockTable {
    pub(crate) fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    fn last_cached(&self) -> Option<u32> {
        self.cached.checked_sub(1).map(|last| self.blocks[last])
    }
}

impl KvBlocks {
    pub(crate) fn new(layout: KvLayout, prefix_cache: bool) -> Self {
        let blocks = u32::try_from(layout.blocks).unwrap_or(u32::MAX - 1);
        let count = blocks as usize;
        Self {
            layout: KvLayout {
                blocks: count,
                ..layout
            },
            caches: prefix_cache,
            holders: vec![0; count],
            free: (0..blocks).rev().collect(),
            kept: LruList::new(count),
            prefixes: PrefixIndex::new(if prefix_cache {
                layout
            } else {
                KvLayout { blocks: 0, ..layout }
            }),
            held: 0,
            promised: 0,
            evicted: 0,
        }
    }

    /// A table for a sequence that may come to have `max_tokens` tokens, or `None` while there is no room for it.
    /// `prompt` is what may be taken from the prefix cache; `caches` says whether its own blocks go there.
    pub(crate) fn admit(&mut self, prompt: &[u32], max_tokens: usize, caches: bool) -> Option<BlockTable> {
        let total = max_tokens.div_ceil(self.layout.block_tokens);
        let mut hits = 0;
        let mut kept_hits = 0;
        let mut parent = None;
        for tokens in self.reusable(prompt) {
            let Some(block) = self.prefixes.find(parent, tokens) else {
                break;
            };
            hits += 1;
            kept_hits += usize::from(self.holders[block as usize] == 0);
            parent = Some(block);
        }
        let promised = total - hits;
        if self.promised + promised + kept_hits > self.free.len() + self.kept.len() {
            return None;
        }
        self.promised += promised;
        let mut blocks = Vec::with_capacity(total);
        // The last one found leads back to the first.
        while let Some(block) = parent {
            blocks.push(block);
            parent = self.prefixes.parent(block);
        }
        blocks.reverse();
        for &block in &blocks {
            self.hold(block);
        }
        Some(BlockTable {
            cached: blocks.len(),
            blocks,
            promised,
            caches: caches && self.caches,
        })
    }

    /// The full blocks of a prompt without its last token, which is always run.
    fn reusable<'a>(&self, prompt: &'a [u32]) -> impl Iterator<Item = &'a [u32]> + use<'a> {
        let all_but_the_last = prompt.len().saturating_sub(1);
        let enabled = if self.caches { all_but_the_last } else { 0 };
        prompt[..enabled].chunks_exact(self.layout.block_tokens)
    }

    /// Takes over, from the prefix cache, the blocks that continue `table` in `prompt`, and gives back those that the
    /// sequence has begun itself or was promised for them. Returns how many tokens `table` then has in full blocks.
    pub(crate) fn take_over(&mut self, table: &mut BlockTable, prompt: &[u32]) -> usize {
        for tokens in self.reusable(prompt).skip(table.cached) {
            let parent = table.last_cached();
            let Some(block) = self.prefixes.find(parent, tokens) else {
                break;
            };
            self.hold(block);
            if let Some(own) = table.blocks.get_mut(table.cached) {
                let own = std::mem::replace(own, block);
                self.let_go(own, false);
            } else {
                table.blocks.push(block);
                table.promised -= 1;
                self.promised -= 1;
            }
            table.cached += 1;
        }
        self.cached_tokens(table)
    }

    /// Which block `table` fills next, if it does so within the first `tokens` tokens: the block before it, and the
    /// places of its tokens. Sequences that agree on these, and on the tokens there, fill the same block.
    pub(crate) fn next_block(&self, table: &BlockTable, tokens: usize) -> Option<(Option<u32>, Range<usize>)> {
        let start = table.cached * self.layout.block_tokens;
        let range = start..start + self.layout.block_tokens;
        (table.caches && range.end <= tokens).then(|| (table.last_cached(), range))
    }

    /// Makes room in `table` for `tokens` tokens in all; no more than it was admitted with.
    pub(crate) fn extend(&mut self, table: &mut BlockTable, tokens: usize) {
        while table.blocks.len() * self.layout.block_tokens < tokens {
            debug_assert!(table.promised > 0, "a sequence grows within what it was promised");
            let block = self.take();
            table.blocks.push(block);
            table.promised -= 1;
            self.promised -= 1;
        }
    }

    /// The model has written `tokens`, which are all of the sequence's so far. Enters the blocks that are now full into
    /// the prefix cache, or swaps them for those that are there.
    pub(crate) fn commit(&mut self, table: &mut BlockTable, tokens: &[u32]) {
        if !table.caches {
            return;
        }
        for tokens in tokens.chunks_exact(self.layout.block_tokens).skip(table.cached) {
            let parent = table.last_cached();
            let own = table.blocks[table.cached];
            if let Some(block) = self.prefixes.find(parent, tokens) {
                self.hold(block);
                self.let_go(own, false);
                table.blocks[table.cached] = block;
            } else {
                self.prefixes.insert(own, parent, tokens);
            }
            table.cached += 1;
        }
    }

    /// The sequence has ended.
    pub(crate) fn release(&mut self, table: BlockTable) {
        self.promised -= table.promised;
        // From the last to the first: what is kept goes in this order, so a block never goes before those after it.
        for (place, block) in table.blocks.into_iter().enumerate().rev() {
            self.let_go(block, place < table.cached);
        }
    }

    /// Whether there is a prefix cache.
    pub(crate) fn caches(&self) -> bool {
        self.caches
    }

    /// Tokens of a sequence in blocks of the prefix cache.
    pub(crate) fn cached_tokens(&self, table: &BlockTable) -> usize {
        table.cached * self.layout.block_tokens
    }

    /// Room in the blocks that are held, in tokens.
    pub(crate) fn used_tokens(&self) -> usize {
        self.held * self.layout.block_tokens
    }

    /// Room in the blocks that are held or promised, in tokens.
    pub(crate) fn reserved_tokens(&self) -> usize {
        (self.held + self.promised) * self.layout.block_tokens
    }

    /// Tokens that only the prefix cache keeps.
    pub(crate) fn kept_tokens(&self) -> usize {
        self.kept.len() * self.layout.block_tokens
    }

    /// Blocks that the prefix cache has given up for new ones.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    fn hold(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        if *holders == 0 {
            self.kept.remove(block);
            self.held += 1;
        }
        *holders += 1;
    }

    fn let_go(&mut self, block: u32, is_cached: bool) {
        let holders = &mut self.holders[block as usize];
        *holders -= 1;
        if *holders == 0 {
            self.held -= 1;
            if is_cached {
                self.kept.push_back(block);
            } else {
                self.free.push(block);
            }
        }
    }

    /// A block for its only holder: a free one, else the one that was kept longest.
    fn take(&mut self) -> u32 {
        let block = self.free.pop().unwrap_or_else(|| {
            let oldest = self.kept.pop_front().expect("what is promised is free or kept");
            self.prefixes.remove(oldest);
            self.evicted += 1;
            oldest
        });
        self.holders[block as usize] = 1;
        self.held += 1;
        block
    }
}

#[cfg(test)]
mod tests;
