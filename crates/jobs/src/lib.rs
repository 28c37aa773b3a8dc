//! Jobs of a daemon: work that takes longer than a request.
//!
//! Owns: that each runs at once and needs no listener, its bounded history for late readers, its cancelling, how many there
//! may be, and the endpoints by which they are looked at and cancelled.
//! Must not know: what an operation does, or who is asked to do it.

mod history;
pub mod http;
mod job;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daemon::ApiError;
use hive_contract::{JobState, Operation};
use serde::Serialize;
use serde_json::Value;
use shared_contract::{ErrorKind, ErrorObject};
use tokio::time::Instant;

pub use job::Job;

/// Jobs that may run at once.
const RUNNING_LIMIT: usize = 64;
/// Jobs that are over and are remembered; when there are more, the oldest are forgotten.
const KEPT: usize = 256;
/// Bytes that their histories may take together: those of logs can be long.
const KEPT_BYTES: usize = 64 * 1024 * 1024;
/// How long a job that is over is remembered.
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// What a job was asked for.
pub trait Order: Clone + fmt::Debug + Serialize + Send + Sync + 'static {
    /// The word by which the wire names it: the first step of the job.
    fn name(&self) -> &'static str;

    /// The kind of jobs that it is one of, where there may be many of them.
    fn crowd(&self) -> Option<Crowd>;
}

/// Jobs of which there may be many, and which must not keep others out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    /// What they do, for people: `follow a log`.
    pub does: &'static str,
    /// How many of them may run at once.
    pub limit: usize,
}

/// Jobs that follow a log: they end only with their worker.
const FOLLOWERS: Crowd = Crowd {
    does: "follow a log",
    limit: 16,
};

impl Order for Operation {
    fn name(&self) -> &'static str {
        Self::name(self)
    }

    fn crowd(&self) -> Option<Crowd> {
        matches!(self, Self::WorkerLogs { follow: true, .. }).then_some(FOLLOWERS)
    }
}

/// How a job ends other than well.
#[derive(Debug)]
pub enum Failure {
    /// It was cancelled, and has cleaned up.
    Cancelled,
    /// It failed; the error names the remedy, and the job adds the step.
    Error(ApiError),
    /// What this job is an image of failed: another daemon's job, or a request. Its error is complete.
    Told(ErrorObject),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

/// Called with each job that is over.
type OnEnd<O> = dyn Fn(&O, JobState) + Send + Sync;

/// All jobs of this run of a daemon. Clones are cheap and are the same jobs.
pub struct Jobs<O = Operation> {
    shared: Arc<Shared<O>>,
}

struct Shared<O> {
    /// Oldest first.
    jobs: Mutex<VecDeque<Arc<Job<O>>>>,
    on_end: Box<OnEnd<O>>,
}

// Derived, it would demand the same of `O`.
impl<O> Clone for Jobs<O> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<O: Order> fmt::Debug for Jobs<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

impl<O: Order> Jobs<O> {
    /// None yet. `on_end` hears of each that is over, and how it ended.
    pub fn new(on_end: impl Fn(&O, JobState) + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                jobs: Mutex::default(),
                on_end: Box::new(on_end),
            }),
        }
    }

    /// Starts the work of a job. `work` gets the job to report to, and ends early when it is cancelled.
    ///
    /// # Errors
    /// Too many run already.
    pub fn start<W>(&self, order: O, work: impl FnOnce(Arc<Job<O>>) -> W) -> Result<Arc<Job<O>>, ApiError>
    where
        W: Future<Output = Result<Value, Failure>> + Send + 'static,
    {
        let job = Arc::new(Job::new(order));
        self.admit(&job)?;
        // Only its name: the address of a model can have a signature that is not for logs.
        tracing::info!(job_id = job.id(), operation = job.order().name(), "job started");
        let work = tokio::spawn(work(Arc::clone(&job)));
        let (watched, jobs) = (Arc::clone(&job), self.clone());
        tokio::spawn(async move {
            // A panic must not leave a job that runs for ever; its details are in the log.
            let result = work.await.unwrap_or_else(|error| Err(ApiError::internal(error).into()));
            watched.end(result);
            (jobs.shared.on_end)(watched.order(), watched.state());
        });
        Ok(job)
    }

    fn admit(&self, job: &Arc<Job<O>>) -> Result<(), ApiError> {
        let mut jobs = self.current();
        let running = || jobs.iter().filter(|job| !job.state().is_final());
        if running().count() >= RUNNING_LIMIT {
            let message = format!("{RUNNING_LIMIT} jobs are running, which is the limit; wait for one or cancel it");
            return Err(ApiError::new(ErrorKind::RateLimited, message).retry_after(1));
        }
        if let Some(crowd) = job.order().crowd()
            && running().filter(|job| job.order().crowd() == Some(crowd)).count() >= crowd.limit
        {
            let Crowd { does, limit } = crowd;
            let message = format!("{limit} jobs {does}, which is the limit; wait for one or cancel it");
            return Err(ApiError::new(ErrorKind::RateLimited, message).retry_after(1));
        }
        jobs.push_back(Arc::clone(job));
        Ok(())
    }

    /// The job of this id.
    pub fn get(&self, id: &str) -> Option<Arc<Job<O>>> {
        self.current().iter().find(|job| job.id() == id).cloned()
    }

    /// Newest first.
    pub fn list(&self) -> Vec<Arc<Job<O>>> {
        self.current().iter().rev().cloned().collect()
    }

    /// Asks all to end.
    pub fn cancel_all(&self) {
        for job in self.current().iter() {
            job.cancelled().cancel();
        }
    }

    /// The jobs, without those that are over for too long and those that are too many.
    fn current(&self) -> MutexGuard<'_, VecDeque<Arc<Job<O>>>> {
        let mut jobs = self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let over = jobs.iter().filter(|job| job.ended().is_some());
        let (mut count, mut bytes) = over.fold((0, 0), |(count, bytes), job| (count + 1, bytes + job.bytes()));
        // Oldest first: the rest fits once enough of them are gone.
        jobs.retain(|job| {
            let Some(ended) = job.ended() else {
                return true;
            };
            let is_kept = count <= KEPT && bytes <= KEPT_BYTES && now.duration_since(ended) < RETENTION;
            if !is_kept {
                count -= 1;
                bytes = bytes.saturating_sub(job.bytes());
            }
            is_kept
        });
        jobs
    }
}
