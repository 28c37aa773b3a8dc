//! What the worker tells its queens, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use batch_engine::Load;
use chrono::{DateTime, Utc};
use heartbeat_client::{Error, Queens, Source, Token};
use shared_contract::Delivery;
use worker_contract::{Endpoint, Feature, StatusDetail, WorkerHeartbeat, WorkerInfo, WorkerLoad, WorkerStatus};

use crate::config::Config;
use crate::state::{Phase, Served, State};

/// Pause after a beat for a change, so that a worker whose slots fill and empty quickly does not flood its queens.
const SETTLE: Duration = Duration::from_millis(100);

/// Share of a step that is worth a beat.
const PROGRESS_STEPS: f32 = 10.0;

/// Starts to beat to the queens of the settings, and beats at once whenever the status changes.
pub(crate) fn start(config: &Config, http: reqwest::Client, state: &Arc<State>) -> Result<Queens, Error> {
    let told_work = Arc::<AtomicBool>::default();
    let token = config.token.as_ref().map(|token| Token::new(token.expose()));
    let queens = Queens::new(http, token, config.incarnation, {
        let (state, told_work) = (Arc::clone(state), Arc::clone(&told_work));
        move || Arc::new(Beats::new(Arc::clone(&state), Arc::clone(&told_work))) as _
    });
    // A hive's worker has all its queens from the hive, which knows better which of them to keep.
    let is_pinned = config.hive_id.is_none();
    for url in &config.queen_urls {
        queens.add(url.clone(), is_pinned)?;
    }
    tokio::spawn(beat_on_change(Arc::clone(state), queens.clone(), told_work));
    Ok(queens)
}

/// Beats at once whenever the status changes. Ends when the worker's life has ended; the goodbye tells the last status.
async fn beat_on_change(state: Arc<State>, queens: Queens, told_work: Arc<AtomicBool>) {
    let mut phases = state.watch();
    let mut loads = None;
    let mut told = None;
    loop {
        let phase = phases.borrow_and_update().clone();
        if matches!(phase, Phase::Stopped | Phase::Failed(_)) {
            return;
        }
        if loads.is_none() {
            loads = state.served().map(|served| served.engine.watch_load());
        }
        let load = loads.as_mut().map(|loads| *loads.borrow_and_update());
        let news = news(&phase, is_busy(&state, load.as_ref()));
        // A beat that told of work must not stand for an interval once there is none; one more beat at most for each.
        let is_idle = load.is_some_and(|load| load.running + load.waiting == 0);
        let rests = is_idle && told_work.swap(false, Ordering::Relaxed);
        if told.replace(news) != Some(news) || rests {
            queens.beat_now();
            tokio::time::sleep(SETTLE).await;
        }
        let load_changed = async {
            match &mut loads {
                Some(loads) => loads.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let is_alive = tokio::select! {
            changed = phases.changed() => changed.is_ok(),
            changed = load_changed => changed || phases.changed().await.is_ok(),
        };
        if !is_alive {
            return;
        }
    }
}

/// What is worth a beat when it changes: the status, the step, every tenth of a step.
fn news(phase: &Phase, is_busy: bool) -> (WorkerStatus, Option<&'static str>, u8) {
    let status = status(phase, is_busy);
    match phase {
        Phase::Starting(step) => {
            let tenths = step.progress.map_or(0, |progress| (progress * PROGRESS_STEPS) as u8);
            (status, Some(step.name), tenths)
        }
        _ => (status, None, 0),
    }
}

/// The status in the words of the contract.
pub(crate) fn status(phase: &Phase, is_busy: bool) -> WorkerStatus {
    match phase {
        Phase::Starting(_) => WorkerStatus::Starting,
        Phase::Serving if is_busy => WorkerStatus::Busy,
        Phase::Serving => WorkerStatus::Ready,
        Phase::Draining => WorkerStatus::Draining,
        Phase::Stopped => WorkerStatus::Stopped,
        Phase::Failed(_) => WorkerStatus::Failed,
    }
}

/// What belongs to the status.
pub(crate) fn detail(phase: &Phase) -> Option<StatusDetail> {
    match phase {
        Phase::Starting(step) => Some(StatusDetail {
            phase: Some(step.name.to_owned()),
            progress: step.progress,
            reason: None,
        }),
        Phase::Failed(reason) => Some(StatusDetail {
            reason: Some(reason.to_string()),
            ..StatusDetail::default()
        }),
        Phase::Serving | Phase::Draining | Phase::Stopped => None,
    }
}

fn is_busy(state: &State, load: Option<&Load>) -> bool {
    match (state.served(), load) {
        (Some(served), Some(load)) => served.is_busy(load),
        _ => false,
    }
}

/// Builds the beats from the state as it is.
pub(crate) struct Beats {
    state: Arc<State>,
    /// Whether a beat told of requests since the last one that told of none.
    told_work: Arc<AtomicBool>,
}

impl Beats {
    /// For one queen; all share what was told.
    pub(crate) fn new(state: Arc<State>, told_work: Arc<AtomicBool>) -> Self {
        Self { state, told_work }
    }
}

impl Source<WorkerHeartbeat> for Beats {
    fn build(&self, _delivery: Delivery) -> WorkerHeartbeat {
        let load = self.state.served().map(|served| served.engine.load());
        if load.is_some_and(|load| load.running + load.waiting > 0) {
            self.told_work.store(true, Ordering::Relaxed);
        }
        build(&self.state, load.as_ref(), Utc::now())
    }
}

/// A beat, but for its stamp.
fn build(state: &State, load: Option<&Load>, timestamp: DateTime<Utc>) -> WorkerHeartbeat {
    let phase = state.phase();
    let identity = state.identity.clone();
    let served = state.served();
    let slots = served.map_or(identity.slots, |served| saturate(served.engine.max_sequences()));
    WorkerHeartbeat {
        worker: WorkerInfo {
            id: identity.worker_id,
            model_id: identity.model_id,
            device: identity.device,
            port: identity.port,
            status: status(&phase, is_busy(state, load)),
            implementation: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: identity.advertise_host,
            hive_id: identity.hive_id,
            incarnation: 0,
            slots,
            context_length: served.map_or(0, |served| saturate(served.engine.context_length())),
            model_revision: served.and_then(|served| served.revision.clone()),
            endpoints: endpoints(served),
            features: features(served),
            pid: Some(std::process::id()),
            status_detail: detail(&phase),
        },
        timestamp,
        seq: 0,
        load: load.map(figures).unwrap_or_default(),
    }
}

/// Before the model is loaded nobody knows whether it can chat; the queen asks again with the first ready beat.
fn endpoints(served: Option<&Arc<Served>>) -> Vec<Endpoint> {
    match served {
        Some(served) if !served.language.has_chat_template() => vec![Endpoint::Completions, Endpoint::Embeddings],
        _ => vec![Endpoint::ChatCompletions, Endpoint::Completions, Endpoint::Embeddings],
    }
}

fn features(served: Option<&Arc<Served>>) -> Vec<Feature> {
    match served {
        Some(served) if !served.language.has_chat_template() => vec![Feature::Resume],
        _ => vec![Feature::Resume, Feature::ContinueFinalMessage, Feature::CountTokens],
    }
}

fn figures(load: &Load) -> WorkerLoad {
    WorkerLoad {
        running: saturate(load.running),
        waiting: saturate(load.waiting),
        kv_used_tokens: load.kv_used_tokens as u64,
        kv_total_tokens: load.kv_total_tokens as u64,
        tokens_per_second: load.tokens_per_second,
    }
}

fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
