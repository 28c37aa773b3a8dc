//! What the router asks of whoever knows which models there are and can start workers for them.

use std::time::Duration;

use shared_contract::ModelId;

use crate::Refusal;

/// Knows the models, and brings workers for those that are asked for. Called from requests: no method may block.
pub trait Supply: Send + Sync + 'static {
    /// The model that a client means by this name: its own name, or an alias.
    ///
    /// # Errors
    /// There is no such model; the message tells which there are.
    fn resolve(&self, name: &str) -> Result<ModelId, Refusal>;

    /// Requests for this model wait. Told when one begins to, and about once a second for as long as any do. What is
    /// begun because of it shows in [`prospect`](Self::prospect) as soon as this returns: a request that finds neither a
    /// worker nor a prospect is refused.
    fn demand(&self, model: &ModelId, demand: Demand);

    /// What those that wait for this model may hope for.
    fn prospect(&self, model: &ModelId) -> Prospect;
}

/// Who waits for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Requests in the line.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub longest_wait: Duration,
}

/// What those that wait for a model may hope for.
#[derive(Debug, Clone, PartialEq)]
pub enum Prospect {
    /// A worker is being started, or will be when its turn comes.
    Coming {
        /// What is done at the moment, for clients: `download`, `waits for memory`.
        words: String,
        /// How much of that is done, 0 to 1.
        progress: Option<f32>,
        /// Until it can answer.
        eta: Option<Duration>,
    },
    /// Nothing is on its way.
    None {
        /// Why nobody is free, for clients: it names no address.
        why: String,
        /// When to come back, where something is known.
        retry: Option<Duration>,
    },
}
