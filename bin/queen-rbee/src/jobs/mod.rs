//! The queen's jobs: what hives can be asked to do, for whichever hive it is, and what she does herself.
//!
//! Who does it is found before a job is accepted (`plan`), as far as that needs no decision; a worker or a file that may be
//! anywhere is placed by the supply. A hive's own job does the work: the queen's is its image, tells the same events, and
//! cancels it when she is asked to cancel.

mod plan;
mod request;
mod whole;

use std::sync::Arc;
use std::time::Instant;

use daemon::ApiError;
use hive_contract::Operation;
use jobs::Failure;
use serde_json::{Value, json};
use shared_contract::{ErrorKind, HiveId};

pub use request::{JobRequest, OwnOperation, QueenOperation};

use self::plan::Plan;
use crate::supply::HiveApi;
use crate::{State, changes, models};

/// A job of the queen.
pub(crate) type Job = jobs::Job<QueenOperation>;
/// All of them.
pub(crate) type Jobs = jobs::Jobs<QueenOperation>;

/// Starts what is asked for, if somebody is there who can do it.
pub(crate) fn start(state: &Arc<State>, request: JobRequest) -> Result<Arc<Job>, ApiError> {
    let plan = plan::plan(state, &request, Instant::now())?;
    let theirs = Arc::clone(state);
    state.jobs.start(request.operation, |job| perform(theirs, plan, job))
}

/// Does it.
async fn perform(state: Arc<State>, plan: Plan, job: Arc<Job>) -> Result<Value, Failure> {
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
        }
    };
    tokio::select! {
        result = work => result,
        () = state.shutdown.requested() => {
            let message = "the queen ends; what a hive has begun for this goes on there";
            Err(ApiError::new(ErrorKind::Draining, message).into())
        }
    }
}

/// Has one hive do it.
async fn at_hive(hive: HiveId, api: &HiveApi, operation: &Operation, job: &Job) -> Result<Value, Failure> {
    job.is_done_by(hive);
    let result = api.order_for(job, operation, |_| {}).await;
    result.map_err(crate::supply::OrderError::into_failure)
}
