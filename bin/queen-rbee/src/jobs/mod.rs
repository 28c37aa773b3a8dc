//! The queen's jobs: what hives can be asked to do, for whichever hive it is, and what she does herself.
//!
//! Who does it is found before a job is accepted (`plan`), as far as that needs no decision; a worker or a file that may be
//! anywhere is placed by the supply. A hive's own job does the work: the queen's is its image, tells the same events, and
//! cancels it when she is asked to cancel. An answer (`infer`) is made by whichever worker the router finds.

mod infer;
mod plan;
mod request;
mod whole;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use daemon::ApiError;
use hive_contract::Operation;
use jobs::Failure;
use serde_json::{Value, json};
use shared_contract::{ErrorKind, HiveId};

pub use infer::Infer;
pub use request::{JobRequest, OwnOperation, QueenOperation};

use self::plan::Plan;
use crate::supply::HiveApi;
use crate::{State, changes, models};

/// A job of the queen.
pub(crate) type Job = jobs::Job<QueenOperation>;
/// All of them.
pub(crate) type Jobs = jobs::Jobs<QueenOperation>;

/// Starts what `peer` asks for, if somebody is there who can do it.
pub(crate) fn start(state: &Arc<State>, request: JobRequest, peer: SocketAddr) -> Result<Arc<Job>, ApiError> {
    let plan = plan::plan(state, &request, Instant::now())?;
    let theirs = Arc::clone(state);
    let shown = request.operation.shown();
    state.jobs.start(shown, |job| perform(theirs, plan, peer, job))
}

/// Does it.
async fn perform(state: Arc<State>, plan: Plan, peer: SocketAddr, job: Arc<Job>) -> Result<Value, Failure> {
    let at_end = match plan {
        Plan::Infer(_) => "the queen ends, and the answer with her; ask again once she is back",
        _ => "the queen ends; what a hive has begun for this goes on there",
    };
    let work = async {
        match plan {
            Plan::Hive { hive, api, operation } => at_hive(hive, &api, &operation, &job).await,
            Plan::Hives { hives, lost, operation } => whole::at_all(hives, lost, &operation, &job).await,
            Plan::Spawn { model, errand } => {
                let router = state.router.clone();
                state.supply.spawn(&model, *errand, router, &job).await
            }
            Plan::Pull { model, errand } => {
                let fetcher = state.supply.fetcher(&model, &errand, Instant::now())?;
                let model = fetcher.reference;
                at_hive(fetcher.hive, &fetcher.api, &Operation::ModelPull { model }, &job).await
            }
            Plan::Show { worker } => Ok(worker),
            Plan::EndAlone {
                worker,
                base_url,
                grace_s,
            } => whole::end_alone(&state, &worker, &base_url, grace_s, &job).await,
            Plan::Status => {
                let now = Instant::now();
                let models = models::list(&state.supply, state.started_unix_s);
                Ok(json!({"queen": changes::queen_beat(&state, now), "models": models}))
            }
            Plan::Infer(question) => question.answer(&state.router, peer, &job).await,
        }
    };
    tokio::select! {
        result = work => result.map(|result| of_hive(result, &job)),
        () = state.shutdown.requested() => Err(ApiError::new(ErrorKind::Draining, at_end).into()),
    }
}

/// A result with the hive that it is of, where that is one.
fn of_hive(mut result: Value, job: &Job) -> Value {
    if let (Value::Object(fields), Some(hive)) = (&mut result, job.status().hive_id) {
        fields.insert("hive_id".to_owned(), json!(hive));
    }
    result
}

/// Has one hive do it.
async fn at_hive(hive: HiveId, api: &HiveApi, operation: &Operation, job: &Job) -> Result<Value, Failure> {
    job.is_done_by(hive);
    let result = api.order_for(job, operation, |_| {}).await;
    result.map_err(crate::supply::OrderError::into_failure)
}
