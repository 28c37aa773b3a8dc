//! From a model reference to a model in memory.

use std::sync::Arc;

use candle_models::{ChatTemplate, LoadOptions, LoadedModel};
use model_store::{ModelStore, Phase, Progress, StoredModel};
use tokio_util::sync::CancellationToken;

use crate::RunError;
use crate::config::Config;
use crate::language::{GgufLanguage, Language};
use crate::state::{State, Step};

/// A model in memory, ready for the engine.
pub(crate) struct Loaded {
    pub(crate) model: Box<dyn batch_engine::Model>,
    pub(crate) language: Arc<dyn Language>,
    /// The file's checksum, where it is known.
    pub(crate) revision: Option<String>,
}

/// Fetches the model's file if it is not there, and loads it. Dropping the future gives up the fetching.
pub(crate) async fn load(config: Config, state: Arc<State>) -> Result<Loaded, RunError> {
    let stored = pull(&config, &state).await?;
    state.starting(Step {
        name: "load",
        progress: Some(0.0),
    });
    let revision = stored.sha256.clone();
    let loading = tokio::task::spawn_blocking(move || read(&config, &stored, &state));
    let (model, language) = loading
        .await
        .map_err(|error| RunError::Model(format!("the loader broke off: {error}")))??;
    Ok(Loaded {
        model,
        language: Arc::new(language),
        revision,
    })
}

async fn pull(config: &Config, state: &Arc<State>) -> Result<StoredModel, RunError> {
    let store = ModelStore::open(&config.models_dir)?;
    let cancel = CancellationToken::new();
    let _cancel_when_dropped = cancel.clone().drop_guard();
    let report = {
        let state = Arc::clone(state);
        move |progress: Progress| state.starting(step(progress))
    };
    let stored = store.pull(&config.model, report, &cancel).await?;
    tracing::info!(model = %config.model, path = %stored.path.display(), bytes = stored.size_bytes, "model file is there");
    Ok(stored)
}

fn step(progress: Progress) -> Step {
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

fn read(
    config: &Config,
    stored: &StoredModel,
    state: &State,
) -> Result<(Box<dyn batch_engine::Model>, GgufLanguage), RunError> {
    let options = LoadOptions {
        max_context: config.context_length,
        kv_tokens: config.kv_tokens,
        threads: config.threads,
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
        kv_bytes_per_token = info.kv_bytes_per_token,
        weight_bytes = info.weight_bytes,
        "model loaded"
    );
    let template = match &config.chat_template {
        Some(source) => Some(ChatTemplate::new(source, tokenizer.bos_token(), tokenizer.eos_token())?),
        None => chat_template,
    };
    Ok((model, GgufLanguage::new(tokenizer, template)))
}
