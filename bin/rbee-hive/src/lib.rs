//! rbee-hive: looks after one host's devices, model files and workers, and tells the queens about them.
//!
//! Owns: the host's identity, its heartbeats and telemetry, the jobs that it can be asked to do, and the life of its
//! workers.
//! Must not know: which worker serves a request, how a model computes, what a queen does with what it hears.
//!
//! Two journeys. A heartbeat: something changes `core.rs`, which has news; `heartbeat-client` beats at once to each queen;
//! `heartbeat.rs` builds what this one does not know yet. A job: `http/jobs.rs` takes it, `operations.rs` checks and does it, `jobs.rs` keeps
//! its events; a new worker's life is followed by `workers.rs`.

mod changes;
mod config;
mod core;
mod engines;
mod heartbeat;
mod http;
mod identity;
mod introduce;
mod jobs;
mod mdns;
mod metrics;
mod operations;
mod workers;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use daemon::{ServeOptions, Shutdown};
use device_monitor::{Host, Monitor};
use heartbeat_client::{Queens, Token};
use lan_discovery::Key;
use model_store::{ModelStore, StoreError};
use shared_contract::OperationalStatus;
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use worker_supervisor::Supervisor;

pub use config::{Args, Config};
pub use heartbeat_client::QueenUrl;
pub use identity::IdentityError;

use crate::core::{Core, Parts};
use crate::heartbeat::QueenSource;
use crate::identity::StateDir;
use crate::jobs::Jobs;
use crate::workers::Launcher;

/// Pause between two looks at what nobody tells: devices and the host's health.
const WATCH: Duration = Duration::from_secs(1);
/// What is left to answers, once the workers are gone, to reach their readers.
const FLUSH_GRACE: Duration = Duration::from_secs(2);

/// The hive as a daemon.
#[derive(Debug, Clone, Copy)]
pub struct Hive;

impl daemon::app::Daemon for Hive {
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

/// Why a hive does not run. The text fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state folder cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The folder where workers announce themselves cannot be made.
    #[error("make the folder {}: {source}", path.display())]
    AnnounceDir {
        /// Which folder.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The host cannot be read.
    #[error(transparent)]
    Monitor(#[from] device_monitor::Error),
    /// The model files cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The listener has no address.
    #[error("read the listener's address: {0}")]
    Listener(std::io::Error),
    /// No HTTP client could be made.
    #[error("make the HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    /// A queen's URL or the token cannot be used.
    #[error("report to the queen {url}: {reason}")]
    Queen {
        /// Which queen.
        url: QueenUrl,
        /// Why not.
        reason: heartbeat_client::Error,
    },
}

/// What handlers and jobs work with.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) core: Arc<Core>,
    pub(crate) queens: Queens,
    pub(crate) launcher: Launcher,
    pub(crate) jobs: Jobs,
    /// What the hive's proofs are made with; not there before it is derived from the token.
    pub(crate) fleet_key: OnceCell<Key>,
    pub(crate) shutdown: Shutdown,
}

/// Runs a hive until `shutdown` asks to end; then its workers are drained and stopped, and the queens hear a goodbye.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<(), RunError> {
    let port = listener.local_addr().map_err(RunError::Listener)?.port();
    // Held until the end: no second hive uses the folder while this one runs.
    let state_dir = StateDir::take(&config.state_dir)?;
    let http = daemon::client::new()?;
    let app = Arc::new(prepare(config, &state_dir, &http, port, shutdown.clone()).await?);

    // Aborted when this function ends, in whichever way.
    let mut background = JoinSet::new();
    let events = app.core.supervisor.subscribe();
    background.spawn(workers::follow(Arc::clone(&app), events, http));
    background.spawn(pass_on_news(Arc::clone(&app)));
    background.spawn(watch_host(Arc::clone(&app.core)));

