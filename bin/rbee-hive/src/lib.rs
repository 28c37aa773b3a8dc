//! rbee-hive: looks after one host's devices, model files and workers, and tells the queens about them.
//!
//! Owns: the host's identity, its heartbeats and telemetry, the jobs that it can be asked to do, and the life of its
//! workers.
//! Must not know: which worker serves a request, how a model computes, what a queen does with what it hears.
//!
//! Two journeys. A heartbeat: something changes `core.rs`, which has news; `heartbeat-client` beats at once to each queen;
//! `heartbeat.rs` builds what this one does not know yet. A job: `http/jobs.rs` takes it, `operations/` checks and does it, the crate `jobs`
//! keeps its events; `placement.rs` finds a device for a new worker, whose life is followed by `workers/`.

mod changes;
mod config;
mod core;
mod engines;
mod facts;
mod heartbeat;
mod http;
mod identity;
mod idle;
mod introduce;
mod ledger;
mod mdns;
mod measure;
mod metrics;
mod model_files;
mod operations;
mod owner;
mod peers;
mod placement;
mod watch;
mod workers;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use daemon::metrics::Exposition;
use daemon::{ServeOptions, Shutdown, StateFolder, StateFolderError};
use device_monitor::{Host, LocalOptions, Monitor};
use heartbeat_client::{Queens, Token};
use jobs::Jobs;
use lan_discovery::Key;
use model_store::{ModelStore, StoreError, StoreOptions};
use shared_contract::OperationalStatus;
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;
use worker_supervisor::{Cgroup, Supervisor};

pub use config::{Args, Config, Sharing};
pub use heartbeat_client::QueenUrl;

use crate::core::{Core, Parts};
use crate::heartbeat::QueenSource;
use crate::identity::Identity;
use crate::workers::Launcher;

/// What is left to answers, once the workers are gone, to reach their readers.
const FLUSH_GRACE: Duration = Duration::from_secs(2);

/// The hive as a daemon.
#[derive(Debug, Clone, Copy)]
pub struct Hive;

impl daemon::app::Daemon for Hive {
    type Args = Args;
    type Config = Config;

