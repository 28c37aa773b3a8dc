//! What handles, readers and the step loop share: the queue, the figures, the life-cycle.
//!
//! The lock is held for a few microseconds at a time, never across a step or an await.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::sequence::Task;
use crate::trace::Trace;
use crate::{Counters, Load, SubmitError};

/// The engine's life. `Running -> Draining -> Stopped`; `Running | Draining -> Failed`, which is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// Takes requests.
    Running,
    /// Finishes what it has, takes nothing new.
    Draining,
    /// The model broke, and how. All requests have been told.
    Failed(String),
    /// Drained, and the model is dropped.
    Stopped,
}

/// A request that waits for admission.
pub(crate) struct Waiting {
    pub(crate) id: u64,
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) task: Task,
    pub(crate) trace: Trace,
}

/// What is fixed at the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_sequences: usize,
    pub(crate) queue_limit: usize,
    pub(crate) token_buffer: usize,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    /// Tokens that one sequence may have, prompt and answer together, and that always fit into the KV cache.
    pub(crate) context_length: usize,
    pub(crate) kv_total_tokens: usize,
}

pub(crate) struct Shared {
    pub(crate) limits: Limits,
    inbox: Mutex<Inbox>,
    attention: Condvar,
    /// Changed only while `inbox` is locked.
    pub(crate) state: watch::Sender<EngineState>,
    /// Changed only while `inbox` is locked.
    pub(crate) load: watch::Sender<Load>,
    /// Cancelled when the thread has dropped the model.
    pub(crate) ended: CancellationToken,
}

#[derive(Default)]
struct Inbox {
    queue: VecDeque<Waiting>,
    /// Slots taken, as of the last step.
    running: usize,
    next_id: u64,
    /// Something has happened since the step loop last looked.
    needs_attention: bool,
    counters: Counters,
}

/// What the step loop reports after a change.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) running: usize,
    pub(crate) kv_used_tokens: usize,
    pub(crate) kv_reserved_tokens: usize,
    pub(crate) kv_cached_tokens: usize,
    pub(crate) tokens_per_second: f64,
    /// What was counted since the last report.
    pub(crate) counted: Counters,
}

impl Shared {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            inbox: Mutex::default(),
            attention: Condvar::new(),
            state: watch::Sender::new(EngineState::Running),
            load: watch::Sender::new(Load {
                kv_total_tokens: limits.kv_total_tokens,
                ..Load::default()
            }),
            ended: CancellationToken::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // No code that can panic runs between two related changes, so what a poisoned lock guards is whole.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- called by handles and readers ----

    /// Queues what `make` builds around the request's id.
    pub(crate) fn enqueue<T>(&self, make: impl FnOnce(u64) -> (T, Waiting)) -> Result<T, SubmitError> {
        let mut inbox = self.lock();
        match &*self.state.borrow() {
            EngineState::Running => {}
            EngineState::Draining | EngineState::Stopped => return Err(SubmitError::Draining),
            EngineState::Failed(reason) => return Err(SubmitError::Failed(reason.clone())),
        }
        let free_slots = self.limits.max_sequences.saturating_sub(inbox.running);
        if inbox.queue.len() >= free_slots.saturating_add(self.limits.queue_limit) {
            return Err(SubmitError::QueueFull {
                limit: self.limits.queue_limit,
            });
        }
        let (result, waiting) = make(inbox.next_id);
        inbox.next_id += 1;
        inbox.queue.push_back(waiting);
        self.call_attention(&mut inbox);
        self.publish_waiting(&inbox);
        Ok(result)
    }

    /// The reader of request `id` has left.
    pub(crate) fn abandon(&self, id: u64) {
        let mut inbox = self.lock();
        if let Some(place) = inbox.queue.iter().position(|waiting| waiting.id == id) {
            inbox.queue.remove(place);
            inbox.counters.cancelled += 1;
            self.publish_waiting(&inbox);
        }
        self.call_attention(&mut inbox);
    }

