//! Jobs: each runs at once, needs no listener, keeps a bounded history for late readers, and can be cancelled.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use daemon::ApiError;
use futures_util::{Stream, stream};
use hive_contract::{JobEvent, JobProgress, JobState, JobStatus, Operation};
use serde_json::Value;
use shared_contract::{ErrorKind, ErrorObject};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Counters;

/// Jobs that may run at once.
pub(crate) const RUNNING_LIMIT: usize = 64;
/// Of these, jobs that follow a log: they end only with their worker, and must not keep others out.
pub(crate) const FOLLOWING_LIMIT: usize = 16;
/// Jobs that are over and are remembered; when there are more, the oldest are forgotten.
const KEPT: usize = 256;
/// How long a job that is over is remembered.
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// Events of one job that are remembered.
pub(crate) const EVENT_LIMIT: usize = 256;
/// Bytes of their messages that are remembered: those of a log can be long.
const MESSAGES_LIMIT: usize = 4 * 1024 * 1024;
/// Progress of one phase is told at most once in this time.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// How a job ends other than well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was cancelled, and has cleaned up.
    Cancelled,
    /// It failed; the error names the remedy, and the job adds the step.
    Error(ApiError),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

/// All jobs of this hive, of this run.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// Oldest first.
    jobs: Mutex<VecDeque<Arc<Job>>>,
}

impl Jobs {
    /// Starts the work of a job. `work` gets the job to report to, and ends early when it is cancelled.
    pub(crate) fn start<W>(
        &self,
        operation: Operation,
        counters: &Counters,
        work: impl FnOnce(Arc<Job>) -> W,
    ) -> Result<Arc<Job>, ApiError>
    where
        W: Future<Output = Result<Value, Failure>> + Send + 'static,
    {
        let job = Arc::new(Job::new(operation));
        {
            let mut jobs = self.current();
            let running = || jobs.iter().filter(|job| !job.state().is_final());
            if running().count() >= RUNNING_LIMIT {
                let message =
                    format!("{RUNNING_LIMIT} jobs are running, which is the limit; wait for one or cancel it");
                return Err(ApiError::new(ErrorKind::RateLimited, message).retry_after(1));
            }
            if job.follows() && running().filter(|job| job.follows()).count() >= FOLLOWING_LIMIT {
                let message =
                    format!("{FOLLOWING_LIMIT} jobs follow a log, which is the limit; wait for one or cancel it");
                return Err(ApiError::new(ErrorKind::RateLimited, message).retry_after(1));
            }
            jobs.push_back(Arc::clone(&job));
        }
        // Only its name: the address of a model can have a signature that is not for logs.
        tracing::info!(job_id = job.id, operation = job.operation.name(), "job started");
        let work = tokio::spawn(work(Arc::clone(&job)));
        let watched = Arc::clone(&job);
        let counters = counters.clone();
        tokio::spawn(async move {
            // A panic must not leave a job that runs for ever; its details are in the log.
            let result = work.await.unwrap_or_else(|error| Err(ApiError::internal(error).into()));
            watched.end(result);
            counters.job_ended(&watched.operation, watched.state());
        });
        Ok(job)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Job>> {
        self.current().iter().find(|job| job.id == id).cloned()
    }

    /// Newest first.
    pub(crate) fn list(&self) -> Vec<Arc<Job>> {
        self.current().iter().rev().cloned().collect()
    }

    pub(crate) fn cancel_all(&self) {
        for job in self.current().iter() {
            job.cancel.cancel();
        }
    }

    /// The jobs, without those that are over for too long and those that are too many.
    fn current(&self) -> MutexGuard<'_, VecDeque<Arc<Job>>> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut over = jobs.iter().filter(|job| job.state().is_final()).count();
        jobs.retain(|job| {
            let Some(ended) = job.ended() else {
                return true;
            };
            let is_kept = over <= KEPT && now.duration_since(ended) < RETENTION;
            if !is_kept {
                over -= 1;
            }
            is_kept
        });
        jobs
    }
}

/// One job.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: String,
    operation: Operation,
    created_at: DateTime<Utc>,
    history: watch::Sender<History>,
    cancel: CancellationToken,
}

#[derive(Debug)]
struct History {
    events: VecDeque<JobEvent>,
    next_seq: u64,
    /// Of their messages.
    bytes: usize,
    state: JobState,
    /// What it is at, as a failure names it.
    step: String,
    /// When the last event was progress: when it was told.
    told: Option<Instant>,
    /// When it came to its end.
    ended: Option<Instant>,
}

