//! A running sequence, and what a step does for it.

use std::mem;

use tokio::sync::oneshot;

use crate::compose::Share;
use crate::embedding::Pooler;
use crate::generation::{Beginning, Reply};
use crate::kv::{BlockTable, KvBlocks};
use crate::sampling::{Choice, Sampler, Scratch};
use crate::shared::Waiting;
use crate::trace::Trace;
use crate::{FinishReason, Model, Output, StepInput, TokenLogprobs};

/// Whether a request was completed, or why not.
pub(crate) type Outcome = Result<(), String>;

/// What a sequence is run for, and who waits for it.
pub(crate) enum Task {
    Answer(Box<Answer>),
    Embedding(Box<Embedding>),
}

/// An answer being generated.
pub(crate) struct Answer {
    reply: Reply,
    sampler: Sampler,
    /// Asked for, with so many alternatives.
    prompt_logprobs: Option<(usize, Vec<Option<TokenLogprobs>>)>,
    /// Why it is complete, once it is.
    reason: FinishReason,
}

/// A text being embedded.
pub(crate) struct Embedding {
    reply: oneshot::Sender<Result<Vec<f32>, String>>,
    pooler: Pooler,
    /// Complete when the outcome is.
    values: Vec<f32>,
}

impl Task {
    pub(crate) fn answer(reply: Reply, sampler: Sampler, prompt_logprobs: Option<usize>) -> Self {
        Self::Answer(Box::new(Answer {
            reply,
            sampler,
            // Nothing is known of the first token.
            prompt_logprobs: prompt_logprobs.map(|alternatives| (alternatives, vec![None])),
            reason: FinishReason::Length,
        }))
    }

    pub(crate) fn embedding(reply: oneshot::Sender<Result<Vec<f32>, String>>, pooler: Pooler) -> Self {
        Self::Embedding(Box::new(Embedding {
            reply,
            pooler,
            values: Vec::new(),
        }))
    }

    /// Whether the model has anything to do for an answer of at most `max_tokens` tokens, or an embedding.
    pub(crate) fn needs_model(&self, max_tokens: usize) -> bool {
        match self {
            Self::Answer(answer) => max_tokens > 0 || answer.prompt_logprobs.is_some(),
            Self::Embedding(_) => true,
        }
    }

    /// Whether no output of the prompt is wanted, so that its beginning may come from the prefix cache, or from another
    /// sequence that is just running it.
    pub(crate) fn shares_prefix(&self) -> bool {
        matches!(self, Self::Answer(answer) if answer.prompt_logprobs.is_none())
    }

    /// Whether its blocks go to the prefix cache. Embedded texts are not continued.
    pub(crate) fn fills_cache(&self) -> bool {
        matches!(self, Self::Answer(_))
    }

    /// Tells the reader how it ended.
    pub(crate) fn finish(self, outcome: Outcome) {
        match self {
            Self::Answer(answer) => answer.reply.finish(outcome.map(|()| answer.reason)),
            Self::Embedding(embedding) => {
                let Embedding { reply, values, .. } = *embedding;
                // An error says that the reader has left.
                let _ = reply.send(outcome.map(|()| values));
            }
        }
    }

    fn is_abandoned(&self) -> bool {
        match self {
            Self::Answer(answer) => answer.reply.is_abandoned(),
            Self::Embedding(embedding) => embedding.reply.is_closed(),
        }
    }
}

/// A request that has a slot and KV blocks.
pub(crate) struct Sequence {
    trace: Trace,
    /// Set when the request is complete or broken; the sequence is in no further step.
    pub(crate) outcome: Option<Outcome>,
    task: Task,
    /// The prompt, then the answer.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    max_tokens: usize,
    /// The first so many tokens are in its blocks.
    fed: usize,
    /// Prompt tokens that others have run.
    cached_tokens: usize,
    table: BlockTable,
}

/// What a step did for a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Prompt tokens run.
    pub(crate) prefilled: usize,
    /// Prompt tokens that could have been in the prefix cache, and those that were; said when the prompt is complete.
    pub(crate) looked_up: usize,
    pub(crate) hit: usize,
    /// Tokens sent to the reader.
    pub(crate) decoded: usize,
}

