//! The memory of a fake model: it remembers, for each place of each block, which token was written there after which
//! others. So a wrong block, a wrong position or a block that was overwritten too early is seen.

use std::hash::{DefaultHasher, Hash, Hasher};

/// One sequence's part in a step: its new tokens, the position of the first, and its block table.
pub(crate) type Part<'a> = (&'a [u32], usize, &'a [u32]);

#[derive(Debug)]
pub(crate) struct Pages {
    block_tokens: usize,
    places: Vec<Option<Place>>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    token: u32,
    /// A hash of all tokens up to this one, in order.
    history: u64,
}

impl Pages {
    pub(crate) fn new(block_tokens: usize, blocks: usize) -> Self {
        Self {
            block_tokens,
            places: vec![None; block_tokens * blocks],
        }
    }

    /// Writes all new tokens. Returns each sequence's tokens as its blocks remember them. Panics where a block is missing,
    /// is written while another sequence uses it, or does not hold what came before.
    pub(crate) fn step(&mut self, parts: &[Part<'_>]) -> Vec<Vec<u32>> {
        for (index, (tokens, position, blocks)) in parts.iter().enumerate() {
            assert!(!tokens.is_empty(), "an input without tokens");
            let end = (position + tokens.len()).div_ceil(self.block_tokens);
            assert!(end <= blocks.len(), "the block table is too short");
            let written = &blocks[position / self.block_tokens..end];
            for (_, (_, _, others)) in parts.iter().enumerate().filter(|(other, _)| *other != index) {
                assert!(
                    written.iter().all(|block| !others.contains(block)),
                    "a block that another sequence uses is written"
                );
            }
        }
        parts.iter().map(|part| self.write(part)).collect()
    }

    fn write(&mut self, (tokens, position, blocks): &Part<'_>) -> Vec<u32> {
        let mut history = 0;
        let mut all = Vec::new();
        for at in 0..position + tokens.len() {
            let place = blocks[at / self.block_tokens] as usize * self.block_tokens + at % self.block_tokens;
            if let Some(new) = at.checked_sub(*position) {
                history = follow(history, tokens[new]);
                self.places[place] = Some(Place {
                    token: tokens[new],
                    history,
                });
            }
            let written = self.places[place].expect("nothing was written here");
            if at < *position {
                history = follow(history, written.token);
            }
            assert_eq!(
                written.history, history,
                "position {at} holds what followed other tokens"
            );
            all.push(written.token);
        }
        all
    }
}

fn follow(history: u64, token: u32) -> u64 {
    let mut hasher = DefaultHasher::new();
    (history, token).hash(&mut hasher);
    hasher.finish()
}
