//! The queen: the front door of a fleet. She knows who is there, and passes each request on to a worker that can answer it.
//!
//! Owns: the registries of workers and hives, what is shown of them, and the gateway to the workers' OpenAI endpoints.
//! Must not know: how a model is run, a device read or a process started; she never asks a worker anything in the steady
//! state, she is told.

mod config;
pub mod fleet;
mod gateway;
mod http;
mod metrics;
mod models;
mod registry;
mod tasks;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use daemon::{ServeOptions, Shutdown};
use heartbeat_registry::RegistryOptions;
use shared_contract::QueenId;
use tokio::net::TcpListener;

pub use config::{Args, Config};

use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::registry::{HiveRegistry, WorkerRegistry};

/// The queen as a process sees her.
#[derive(Debug)]
pub struct Queen;

impl daemon::app::Daemon for Queen {
    type Args = Args;
    type Config = Config;

    fn configure(args: Args) -> Result<Config, Vec<String>> {
        args.try_into()
    }

    fn address(config: &Config) -> SocketAddr {
        config.address
    }

    async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<(), impl Display> {
        run(config, listener, shutdown).await
    }
}

/// Why a queen did not run; the text fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The fleet's token cannot be sent to workers.
    #[error("put --token into a header: {0}")]
    Token(#[from] ::http::header::InvalidHeaderValue),
}

/// What the queen's handlers and tasks share.
struct State {
    id: QueenId,
    started: Instant,
    /// Seconds since the epoch, for what clients are shown of the models.
    started_unix_s: i64,
    config: Config,
    workers: Arc<WorkerRegistry>,
    hives: Arc<HiveRegistry>,
    gateway: Gateway,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
}

impl State {
    fn new(config: Config, shutdown: Shutdown) -> Result<Self, RunError> {
        let options = RegistryOptions {
            ttl: config.heartbeat_ttl,
            ..RegistryOptions::default()
        };
        let workers = Arc::new(WorkerRegistry::new(options));
        let hives = Arc::new(HiveRegistry::new(options));
        let metrics = Arc::new(Metrics::new());
        let gateway = Gateway::new(&config, Arc::clone(&workers), Arc::clone(&hives), Arc::clone(&metrics))?;
        Ok(Self {
            id: new_id(),
            started: Instant::now(),
            started_unix_s: chrono::Utc::now().timestamp(),
            config,
            workers,
            hives,
            gateway,
            metrics,
            shutdown,
        })
    }
}

/// Serves until `shutdown` asks to end, and drains within the grace period.
///
/// # Errors
/// If the settings cannot be used; nothing was served then.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<(), RunError> {
    let options = ServeOptions {
        grace: config.grace,
        ..ServeOptions::default()
    };
    let state = Arc::new(State::new(config, shutdown.clone())?);
    let _tasks = tasks::start(&state);
    daemon::serve::serve(listener, http::router(&state), &shutdown, options).await;
    Ok(())
}

fn new_id() -> QueenId {
    let word = uuid::Uuid::new_v4().simple().to_string();
    QueenId::new(format!("queen-{}", &word[..8])).unwrap_or_else(|error| unreachable!("hexadecimal digits: {error}"))
}
