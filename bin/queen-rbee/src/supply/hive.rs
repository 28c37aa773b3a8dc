//! Orders to a hive: a job is posted, and its stream followed through breaks of the connection.

use std::pin::pin;
use std::time::Duration;

use daemon::{ApiError, Secret};
use hive_contract::{JobAccepted, JobEvent, JobState, Operation};
use http::StatusCode;
use jobs::Failure;
use serde_json::Value;
use shared_contract::{ErrorBody, ErrorKind, ErrorObject};

use crate::jobs::Job;
use crate::reach::root_cause;
use crate::subscriptions::events::EventReader;

/// Limit for a job to be accepted, and for its stream to begin.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Largest answer to an order.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// A stream without any byte for this long has broken; a living one has a comment line every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// How often a stream is opened again in a row without a new event in between: for about 3 s.
const MAX_RETRIES: u32 = 4;
/// Pause before the first of these retries; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// One hive, and how it is called.
#[derive(Debug, Clone)]
pub(crate) struct HiveApi {
    client: reqwest::Client,
    base_url: String,
    token: Option<Secret>,
}

/// Why there is no result. The texts name no address: clients may read them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OrderError {
    /// The hive did not take the order, or could not do it.
    #[error("{}", .0.message)]
    Refused(ErrorObject),
    /// Somebody cancelled the job.
    #[error("the job was cancelled")]
    Cancelled,
    /// The hive could not be asked.
    #[error("its hive cannot be reached: {0}")]
    Unreachable(String),
    /// The job was accepted, and nothing is heard of it any more.
    #[error("its hive was lost sight of: {0}")]
    Lost(String),
}

impl OrderError {
    /// How the job ends that is the order's image.
    pub(crate) fn into_failure(self) -> Failure {
        match self {
            Self::Refused(error) => Failure::Told(error),
            Self::Cancelled => Failure::Cancelled,
            Self::Unreachable(_) | Self::Lost(_) => ApiError::new(ErrorKind::UpstreamFailed, self.to_string()).into(),
        }
    }
}

impl HiveApi {
    /// The hive that listens there.
    pub(crate) fn new(client: reqwest::Client, base_url: impl Into<String>, token: Option<Secret>) -> Self {
        Self {
            client,
            base_url: base_url.into(),
            token,
        }
    }

    /// Gives an order and follows it to its end; answers with the job's result.
    pub(crate) async fn order(
        &self,
        operation: &Operation,
        on_event: impl FnMut(&JobEvent) + Send,
    ) -> Result<Value, OrderError> {
        let job = self.accept(operation).await?;
        self.follow(&job, on_event).await
    }

    /// Gives an order for a job: the job tells what the hive's own one does, and when it is cancelled, that one is.
    pub(crate) async fn order_for(
        &self,
        job: &Job,
        operation: &Operation,
        mut on_event: impl FnMut(&JobEvent) + Send,
    ) -> Result<Value, OrderError> {
        let accepted = self.accept(operation).await?;
        let mut order = pin!(self.follow(&accepted, |event| {
            pass_on(job, event);
            on_event(event);
        }));
        tokio::select! {
            result = &mut order => return result,
            () = job.cancelled().cancelled() => {}
        }
        self.cancel(&accepted).await?;
        // It cleans up, and may have come to its end before.
        order.await
    }

    async fn cancel(&self, job: &JobAccepted) -> Result<(), OrderError> {
        let request = self.client.delete(format!("{}/v1/jobs/{}", self.base_url, job.job_id));
        let sent = self.authorized(request).timeout(ANSWER_LIMIT).send().await;
        match sent {
            // That it does not know the job any more is said by following it.
            Ok(response) if response.status().is_success() || response.status() == StatusCode::NOT_FOUND => Ok(()),
            Ok(response) => Err(OrderError::Lost(format!(
                "it was asked to cancel the job, and answered {}",
                response.status()
            ))),
            Err(error) => Err(OrderError::Unreachable(root_cause(&error))),
        }
    }

