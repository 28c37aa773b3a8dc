//! Jobs of a daemon: started, and followed to their end through breaks of the connection.

use std::time::Duration;

use daemon::Shutdown;
use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use hive_contract::{JobAccepted, JobEvent, JobState, Operation};
use reqwest::{Method, Response};
use serde::Serialize;
use shared_contract::{ErrorObject, HiveId};

use crate::api::{self, Api};

/// A stream without any byte for this long is given up; a living one has a comment line every 15 s.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a stream is opened again in a row without a new event in between.
const MAX_RETRIES: u32 = 5;
/// Pause before the first of these retries; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long a cancellation may take to arrive.
const CANCEL_LIMIT: Duration = Duration::from_secs(2);

/// How a job ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Done, with what came of it.
    Succeeded(serde_json::Value),
    /// It could not be done.
    Failed(String),
    /// Cancelled by somebody.
    Cancelled,
    /// This command was interrupted; the job was told to end.
    Interrupted,
}

/// A job for the queen: what she takes at `POST /v1/jobs`.
#[derive(Debug, Serialize)]
pub(crate) struct Order {
    /// The hive that is to do it; left out, she finds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hive_id: Option<HiveId>,
    /// What is to be done.
    #[serde(flatten)]
    pub(crate) operation: Operation,
}

impl From<Operation> for Order {
    /// For whichever hive it is.
    fn from(operation: Operation) -> Self {
        Self {
            hive_id: None,
            operation,
        }
    }
}

/// Starts a job of the queen and follows it; on an interruption cancels it.
pub(crate) async fn run(
    queen: &Api,
    order: &Order,
    shutdown: &Shutdown,
    mut on_event: impl FnMut(&JobEvent) -> std::io::Result<()>,
) -> anyhow::Result<End> {
    let job = start(queen, order).await?;
    tokio::select! {
        end = follow(queen, &job, &mut on_event) => end,
        () = shutdown.requested() => {
            cancel(queen, &job).await;
            Ok(End::Interrupted)
        }
    }
}

/// Starts a job; a hive takes an [`Operation`], the queen an [`Order`].
pub(crate) async fn start(daemon: &Api, order: &impl Serialize) -> Result<JobAccepted, api::Error> {
    daemon.post("/v1/jobs", order).await
}

/// Follows a job to its end, calling `on_event` once for each event.
pub(crate) async fn follow(
    daemon: &Api,
    job: &JobAccepted,
    on_event: impl FnMut(&JobEvent) -> std::io::Result<()>,
) -> anyhow::Result<End> {
    follow_with(daemon, job, RETRY_PAUSE, on_event).await
}

async fn follow_with(
    daemon: &Api,
    job: &JobAccepted,
    pause: Duration,
    mut on_event: impl FnMut(&JobEvent) -> std::io::Result<()>,
) -> anyhow::Result<End> {
    let mut last_seen: Option<u64> = None;
    let mut retries = 0;
    loop {
        let seen_before = last_seen;
        let broken = match daemon.open(&job.stream_url).await {
            Ok(response) => match read(daemon, response, &mut last_seen, &mut on_event).await? {
                Reading::Ended(end) => return Ok(end),
                Reading::Broken(error) => error,
            },
            // The daemon does not know the job any more: it was restarted.
            Err(error @ api::Error::Refused { .. }) => return Err(error.into()),
            Err(error) => error,
        };
        if last_seen > seen_before {
            retries = 0;
        }
        if retries == MAX_RETRIES {
            return Err(anyhow::Error::new(broken).context("lost sight of the job; see `rbee ps` for what came of it"));
        }
        tokio::time::sleep(pause * 2_u32.pow(retries)).await;
        retries += 1;
    }
}

enum Reading {
    Ended(End),
    Broken(api::Error),
}

/// Reads one connection's worth of events. Its stream starts from the beginning, so what was seen is skipped.
async fn read(
    daemon: &Api,
    response: Response,
    last_seen: &mut Option<u64>,
    on_event: &mut impl FnMut(&JobEvent) -> std::io::Result<()>,
) -> anyhow::Result<Reading> {
    let bytes = tokio_stream::StreamExt::timeout(response.bytes_stream(), SILENCE).map(|item| match item {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(api::root_cause(&error)),
        Err(_) => Err(format!("silent for {} s", SILENCE.as_secs())),
    });
    let mut events = std::pin::pin!(bytes.eventsource());
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => return Ok(Reading::Broken(daemon.garbled(api::stream_fault(error)))),
        };
        let event: JobEvent = serde_json::from_str(&event.data)
            .map_err(|error| daemon.garbled(format!("{error} in an event of the job's stream")))?;
        if last_seen.is_some_and(|seen| event.seq <= seen) {
            continue;
        }
        *last_seen = Some(event.seq);
        on_event(&event)?;
        if let Some(end) = end(event) {
            return Ok(Reading::Ended(end));
        }
    }
    Ok(Reading::Broken(daemon.garbled("the job's stream ended before the job")))
}

fn end(event: JobEvent) -> Option<End> {
    match event.state {
        JobState::Running => None,
        JobState::Succeeded => Some(End::Succeeded(event.result.unwrap_or_default())),
        JobState::Cancelled => Some(End::Cancelled),
        JobState::Failed => Some(End::Failed(reason(event.error, event.message))),
    }
}

fn reason(error: Option<ErrorObject>, message: Option<String>) -> String {
    error.map(|error| error.message).or(message).map_or_else(
        || "no reason was given".to_owned(),
        |text| crate::render::clean_lines(&text),
    )
}

