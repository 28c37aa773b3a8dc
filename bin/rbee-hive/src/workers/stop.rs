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
/// Limit for the table to follow what the supervisor told already.
const FOLLOWING: Duration = Duration::from_secs(1);

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
    let allowed = grace.unwrap_or(app.config.grace);
    let mut is_gone = false;
    let mut is_to_be_told = false;
    app.core.change_workers(|table| {
        let Some(worker) = table.get_mut(id) else {
            return Vec::new();
        };
        if why.is_none() {
            // Whoever asks for its end does not want it back.
            worker.yields = false;
        }
        if !worker.is_kept && worker.state != ProcessState::Starting {
            // It had made room for the machine's owner, and has no process.
            table.remove(id);
            is_gone = true;
            return Vec::new();
        }
        // A signal lets it take the grace that it was started with; another one it has to be told.
        is_to_be_told = worker.grace.map_or(grace.is_some(), |before| allowed < before);
        worker.grace = Some(worker.grace.map_or(allowed, |before| before.min(allowed)));
        worker.state = ProcessState::Stopping;
        worker.farewell = why.or(worker.farewell.take());
        Vec::new()
    });
    if is_gone {
        return Ok(Ending::Ended);
    }
    if is_to_be_told {
        // Before it hears of it: then it may be gone at once, and is not to come back. It may have ended by now.
        let _ = app.core.supervisor.expect_end(id);
        if let Err(why) = ask_to_drain(app, id, allowed).await {
            tracing::debug!(worker_id = %id, why, "the worker does not hear how long it has");
        }
    }
    let ending = app.core.supervisor.stop(id, app.launcher.stop_limit(grace)).await?;
    // Whoever hears that it is gone finds it gone, and its model free: the table follows the supervisor a moment later.
    let mut table = app.core.workers();
    let follows = table.wait_for(|table| table.get(id).is_none_or(|worker| !worker.is_kept));
    let _ = tokio::time::timeout(FOLLOWING, follows).await;
    Ok(ending)
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
            worker.grace.get_or_insert(Duration::MAX);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::core::Worker;
    use crate::core::tests::worker;
    use crate::{Args, Config, operations, workers};

    /// A worker that runs until it is ended. Its first argument is the script's name.
    const LASTING: &str = "test $0 = --version || exec sleep 600";

    /// A hive that does nothing by itself, whose workers run this script.
    async fn app(folder: &tempfile::TempDir, script: &str) -> App {
        let folder = |name: &str| folder.path().join(name).into_os_string();
        let mut args = vec!["rbee-hive".into(), "--state-dir".into(), folder("state")];
        args.extend(["--models-dir".into(), folder("models")]);
        args.extend(["--nvml-library".into(), folder("no-library")]);
        for word in ["sh", "-c", script] {
            args.extend(["--worker-command".into(), word.into()]);
        }
        let config = Config::try_from(Args::try_parse_from(args).unwrap()).unwrap();
        let state = daemon::StateFolder::take(&config.state_dir).unwrap();
        let http = daemon::client::new().unwrap();
        crate::prepare(config, &state, &http, 1, daemon::Shutdown::new())
            .await
            .unwrap()
    }

    /// Enters a worker in the table as it would be there.
    fn enter(app: &App, worker: Worker) -> (WorkerId, Arc<workers::Order>) {
        let order = Arc::clone(&worker.order);
        app.core.change_workers(|table| {
            table.insert(order.id.clone(), worker);
            Vec::new()
        });
        (order.id.clone(), order)
    }

    #[tokio::test]
    async fn a_worker_that_waits_for_its_device_is_listed_with_the_reason_and_can_be_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let app = app(&folder, "exit").await;
        let mut waiting = worker("cuda:0", ProcessState::Stopping);
        waiting.farewell = Some("yielded to `game` (process 7)".into());
        waiting.wait();
        let (id, _) = enter(&app, waiting);
        let listed = operations::workers::list(&app.core);
        let listed = &listed["workers"][0];
        assert_eq!(
            (&listed["worker_id"], &listed["state"]),
            (&json!(id), &json!("restarting"))
        );
        assert!(listed["reason"].as_str().unwrap().contains("`game`"), "{listed}");
        assert_eq!(stop(&app, &id, None).await.unwrap(), Ending::Ended);
        assert_eq!(operations::workers::list(&app.core), json!({"workers": []}));
        assert!(stop(&app, &id, None).await.is_err(), "it is gone");
    }

    #[tokio::test]
    async fn a_worker_that_is_stopped_while_it_makes_room_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let app = app(&folder, LASTING).await;
        let (id, order) = enter(&app, worker("cpu", ProcessState::Starting));
        workers::start(&app, &order).await.unwrap();
        app.core.change_workers(|table| {
            table.get_mut(&id).unwrap().yields = true;
            Vec::new()
        });
        let (made_room, stopped) = tokio::join!(retire(&app, &id, "yielded".into()), stop(&app, &id, None));
        assert_eq!((made_room.unwrap(), stopped.unwrap()), (Ending::Ended, Ending::Ended));
        app.core.change_workers(|table| super::super::follow::gone(table, &id));
        assert!(app.core.workers().borrow().is_empty());
    }

    #[tokio::test]
    async fn a_worker_that_is_told_to_end_before_its_process_began_leaves_none_behind() {
        let folder = tempfile::tempdir().unwrap();
        let app = app(&folder, LASTING).await;
        let (id, order) = enter(&app, worker("cpu", ProcessState::Starting));
        assert!(
            retire(&app, &id, "yielded".into()).await.is_err(),
            "there is no process yet"
        );
        workers::start(&app, &order).await.unwrap();
        assert!(app.core.supervisor.list().is_empty());
        assert!(app.core.workers().borrow().is_empty());
    }

    #[tokio::test]
    async fn a_worker_that_cannot_be_started_keeps_no_promise() {
        let folder = tempfile::tempdir().unwrap();
        let app = app(&folder, "exit").await;
        app.core.supervisor.stop_all(Duration::ZERO).await;
        let (_, order) = enter(&app, worker("cpu", ProcessState::Starting));
        assert!(workers::start(&app, &order).await.is_err(), "the hive is ending");
        assert!(app.core.workers().borrow().is_empty());
    }
}
