//! llm-worker-rbee: serves one model on one device.
//!
//! Owns: the life of the worker (bind, fetch, load, serve, drain), its endpoints, how a request becomes tokens and tokens
//! become an answer, and what it tells its queens.
//! Must not know: other workers, how it was chosen, what a hive or a queen does with what it says.
//!
//! Two journeys. A request: `http/chat.rs` parses (openai-api), `http/structured.rs` sees what form the answer is to have
//! (structured-output), `language.rs` makes tokens and grammars, `generation.rs` hands them to the engine (batch-engine),
//! `transcript.rs` puts its tokens together to text and `text.rs` cuts that at stop texts, `parts.rs` finds the calls of tools
//! in it, `answers.rs` joins the answers of one request, `http/stream.rs` frames them.
//! A heartbeat: `state.rs` is what there is to say, `heartbeat.rs` says it when it changes, `heartbeat-client` knows to whom.

mod account;
mod activity;
mod answers;
mod config;
mod generation;
mod heartbeat;
mod http;
mod language;
mod metrics;
mod model;
mod parts;
mod state;
mod text;
mod transcript;
mod warm_up;

#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use batch_engine::{Engine, EngineOptions, EngineState};
use chrono::Utc;
use daemon::{PageGuard, ServeOptions, Shutdown};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use config::{Args, Config, features};
pub use http::{Health, MAX_BODY_BYTES};
pub use state::Memory;

use crate::model::Loaded;
use crate::state::{ENCODERS, Identity, Served, State};

/// What is left to answers, once the engine has finished them, to reach their clients.
const FLUSH_GRACE: Duration = Duration::from_secs(2);

/// The worker as a daemon.
#[derive(Debug, Clone, Copy)]
pub struct Worker;

impl daemon::app::Daemon for Worker {
    type Args = Args;
    type Config = Config;

    const SERVICE: &'static str = "llm-worker-rbee";

    fn configure(args: Args) -> Result<Config, Vec<String>> {
        args.try_into()
    }

    fn address(config: &Config) -> SocketAddr {
        config.address
    }

    /// A hive ends its workers itself, and a signal to its group reaches them as well.
    fn is_forced_by_second_signal(config: &Config) -> bool {
        config.hive_id.is_none()
    }

    async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<(), impl Display> {
        run(config, listener, shutdown).await
    }
}

