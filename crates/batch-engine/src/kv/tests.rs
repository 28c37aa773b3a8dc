use std::collections::HashSet;

use super::*;

const BLOCK_TOKENS: usize = 2;

impl KvBlocks {
    /// Panics unless the books are right.
    pub(crate) fn assert_consistent(&self) {
        let free: HashSet<u32> = self.free.iter().copied().collect();
        let kept: Vec<u32> = self.kept.iter().collect();
        let held = (0_u32..).zip(&self.holders).filter(|(_, holders)| **holders > 0);
        let held: HashSet<u32> = held.map(|(block, _)| block).collect();
        assert_eq!((kept.len(), held.len()), (self.kept.len(), self.held));
        let all: HashSet<u32> = free.iter().chain(&kept).chain(&held).copied().collect();
        assert_eq!(all.len(), self.layout.blocks, "each block is somewhere");
        assert_eq!(
            free.len() + kept.len() + held.len(),
            all.len(),
            "each block is in one place"
        );
        assert_eq!(free.len(), self.free.len());
        assert!(
            self.promised <= free.len() + kept.len(),
            "what is promised is free or kept"
        );
        let cached: HashSet<u32> = self.prefixes.blocks().collect();
        assert!(
            kept.iter().all(|block| cached.contains(block)),
            "what is kept can be found"
        );
        assert!(cached.is_disjoint(&free), "what can be found is not free");
        let order = |block: u32| kept.iter().position(|&other| other == block);
        for &block in &cached {
            let Some(parent) = self.prefixes.parent(block) else {
                continue;
            };
            assert!(cached.contains(&parent), "a block goes before those that follow it");
            assert!(self.holders[parent as usize] >= self.holders[block as usize]);
            if let (Some(own), Some(parents)) = (order(block), order(parent)) {
                assert!(own < parents, "leaves go before their parents");
            }
        }
    }
}

fn blocks(count: usize) -> KvBlocks {
    let layout = KvLayout {
        block_tokens: BLOCK_TOKENS,
        blocks: count,
    };
    KvBlocks::new(layout, true)
}

/// Admits a sequence for its prompt and nothing more, runs it, and keeps it.
fn run(kv: &mut KvBlocks, prompt: &[u32]) -> BlockTable {
    let mut table = kv.admit(prompt, prompt.len(), true).expect("room");
    kv.extend(&mut table, prompt.len());
    kv.commit(&mut table, prompt);
    kv.assert_consistent();
    table
}

#[test]
fn a_sequence_is_admitted_only_if_all_its_blocks_can_be_promised() {
    let mut kv = blocks(4);
    let first = kv.admit(&[1, 2, 3], 5, true).unwrap();
    assert_eq!(
        (kv.used_tokens(), kv.reserved_tokens()),
        (0, 6),
        "three blocks promised, none taken"
    );
    assert!(kv.admit(&[4], 3, true).is_none());
    let second = kv.admit(&[4], 2, true).unwrap();
    kv.release(first);
    kv.release(second);
    kv.assert_consistent();
    assert_eq!(kv.reserved_tokens(), 0);
}

#[test]
fn a_hit_that_nobody_holds_is_no_longer_room_for_others() {
    let mut kv = blocks(4);
    let table = run(&mut kv, &[1, 2, 3, 4]);
    kv.release(table);
    let promised = kv.admit(&[9], 5, true).unwrap();
    assert!(
        kv.admit(&[1, 2, 3, 4, 5], 5, true).is_none(),
        "two hits and one more do not fit beside three"
    );
    kv.release(promised);
    let table = kv.admit(&[1, 2, 3, 4, 5], 5, true).unwrap();
    assert_eq!(kv.cached_tokens(&table), 4);
    kv.assert_consistent();
}

#[test]
fn a_hit_that_someone_holds_costs_nothing() {
    let mut kv = blocks(3);
    let _first = run(&mut kv, &[1, 2, 3, 4]);
    let second = kv.admit(&[1, 2, 3, 4, 5], 5, true);
    assert_eq!(second.map(|table| table.promised), Some(1));
}

#[test]
fn two_who_fill_the_same_block_end_with_one() {
    let mut kv = blocks(4);
    let mut first = kv.admit(&[1, 2, 3], 3, true).unwrap();
    let mut second = kv.admit(&[1, 2, 3], 3, true).unwrap();
    kv.extend(&mut first, 3);
    kv.extend(&mut second, 3);
    kv.commit(&mut first, &[1, 2, 3]);
    kv.commit(&mut second, &[1, 2, 3]);
    kv.assert_consistent();
    assert_eq!(first.blocks()[0], second.blocks()[0]);
    assert_ne!(
        first.blocks()[1],
        second.blocks()[1],
        "a block that is not full is its owner's"
    );
    assert_eq!(kv.used_tokens(), 3 * BLOCK_TOKENS);
    kv.release(first);
    kv.assert_consistent();
    kv.release(second);
    kv.assert_consistent();
    assert_eq!((kv.used_tokens(), kv.kept_tokens()), (0, 2));
}

#[test]
fn taking_over_gives_back_what_was_promised_and_what_was_begun() {
    let mut kv = blocks(8);
    let prompt = [1, 2, 3, 4, 5];
    let mut follower = kv.admit(&prompt, 5, true).unwrap();
    kv.extend(&mut follower, 1);
    let leader = run(&mut kv, &prompt);
    assert_eq!(kv.take_over(&mut follower, &prompt), 4);
    assert_eq!(follower.blocks(), &leader.blocks()[..2]);
    assert_eq!(
        kv.reserved_tokens(),
        4 * BLOCK_TOKENS,
        "two together, one of the leader's, one promised"
    );
    kv.assert_consistent();
    kv.release(leader);
    kv.release(follower);
    kv.assert_consistent();
}

#[test]
fn the_last_token_of_a_prompt_is_never_taken_over() {
    let mut kv = blocks(4);
    let table = run(&mut kv, &[1, 2, 3, 4]);
    kv.release(table);
    let table = kv.admit(&[1, 2, 3, 4], 4, true).unwrap();
    assert_eq!(kv.cached_tokens(&table), 2);
}

#[test]
fn what_was_not_used_longest_goes_first() {
    let mut kv = blocks(4);
    for prompt in [[1, 2, 3, 4], [5, 6, 7, 8]] {
        let table = run(&mut kv, &prompt);
        kv.release(table);
    }
    let again = kv.admit(&[1, 2, 3, 4, 9], 4, true).unwrap();
    kv.release(again);
    let newer = run(&mut kv, &[10, 11, 12, 13]);
    assert_eq!(kv.evicted(), 2);
    assert!(kv.prefixes.find(None, &[5, 6]).is_none());
    assert!(kv.prefixes.find(None, &[1, 2]).is_some());
    kv.release(newer);
    kv.assert_consistent();
}

#[test]
fn a_sequence_that_does_not_cache_leaves_free_blocks() {
    let mut kv = blocks(4);
    let mut table = kv.admit(&[], 4, false).unwrap();
    kv.extend(&mut table, 4);
    kv.commit(&mut table, &[1, 2, 3, 4]);
    assert_eq!(kv.next_block(&table, 100), None);
    kv.release(table);
    assert_eq!((kv.kept_tokens(), kv.free.len()), (0, 4));
}
