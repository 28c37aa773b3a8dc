//! The life of a daemon's process: settings, log, bind, run, drain.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::net::TcpListener;

use crate::config::{self, CommonArgs, Loaded};
use crate::signals::Shutdown;
use crate::traces::{self, Export};
use crate::{client, serve};

/// What is left to the daemon after a second signal, for example to kill its children.
const FORCED_GRACE: Duration = Duration::from_secs(1);
/// What is left to the last traces to reach their collector.
const TRACES_GRACE: Duration = Duration::from_secs(2);
/// Exit status after a second signal, as shells report an interrupted program.
const FORCED_STATUS: u8 = 130;

/// A daemon as its process sees it.
pub trait Daemon {
    /// Settings as they are written.
    type Args: Parser + AsRef<CommonArgs>;
    /// Settings as they are used: valid, or not there.
    type Config;

    /// Its name in traces.
    const SERVICE: &'static str;

    /// Checks the settings; lists every mistake.
    fn configure(args: Self::Args) -> Result<Self::Config, Vec<String>>;

    /// Where to listen.
    fn address(config: &Self::Config) -> SocketAddr;

    /// Whether a second signal ends the process at once. Not where a parent sees to that: a signal to the whole group and
    /// then the parent's own are not an impatient user.
    fn is_forced_by_second_signal(_config: &Self::Config) -> bool {
        true
    }

    /// Runs until `shutdown` asks to end; an error ends the process with status 1.
    fn run(
        config: Self::Config,
        listener: TcpListener,
        shutdown: Shutdown,
    ) -> impl Future<Output = Result<(), impl Display>>;
}

/// Runs a daemon as this process. `program` is what its help calls it; `args` come without it.
pub fn main<D: Daemon>(program: &str, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let unread = config::unread_variables();
    let args: D::Args = match config::load(program, args) {
        Ok(Loaded::Run(args)) => args,
        Ok(Loaded::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // It may be the very setting that is missing.
            for sentence in unread {
                eprintln!("warning: {sentence}");
            }
            error.exit()
        }
    };
    let common = args.as_ref();
    let (spans, export) = common
        .otlp_endpoint
        .clone()
        .map(|collector| traces::start(collector, D::SERVICE))
        .unzip();
    if let Err(message) = crate::logs::init(&common.log, common.log_format, spans) {
        eprintln!("error: {message}");
        return ExitCode::from(2);
    }
    for sentence in unread {
        tracing::warn!("{sentence}");
    }
    let announce = common.announce.clone();
    let config = match D::configure(args) {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in mistakes {
                eprintln!("error: {mistake}");
            }
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(live::<D>(config, announce.as_deref(), export));
    // Blocking threads that still read or compute have nobody left to answer to.
    runtime.shutdown_background();
    code
}

async fn live<D: Daemon>(config: D::Config, announcement: Option<&Path>, export: Option<Export>) -> ExitCode {
    let shutdown = Shutdown::new();
    if let Err(error) = shutdown.listen(D::is_forced_by_second_signal(&config)) {
        tracing::error!("failed to listen for signals: {error}");
        return ExitCode::FAILURE;
    }
    let listener = match prepare(D::address(&config), announcement).await {
        Ok(listener) => listener,
        Err(message) => {
            tracing::error!("failed to {message}");
            return ExitCode::FAILURE;
        }
    };
    let exporting = match export.map(|export| Ok(export.spawn(client::new()?))).transpose() {
        Ok(exporting) => exporting,
        Err(error) => {
            let error: reqwest::Error = error;
            tracing::error!("failed to make the client for traces: {error}");
            return ExitCode::FAILURE;
        }
    };
    let forced = async {
        shutdown.forced().await;
        tokio::time::sleep(FORCED_GRACE).await;
    };
    let result = tokio::select! {
        result = D::run(config, listener, shutdown.clone()) => result.map_err(|error| error.to_string()),
        () = forced => Ok(()),
    };
    if let Err(error) = &result {
        tracing::error!("failed to {error}");
    }
    if let Some(exporting) = exporting
        && !shutdown.is_forced()
    {
        exporting.finish(TRACES_GRACE).await;
    }
    match result {
        Err(_) => ExitCode::FAILURE,
        Ok(()) if shutdown.is_forced() => ExitCode::from(FORCED_STATUS),
        Ok(()) => ExitCode::SUCCESS,
    }
}

async fn prepare(address: SocketAddr, announcement: Option<&Path>) -> Result<TcpListener, String> {
    let listener = serve::bind(address).await?;
    let address = listener
        .local_addr()
        .map_err(|error| format!("learn the bound port: {error}"))?;
    if let Some(file) = announcement {
        announce(file, address.port()).map_err(|error| format!("write --announce {}: {error}", file.display()))?;
    }
    tracing::info!(%address, "listening");
    Ok(listener)
}

/// Writes the file under another name first, so that nobody reads half of it.
fn announce(file: &Path, port: u16) -> io::Result<()> {
    let unfinished = file.with_extension("unfinished");
    std::fs::write(
        &unfinished,
        format!("{{\"port\": {port}, \"pid\": {}}}\n", std::process::id()),
    )?;
    std::fs::rename(unfinished, file)
}
