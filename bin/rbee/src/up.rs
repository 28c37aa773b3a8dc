//! `rbee up`: a queen, a hive and a worker on this machine, for as long as this command runs.
//!
//! Life: plan (nothing started yet) -> starting -> serving -> stopping -> gone. A signal or the end of a daemon leads
//! from any of the middle states to stopping, and a second signal from there to gone, at once.

mod children;
mod plan;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use daemon::Shutdown;
use hive_contract::Operation;
use queen_rbee::fleet::FleetView;
use worker_contract::Endpoint;

use crate::api::{Api, Peer};
use crate::cli::{Global, UpArgs};
use crate::fleet::Client;
use crate::jobs::{self, End};
use crate::progress::Progress;
use crate::{FAILED, INTERRUPTED, render};
use children::{Children, Ended};
use plan::Plan;
use report::{Ready, Report, Started};

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks at a daemon that starts.
const START_POLL: Duration = Duration::from_millis(25);
/// Limit of one such look.
const START_ANSWER: Duration = Duration::from_secs(2);
/// How long the queen may take to hear of a worker that its hive calls ready.
const HEARD_LIMIT: Duration = Duration::from_secs(20);
/// How long the daemons may take to finish what runs: a little above their own grace period.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// `rbee up`.
pub(crate) async fn up(mut global: Global, args: UpArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let http = daemon::client::new().context("read the system's certificates")?;
    let plan = Plan::new(&http, args, &global).await?;
    // From here on, the fleet is the one that this command starts.
    global.queen_url = plan.queen_url.clone();
    let report = Report::new(global.json);

    let mut children = Children::new()?;
    children.start("queen", plan.queen_command(&global), &plan.queen_log)?;
    children.start("hive", plan.hive_command(&global), &plan.hive_log)?;
    report.started(&Started::new(&plan, &children))?;

    let outcome = tokio::select! {
        // A signal that came together with an end was meant for what still runs.
        biased;
        () = shutdown.requested() => Outcome::Asked,
        ended = children.first_end() => Outcome::Ended(ended),
        error = serve(&global, &plan, &report) => Outcome::Failed(error),
    };
    let status = stop(&mut children, &outcome, &report, shutdown).await?;
    match outcome {
        Outcome::Asked => Ok(status),
        Outcome::Ended(ended) => Err(ended.into_error()),
        Outcome::Failed(error) => Err(error),
    }
}

/// Why the serving ends.
enum Outcome {
    /// By a signal.
    Asked,
    /// A daemon ended by itself.
    Ended(Ended),
    /// The start did not come to its end.
    Failed(anyhow::Error),
}

/// Brings the worker up and then goes on for ever; returns only what prevents that.
async fn serve(global: &Global, plan: &Plan, report: &Report) -> anyhow::Error {
    match bring_up(global, plan, report).await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

async fn bring_up(global: &Global, plan: &Plan, report: &Report) -> anyhow::Result<()> {
    let client = Client::new(global)?;
    let (queen, hive) = (client.queen(), client.api(Peer::Hive, &plan.hive_url));
    let mut progress = Progress::new(global.json);
    progress.step("starting the queen and the hive");
    tokio::try_join!(healthy(&queen, "queen"), healthy(&hive, "hive"))?;

    progress.step(&format!("asking the hive for a worker with {}", plan.model));
    let operation = Operation::WorkerSpawn {
        model: plan.model.clone(),
        worker: None,
        device: plan.device.clone(),
        context_length: None,
        slots: None,
        // Stopped for being idle, it comes back on demand.
        keep_alive_s: None,
    };
    let job = jobs::start(&hive, &operation).await?;
    let result = match jobs::follow(&hive, &job, |event| progress.tagged_job(event)).await? {
        End::Succeeded(result) => result,
        End::Failed(reason) => bail!("the hive could not start a worker with {}: {reason}", plan.model),
        End::Cancelled | End::Interrupted => bail!("the job that starts the worker was cancelled by somebody"),
    };
    let worker_id = result["worker_id"]
        .as_str()
        .context("the hive did not say which worker it started")?;

    progress.step("waiting for the worker's first heartbeat");
    let ready = heard(&client, plan, worker_id).await?;
    drop(progress);
    report.ready(&ready, plan, global)?;
    Ok(())
}

/// Waits until the daemon answers.
async fn healthy(daemon: &Api, name: &str) -> anyhow::Result<()> {
    let answers = async {
        loop {
            let look = daemon.get::<serde_json::Value>("/health");
            if matches!(tokio::time::timeout(START_ANSWER, look).await, Ok(Ok(_))) {
                return;
            }
            tokio::time::sleep(START_POLL).await;
        }
    };
    let limit = START_LIMIT.as_secs();
    tokio::time::timeout(START_LIMIT, answers)
        .await
        .with_context(|| format!("the {name} does not answer at {} after {limit} s", daemon.base()))
}

/// Waits until the queen can send requests to the worker.
async fn heard(client: &Client<'_>, plan: &Plan, worker_id: &str) -> anyhow::Result<Ready> {
    let look = async {
        loop {
            if let Some(ready) = ready_worker(&client.fleet().await?, plan, worker_id) {
                return anyhow::Ok(ready);
            }
            tokio::time::sleep(START_POLL).await;
        }
    };
    tokio::time::timeout(HEARD_LIMIT, look).await.with_context(|| {
        format!(
            "the worker {worker_id} is ready, but the queen has not heard of it for {} s",
            HEARD_LIMIT.as_secs()
        )
    })?
}

fn ready_worker(fleet: &FleetView, plan: &Plan, worker_id: &str) -> Option<Ready> {
    let worker = fleet
        .workers
        .iter()
        .find(|worker| worker.id.as_str() == worker_id && worker.ready)?;
    Some(Ready {
        base_url: format!("{}/v1", plan.queen_url),
        model: worker.model_id.clone(),
        worker_id: worker.id.clone(),
        device: worker.device.clone(),
        chat: worker.endpoints.contains(&Endpoint::ChatCompletions),
    })
}

/// Ends all processes, in order if there is time for it. Returns only when none is left.
///
/// Nothing here fails because nobody reads what it says: the terminal may be what went away.
async fn stop(
    children: &mut Children,
    outcome: &Outcome,
    report: &Report,
    shutdown: &Shutdown,
) -> anyhow::Result<ExitCode> {
    report.stopping(matches!(outcome, Outcome::Asked));
    let mut progress = Progress::new(report.is_json());
    progress.step("stopping: letting running requests finish; Ctrl-C again ends all at once");
    let status = tokio::select! {
        () = children.end() => ExitCode::SUCCESS,
        () = second_signal(outcome, shutdown) => {
            children.kill();
            ExitCode::from(INTERRUPTED)
        }
        () = tokio::time::sleep(STOP_LIMIT) => {
            children.kill();
            progress.clear();
            render::note(&format!("not all processes ended within {} s and were killed", STOP_LIMIT.as_secs()));
            ExitCode::from(FAILED)
        }
    };
    drop(progress);
    if tokio::time::timeout(KILL_LIMIT, children.gone()).await.is_err() {
        bail!(
            "some processes of group {} cannot be ended; see `ps -g {0}`",
            children.group()
        );
    }
    report.stopped();
    Ok(status)
}

/// The signal that asks to end at once: the second one, or the first if the stop began without any.
async fn second_signal(outcome: &Outcome, shutdown: &Shutdown) {
    match outcome {
        Outcome::Asked => shutdown.forced().await,
        Outcome::Ended(_) | Outcome::Failed(_) => shutdown.requested().await,
    }
}
