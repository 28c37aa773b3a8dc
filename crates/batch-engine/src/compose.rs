//! What goes into a step.

use crate::Output;
use crate::kv::KvBlocks;
use crate::sequence::Sequence;

/// Most tokens of prompts whose log-probabilities are wanted in one step: each takes a row as long as the vocabulary.
const LOGIT_ROWS: usize = 16;

/// One sequence's part in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Its place among the running sequences.
    pub(crate) place: usize,
    /// How many tokens are fed.
    pub(crate) tokens: usize,
    pub(crate) output: Output,
}

/// Composes steps.
///
/// Each decoding sequence whose reader has room gets a token. Up to `prefill_chunk` tokens of prompts come along: half
/// of them are for the oldest prompt, so that it goes on whatever arrives, and the others for those that have the fewest
/// tokens left, so that a short prompt does not stand behind a long one.
///
/// Where two sequences would fill the same block of the prefix cache, one does and the other is left out; it takes over
/// the block once it is full. It waits only in a step in which the other one gets on, so both do.
#[derive(Debug)]
pub(crate) struct Composer {
    prefill_chunk: usize,
    // Kept between steps for their memory.
    shares: Vec<Share>,
    prompts: Vec<usize>,
}

impl Composer {
    pub(crate) fn new(prefill_chunk: usize) -> Self {
        Self {
            prefill_chunk,
            shares: Vec::new(),
            prompts: Vec::new(),
        }
    }

    /// Composes the next step and takes its blocks from `kv`. `running` is in the order of admission.
    pub(crate) fn compose(&mut self, running: &mut [Sequence], kv: &mut KvBlocks) {
        self.shares.clear();
        self.prompts.clear();
        for (place, sequence) in running.iter_mut().enumerate() {
            if sequence.prompt_left() > 0 {
                sequence.take_over(kv);
                self.prompts.push(place);
            } else if sequence.has_room() {
                self.shares.push(Share {
                    place,
                    tokens: 1,
                    output: Output::Last,
                });
            }
        }
        if !self.prompts.is_empty() {
            self.add_prompts(running, kv);
        }
        for share in &self.shares {
            running[share.place].extend(share.tokens, kv);
        }
    }

    /// The step composed last, in the order of admission. Empty where there is nothing to run.
    pub(crate) fn shares(&self) -> &[Share] {
        &self.shares
    }

    fn add_prompts(&mut self, running: &[Sequence], kv: &KvBlocks) {
        let mut grants = Grants {
            running,
            kv,
            first: self.shares.len(),
            tokens: self.prefill_chunk,
            logit_rows: LOGIT_ROWS,
        };
        let oldest = self.prompts[0];
        grants.grant(&mut self.shares, oldest, self.prefill_chunk.div_ceil(2));
        self.prompts
            .sort_unstable_by_key(|&place| (running[place].prompt_left(), place));
        for &place in &self.prompts {
            grants.grant(&mut self.shares, place, self.prefill_chunk);
        }
        self.shares.sort_unstable_by_key(|share| share.place);
    }
}

/// What a step still has room for.
struct Grants<'a> {
    running: &'a [Sequence],
    kv: &'a KvBlocks,
    /// The shares of prompts start here.
    first: usize,
    tokens: usize,
    logit_rows: usize,
}

impl Grants<'_> {
    /// Gives a prompt up to `limit` tokens, on top of what it has got.
    fn grant(&mut self, shares: &mut Vec<Share>, place: usize, limit: usize) {
        let sequence = &self.running[place];
        let prompts = &mut shares[self.first..];
        let present = prompts.iter_mut().find(|share| share.place == place);
        let granted = present.as_ref().map_or(0, |share| share.tokens);
        let mut tokens = (sequence.prompt_left() - granted).min(limit).min(self.tokens);
        if sequence.output(tokens) == Output::All {
            tokens = tokens.min(self.logit_rows);
            self.logit_rows -= tokens;
        }
        if tokens == 0 {
            return;
        }
        let output = sequence.output(granted + tokens);
        if let Some(share) = present {
            share.tokens += tokens;
            share.output = output;
        } else {
            let is_run_by = |share: &Share| sequence.can_wait_for(&self.running[share.place], self.kv);
            if shares[self.first..].iter().any(is_run_by) {
                return;
            }
            shares.push(Share { place, tokens, output });
        }
        self.tokens -= tokens;
    }
}