    /// Makes the step loop look at everything again.
    pub(crate) fn wake(&self) {
        self.call_attention(&mut self.lock());
    }

    /// No new requests from now on; the step loop ends when the others are done.
    pub(crate) fn drain(&self) {
        let mut inbox = self.lock();
        let changed = self.state.send_if_modified(|state| {
            let running = *state == EngineState::Running;
            if running {
                *state = EngineState::Draining;
            }
            running
        });
        if changed {
            tracing::info!(running = inbox.running, waiting = inbox.queue.len(), "engine drains");
            self.call_attention(&mut inbox);
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.lock().counters
    }

    // ---- called by the step loop ----

    /// Says that everything is about to be looked at: what happens from now on makes [`Self::sleep`] return at once.
    pub(crate) fn attend(&self) {
        self.lock().needs_attention = false;
    }

    /// Sleeps until something happens, at most for `limit`.
    pub(crate) fn sleep(&self, limit: Option<Duration>) {
        let inbox = self.lock();
        let is_quiet = |inbox: &mut Inbox| !inbox.needs_attention;
        match limit {
            Some(limit) => drop(self.attention.wait_timeout_while(inbox, limit, is_quiet)),
            None => drop(self.attention.wait_while(inbox, is_quiet)),
        }
    }

    /// Whether the engine drains and nothing waits.
    pub(crate) fn is_drained(&self) -> bool {
        let inbox = self.lock();
        inbox.queue.is_empty() && *self.state.borrow() == EngineState::Draining
    }

    /// Takes the request that has waited longest, if `room` finds room for it: strictly in order, so that a large one is
    /// not overtaken for ever by small ones. From now on it counts as running.
    pub(crate) fn admit<T>(&self, room: impl FnOnce(&Waiting) -> Option<T>) -> Option<(Waiting, T)> {
        let mut inbox = self.lock();
        let room = room(inbox.queue.front()?)?;
        let waiting = inbox.queue.pop_front()?;
        inbox.running += 1;
        Some((waiting, room))
    }

    /// Makes the step loop's figures visible.
    pub(crate) fn publish(&self, report: &Report) {
        let mut inbox = self.lock();
        inbox.running = report.running;
        inbox.counters.add(&report.counted);
        self.publish_load(Load {
            running: report.running,
            waiting: inbox.queue.len(),
            kv_used_tokens: report.kv_used_tokens,
            kv_reserved_tokens: report.kv_reserved_tokens,
            kv_cached_tokens: report.kv_cached_tokens,
            kv_total_tokens: self.limits.kv_total_tokens,
            tokens_per_second: report.tokens_per_second,
        });
    }

    /// Nothing is taken or run from now on. Returns the requests that waited.
    pub(crate) fn fail(&self, reason: &str) -> VecDeque<Waiting> {
        let mut inbox = self.lock();
        self.state.send_replace(EngineState::Failed(reason.to_owned()));
        let waiting = std::mem::take(&mut inbox.queue);
        self.publish_waiting(&inbox);
        waiting
    }

    /// The thread's last word: the model is gone.
    pub(crate) fn end(&self) {
        let inbox = self.lock();
        self.state.send_if_modified(|state| {
            let drained = *state == EngineState::Draining;
            if drained {
                *state = EngineState::Stopped;
            }
            drained
        });
        drop(inbox);
        self.ended.cancel();
    }

    fn call_attention(&self, inbox: &mut Inbox) {
        inbox.needs_attention = true;
        self.attention.notify_one();
    }

    fn publish_waiting(&self, inbox: &Inbox) {
        let load = *self.load.borrow();
        self.publish_load(Load {
            waiting: inbox.queue.len(),
            ..load
        });
    }

    fn publish_load(&self, load: Load) {
        self.load.send_if_modified(|published| {
            let changed = *published != load;
            *published = load;
            changed
        });
    }
}