/// Asks for the end of a job; what cannot be reached cannot be cancelled.
async fn cancel(daemon: &Api, job: &JobAccepted) {
    let path = format!("/v1/jobs/{}", job.job_id);
    let _ = tokio::time::timeout(CANCEL_LIMIT, daemon.tell(Method::DELETE, &path)).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::routing::{delete, get, post};
    use serde_json::json;
    use tokio::sync::Notify;

    use super::*;
    use crate::api::Peer;
    use crate::api::tests::{api, serve};

    #[test]
    fn the_queen_is_told_the_hive_beside_the_operation_or_finds_it() {
        let mut order = Order::from(Operation::ModelPull { model: "m".into() });
        assert_eq!(
            serde_json::to_value(&order).unwrap(),
            json!({"operation": "model_pull", "model": "m"})
        );
        order.hive_id = HiveId::new("h").ok();
        assert_eq!(serde_json::to_value(&order).unwrap()["hive_id"], "h");
    }

    fn sse(events: &[serde_json::Value]) -> String {
        events
            .iter()
            .map(|event| format!("id: {}\ndata: {event}\n\n", event["seq"]))
            .collect()
    }

    fn event(seq: u64, state: &str) -> serde_json::Value {
        json!({"seq": seq, "timestamp": "2025-11-01T00:00:00Z", "state": state})
    }

    fn job() -> JobAccepted {
        JobAccepted {
            job_id: "j".into(),
            stream_url: "/v1/jobs/j/stream".into(),
        }
    }

    async fn followed(router: Router) -> (anyhow::Result<End>, Vec<u64>) {
        let url = serve(router).await;
        let mut seen = Vec::new();
        let (queen, pause) = (api(Peer::Queen, &url), Duration::from_millis(1));
        let end = follow_with(&queen, &job(), pause, |event| {
            seen.push(event.seq);
            Ok(())
        })
        .await;
        (end, seen)
    }

    #[tokio::test]
    async fn a_job_is_followed_to_its_result() {
        let mut last = event(2, "succeeded");
        last["result"] = json!({"worker_id": "w"});
        let body = sse(&[event(0, "running"), event(1, "running"), last]);
        let (end, seen) = followed(Router::new().route("/v1/jobs/j/stream", get(async || body))).await;
        let End::Succeeded(result) = end.unwrap() else {
            panic!("succeeded")
        };
        assert_eq!((result["worker_id"].as_str(), seen), (Some("w"), vec![0, 1, 2]));
    }

    #[tokio::test]
    async fn a_broken_stream_is_taken_up_again_and_no_event_comes_twice() {
        let calls = Arc::new(AtomicU32::new(0));
        let handler = async move || match calls.fetch_add(1, Ordering::Relaxed) {
            0 => sse(&[event(0, "running"), event(1, "running")]),
            _ => sse(&[event(0, "running"), event(1, "running"), event(4, "cancelled")]),
        };
        let (end, seen) = followed(Router::new().route("/v1/jobs/j/stream", get(handler))).await;
        assert!(matches!(end.unwrap(), End::Cancelled));
        assert_eq!(seen, [0, 1, 4]);
    }

    #[tokio::test]
    async fn a_stream_that_never_goes_on_is_given_up() {
        let (end, seen) =
            followed(Router::new().route("/v1/jobs/j/stream", get(async || sse(&[event(0, "running")])))).await;
        let text = format!("{:#}", end.unwrap_err());
        assert!(
            text.contains("lost sight of the job") && text.contains("ended before the job"),
            "{text}"
        );
        assert_eq!(seen, [0]);
    }

    #[tokio::test]
    async fn the_reason_of_a_failed_job_is_told() {
        let mut last = event(0, "failed");
        last["error"] =
            json!({"message": "no space left on disk", "type": "server_error", "param": null, "code": null});
        let body = sse(&[last]);
        let (end, _) = followed(Router::new().route("/v1/jobs/j/stream", get(async || body))).await;
        let End::Failed(reason) = end.unwrap() else {
            panic!("failed")
        };
        assert_eq!(reason, "no space left on disk");
    }

    #[tokio::test]
    async fn a_daemon_that_forgot_the_job_ends_the_following() {
        let (end, _) = followed(Router::new().route(
            "/v1/jobs/j/stream",
            get(async || daemon::ApiError::new(shared_contract::ErrorKind::NotFound, "there is no job j")),
        ))
        .await;
        assert!(end.unwrap_err().to_string().contains("there is no job j"));
    }

    #[tokio::test]
    async fn an_interruption_cancels_the_job() {
        let cancelled = Arc::new(Notify::new());
        let shutdown = Shutdown::new();
        let (told, interrupt) = (Arc::clone(&cancelled), shutdown.clone());
        let stream = async move || {
            interrupt.request();
            Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>())
        };
        let router = Router::new()
            .route("/v1/jobs", post(async || (StatusCode::ACCEPTED, axum::Json(job()))))
            .route("/v1/jobs/j", delete(async move || told.notify_one()))
            .route("/v1/jobs/j/stream", get(stream));
        let url = serve(router).await;
        let order = Operation::ModelPull { model: "m".into() }.into();
        let end = run(&api(Peer::Queen, &url), &order, &shutdown, |_| Ok(())).await;
        assert!(matches!(end.unwrap(), End::Interrupted));
        cancelled.notified().await;
    }
}
