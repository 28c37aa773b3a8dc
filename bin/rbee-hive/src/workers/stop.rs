//! How workers end: stopped within a grace period, drained for as long as it takes, or retired by the hive itself.

use std::time::Duration;

use daemon::ApiError;
use hive_contract::ProcessState;
use shared_contract::{ErrorKind, WorkerId};
use worker_contract::{DrainRequest, MAX_GRACE_S};
use worker_supervisor::{Ending, Error};

use crate::App;

/// Limit for a worker to hear that it should end.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Stops a worker; it is gone when this ends. Its requests may take `grace`, or what the settings say.
pub(crate) async fn stop(app: &App, id: &WorkerId, grace: Option<Duration>) -> Result<Ending, Error> {
    end(app, id, grace, None).await
}

/// Stops a worker because the hive sees no more use in it; the queens hear why.
pub(crate) async fn retire(app: &App, id: &WorkerId, why: String) -> Result<Ending, Error> {
    tracing::info!(worker_id = %id, why, "stopping a worker");
    end(app, id, None, Some(why)).await
}

async fn end(app: &App, id: &WorkerId, grace: Option<Duration>, why: Option<String>) -> Result<Ending, Error> {
    app.core.change_workers(|table| {
        if let Some(worker) = table.get_mut(id) {
            worker.state = ProcessState::Stopping;
            worker.farewell = why;
        }
        Vec::new()
    });
    // The signal lets it take the grace that it was started with; another one it has to be told.
    if let Some(grace) = grace
        && let Err(why) = ask_to_drain(app, id, grace).await
    {
        tracing::debug!(worker_id = %id, why, "the worker does not hear how long it has");
    }
    app.core.supervisor.stop(id, app.launcher.stop_limit(grace)).await
}

/// Asks a worker to finish its requests, however long they take, and to end then. It is not started again.
pub(crate) async fn drain(app: &App, id: &WorkerId) -> Result<(), ApiError> {
    ask_to_drain(app, id, Duration::from_secs(MAX_GRACE_S))
        .await
        .map_err(|why| {
            let message = format!("failed to drain worker {id}: {why}; worker_stop ends it without being asked");
            ApiError::new(ErrorKind::UpstreamFailed, message)
        })?;
    // It may have ended by now, which is what was wanted.
    let _ = app.core.supervisor.expect_end(id);
    app.core.change_workers(|table| {
        if let Some(worker) = table.get_mut(id) {
            worker.state = ProcessState::Stopping;
        }
        Vec::new()
    });
    Ok(())
}

async fn ask_to_drain(app: &App, id: &WorkerId, grace: Duration) -> Result<(), String> {
    let port = app.core.workers().borrow().get(id).and_then(|worker| worker.port);
    let Some(port) = port else {
        return Err("it does not listen yet".to_owned());
    };
    let mut request = app
        .http
        .post(format!("{}/v1/drain", app.launcher.base_url(port)))
        .timeout(TIMEOUT)
        .json(&DrainRequest {
            grace_s: Some(grace.as_secs().min(MAX_GRACE_S)),
        });
    if let Some(token) = &app.config.token {
        request = request.bearer_auth(token.expose());
    }
    let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("it answered {status}")),
    }
}
