//! What the worker is and does, for everybody who asks: handlers, heartbeats, metrics.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use batch_engine::{EngineHandle, Load, Pooling};
use daemon::Shutdown;
use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId, WorkerId};
use tokio::sync::{Semaphore, watch};

use crate::language::Language;
use crate::metrics::Metrics;

/// The life of a worker.
///
/// `Starting` to `Serving` once the model is loaded; both to `Draining` when asked to end, and to `Failed` when the model
/// cannot be loaded or the engine breaks; `Draining` to `Stopped`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// Fetches and loads the model.
    Starting(Step),
    /// Answers requests.
    Serving,
    /// Finishes what it has.
    Draining,
    /// Has finished.
    Stopped,
    /// Cannot serve, for this reason.
    Failed(Arc<str>),
}

/// How far the start is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    /// A short word, for example `download`, `load`, `warm_up`.
    pub(crate) name: &'static str,
    /// How much of the step is done, 0 to 1, where that is known.
    pub(crate) progress: Option<f32>,
}

/// What does not change while the process lives.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) worker_id: WorkerId,
    pub(crate) model_id: ModelId,
    pub(crate) device: String,
    pub(crate) port: u16,
    pub(crate) advertise_host: Option<String>,
    pub(crate) hive_id: Option<HiveId>,
    /// Slots that are asked for.
    pub(crate) slots: u32,
}

/// Memory of a loaded model, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The weights, as they lie on the device.
    pub weight_bytes: u64,
    /// The whole KV cache; the system gives the room as it is used.
    pub kv_cache_bytes: u64,
    /// What computing a step needs beside them.
    pub scratch_bytes: u64,
}

/// A model that is loaded and runs.
pub(crate) struct Served {
    pub(crate) engine: EngineHandle,
    pub(crate) language: Arc<dyn Language>,
    /// How an embedding is made of hidden states.
    pub(crate) pooling: Pooling,
    /// Values of an embedding.
    pub(crate) hidden_size: usize,
    pub(crate) memory: Memory,
    /// Answers that the engine can hold at a time: those that it computes and those that wait.
    pub(crate) capacity: usize,
    /// The file's checksum, where it is known.
    pub(crate) revision: Option<String>,
    /// When it became ready, in seconds since the epoch.
    pub(crate) created: i64,
    /// Held while a prompt is being tokenized, since a long one computes for seconds.
    pub(crate) encoders: Arc<Semaphore>,
}

/// Prompts that are tokenized at a time; further ones wait.
pub(crate) const ENCODERS: usize = 2;

impl Served {
    /// Whether a further request would have to wait: for a slot, or behind one that waits for room in the KV cache.
    pub(crate) fn is_busy(&self, load: &Load) -> bool {
        load.running >= self.engine.max_sequences() || load.waiting > 0
    }
}

/// The worker as a whole; shared by all that it runs.
pub(crate) struct State {
    pub(crate) identity: Identity,
    pub(crate) metrics: Metrics,
    /// Asked to end by `POST /v1/drain`, as by a signal.
    pub(crate) shutdown: Shutdown,
    /// How long running requests may take once it is asked to end.
    pub(crate) grace: watch::Sender<Duration>,
    phase: watch::Sender<Phase>,
    served: OnceLock<Arc<Served>>,
}

impl State {
    pub(crate) fn new(identity: Identity, grace: Duration, shutdown: Shutdown) -> Self {
        let step = Step {
            name: "resolve",
            progress: None,
        };
        Self {
            identity,
            metrics: Metrics::new(),
            shutdown,
            grace: watch::Sender::new(grace),
            phase: watch::Sender::new(Phase::Starting(step)),
            served: OnceLock::new(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// The model, from the moment it was ready on, also while draining.
    pub(crate) fn served(&self) -> Option<&Arc<Served>> {
        self.served.get()
    }

    /// The start has come this far.
    pub(crate) fn starting(&self, step: Step) {
        self.change(|phase| matches!(phase, Phase::Starting(_)).then_some(Phase::Starting(step)));
    }

    /// The model is ready.
    pub(crate) fn serve(&self, served: Served) {
        let served = self.served.get_or_init(|| Arc::new(served));
        self.metrics.watch_engine(served.engine.clone(), served.memory);
        self.metrics.activity().reset(Instant::now());
        self.change(|phase| matches!(phase, Phase::Starting(_)).then_some(Phase::Serving));
    }

    /// Nothing new is taken from now on.
    pub(crate) fn drain(&self) {
        self.change(|phase| matches!(phase, Phase::Starting(_) | Phase::Serving).then_some(Phase::Draining));
        if let Some(served) = self.served() {
            served.engine.drain();
        }
    }

    /// Everything is finished.
    pub(crate) fn stop(&self) {
        self.change(|phase| matches!(phase, Phase::Draining).then_some(Phase::Stopped));
    }

    /// It cannot go on.
    pub(crate) fn fail(&self, reason: &str) {
        self.change(|phase| matches!(phase, Phase::Starting(_) | Phase::Serving).then(|| Phase::Failed(reason.into())));
    }

    fn change(&self, next: impl FnOnce(&Phase) -> Option<Phase>) {
        self.phase.send_if_modified(|phase| match next(phase) {
            Some(next) if next != *phase => {
                *phase = next;
                true
            }
            _ => false,
        });
    }
}