    app.core.set_status(OperationalStatus::Ready);
    for url in &app.config.queen_urls {
        app.queens.add(url.clone(), true).map_err(|reason| RunError::Queen {
            url: url.clone(),
            reason,
        })?;
    }
    tracing::info!(hive_id = %app.core.identity.id, port, queens = app.config.queen_urls.len(), "hive is ready");

    let options = ServeOptions {
        grace: app.launcher.stop_limit() + FLUSH_GRACE,
        ..ServeOptions::default()
    };
    let router = http::router(Arc::clone(&app));
    tokio::join!(
        daemon::serve::serve(listener, router, &shutdown, options),
        wind_down(&app, &shutdown),
        mdns::be_found(&app)
    );
    tracing::info!("hive has ended");
    Ok(())
}

async fn prepare(
    config: Config,
    state_dir: &StateDir,
    http: &reqwest::Client,
    port: u16,
    shutdown: Shutdown,
) -> Result<App, RunError> {
    let identity = state_dir.identify(config.hive_id.clone())?;
    let launcher = Launcher::new(&config, identity.id.clone());
    let announce_dir = launcher.announce_dir();
    std::fs::create_dir_all(announce_dir).map_err(|source| RunError::AnnounceDir {
        path: announce_dir.to_owned(),
        source,
    })?;
    let store = ModelStore::open(&config.models_dir)?;
    let host = Host::local(config.nvml_library.clone())?;
    let monitor = tokio::task::spawn_blocking(move || Monitor::start(host, device_monitor::Options::default()));
    let (program, leading_args) = launcher.program();
    let (monitor, engines) = tokio::join!(monitor, engines::detect(program, leading_args));
    // It panics with us, or not at all.
    let monitor = monitor.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    let token = config.token.as_ref().map(|token| Token::new(token.expose()));
    let incarnation = identity.incarnation;
    let supervisor = Supervisor::new(worker_supervisor::Options::new(config.state_dir.join("logs")));
    let core = Arc::new(Core::new(Parts {
        identity,
        port,
        advertise_host: config.advertise_host.clone(),
        monitor,
        store,
        supervisor,
        engines,
    }));
    core.refresh_models().await?;
    let queens = Queens::new(http.clone(), token, incarnation, {
        let core = Arc::clone(&core);
        move || Arc::new(QueenSource::new(Arc::clone(&core))) as _
    });
    Ok(App {
        core,
        queens,
        launcher,
        jobs: Jobs::default(),
        fleet_key: OnceCell::new(),
        shutdown,
        config,
    })
}

/// Tells the queens at once when there is news.
async fn pass_on_news(app: Arc<App>) {
    let mut news = app.core.news();
    while news.changed().await.is_ok() {
        app.queens.beat_now();
    }
}

/// Makes news of what changes by itself: devices that come and go, a driver that fails.
async fn watch_host(core: Arc<Core>) {
    let look = || (core.devices(), core.monitor.snapshot().problem().is_some());
    let mut last = look();
    let mut ticks = tokio::time::interval(WATCH);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = look();
        if now != last {
            tracing::info!(
                devices = now.0.len(),
                has_problem = now.1,
                "this host's devices changed"
            );
            last = now;
            core.tell();
        }
    }
}

/// Once asked to end: no new jobs, the workers finish what they have, the queens hear a goodbye.
async fn wind_down(app: &App, shutdown: &Shutdown) {
    shutdown.requested().await;
    app.core.set_status(OperationalStatus::Draining);
    app.jobs.cancel_all();
    let workers = app.core.supervisor.list().len();
    if workers > 0 {
        tracing::info!(workers, grace = ?app.config.grace, "stopping the workers");
    }
    tokio::select! {
        () = app.core.supervisor.stop_all(app.launcher.stop_limit()) => {}
        () = shutdown.forced() => app.core.supervisor.kill_all().await,
    }
    app.core.set_status(OperationalStatus::Stopped);
    app.queens.goodbye().await;
}
