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

/// Jobs that are remembered; when there are more, the oldest that is over is forgotten.
pub(crate) const LIMIT: usize = 256;
/// Events of one job that are remembered.
const EVENT_LIMIT: usize = 256;
/// Progress of one phase is told at most once in this time.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// How a job ends other than well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was cancelled, and has cleaned up.
    Cancelled,
    /// It failed; the error names step and remedy.
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
            let mut jobs = self.lock();
            if jobs.len() >= LIMIT {
                let over = jobs.iter().position(|job| job.state().is_final()).ok_or_else(|| {
                    let message = format!("{LIMIT} jobs are running, which is the limit; wait for one or cancel it");
                    ApiError::new(ErrorKind::RateLimited, message).retry_after(1)
                })?;
                jobs.remove(over);
            }
            jobs.push_back(Arc::clone(&job));
        }
        tracing::info!(job_id = job.id, operation = ?job.operation, "job started");
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
        self.lock().iter().find(|job| job.id == id).cloned()
    }

    /// Newest first.
    pub(crate) fn list(&self) -> Vec<Arc<Job>> {
        self.lock().iter().rev().cloned().collect()
    }

    pub(crate) fn cancel_all(&self) {
        for job in self.lock().iter() {
            job.cancel.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
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
    state: JobState,
    /// When the last event was progress: when it was told.
    told: Option<Instant>,
}

impl Job {
    fn new(operation: Operation) -> Self {
        let mut history = History {
            events: VecDeque::new(),
            next_seq: 0,
            state: JobState::Running,
            told: None,
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

    pub(crate) fn state(&self) -> JobState {
        self.history.borrow().state
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

    /// Says what it does, for people.
    pub(crate) fn say(&self, message: impl Into<String>) {
        let event = JobEvent {
            message: Some(message.into()),
            ..blank()
        };
        self.history.send_modify(|history| history.push(event));
    }

    /// Says how far a step is. Of what comes fast only some is told.
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
            Err(Failure::Error(error)) => failed(error.object()),
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

fn failed(error: ErrorObject) -> JobEvent {
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
        if self.events.len() == EVENT_LIMIT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Of the progress of one phase the last is kept, and the rest forgotten. `false` if it came too fast to be told.
    fn progress(&mut self, progress: JobProgress, now: Instant) -> bool {
        let is_done = progress.total == Some(progress.done);
        let last = self.events.back().and_then(|event| event.progress.as_ref());
        if let (Some(last), Some(told)) = (last, self.told)
            && last.phase == progress.phase
        {
            if *last == progress || (now.duration_since(told) < PROGRESS_PAUSE && !is_done) {
                return false;
            }
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
mod tests {
    use futures_util::StreamExt;
    use serde_json::json;

    use super::*;

    fn step(phase: &str, done: u64) -> JobProgress {
        JobProgress {
            phase: phase.into(),
            done,
            total: Some(1000),
            unit: "bytes".into(),
        }
    }

    async fn all(job: &Job, after: Option<u64>) -> Vec<JobEvent> {
        job.events(after).collect().await
    }

    #[tokio::test]
    async fn a_late_reader_gets_the_whole_story_from_the_start() {
        let jobs = Jobs::default();
        let job = jobs
            .start(Operation::ModelList, &Counters::default(), |job| async move {
                job.say("listing");
                Ok(json!({"models": []}))
            })
            .unwrap();
        let first = all(&job, None).await;
        assert_eq!(first, all(&job, None).await);
        let states: Vec<_> = first.iter().map(|event| event.state).collect();
        assert_eq!(states, [JobState::Running, JobState::Running, JobState::Succeeded]);
        assert_eq!(first[1].message.as_deref(), Some("listing"));
        assert_eq!(first[2].result, Some(json!({"models": []})));
        assert_eq!(first.iter().map(|event| event.seq).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(all(&job, Some(1)).await, first[2..]);
    }

    #[tokio::test]
    async fn a_job_runs_without_a_listener_and_a_cancelled_one_ends_as_cancelled() {
        let jobs = Jobs::default();
        let job = jobs
            .start(Operation::ModelList, &Counters::default(), |job| async move {
                job.cancelled().cancelled().await;
                Err(Failure::Cancelled)
            })
            .unwrap();
        assert_eq!(job.state(), JobState::Running);
        job.cancelled().cancel();
        assert_eq!(all(&job, None).await.last().unwrap().state, JobState::Cancelled);
    }

    #[tokio::test]
    async fn a_job_that_panics_has_failed() {
        let jobs = Jobs::default();
        let job = jobs
            .start(Operation::ModelList, &Counters::default(), |_| async {
                panic!("a mistake of ours")
            })
            .unwrap();
        let last = all(&job, None).await.pop().unwrap();
        assert_eq!(last.state, JobState::Failed);
        assert!(!last.error.unwrap().message.contains("a mistake of ours"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_progress_of_a_phase_leaves_one_event_and_fast_progress_is_thinned_out() {
        let job = Job::new(Operation::ModelList);
        let told = |done| {
            let before = job.history.borrow().next_seq;
            job.progress(step("download", done));
            job.history.borrow().next_seq != before
        };
        assert!(told(1));
        assert!(!told(2), "too fast");
        tokio::time::advance(PROGRESS_PAUSE).await;
        assert!(told(3));
        assert!(!told(3), "nothing new");
        assert!(told(1000), "the end of a phase is always told");
        job.progress(step("verify", 0));
        job.end(Ok(Value::Null));
        let phases: Vec<_> = all(&job, None)
            .await
            .into_iter()
            .filter_map(|event| event.progress)
            .map(|progress| (progress.phase, progress.done))
            .collect();
        assert_eq!(phases, [("download".to_owned(), 1000), ("verify".to_owned(), 0)]);
    }

    #[tokio::test]
    async fn the_history_of_a_job_is_bounded_and_keeps_its_end() {
        let job = Job::new(Operation::ModelList);
        for number in 0..2 * EVENT_LIMIT {
            job.say(number.to_string());
        }
        job.end(Ok(Value::Null));
        let events = all(&job, None).await;
        assert_eq!(events.len(), EVENT_LIMIT);
        assert_eq!(events.last().unwrap().state, JobState::Succeeded);
    }

    #[tokio::test]
    async fn the_oldest_job_that_is_over_makes_room_and_running_ones_are_never_forgotten() {
        let jobs = Jobs::default();
        let hang = |job: Arc<Job>| async move {
            job.cancelled().cancelled().await;
            Err(Failure::Cancelled)
        };
        let first = jobs.start(Operation::ModelList, &Counters::default(), hang).unwrap();
        for _ in 1..LIMIT {
            jobs.start(Operation::ModelList, &Counters::default(), hang).unwrap();
        }
        let error = jobs
            .start(Operation::ModelList, &Counters::default(), hang)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        first.cancelled().cancel();
        all(&first, None).await;
        jobs.start(Operation::ModelList, &Counters::default(), hang).unwrap();
        assert!(jobs.get(&first.id).is_none());
        assert_eq!(jobs.list().len(), LIMIT);
    }
}