impl Job {
    fn new(operation: Operation) -> Self {
        let mut history = History {
            events: VecDeque::new(),
            next_seq: 0,
            bytes: 0,
            state: JobState::Running,
            step: operation.name().to_owned(),
            told: None,
            ended: None,
        };
        history.push(blank());
        Self {
            id: format!("job-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]),
            operation,
            created_at: Utc::now(),
            history: watch::Sender::new(history),
            cancel: CancellationToken::new(),
        }
    }

    /// Whether it follows a log.
    fn follows(&self) -> bool {
        matches!(self.operation, Operation::WorkerLogs { follow: true, .. })
    }

    pub(crate) fn state(&self) -> JobState {
        self.history.borrow().state
    }

    /// When it came to its end; `None` while it runs.
    fn ended(&self) -> Option<Instant> {
        self.history.borrow().ended
    }

    pub(crate) fn status(&self) -> JobStatus {
        let history = self.history.borrow();
        JobStatus {
            job_id: self.id.clone(),
            operation: self.operation.clone(),
            state: history.state,
            created_at: self.created_at,
            last_event: history.events.back().cloned(),
        }
    }

    /// Begins a step: what fails from here on has failed in it.
    pub(crate) fn step(&self, name: &str) {
        // Readers see it only in a failure.
        self.history.send_if_modified(|history| {
            name.clone_into(&mut history.step);
            false
        });
    }

    /// Says what it does, for people.
    pub(crate) fn say(&self, message: impl Into<String>) {
        let event = JobEvent {
            message: Some(message.into()),
            ..blank()
        };
        self.history.send_modify(|history| history.push(event));
    }

    /// Says how far a step, which is the phase, is. Of what comes fast only some is told.
    pub(crate) fn progress(&self, progress: JobProgress) {
        let now = Instant::now();
        self.history.send_if_modified(|history| history.progress(progress, now));
    }

    /// Asked for by `DELETE`, or when the hive ends.
    pub(crate) fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// All events after the one of this number, as they come; ends after the final one.
    pub(crate) fn events(&self, after: Option<u64>) -> impl Stream<Item = JobEvent> + Send + 'static {
        let reader = Reader {
            history: self.history.subscribe(),
            next: after.map_or(0, |seq| seq.saturating_add(1)),
            pending: VecDeque::new(),
        };
        stream::unfold(reader, |mut reader| async move {
            let event = reader.next().await?;
            Some((event, reader))
        })
    }

    fn end(&self, result: Result<Value, Failure>) {
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
            Err(Failure::Error(error)) => failed(&self.history.borrow().step, error.object()),
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

fn failed(step: &str, mut error: ErrorObject) -> JobEvent {
    let why = error.message.strip_prefix("failed to ").unwrap_or(&error.message);
    error.message = format!("failed in step `{step}`: {why}");
    JobEvent {
        state: JobState::Failed,
        message: Some(error.message.clone()),
        error: Some(error),
        ..blank()
    }
}

/// An event that says that the job runs.
fn blank() -> JobEvent {
    JobEvent {
        seq: 0,
        timestamp: Utc::now(),
        state: JobState::Running,
        message: None,
        progress: None,
        result: None,
        error: None,
    }
}

impl History {
    fn push(&mut self, mut event: JobEvent) {
        event.seq = self.next_seq;
        self.next_seq += 1;
        self.state = event.state;
        self.told = None;
        if event.state.is_final() {
            self.ended = Some(Instant::now());
        }
        self.bytes += message_bytes(&event);
        self.events.push_back(event);
        // The last one stays, however long it is.
        while self.events.len() > EVENT_LIMIT || (self.bytes > MESSAGES_LIMIT && self.events.len() > 1) {
            let oldest = self.events.pop_front();
            self.bytes -= oldest.as_ref().map_or(0, message_bytes);
        }
    }

    /// Of the progress of one phase the last is kept, and the rest forgotten. `false` if it came too fast to be told.
    fn progress(&mut self, progress: JobProgress, now: Instant) -> bool {
        progress.phase.clone_into(&mut self.step);
        let is_done = progress.total == Some(progress.done);
        let last = self.events.back().and_then(|event| event.progress.as_ref());
        if let (Some(last), Some(told)) = (last, self.told)
            && last.phase == progress.phase
        {
            if *last == progress || (now.duration_since(told) < PROGRESS_PAUSE && !is_done) {
                return false;
            }
            // It has no message.
            self.events.pop_back();
        }
        self.push(JobEvent {
            progress: Some(progress),
            ..blank()
        });
        self.told = Some(now);
        true
    }
}

fn message_bytes(event: &JobEvent) -> usize {
    event.message.as_ref().map_or(0, String::len)
}

struct Reader {
    history: watch::Receiver<History>,
    /// Events before this number are known.
    next: u64,
    pending: VecDeque<JobEvent>,
}

impl Reader {
    async fn next(&mut self) -> Option<JobEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            let is_over = {
                let history = self.history.borrow_and_update();
                let new = history.events.iter().filter(|event| event.seq >= self.next);
                self.pending.extend(new.cloned());
                self.next = self.next.max(history.next_seq);
                history.state.is_final()
            };
            if self.pending.is_empty() && (is_over || self.history.changed().await.is_err()) {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