/// Why a worker ended without being asked to. The text fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The listener has no address.
    #[error("read the listener's address: {0}")]
    Listener(std::io::Error),
    /// No HTTP client could be made.
    #[error("make the client for heartbeats: {0}")]
    Client(#[from] reqwest::Error),
    /// A queen's URL or the token cannot be used.
    #[error("start the heartbeats: {0}")]
    Heartbeat(#[from] heartbeat_client::Error),
    /// The model's file could not be found or fetched.
    #[error(transparent)]
    Store(#[from] model_store::StoreError),
    /// The file could not be loaded.
    #[error("load the model: {0}")]
    Load(#[from] candle_models::LoadError),
    /// The operator's chat template cannot be used.
    #[error("use --chat-template: {0}")]
    Template(#[from] candle_models::TemplateError),
    /// Loading ended in a way that it should not.
    #[error("load the model: {0}")]
    Model(String),
    /// The engine's thread could not be started.
    #[error("start the engine: {0}")]
    EngineStart(std::io::Error),
    /// The model could not run the first request, which only warms it up.
    #[error("warm up: {0}")]
    WarmUp(String),
    /// The engine broke while it ran.
    #[error("go on computing: {0}")]
    Engine(String),
}

/// Runs a worker on this listener until `shutdown` asks to end, or `POST /v1/drain` does, or the model fails.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<(), RunError> {
    run_with(config, listener, shutdown, model::load).await
}

/// [`run()`] with the model from anywhere.
async fn run_with<L, F>(config: Config, listener: TcpListener, shutdown: Shutdown, load: L) -> Result<(), RunError>
where
    L: FnOnce(Config, Arc<State>) -> F,
    F: Future<Output = Result<Loaded, RunError>>,
{
    let port = listener.local_addr().map_err(RunError::Listener)?.port();
    let state = Arc::new(State::new(identity(&config, port), config.grace, shutdown.clone()));
    let queens = heartbeat::start(&config, daemon::client::new()?, &state)?;
    tracing::info!(worker = %config.worker_id, model = %config.model_id, device = %config.device, "starting");

    let closing = Shutdown::new();
    let server = tokio::spawn({
        let app = http::App {
            state: Arc::clone(&state),
            queens: queens.clone(),
        };
        let pages = PageGuard::new(config.token.is_none() && config.address.ip().is_loopback());
        let pages = pages.named(config.advertise_host.as_deref());
        let (router, closing) = (http::router(app, config.token.clone(), pages), closing.clone());
        let options = ServeOptions {
            grace: FLUSH_GRACE,
            ..ServeOptions::default()
        };
        async move { daemon::serve::serve(listener, router, &closing, options).await }
    });

    let result = tokio::select! {
        () = shutdown.requested() => Ok(()),
        error = work(config, &state, load) => Err(error),
    };
    let is_drained = match &result {
        Ok(()) => drain(&state, &shutdown).await,
        Err(error) => {
            state.fail(&format!("failed to {error}"));
            true
        }
    };
    if is_drained {
        closing.request();
    } else {
        // Cuts all connections, and with them the answers that still run.
        server.abort();
    }
    let (_, served) = tokio::join!(queens.goodbye(), server);
    if let Err(error) = served
        && !error.is_cancelled()
    {
        tracing::error!(%error, "the server ended badly");
    }
    result
}

fn identity(config: &Config, port: u16) -> Identity {
    Identity {
        worker_id: config.worker_id.clone(),
        model_id: config.model_id.clone(),
        device: config.device_name.clone(),
        port,
        advertise_host: config.advertise_host.clone(),
        hive_id: config.hive_id.clone(),
        slots: u32::try_from(config.slots.get()).unwrap_or(u32::MAX),
    }
}

/// Loads the model and serves it; ends only when something fails.
async fn work<L, F>(config: Config, state: &Arc<State>, load: L) -> RunError
where
    L: FnOnce(Config, Arc<State>) -> F,
    F: Future<Output = Result<Loaded, RunError>>,
{
    let options = EngineOptions {
        max_sequences: config.slots,
        queue_limit: config.queue_limit,
        ..EngineOptions::default()
    };
    let loaded = match load(config, Arc::clone(state)).await {
        Ok(loaded) => loaded,
        Err(error) => return error,
    };
    let hidden_size = loaded.model.hidden_size();
    // Held for as long as the worker serves.
    let _hold = loaded.hold;
    let engine = match Engine::start(loaded.model, options) {
        Ok(engine) => engine,
        Err(error) => return RunError::EngineStart(error),
    };
    state.starting(warm_up::STEP);
    if let Err(why) = warm_up::run(&engine).await {
        return RunError::WarmUp(why);
    }
    tracing::info!(
        slots = engine.max_sequences(),
        context_length = engine.context_length(),
        "ready"
    );
    let mut engine_state = engine.state();
    state.serve(Served {
        capacity: engine.max_sequences().saturating_add(options.queue_limit),
        engine,
        language: loaded.language,
        pooling: loaded.pooling,
        hidden_size,
        memory: loaded.memory,
        revision: loaded.revision,
        created: Utc::now().timestamp(),
        encoders: Arc::new(Semaphore::new(ENCODERS)),
    });
    loop {
        if let EngineState::Failed(reason) = engine_state.borrow_and_update().clone() {
            return RunError::Engine(reason);
        }
        if engine_state.changed().await.is_err() {
            return RunError::Engine("the engine's thread ended".to_owned());
        }
    }
}

/// Lets running requests end, within the grace period; whether all of them did.
async fn drain(state: &State, shutdown: &Shutdown) -> bool {
    let began = Instant::now();
    state.drain();
    let mut grace = state.grace.subscribe();
    let mut is_drained = true;
    if let Some(served) = state.served() {
        let running = served.engine.load().running;
        tracing::info!(running, grace_s = grace.borrow().as_secs(), "draining");
        loop {
            let limit = began + *grace.borrow_and_update();
            tokio::select! {
                () = served.engine.stopped() => break,
                () = shutdown.forced() => {
                    is_drained = false;
                    break;
                }
                () = tokio::time::sleep_until(limit) => {
                    is_drained = false;
                    let running = served.engine.load().running;
                    tracing::warn!(running, "grace period is over, cutting what still runs");
                    break;
                }
                // The state holds the other end, so that there is always a next period.
                _ = grace.changed() => {}
            }
        }
    }
    state.stop();
    is_drained
}