    const SERVICE: &'static str = "rbee-hive";

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
    State(#[from] StateFolderError),
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
    /// The group for the workers' memory cannot be used.
    #[error(transparent)]
    Supervisor(#[from] worker_supervisor::Error),
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
    /// To ask queens and workers with.
    pub(crate) http: reqwest::Client,
    /// Places for model files that are sent to other hives.
    pub(crate) sending: Arc<Semaphore>,
    /// What the hive's proofs are made with; not there before it is derived from the token.
    pub(crate) fleet_key: OnceCell<Key>,
    pub(crate) exposition: Exposition,
    pub(crate) shutdown: Shutdown,
}

/// Runs a hive until `shutdown` asks to end; then its workers are drained and stopped, unless they are to go on, and the
/// queens hear a goodbye.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<(), RunError> {
    let port = listener.local_addr().map_err(RunError::Listener)?.port();
    // Held until the end: no second hive uses the folder while this one runs.
    let state = StateFolder::take(&config.state_dir)?;
    let http = daemon::client::new()?;
    let app = Arc::new(prepare(config, &state, &http, port, shutdown.clone()).await?);

    // Aborted when this function ends, in whichever way.
    let mut background = JoinSet::new();
    let events = app.core.supervisor.subscribe();
    workers::recover(&app).await;
    background.spawn(workers::follow(Arc::clone(&app), events));
    background.spawn(pass_on_news(Arc::clone(&app)));
    background.spawn(watch::watch(Arc::clone(&app)));

    app.core.set_status(OperationalStatus::Ready);
    for url in &app.config.queen_urls {
        app.queens.add(url.clone(), true).map_err(|reason| RunError::Queen {
            url: url.clone(),
            reason,
        })?;
    }
    tracing::info!(hive_id = %app.core.identity.id, port, queens = app.config.queen_urls.len(), "hive is ready");

    let options = ServeOptions {
        grace: app.launcher.stop_limit(None) + FLUSH_GRACE,
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
    state: &StateFolder,
    http: &reqwest::Client,
    port: u16,
    shutdown: Shutdown,
) -> Result<App, RunError> {
    let identity = Identity::of(state, config.hive_id.clone())?;
    let launcher = Launcher::new(&config, identity.id.clone());
    let announce_dir = launcher.announce_dir();
    std::fs::create_dir_all(announce_dir).map_err(|source| RunError::AnnounceDir {
        path: announce_dir.to_owned(),
        source,
    })?;
    let store = open_store(&config)?;
    let host = Host::local(&LocalOptions {
        nvml_library: config.nvml_library.clone(),
        ..LocalOptions::default()
    })?;
    let supervisor = Supervisor::new(supervisor_options(&config)?);
    let monitor = tokio::task::spawn_blocking(move || Monitor::start(host, device_monitor::Options::default()));
    let (program, leading_args) = launcher.program();
    let (monitor, engines) = tokio::join!(monitor, engines::detect(program, leading_args));
    // It panics with us, or not at all.
    let monitor = monitor.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    let token = config.token.as_ref().map(|token| Token::new(token.expose()));
    let incarnation = identity.incarnation;
    let core = Arc::new(Core::new(Parts {
        identity,
        port,
        advertise_host: config.advertise_host.clone(),
        monitor,
        store,
        supervisor,
        engines,
        sharing: config.sharing.clone(),
    }));
    core.refresh_models().await?;
    let counters = core.counters.clone();
    let queens = Queens::new(http.clone(), token, incarnation, {
        let core = Arc::clone(&core);
        move || Arc::new(QueenSource::new(Arc::clone(&core))) as _
    });
    Ok(App {
        core,
        queens,
        launcher,
        jobs: Jobs::new(move |operation, state| counters.job_ended(operation, state)),
        http: http.clone(),
        sending: Arc::new(Semaphore::new(http::models::SENDING_LIMIT)),
        fleet_key: OnceCell::new(),
        exposition: Exposition::start(),
        shutdown,
        config,
    })
}

fn open_store(config: &Config) -> Result<ModelStore, StoreError> {
    let options = StoreOptions {
        max_bytes: config.model_cache_max,
        catalogue_file: config.catalogue.clone(),
        ..StoreOptions::from_env()
    };
    ModelStore::open_with(&config.models_dir, options)
}

fn supervisor_options(config: &Config) -> Result<worker_supervisor::Options, worker_supervisor::Error> {
    let state = &config.state_dir;
    let mut options = worker_supervisor::Options::new(state.join("logs"), state.join("workers"));
    options.survive = config.keep_workers;
    options.cgroup = config.cgroup.as_deref().map(Cgroup::delegated).transpose()?;
    Ok(options)
}

/// Tells the queens at once when there is news.
async fn pass_on_news(app: Arc<App>) {
    let mut news = app.core.news();
    while news.changed().await.is_ok() {
        app.queens.beat_now();
    }
}

/// Once asked to end: no new jobs, the workers finish what they have or are left to the next hive, the queens hear a
/// goodbye.
async fn wind_down(app: &App, shutdown: &Shutdown) {
    shutdown.requested().await;
    app.core.set_status(OperationalStatus::Draining);
    app.jobs.cancel_all();
    let workers = app.core.supervisor.list().len();
    if app.config.keep_workers {
        tracing::info!(workers, "leaving the workers to the next hive");
        app.core.supervisor.leave();
    } else {
        if workers > 0 {
            tracing::info!(workers, grace = ?app.config.grace, "stopping the workers");
        }
        tokio::select! {
            () = app.core.supervisor.stop_all(app.launcher.stop_limit(None)) => {}
            () = shutdown.forced() => app.core.supervisor.kill_all().await,
        }
    }
    app.core.set_status(OperationalStatus::Stopped);
    app.queens.goodbye().await;
}
