//! `rbee pull`, `rbee rm`, `rbee spawn`, `rbee stop`: work that a hive does as a job.

use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::bail;
use chrono::Utc;
use daemon::Shutdown;
use daemon::quantity::Span;
use hive_contract::{JobEvent, JobProgress, JobState, ModelEntry, Operation};
use model_store::{Catalogue, DamagedModel, ModelRef, ModelStore, StoreError, StoredModel};
use queen_rbee::fleet::{HiveView, Liveness};
use serde_json::Value;
use shared_contract::ModelId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker_contract::{DrainRequest, MAX_GRACE_S};

use crate::api::Api;
use crate::cli::{Global, PullArgs, RmArgs, SpawnArgs, StopArgs};
use crate::fleet::{Client, choose_worker};
use crate::jobs::{self, End};
use crate::progress::Progress;
use crate::{INTERRUPTED, Usage, render};

/// `rbee pull`.
pub(crate) async fn pull(global: &Global, args: PullArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    // Whoever fetches a model accepts its terms, and so should see where they stand.
    if let Some(entry) = Catalogue::built_in().get(&args.model) {
        render::note(&entry.licence_note());
    }
    if args.local {
        return pull_local(global, &args.model, shutdown).await;
    }
    let hive = Client::new(global)?.hive(args.hive.as_deref()).await?;
    let operation = Operation::ModelPull { model: args.model };
    work(global, &hive, &operation, shutdown, |result| {
        let entry: ModelEntry = serde_json::from_value(result.clone()).ok()?;
        Some(format!(
            "{} is on {}: {}",
            entry.id,
            hive.base(),
            render::bytes(entry.size_bytes)
        ))
    })
    .await
}