    async fn accept(&self, operation: &Operation) -> Result<JobAccepted, OrderError> {
        let request = self.client.post(format!("{}/v1/jobs", self.base_url));
        let sent = self.authorized(request).json(operation).timeout(ANSWER_LIMIT).send();
        let response = sent
            .await
            .map_err(|error| OrderError::Unreachable(root_cause(&error)))?;
        let is_accepted = response.status().is_success();
        let body = answer(response).await?;
        if !is_accepted {
            return Err(OrderError::Refused(refusal(&body)));
        }
        serde_json::from_slice(&body).map_err(|error| OrderError::Lost(format!("its answer is no job: {error}")))
    }

    async fn follow(&self, job: &JobAccepted, mut on_event: impl FnMut(&JobEvent) + Send) -> Result<Value, OrderError> {
        let mut seen: Option<u64> = None;
        let mut retries = 0;
        loop {
            let before = seen;
            let broken = match self.read(job, &mut seen, &mut on_event).await {
                Ok(result) => return result,
                Err(broken) => broken,
            };
            if seen > before {
                retries = 0;
            }
            if retries == MAX_RETRIES {
                return Err(OrderError::Lost(broken));
            }
            tokio::time::sleep(RETRY_PAUSE * 2_u32.pow(retries)).await;
            retries += 1;
        }
    }

    /// Reads one connection's worth of events; the error is why it broke. The stream starts from the beginning, so what was
    /// seen is skipped.
    async fn read(
        &self,
        job: &JobAccepted,
        seen: &mut Option<u64>,
        on_event: &mut (impl FnMut(&JobEvent) + Send),
    ) -> Result<Result<Value, OrderError>, String> {
        let request = self.client.get(format!("{}{}", self.base_url, job.stream_url));
        let opened = tokio::time::timeout(ANSWER_LIMIT, self.authorized(request).send()).await;
        let mut response = match opened {
            Ok(response) => response.map_err(|error| root_cause(&error))?,
            Err(_) => return Err(format!("no answer within {} s", ANSWER_LIMIT.as_secs())),
        };
        if response.status().is_client_error() {
            // It does not know the job any more: it was restarted.
            return Ok(Err(OrderError::Lost("it does not know the job any more".to_owned())));
        }
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()));
        }
        let mut reader = EventReader::default();
        loop {
            while let Some(data) = reader.next().map_err(|_| "an event is too long".to_owned())? {
                let event: JobEvent = serde_json::from_slice(&data).map_err(|error| error.to_string())?;
                if seen.is_some_and(|seen| event.seq <= seen) {
                    continue;
                }
                *seen = Some(event.seq);
                on_event(&event);
                if let Some(end) = end(event) {
                    return Ok(end);
                }
            }
            match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(bytes))) => reader.feed(bytes),
                Ok(Ok(None)) => return Err("the job's stream ended before the job".to_owned()),
                Ok(Err(error)) => return Err(root_cause(&error)),
                Err(_) => return Err(format!("silent for {} s", SILENCE.as_secs())),
            }
        }
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }
}