impl Sequence {
    /// The blocks for a sequence of the request, if there is room for it in `kv`.
    pub(crate) fn admit(waiting: &Waiting, kv: &mut KvBlocks) -> Option<BlockTable> {
        let task = &waiting.task;
        if !task.needs_model(waiting.max_tokens) {
            return kv.admit(&[], 0, false);
        }
        let reusable = if task.shares_prefix() { &*waiting.prompt } else { &[] };
        kv.admit(reusable, waiting.prompt.len() + waiting.max_tokens, task.fills_cache())
    }

    pub(crate) fn new(mut waiting: Waiting, table: BlockTable, kv: &KvBlocks) -> Self {
        let cached_tokens = kv.cached_tokens(&table);
        waiting.trace.prefill(waiting.prompt.len(), cached_tokens);
        Self {
            trace: waiting.trace,
            outcome: None,
            task: waiting.task,
            prompt_tokens: waiting.prompt.len(),
            tokens: waiting.prompt,
            max_tokens: waiting.max_tokens,
            fed: cached_tokens,
            cached_tokens,
            table,
        }
    }

    /// Whether it has ended, or its reader has left.
    pub(crate) fn has_ended(&self) -> bool {
        self.outcome.is_some() || self.task.is_abandoned()
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens of the prompt that are still to be run.
    pub(crate) fn prompt_left(&self) -> usize {
        self.prompt_tokens.saturating_sub(self.fed)
    }

    /// Whether its reader can take a token.
    pub(crate) fn has_room(&self) -> bool {
        match &self.task {
            Task::Answer(answer) => answer.reply.has_room(),
            Task::Embedding(_) => true,
        }
    }

    /// What is wanted of the next `tokens` tokens.
    pub(crate) fn output(&self, tokens: usize) -> Output {
        let completes_prompt = self.fed + tokens >= self.prompt_tokens;
        match &self.task {
            Task::Answer(answer) if answer.prompt_logprobs.is_some() && self.prompt_left() > 0 => Output::All,
            Task::Answer(_) if completes_prompt => Output::Last,
            Task::Embedding(embedding) if completes_prompt || embedding.pooler.needs_all() => Output::Hidden,
            Task::Answer(_) | Task::Embedding(_) => Output::Nothing,
        }
    }

    /// Goes on, while it is prefilled, with what others have put into the prefix cache meanwhile.
    pub(crate) fn take_over(&mut self, kv: &mut KvBlocks) {
        if self.task.shares_prefix() {
            let fed = kv.take_over(&mut self.table, &self.tokens[..self.prompt_tokens]);
            self.cached_tokens += fed.saturating_sub(self.fed);
            self.fed = self.fed.max(fed);
        }
    }

    /// Whether the block of the prompt that it fills next is the one that `other` fills next, so that it need not be
    /// filled twice.
    pub(crate) fn can_wait_for(&self, other: &Self, kv: &KvBlocks) -> bool {
        let key = |sequence: &'_ Self, prompt_tokens: usize| {
            let shares = sequence.task.shares_prefix();
            shares.then(|| kv.next_block(&sequence.table, prompt_tokens)).flatten()
        };
        // The last token of its own prompt has to be run.
        match (key(self, self.prompt_tokens - 1), key(other, other.prompt_tokens)) {
            (Some((parent, range)), Some(others)) => {
                (parent, &range) == (others.0, &others.1) && self.tokens[range.clone()] == other.tokens[range]
            }
            _ => false,
        }
    }

    /// Makes room for the next `tokens` tokens.
    pub(crate) fn extend(&mut self, tokens: usize, kv: &mut KvBlocks) {
        kv.extend(&mut self.table, self.fed + tokens);
    }

