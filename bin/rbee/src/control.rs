//! `rbee pull`, `rbee rm`, `rbee spawn`, `rbee stop`: jobs of the queen, which the right hive does for her.

use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::bail;
use chrono::Utc;
use daemon::Shutdown;
use daemon::quantity::Span;
use hive_contract::{JobEvent, JobProgress, JobState, ModelEntry, Operation};
use model_store::{Catalogue, DamagedModel, ModelRef, ModelStore, StoreError, StoreOptions, StoredModel};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::cli::{CatalogueArgs, Global, PullArgs, RmArgs, SpawnArgs, StopArgs};
use crate::fleet::{Client, choose_worker};
use crate::jobs::{self, End, Order};
use crate::progress::Progress;
use crate::{INTERRUPTED, Usage, render};

/// `rbee pull`.
pub(crate) async fn pull(global: &Global, args: PullArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    // Whoever fetches a model accepts its terms, and so should see where they stand.
    if let Some(entry) = catalogue(&args.catalogue)?.get(&args.model) {
        render::note(&entry.licence_note());
    }
    if args.local {
        return pull_local(global, &args, shutdown).await;
    }
    let order = Order {
        hive_id: args.hive,
        operation: Operation::ModelPull { model: args.model },
    };
    work(global, &Client::new(global)?.queen(), &order, shutdown, |result| {
        let size = render::bytes(result["size_bytes"].as_u64()?);
        Some(format!(
            "{} is on {}: {size}",
            text(result, "id")?,
            text(result, "hive_id")?
        ))
    })
    .await
}

/// `rbee rm`.
pub(crate) async fn rm(global: &Global, args: RmArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    if args.local {
        let store = open_store(&CatalogueArgs::default())?;
        let model = store.find(&args.model).await.map_err(StoreFailed)?;
        store.delete(&model).await.map_err(StoreFailed)?;
        if global.json {
            render::json_line(&entry(&model))?;
        } else {
            render::print(&removed(model.id.as_str(), "this machine", Some(model.size_bytes)))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let order = Order {
        hive_id: args.hive,
        operation: Operation::ModelDelete { model: args.model },
    };
    work(global, &Client::new(global)?.queen(), &order, shutdown, |result| {
        // Of damaged files not everything is known.
        let model = text(result, "id").or_else(|| text(result, "reference"))?;
        Some(removed(
            &model,
            &text(result, "hive_id")?,
            result["freed_bytes"].as_u64(),
        ))
    })
    .await
}

fn removed(model: &str, place: &str, freed_bytes: Option<u64>) -> String {
    let freed = freed_bytes.map(|bytes| format!(": {} are free", render::bytes(bytes)));
    format!("{model} is removed from {place}{}", freed.unwrap_or_default())
}

/// A text of a job's result.
fn text(result: &Value, field: &str) -> Option<String> {
    result[field].as_str().map(render::clean)
}

/// `rbee spawn`.
pub(crate) async fn spawn(global: &Global, args: SpawnArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let order = Order {
        hive_id: args.hive,
        operation: Operation::WorkerSpawn {
            model: args.model,
            worker: None,
            device: args.device,
            context_length: args.context_length,
            slots: args.slots,
            keep_alive_s: args.keep_alive.map(|span| span.duration().as_secs()),
        },
    };
    work(global, &Client::new(global)?.queen(), &order, shutdown, |result| {
        let field = |name| text(result, name);
        let limit = result["keep_alive_s"].as_u64().filter(|seconds| *seconds > 0);
        let limit = limit.map(|seconds| format!("; it is stopped after {} without a request", Span::secs(seconds)));
        Some(format!(
            "{} serves {} on {} {}{}",
            field("worker_id")?,
            field("model")?,
            field("hive_id")?,
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
    let (worker_id, grace_s) = (worker.id.clone(), args.grace_s);
    let operation = match args.drain {
        true => Operation::WorkerDrain { worker_id },
        false => Operation::WorkerStop { worker_id, grace_s },
    };
    work(global, &client.queen(), &operation.into(), shutdown, |_| {
        Some(format!("{} is stopped", worker.id))
    })
    .await
}

/// Runs the job and shows it; `done` makes the sentence for its end out of its result.
async fn work(
    global: &Global,
    queen: &Api,
    order: &Order,
    shutdown: &Shutdown,
    done: impl FnOnce(&Value) -> Option<String>,
) -> anyhow::Result<ExitCode> {
    let mut progress = Progress::new(global.json);
    let end = jobs::run(queen, order, shutdown, |event| progress.job(event)).await;
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

async fn pull_local(global: &Global, args: &PullArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let reference = reference(&args.model)?;
    let store = open_store(&args.catalogue)?;
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

/// The catalogue, with what the user adds to it.
pub(crate) fn catalogue(args: &CatalogueArgs) -> Result<Catalogue, StoreFailed> {
    let built_in = Catalogue::built_in();
    match &args.catalogue {
        Some(file) => built_in.extended(file).map_err(StoreFailed),
        None => Ok(built_in),
    }
}

/// This user's store.
pub(crate) fn open_store(catalogue: &CatalogueArgs) -> Result<ModelStore, StoreFailed> {
    let options = StoreOptions {
        catalogue_file: catalogue.catalogue.clone(),
        ..StoreOptions::from_env()
    };
    model_store::default_root()
        .and_then(|root| ModelStore::open_with(root, options))
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
