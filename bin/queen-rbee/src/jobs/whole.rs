//! What more than one hive does, or none.

use std::time::{Duration, Instant};

use daemon::ApiError;
use futures_util::future::join_all;
use heartbeat_registry::Liveness;
use hive_contract::Operation;
use jobs::Failure;
use serde_json::{Map, Value, json};
use shared_contract::{ErrorKind, HiveId, WorkerId};
use worker_contract::{DrainRequest, WorkerStatus};

use super::Job;
use crate::State;
use crate::reach::root_cause;
use crate::supply::HiveApi;

/// How long a worker may take to say that it drains.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Has all hives do it: `{"hives": {ID: RESULT}, "failed": {ID: WHY}}`. Fails if all of them do.
pub(super) async fn at_all(
    hives: Vec<(HiveId, HiveApi)>,
    lost: Vec<(HiveId, String)>,
    operation: &Operation,
    job: &Job,
) -> Result<Value, Failure> {
    let orders = hives
        .iter()
        .map(|(hive, api)| async move { (hive, api.order_for(job, operation, |_| {}).await) });
    let (mut results, mut failed) = (Map::new(), Map::new());
    for (hive, why) in lost {
        failed.insert(hive.to_string(), why.into());
    }
    let mut last = None;
    for (hive, result) in join_all(orders).await {
        match result {
            Ok(result) => drop(results.insert(hive.to_string(), result)),
            Err(error) => {
                failed.insert(hive.to_string(), error.to_string().into());
                last = Some(error);
            }
        }
    }
    if job.cancelled().is_cancelled() {
        return Err(Failure::Cancelled);
    }
    match last {
        Some(error) if results.is_empty() => Err(error.into_failure()),
        _ => Ok(json!({"hives": results, "failed": failed})),
    }
}

/// Ends a worker that no hive looks after, by its own word: it answers what it has, and ends.
pub(super) async fn end_alone(
    state: &State,
    worker: &WorkerId,
    base_url: &str,
    grace_s: Option<u64>,
    job: &Job,
) -> Result<Value, Failure> {
    // Before it is asked, so that its goodbye is not missed.
    let mut events = state.workers.subscribe();
    ask_to_drain(state, base_url, grace_s).await?;
    job.say(format!(
        "worker {worker} takes no new requests, and ends when those that it has are answered"
    ));
    while !is_gone(state, worker) {
        tokio::select! {
            // Whatever happened, or was missed: the worker is looked at.
            _ = events.recv() => {}
            () = job.cancelled().cancelled() => {
                job.say(format!("worker {worker} goes on draining, which cannot be taken back"));
                return Err(Failure::Cancelled);
            }
        }
    }
    Ok(json!({"worker_id": worker, "how": "drained"}))
}

async fn ask_to_drain(state: &State, base_url: &str, grace_s: Option<u64>) -> Result<(), ApiError> {
    let request = state.client.post(format!("{base_url}/v1/drain"));
    let request = match &state.config.token {
        Some(token) => request.bearer_auth(token.expose()),
        None => request,
    };
    let sent = request
        .json(&DrainRequest { grace_s })
        .timeout(ANSWER_LIMIT)
        .send()
        .await;
    let fail = |why: String| {
        let message = format!("have the worker drain, which no hive looks after now: {why}");
        ApiError::new(ErrorKind::UpstreamFailed, message)
    };
    match sent {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(fail(format!("it answered {}", answer.status()))),
        Err(error) => Err(fail(root_cause(&error))),
    }
}

fn is_gone(state: &State, worker: &WorkerId) -> bool {
    let view = state.workers.view(worker, Instant::now());
    view.is_none_or(|view| view.liveness == Liveness::Lost || view.item().worker.status == WorkerStatus::Stopped)
}