    /// What the model is fed for `share`.
    pub(crate) fn input(&self, share: &Share) -> StepInput<'_> {
        StepInput {
            tokens: &self.tokens[self.fed..self.fed + share.tokens],
            position: self.fed,
            blocks: self.table.blocks(),
            output: share.output,
        }
    }

    /// The model has run `share` and returned `rows`.
    pub(crate) fn advance(
        &mut self,
        share: &Share,
        rows: &mut [f32],
        kv: &mut KvBlocks,
        model: &dyn Model,
        scratch: &mut Scratch,
    ) -> Progress {
        let was_prefilling = self.prompt_left() > 0;
        let start = self.fed;
        self.fed += share.tokens;
        kv.commit(&mut self.table, &self.tokens[..self.fed]);
        let mut progress = Progress::default();
        if was_prefilling {
            progress.prefilled = share.tokens;
            if let Err(reason) = self.take_prompt_rows(start, rows, model.vocab_size(), scratch) {
                self.outcome = Some(Err(reason));
                return progress;
            }
        }
        if self.prompt_left() > 0 {
            return progress;
        }
        let shares_prefix = self.task.shares_prefix();
        match &mut self.task {
            Task::Embedding(embedding) => {
                self.outcome = Some(embedding.pooler.finish().map(|values| embedding.values = values));
            }
            Task::Answer(answer) => {
                if was_prefilling {
                    if shares_prefix && kv.caches() {
                        progress.looked_up = self.prompt_tokens - 1;
                        progress.hit = self.cached_tokens;
                    }
                    answer.begin(self.cached_tokens);
                    self.trace.decode();
                }
                progress.decoded = self.choose_next(rows, model, scratch);
            }
        }
        progress
    }

    /// What is wanted of the prompt itself, from `start`.
    fn take_prompt_rows(
        &mut self,
        start: usize,
        rows: &[f32],
        vocab_size: usize,
        scratch: &mut Scratch,
    ) -> Result<(), String> {
        match &mut self.task {
            Task::Embedding(embedding) => embedding.pooler.push(rows),
            Task::Answer(answer) => {
                let Some((alternatives, known)) = &mut answer.prompt_logprobs else {
                    return Ok(());
                };
                let next = &self.tokens[start + 1..self.prompt_tokens];
                for (row, &token) in rows.chunks_exact(vocab_size).zip(next) {
                    let logprobs = scratch.logprobs(row, token, *alternatives);
                    known.push(Some(logprobs.map_err(|error| error.to_string())?));
                }
            }
        }
        Ok(())
    }

    /// Chooses the next token from the last of `rows` and sends it to the reader. Returns how many tokens were sent.
    fn choose_next(&mut self, rows: &mut [f32], model: &dyn Model, scratch: &mut Scratch) -> usize {
        let Task::Answer(answer) = &mut self.task else { return 0 };
        if self.max_tokens == 0 {
            self.outcome = Some(Ok(()));
            return 0;
        }
        let last = rows.len() - model.vocab_size();
        let is_end = |token| model.is_end(token);
        match answer.sampler.choose(&mut rows[last..], &is_end, scratch) {
            Err(error) => {
                self.outcome = Some(Err(error.to_string()));
                0
            }
            Ok(Choice::End) => {
                answer.reason = FinishReason::EndOfText;
                self.outcome = Some(Ok(()));
                0
            }
            Ok(Choice::Token(token)) => {
                self.tokens.push(token.id);
                answer.reply.send(token);
                if self.tokens.len() == self.prompt_tokens + self.max_tokens {
                    self.outcome = Some(Ok(()));
                }
                1
            }
        }
    }

    /// Its blocks, which are to be given back, and what is left to tell the reader.
    pub(crate) fn end(mut self) -> (BlockTable, Ended) {
        let generated_tokens = self.generated();
        self.trace.end(generated_tokens);
        let ended = Ended {
            generated_tokens,
            trace: self.trace,
            task: self.task,
            outcome: self.outcome,
        };
        (self.table, ended)
    }
}

impl Answer {
    /// The prompt is complete.
    fn begin(&mut self, cached_tokens: usize) {
        let prompt_logprobs = self.prompt_logprobs.as_mut().map(|(_, known)| mem::take(known));
        self.reply.begin(Beginning {
            cached_tokens,
            prompt_logprobs,
        });
    }
}

/// A sequence that is no longer among the running ones, and whose reader has not been told.
pub(crate) struct Ended {
    pub(crate) trace: Trace,
    pub(crate) task: Task,
    /// `None`: the reader has left.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) generated_tokens: usize,
}