/// `rbee rm`.
pub(crate) async fn rm(global: &Global, args: RmArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    if args.local {
        let store = open_store()?;
        let model = store.find(&args.model).await.map_err(StoreFailed)?;
        store.delete(&model).await.map_err(StoreFailed)?;
        if global.json {
            render::json_line(&entry(&model))?;
        } else {
            render::print(&removed(&model.id, model.size_bytes))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let hive = Client::new(global)?.hive(args.hive.as_deref()).await?;
    let operation = Operation::ModelDelete { model: args.model };
    work(global, &hive, &operation, shutdown, |result| {
        let entry: ModelEntry = serde_json::from_value(result.clone()).ok()?;
        Some(removed(&entry.id, entry.size_bytes))
    })
    .await
}

fn removed(id: &ModelId, size_bytes: u64) -> String {
    format!("{id} is removed: {} are free", render::bytes(size_bytes))
}

/// `rbee spawn`.
pub(crate) async fn spawn(global: &Global, args: SpawnArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let hive = Client::new(global)?.hive(args.hive.as_deref()).await?;
    let operation = Operation::WorkerSpawn {
        model: args.model,
        worker: None,
        device: args.device,
        context_length: args.context_length,
        slots: args.slots,
        keep_alive_s: args.keep_alive.map(|span| span.duration().as_secs()),
    };
    work(global, &hive, &operation, shutdown, |result| {
        let field = |name: &str| result[name].as_str().map(render::clean);
        let limit = result["keep_alive_s"].as_u64().filter(|seconds| *seconds > 0);
        let limit = limit.map(|seconds| format!("; it is stopped after {} without a request", Span::secs(seconds)));
        Some(format!(
            "{} serves {} on {}{}",
            field("worker_id")?,
            field("model")?,
            field("device")?,
            limit.unwrap_or_default()
        ))
    })
    .await
}

/// `rbee stop`.
pub(crate) async fn stop(global: &Global, args: StopArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let client = Client::new(global)?;
    let fleet = client.fleet().await?;
    let worker = choose_worker(&fleet.workers, &args.worker)?;
    // A hive that was killed cannot be asked, and started again it does not know the workers that outlived it.
    let looks_after = |hive: &HiveView| {
        Some(&hive.id) == worker.hive_id.as_ref()
            && hive.liveness == Liveness::Online
            && hive
                .workers
                .iter()
                .any(|process| process.worker_id.as_ref() == Some(&worker.id))
    };
    let Some(hive) = fleet.hives.iter().find(|hive| looks_after(hive)) else {
        // Nobody would start it again, so it is enough to tell the worker itself.
        let grace_s = if args.drain { Some(MAX_GRACE_S) } else { args.grace_s };
        let _: Value = client
            .worker_at(worker)?
            .post("/v1/drain", &DrainRequest { grace_s })
            .await?;
        if global.json {
            render::json_line(&serde_json::json!({"worker_id": worker.id, "status": "draining"}))?;
        } else {
            render::print(&format!("{} finishes its requests and ends", worker.id))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let worker_id = worker.id.clone();
    let operation = if args.drain {
        Operation::WorkerDrain { worker_id }
    } else {
        let grace_s = args.grace_s;
        Operation::WorkerStop { worker_id, grace_s }
    };
    work(global, &client.hive_at(hive)?, &operation, shutdown, |_| {
        Some(format!("{} is stopped", worker.id))
    })
    .await
}

/// Runs the job and shows it; `done` makes the sentence for its end out of its result.
async fn work(
    global: &Global,
    hive: &Api,
    operation: &Operation,
    shutdown: &Shutdown,
    done: impl FnOnce(&Value) -> Option<String>,
) -> anyhow::Result<ExitCode> {
    let mut progress = Progress::new(global.json);
    let end = jobs::run(hive, operation, shutdown, |event| progress.job(event)).await;
    progress.clear();
    match end? {
        End::Succeeded(result) => {
            if !global.json {
                render::print(&done(&result).unwrap_or_else(|| "done".to_owned()))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        End::Failed(reason) => bail!("{reason}"),
        End::Cancelled => bail!("the job was cancelled by somebody else"),
        End::Interrupted => {
            render::note("interrupted; finished parts are kept for the next time");
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

async fn pull_local(global: &Global, model: &str, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let reference = reference(model)?;
    let store = open_store()?;
    store.resolve(&reference).map_err(StoreFailed)?;
    let mut progress = Progress::new(global.json);
    let cancel = CancellationToken::new();
    // The store reports from its own threads, as often as it likes; only the latest report is of interest.
    let (reports, mut latest) = watch::channel(None);
    let reports = Mutex::new(reports);
    let report = move |progress: model_store::Progress| {
        if let Ok(reports) = reports.lock() {
            reports.send_replace(Some(progress));
        }
    };
    let mut pulling = std::pin::pin!(store.pull(&reference, report, &cancel));
    let mut seq = 0;
    let stored = loop {
        tokio::select! {
            stored = &mut pulling => break stored,
            () = shutdown.requested(), if !cancel.is_cancelled() => cancel.cancel(),
            Ok(()) = latest.changed() => {
                let Some(report) = latest.borrow_and_update().clone() else { continue };
                progress.job(&local_event(seq, JobState::Running, Some(&report)))?;
                seq += 1;
            }
        }
    };
    progress.clear();
    match stored {
        Ok(model) => {
            if global.json {
                let mut last = local_event(seq, JobState::Succeeded, None);
                last.result = Some(serde_json::to_value(entry(&model))?);
                render::json_line(&last)?;
            } else {
                render::print(&format!("{} is at {}", model.id, model.path.display()))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(StoreError::Cancelled) => {
            if global.json {
                render::json_line(&local_event(seq, JobState::Cancelled, None))?;
            }
            render::note("interrupted; finished parts are kept for the next time");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(StoreFailed(error).into()),
    }
}

/// Reads a model's name or reference as the command line has it.
pub(crate) fn reference(model: &str) -> Result<ModelRef, Usage> {
    model.parse().map_err(|error| Usage(format!("failed to {error}")))
}

/// This user's store.
pub(crate) fn open_store() -> Result<ModelStore, StoreFailed> {
    model_store::default_root()
        .and_then(ModelStore::open)
        .map_err(StoreFailed)
}

/// The store words its errors so that they fit after these words.
#[derive(Debug, thiserror::Error)]
#[error("failed to {0}")]
pub(crate) struct StoreFailed(pub(crate) StoreError);

/// The store's report in the shape in which a hive would tell it.
fn local_event(seq: u64, state: JobState, report: Option<&model_store::Progress>) -> JobEvent {
    let progress = report.map(|report| JobProgress {
        phase: report.phase.to_string(),
        done: report.done_bytes,
        total: report.total_bytes,
        unit: "bytes".to_owned(),
        per_second: report.per_second,
        eta_s: report.eta_s,
        source: report.source.as_deref().map(str::to_owned),
    });
    JobEvent {
        seq,
        timestamp: Utc::now(),
        state,
        message: None,
        progress,
        result: None,
        error: None,
    }
}

/// A model of the local store in the shape in which a hive would tell it.
pub(crate) fn entry(model: &StoredModel) -> ModelEntry {
    ModelEntry {
        id: model.id.clone(),
        reference: model.reference.to_string(),
        size_bytes: model.size_bytes,
        sha256: model.sha256.clone(),
        revision: model.revision.clone(),
        facts: None,
        problem: None,
    }
}

/// The same for one whose files are damaged; `None` where it is not known which model they were.
pub(crate) fn damaged_entry(model: &DamagedModel) -> Option<ModelEntry> {
    Some(ModelEntry {
        id: model.id.clone()?,
        reference: model.reference.as_ref().map(ToString::to_string).unwrap_or_default(),
        size_bytes: 0,
        sha256: None,
        revision: None,
        facts: None,
        problem: Some(format!("{}: {}", model.path.display(), model.why)),
    })
}
