//! Which device of which host takes a model, and who makes room for it.
//!
//! What is wanted of [`decide`], and property-tested below:
//! 1. Never over capacity: what is granted fits into what is free and what the evicted give back, and into the device.
//! 2. Never on a closed host or device.
//! 3. Never at the cost of a worker that is busy or pinned, nor of one of the same model.
//! 4. Nobody is evicted where the model fits somewhere without; else the fewest on one device that suffice, and of those
//!    spare workers of models that run elsewhere, too, before others, and the longest idle before the lately used.
//! 5. If any device has room, or would have it after an eviction that is allowed, the model is placed.
//! 6. A GPU before the main processor, fewer evictions before more, a host that has the file before one that has not, a
//!    larger cache before a smaller one; then by strategy.
//! 7. Every device of every host has its verdict, in the order given, with the figures, and where it could have taken the
//!    model, the criterion that spoke for the chosen one.
//! 8. The same problem gives the same decision, among equals the first device; so a decision can be replayed from its
//!    record.

mod decide;
mod display;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::decide::decide;
use crate::Need;

/// A model to be placed, and all that the decision depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The model.
    pub model: String,
    /// What it takes.
    pub need: ModelNeed,
    /// Where among equals.
    #[serde(default)]
    pub strategy: Strategy,
    /// Whether idle workers of other models may be stopped for it.
    pub may_evict: bool,
    /// The hosts, in an order that stays the same.
    pub hosts: Vec<Host>,
}

/// What a model takes of a device, by what computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNeed {
    /// On the main processor.
    pub cpu: Need,
    /// On a GPU.
    pub gpu: Need,
}

/// Which of several devices that could take a model equally well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// On a host with fewer workers of the model, so that a host's end does not take all of them; then where the largest
    /// share of the memory is free: load and heat are shared.
    #[default]
    Spread,
    /// Where the least memory is free: large gaps stay for large models.
    Pack,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Names it.
    pub id: String,
    /// Why nothing may be started there now: it is drained, lost, or failed with this model a moment ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
    /// Whether it has the model's file already.
    pub has_file: bool,
    /// What computes there.
    pub devices: Vec<Device>,
}

/// A device that might take the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Names it within its host.
    pub id: String,
    /// Whether it is a GPU.
    pub is_gpu: bool,
    /// Memory that there is.
    pub total_bytes: u64,
    /// Of that, what may be promised now.
    pub free_bytes: u64,
    /// Why nothing may be started there now: its owner is at work, no engine runs on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
    /// The workers there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<Tenant>,
}

/// A worker on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Names the worker.
    pub worker: String,
    /// Its model.
    pub model: String,
    /// What is free once it is gone and was not before.
    pub bytes: u64,
    /// For how long it had nothing to do; `None`: it is busy or starting.
    pub idle_ms: Option<u64>,
    /// It is to stay, whatever comes.
    pub pinned: bool,
    /// Its model runs elsewhere, too.
    pub is_replica: bool,
}

/// Where the model goes, or that it goes nowhere, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Where it goes; `None`: nowhere.
    pub choice: Option<Choice>,
    /// Of every device of every host, in the order of the problem.
    pub verdicts: Vec<Verdict>,
}

/// Where a model goes, and what it is granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The host.
    pub host: String,
    /// The device.
    pub device: String,
    /// Tokens of its KV cache.
    pub kv_tokens: u64,
    /// Memory that it may take in all.
    pub bytes: u64,
    /// Workers on that device that are to be stopped first.
    pub evict: Vec<String>,
}

/// What was found about a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The host.
    pub host: String,
    /// The device.
    pub device: String,
    /// Whether it can take the model.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What spoke for the chosen device and against this one, where both can take the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_by: Option<Criterion>,
    /// Bytes that the model takes there with the smallest cache.
    pub needs_bytes: u64,
    /// Bytes that may be promised.
    pub free_bytes: u64,
    /// Bytes that the device has.
    pub total_bytes: u64,
}

/// Whether a device can take a model. In JSON the member `outcome` of the verdict, and the members of the variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It takes it.
    Chosen,
    /// It could take it as it is.
    Fits,
    /// It could take it in the place of idle workers.
    FitsAfterEviction {
        /// Those workers.
        evict: Vec<String>,
        /// What they give back.
        frees_bytes: u64,
    },
    /// There is too little room, whoever may be evicted.
    TooSmall {
        /// What the workers that may be evicted would give back.
        evictable_bytes: u64,
        /// Workers that are busy or start, and may go later.
        busy: usize,
        /// Workers that are to stay, busy or not.
        pinned: usize,
    },
    /// Nothing may be started there.
    Closed {
        /// Why not.
        why: String,
    },
}

/// By what two devices that could take a model are compared, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// Nobody is evicted.
    NoEviction,
    /// A GPU before the main processor.
    Gpu,
    /// Fewer are evicted.
    FewerEvictions,
    /// Fewer are evicted whose model runs nowhere else.
    SpareEvictions,
    /// Its host has fewer workers of the model ([`Strategy::Spread`]).
    OtherHost,
    /// Its host has the file.
    HasFile,
    /// A larger cache, where one of them has no room for all that is wanted.
    LargerCache,
    /// Who is evicted was idle for longer.
    LongerIdle,
    /// The larger share is free ([`Strategy::Spread`]).
    FreeShare,
    /// Less is free ([`Strategy::Pack`]).
    Tighter,
    /// Nothing else: it comes first.
    Order,
}
