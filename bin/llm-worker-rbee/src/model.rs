//! From a model reference to a model in memory.

use std::sync::Arc;

use batch_engine::Pooling;
use candle_models::{ChatTemplate, DeviceSpec, LoadOptions, LoadedModel};
use model_store::{Hold, ModelStore, Phase, Progress, StoredModel};
use tokio_util::sync::CancellationToken;

use crate::RunError;
use crate::config::Config;
use crate::language::{Language, ModelLanguage};
use crate::state::{Memory, State, Step};

/// A model in memory, ready for the engine.
pub(crate) struct Loaded {
    pub(crate) model: Box<dyn batch_engine::Model>,
    pub(crate) language: Arc<dyn Language>,
    /// How an embedding is made of hidden states.
    pub(crate) pooling: Pooling,
    pub(crate) memory: Memory,
    /// The file's checksum, where it is known.
    pub(crate) revision: Option<String>,
    /// Keeps the files from being removed: this process may be started again. `None` for a model from elsewhere.
    pub(crate) hold: Option<Hold>,
}

/// Fetches the model's file if it is not there, and loads it. Dropping the future gives up the fetching.
pub(crate) async fn load(config: Config, state: Arc<State>) -> Result<Loaded, RunError> {
    let store = ModelStore::open(&config.models_dir)?;
    // Before the look at what is there, so that nobody removes it in between.
    let hold = store.hold(&config.model).await?;
    let stored = pull(&store, &config, &state).await?;
    state.starting(Step {
        name: "load",
        progress: Some(0.0),
    });
    let loading = tokio::task::spawn_blocking(move || read(&config, &stored, hold, &state));
    loading
        .await
        .map_err(|error| RunError::Model(format!("the loader broke off: {error}")))?
}

async fn pull(store: &ModelStore, config: &Config, state: &Arc<State>) -> Result<StoredModel, RunError> {
    let cancel = CancellationToken::new();
    let _cancel_when_dropped = cancel.clone().drop_guard();
    let report = {
        let state = Arc::clone(state);
        move |progress: Progress| state.starting(step(&progress))
    };
    let stored = store.pull(&config.model, report, &cancel).await?;
    tracing::info!(model = %config.model, path = %stored.path.display(), bytes = stored.size_bytes, "model is there");
    Ok(stored)
}

fn step(progress: &Progress) -> Step {
    let share = |total: u64| (progress.done_bytes as f64 / total.max(1) as f64).min(1.0) as f32;
    Step {
        name: match progress.phase {
            // The state says `load` next; until then nothing is left to fetch.
            Phase::Done => Phase::Verify.as_str(),
            phase => phase.as_str(),
        },
        progress: progress.total_bytes.map(share),
    }
}

fn read(config: &Config, stored: &StoredModel, hold: Hold, state: &State) -> Result<Loaded, RunError> {
    let options = LoadOptions {
        max_context: config.context_length,
        kv_tokens: config.kv_tokens,
        threads: config.threads,
        memory_limit: match config.device {
            DeviceSpec::Cpu | DeviceSpec::Metal(_) => {
                device_monitor::available_memory().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
            }
            // It has memory of its own.
            DeviceSpec::Cuda(_) => None,
        },
        ..LoadOptions::new(config.device)
    };
    let mut report = |progress: f32| {
        state.starting(Step {
            name: "load",
            progress: Some(progress),
        });
    };
    let LoadedModel {
        model,
        tokenizer,
        chat_template,
        info,
    } = candle_models::load(&stored.path, &options, &mut report)?;
    tracing::info!(
        family = %info.family,
        context_length = info.context_length,
        trained_context_length = info.trained_context_length,
        kv_tokens = info.kv_tokens,
        kv_bytes = info.kv_bytes,
        weight_bytes = info.weight_bytes,
        scratch_bytes = info.scratch_bytes,
        available_bytes = options.memory_limit,
        "model loaded"
    );
    let template = match &config.chat_template {
        Some(source) => Some(ChatTemplate::new(source, tokenizer.bos_token(), tokenizer.eos_token())?),
        None => chat_template,
    };
    Ok(Loaded {
        model,
        language: Arc::new(ModelLanguage::new(tokenizer, template)),
        pooling: info.pooling,
        memory: Memory {
            weight_bytes: info.weight_bytes as u64,
            kv_cache_bytes: info.kv_bytes as u64,
            scratch_bytes: info.scratch_bytes as u64,
        },
        revision: stored.sha256.clone(),
        hold: Some(hold),
    })
}
