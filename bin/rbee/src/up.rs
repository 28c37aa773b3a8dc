//! `rbee up`: a queen, a hive and a worker on this machine, for as long as this command runs.

mod plan;
mod report;
mod share;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use daemon::Shutdown;
use hive_contract::Operation;
use queen_rbee::fleet::FleetView;
use worker_contract::Endpoint;

use crate::api::Peer;
use crate::cli::{Global, UpArgs};
use crate::fleet::Client;
use crate::jobs::{self, End};
use crate::local::{Children, START_POLL, Say, healthy, live};
use crate::progress::Progress;
use plan::Plan;
use report::{Ready, Started};

/// How long the queen may take to hear of a worker that its hive calls ready.
const HEARD_LIMIT: Duration = Duration::from_secs(20);

/// `rbee up`.
pub(crate) async fn up(mut global: Global, args: UpArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let http = daemon::client::new().context("make an HTTP client")?;
    let plan = Plan::new(&http, args, &mut global).await?;
    // From here on, the fleet is the one that this command starts.
    global.queen_url = plan.queen_url.clone();
    let say = Say::new(global.json);

    let mut children = Children::new()?;
    children.start("queen", plan.queen_command(&global), &plan.launcher.log("queen"))?;
    children.start("hive", plan.hive_command(&global), &plan.launcher.log("hive"))?;
    Started::new(&plan, &children).tell(say)?;
    live(children, say, shutdown, bring_up(&global, &plan, say)).await
}

async fn bring_up(global: &Global, plan: &Plan, say: Say) -> anyhow::Result<()> {
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
    ready.tell(say, plan, global)?;
    Ok(())
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
        dashboard_url: format!("{}/", plan.queen_url),
        secrets_file: plan.secrets_file.as_ref().map(|file| file.display().to_string()),
        model: worker.model_id.clone(),
        worker_id: worker.id.clone(),
        device: worker.device.clone(),
        chat: worker.endpoints.contains(&Endpoint::ChatCompletions),
    })
}
