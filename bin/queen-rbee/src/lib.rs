//! The queen: the front door of a fleet. She knows who is there, and passes each request on to a worker that can answer it.
//!
//! Owns: the registries of workers and hives, what is shown of them, whether they can be reached, and which models they can be
//! brought to serve.
//! Must not know: how a model is run, a device read or a process started; she never asks a worker anything in the steady
//! state, she is told.

mod changes;
mod config;
mod discovery;
pub mod fleet;
mod http;
pub mod jobs;
mod metrics;
mod models;
mod reach;
mod registry;
mod subscriptions;
pub mod supply;
mod tasks;
mod telemetry;
pub mod timeline;
mod traffic;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ::http::HeaderValue;
use daemon::{ServeOptions, Shutdown};
use heartbeat_registry::{MemberView, Pace, RegistryOptions};
use router::{Router, RouterOptions};
use shared_contract::QueenId;
use tokio::net::TcpListener;
use worker_contract::WorkerHeartbeat;

pub use config::{Alias, Args, Config, SupplyConfig};
pub use discovery::SshError;

use crate::changes::Changes;
use crate::fleet::{FleetView, HiveView, QueenView, WorkerView};
use crate::jobs::Jobs;
use crate::metrics::{Metrics, SupplyMetrics};
use crate::registry::{HiveRegistry, WorkerRegistry};
use crate::supply::{Service, StateError};
use crate::telemetry::TelemetryRegistry;
use crate::timeline::Timeline;

/// The queen as a process sees her.
#[derive(Debug)]
pub struct Queen;

impl daemon::app::Daemon for Queen {
    type Args = Args;
    type Config = Config;

    const SERVICE: &'static str = "queen-rbee";

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
    /// The client for calls to hives cannot be made.
    #[error("set up the client for calls to hives: {0}")]
    Client(#[from] reqwest::Error),
    /// The listener has no address.
    #[error("read the listener's address: {0}")]
    Listener(std::io::Error),
    /// What was stated cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The SSH configuration names no hives.
    #[error(transparent)]
    Ssh(#[from] SshError),
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
    telemetry: Arc<TelemetryRegistry>,
    changes: Arc<Changes>,
    timeline: Arc<Timeline>,
    supply: Service,
    jobs: Jobs,
    router: Router,
    /// For calls to hives.
    client: reqwest::Client,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
}

impl State {
    fn new(config: Config, shutdown: Shutdown) -> Result<Self, RunError> {
        let options = RegistryOptions {
            retention: config.retention,
            longest_pause: tasks::LATE_SWEEPS * tasks::sweep_pause(&config),
            ..RegistryOptions::default()
        };
        let workers = Arc::new(WorkerRegistry::new(options));
        let hives = Arc::new(HiveRegistry::new(options));
        let mut metrics = Metrics::new();
        let telemetry = Arc::new(TelemetryRegistry::new(Arc::clone(&workers), Arc::clone(&hives)));
        let client = daemon::client::new()?;
        let id = new_id();
        let changes = Arc::new(Changes::new(id.clone()));
        let timeline = Arc::new(Timeline::new(Arc::clone(&changes)));
        let supply = Service::new(
            &config,
            Arc::clone(&workers),
            Arc::clone(&hives),
            Arc::clone(&telemetry),
            client.clone(),
            SupplyMetrics::new(metrics.registry_mut()),
            Arc::clone(&timeline),
        )?;
        let router = Router::new(
            router_options(&config)?,
            workers.shared(),
            Arc::new(supply.clone()),
            metrics.registry_mut(),
        );
        Ok(Self {
            telemetry,
            changes,
            timeline,
            client,
            supply,
            id,
            started: Instant::now(),
            started_unix_s: chrono::Utc::now().timestamp(),
            config,
            workers,
            hives,
            jobs: Jobs::new(|_, _| {}),
            router,
            metrics: Arc::new(metrics),
            shutdown,
        })
    }

    /// The fleet as it is shown.
    fn fleet(&self, now: Instant) -> FleetView {
        let workers = self.workers.list_all(now);
        FleetView {
            queen: self.queen(now),
            hives: self
                .hives
                .list_all(now)
                .iter()
                .map(|hive| HiveView::new(hive, self.supply.is_drained(hive.id()), now))
                .collect(),
            workers: workers.iter().map(|worker| self.worker(worker, now)).collect(),
            gone: fleet::gone(&self.workers, &self.hives, now),
        }
    }

    /// The queen as she is shown.
    fn queen(&self, now: Instant) -> QueenView {
        let uptime = now.saturating_duration_since(self.started);
        let preservations = (self.workers.preservation(), self.hives.preservation());
        QueenView::new(self.id.clone(), uptime, self.pace(), preservations, now)
    }

    /// Whether the queen doubts what she sees of either kind.
    fn is_view_degraded(&self) -> bool {
        self.workers.preservation().is_some() || self.hives.preservation().is_some()
    }

    /// A worker as it is shown.
    fn worker(&self, worker: &MemberView<WorkerHeartbeat>, now: Instant) -> WorkerView {
        WorkerView::new(worker, self.telemetry.process_of(worker.item(), now), now)
    }

    /// The pace that senders are asked to keep, as many as there are now.
    fn pace(&self) -> Pace {
        let base = Pace {
            interval: self.config.heartbeat_interval,
            ttl: self.config.heartbeat_ttl,
        };
        let senders = self.workers.count_total() + self.hives.count_total();
        base.stretched(senders, self.config.max_beats_per_s)
    }
}

/// Serves until `shutdown` asks to end, and drains within the grace period.
///
/// # Errors
/// If the settings cannot be used; nothing was served then.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<(), RunError> {
    let options = ServeOptions {
        grace: config.grace,
        quiet: http::QUIET,
        ..ServeOptions::default()
    };
    let bound = listener.local_addr().map_err(RunError::Listener)?;
    let state = Arc::new(State::new(config, shutdown.clone())?);
    let _tasks = tasks::start(&state);
    let _askers = discovery::start(&state, bound)?;
    daemon::serve::serve(listener, http::router(&state), &shutdown, options).await;
    Ok(())
}

fn router_options(config: &Config) -> Result<RouterOptions, ::http::header::InvalidHeaderValue> {
    let authorization = match &config.token {
        None => None,
        Some(token) => {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    Ok(RouterOptions {
        authorization,
        traceparent: config.has_traces.then_some(daemon::traces::traceparent),
        queue_max: config.queue_max,
        queue_timeout: config.queue_timeout,
        load_timeout: config.load_timeout,
        first_byte_timeout: config.first_byte_timeout,
        answer_timeout: config.answer_timeout,
        stall_timeout: config.stall_timeout,
    })
}

fn new_id() -> QueenId {
    let word = uuid::Uuid::new_v4().simple().to_string();
    QueenId::new(format!("queen-{}", &word[..8])).unwrap_or_else(|error| unreachable!("hexadecimal digits: {error}"))
}
