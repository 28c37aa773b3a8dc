//! `rbee logs`: what a worker prints, by its hive.

use std::process::ExitCode;

use anyhow::{anyhow, bail};
use daemon::Shutdown;
use hive_contract::{JobEvent, JobState, Operation};
use shared_contract::WorkerId;

use crate::cli::{Global, LogsArgs};
use crate::fleet::{Client, choose_worker};
use crate::jobs::{self, End, Order};
use crate::{INTERRUPTED, Usage, render};

/// `rbee logs`.
pub(crate) async fn logs(global: &Global, args: LogsArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let client = Client::new(global)?;
    let worker_id = match &args.hive {
        Some(_) => WorkerId::new(args.worker).map_err(|error| Usage(format!("WORKER: {error}")))?,
        None => choose_worker(&client.fleet().await?.workers, &args.worker)
            .map_err(|error| anyhow!("{error}; one that has ended is found with --hive, by its whole id"))?
            .id
            .clone(),
    };
    let order = Order {
        hive_id: args.hive,
        operation: Operation::WorkerLogs {
            worker_id,
            lines: Some(args.lines),
            follow: args.follow,
        },
    };
    let end = jobs::run(&client.queen(), &order, shutdown, |event| show(global, event)).await?;
    match end {
        End::Succeeded(_) | End::Cancelled => Ok(ExitCode::SUCCESS),
        End::Failed(reason) => bail!("{reason}"),
        End::Interrupted => Ok(ExitCode::from(INTERRUPTED)),
    }
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
