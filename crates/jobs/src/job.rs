//! One job: what was asked, and how far it is.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use futures_util::{Stream, stream};
use hive_contract::{JobEvent, JobProgress, JobState, JobStatus, Operation};
use serde_json::Value;
use shared_contract::{ErrorObject, HiveId};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::history::{History, Reader, blank};
use crate::{Failure, Order};

/// One job.
#[derive(Debug)]
pub struct Job<O = Operation> {
    id: String,
    order: O,
    /// The hive that does it for a queen.
    hive_id: Mutex<Option<HiveId>>,
    created_at: DateTime<Utc>,
    pub(crate) history: watch::Sender<History>,
    cancel: CancellationToken,
}

impl<O: Order> Job<O> {
    pub(crate) fn new(order: O) -> Self {
        Self {
            id: format!("job-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]),
            hive_id: Mutex::default(),
            created_at: Utc::now(),
            history: watch::Sender::new(History::new(order.name())),
            cancel: CancellationToken::new(),
            order,
        }
    }

    /// Names it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What was asked.
    pub fn order(&self) -> &O {
        &self.order
    }

    /// Where it stands.
    pub fn state(&self) -> JobState {
        self.history.borrow().state()
    }

    /// When it came to its end; `None` while it runs.
    pub(crate) fn ended(&self) -> Option<Instant> {
        self.history.borrow().ended()
    }

    /// What its history takes.
    pub(crate) fn bytes(&self) -> usize {
        self.history.borrow().bytes()
    }

    /// All of it, as it is shown.
    pub fn status(&self) -> JobStatus<O> {
        self.status_with(self.history.borrow().last().cloned())
    }

    /// The same without what came of it.
    pub(crate) fn status_without_result(&self) -> JobStatus<O> {
        self.status_with(self.history.borrow().last().map(|event| JobEvent {
            result: None,
            message: event.message.clone(),
            progress: event.progress.clone(),
            error: event.error.clone(),
            ..*event
        }))
    }

    fn status_with(&self, last_event: Option<JobEvent>) -> JobStatus<O> {
        JobStatus {
            job_id: self.id.clone(),
            operation: self.order.clone(),
            hive_id: self.hive_id.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            state: last_event.as_ref().map_or(JobState::Running, |event| event.state),
            created_at: self.created_at,
            last_event,
        }
    }

    /// Notes which hive does it.
    pub fn is_done_by(&self, hive: HiveId) {
        *self.hive_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(hive);
    }

    /// Begins a step: what fails from here on has failed in it.
    pub fn step(&self, name: &str) {
        // Readers see it only in a failure.
        self.history.send_if_modified(|history| {
            history.begin_step(name);
            false
        });
    }

    /// Says what it does, for people.
    pub fn say(&self, message: impl Into<String>) {
        let event = JobEvent {
            message: Some(message.into()),
            ..blank()
        };
        self.history.send_modify(|history| history.push(event));
    }

    /// Says how far a step, which is the phase, is. Of what comes fast only some is told.
    pub fn progress(&self, progress: JobProgress) {
        let now = Instant::now();
        self.history.send_if_modified(|history| history.progress(progress, now));
    }

    /// Says a piece of what comes of it, and how far it is with that.
    pub fn say_piece(&self, piece: String, progress: JobProgress) {
        self.history.send_modify(|history| history.piece(piece, progress));
    }

    /// Asked for by `DELETE`, or when the daemon ends.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// All events after the one of this number, as they come; ends after the final one.
    pub fn events(&self, after: Option<u64>) -> impl Stream<Item = JobEvent> + Send + use<O> {
        let reader = Reader::new(self.history.subscribe(), after);
        stream::unfold(reader, |mut reader| async move {
            let event = reader.next().await?;
            Some((event, reader))
        })
    }

    pub(crate) fn end(&self, result: Result<Value, Failure>) {
        let event = match result {
            Ok(value) => JobEvent {
                state: JobState::Succeeded,
                result: Some(value),
                ..blank()
            },
            Err(Failure::Cancelled) => JobEvent {
                state: JobState::Cancelled,
                message: Some("cancelled".to_owned()),
                ..blank()
            },
            Err(Failure::Error(error)) => failed(in_step(self.history.borrow().step(), error.object())),
            Err(Failure::Told(error)) => failed(error),
        };
        tracing::info!(
            job_id = self.id,
            state = ?event.state,
            error = event.error.as_ref().map(|error| error.message.as_str()),
            "job is over"
        );
        self.history.send_modify(|history| history.push(event));
    }
}

fn in_step(step: &str, mut error: ErrorObject) -> ErrorObject {
    let why = error.message.strip_prefix("failed to ").unwrap_or(&error.message);
    error.message = format!("failed in step `{step}`: {why}");
    error
}

fn failed(error: ErrorObject) -> JobEvent {
    JobEvent {
        state: JobState::Failed,
        message: Some(error.message.clone()),
        error: Some(error),
        ..blank()
    }
}
