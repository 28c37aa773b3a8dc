//! `rbee logs`: what a worker prints, by its hive.

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use daemon::Shutdown;
use hive_contract::{JobEvent, JobState, Operation};
use queen_rbee::fleet::Liveness;
use shared_contract::WorkerId;

use crate::api::Api;
use crate::cli::{Global, LogsArgs};
use crate::fleet::{Client, choose_worker};
use crate::jobs::{self, End};
use crate::{INTERRUPTED, Usage, render};

/// `rbee logs`.
pub(crate) async fn logs(global: &Global, args: LogsArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let client = Client::new(global)?;
    let (hive, worker_id) = match &args.hive {
        Some(hive) => {
            let id = WorkerId::new(args.worker.clone()).map_err(|error| Usage(format!("WORKER: {error}")))?;
            (client.hive(Some(hive)).await?, id)
        }
        None => hive_of(&client, &args.worker).await?,
    };
    let operation = Operation::WorkerLogs {
        worker_id,
        lines: Some(args.lines),
        follow: args.follow,
    };
    let end = jobs::run(&hive, &operation, shutdown, |event| show(global, event)).await?;
    match end {
        End::Succeeded(_) | End::Cancelled => Ok(ExitCode::SUCCESS),
        End::Failed(reason) => bail!("{reason}"),
        End::Interrupted => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// The hive that looks after a worker of the fleet.
async fn hive_of(client: &Client<'_>, worker: &str) -> anyhow::Result<(Api, WorkerId)> {
    let fleet = client.fleet().await?;
    let worker = choose_worker(&fleet.workers, worker)
        .map_err(|error| anyhow!("{error}; one that has ended is found with --hive, by its whole id"))?;
    let id = &worker.id;
    let hive_id = worker
        .hive_id
        .as_ref()
        .with_context(|| format!("{id} was started by no hive: what it prints is where it was started"))?;
    let hive = fleet
        .hives
        .iter()
        .find(|hive| hive.id == *hive_id && hive.liveness != Liveness::Lost)
        .with_context(|| format!("the hive {hive_id} of {id} is not there"))?;
    Ok((client.hive_at(hive)?, id.clone()))
}

fn show(global: &Global, event: &JobEvent) -> std::io::Result<()> {
    if global.json {
        return render::json_line(event);
    }
    match &event.message {
        Some(lines) if event.state == JobState::Running => render::print(&render::clean_lines(lines)),
        _ => Ok(()),
    }
}