async fn answer(mut response: reqwest::Response) -> Result<Vec<u8>, OrderError> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| OrderError::Lost(root_cause(&error)))?
    {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(OrderError::Lost("its answer is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Tells in a job what happened in that of a hive. How it ends is told by who follows it.
fn pass_on(job: &Job, event: &JobEvent) {
    if event.state.is_final() {
        return;
    }
    if let Some(message) = &event.message {
        job.say(message);
    }
    if let Some(progress) = &event.progress {
        job.progress(progress.clone());
    }
}

fn refusal(body: &[u8]) -> ErrorObject {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => body.error,
        Err(_) => ErrorKind::UpstreamFailed.object("the hive refused the order without a reason", None),
    }
}

fn end(event: JobEvent) -> Option<Result<Value, OrderError>> {
    let reason = |error: Option<ErrorObject>, message: Option<String>| {
        error.unwrap_or_else(|| {
            let message = message.unwrap_or_else(|| "the hive gave no reason".to_owned());
            ErrorKind::UpstreamFailed.object(message, None)
        })
    };
    match event.state {
        JobState::Running => None,
        JobState::Succeeded => Some(Ok(event.result.unwrap_or_default())),
        JobState::Cancelled => Some(Err(OrderError::Cancelled)),
        JobState::Failed => Some(Err(OrderError::Refused(reason(event.error, event.message)))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    async fn serve(router: Router) -> (HiveApi, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let api = HiveApi::new(daemon::client::new().unwrap(), url, None);
        (api, AbortOnDropHandle::new(task))
    }

    fn jobs() -> Router {
        let accepted = JobAccepted {
            job_id: "j".into(),
            stream_url: "/v1/jobs/j/stream".into(),
        };
        Router::new().route("/v1/jobs", post(async || (StatusCode::ACCEPTED, axum::Json(accepted))))
    }

    fn sse(events: &[Value]) -> String {
        let frame = |event: &Value| format!("id: {}\ndata: {event}\n\n", event["seq"]);
        events.iter().map(frame).collect()
    }

    fn event(seq: u64, state: &str) -> Value {
        json!({"seq": seq, "timestamp": "2025-11-01T00:00:00Z", "state": state})
    }

    async fn ordered(router: Router) -> (Result<Value, OrderError>, Vec<u64>) {
        let (hive, _task) = serve(router).await;
        let mut seen = Vec::new();
        let order = Operation::ModelPull { model: "m".into() };
        let result = hive.order(&order, |event| seen.push(event.seq)).await;
        (result, seen)
    }

    #[tokio::test]
    async fn an_order_is_followed_to_its_result_through_a_break_and_no_event_comes_twice() {
        let calls = Arc::new(AtomicU32::new(0));
        let stream = async move || {
            let mut last = event(2, "succeeded");
            last["result"] = json!({"worker_id": "w"});
            match calls.fetch_add(1, Ordering::Relaxed) {
                0 => sse(&[event(0, "running"), event(1, "running")]),
                _ => sse(&[event(0, "running"), event(1, "running"), last]),
            }
        };
        let (result, seen) = ordered(jobs().route("/v1/jobs/j/stream", get(stream))).await;
        assert_eq!(
            (result.unwrap()["worker_id"].as_str(), seen),
            (Some("w"), vec![0, 1, 2])
        );
    }

    #[tokio::test]
    async fn the_reason_of_a_refusal_and_of_a_failure_is_the_hives_own() {
        let refused = async || ApiError::new(ErrorKind::NoCapacity, "no room at all");
        let (result, _) = ordered(Router::new().route("/v1/jobs", post(refused))).await;
        assert_eq!(result.unwrap_err().to_string(), "no room at all");

        let mut last = event(0, "failed");
        last["error"] = json!({"message": "no space left", "type": "server_error", "param": null, "code": null});
        let body = sse(&[last]);
        let (result, _) = ordered(jobs().route("/v1/jobs/j/stream", get(async || body))).await;
        assert_eq!(result.unwrap_err().to_string(), "no space left");
    }

    #[tokio::test]
    async fn a_hive_that_forgot_the_job_was_restarted() {
        let gone = async || ApiError::new(ErrorKind::NotFound, "there is no job j");
        let (result, _) = ordered(jobs().route("/v1/jobs/j/stream", get(gone))).await;
        assert!(matches!(result, Err(OrderError::Lost(_))), "{result:?}");
    }

    #[tokio::test]
    async fn a_hive_that_does_not_listen_is_told_without_its_address() {
        let (hive, task) = serve(Router::new()).await;
        drop(task);
        // Ends when its listener is gone.
        tokio::task::yield_now().await;
        let order = Operation::ModelPull { model: "m".into() };
        let error = HiveApi {
            base_url: "http://127.0.0.1:1".into(),
            ..hive
        }
        .order(&order, |_| {})
        .await
        .unwrap_err();
        assert!(
            matches!(error, OrderError::Unreachable(_)) && !error.to_string().contains("127.0.0.1"),
            "{error}"
        );
    }
}
