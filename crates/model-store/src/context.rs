//! What one pull carries with it: the cancellation, the progress report and the lock.

use std::fs::OpenOptions;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::StoreError;
use crate::holds::Lock;
use crate::progress::{Phase, Progress, Report};

/// How often a pull that waits for another process looks again. The system's blocking lock cannot be cancelled.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Handles of one pull. Every piece of work on the blocking pool holds a copy, so that the lock stays until the last
/// of them has ended, even where the pull itself was dropped in the middle.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) cancel: CancellationToken,
    pub(crate) report: Report,
    _lock: Arc<Lock>,
}

impl Context {
    /// Waits for the lock file at `path`: at most one pull of a model is at work, in all processes of this host.
    pub(crate) async fn acquire(path: &Path, cancel: CancellationToken, report: Report) -> Result<Self, StoreError> {
        let fail = |source| StoreError::io("lock", path, source);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let mut told = false;
        loop {
            if let Some(lock) = options.open(path).and_then(Lock::try_exclusive).map_err(fail)? {
                return Ok(Self {
                    cancel,
                    report,
                    _lock: Arc::new(lock),
                });
            }
            if !told {
                report(Progress::new(Phase::Wait, 0, None));
                told = true;
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(StoreError::Cancelled),
                () = tokio::time::sleep(LOCK_POLL) => {}
            }
        }
    }

    /// An error once the pull is cancelled: for loops on the blocking pool.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.cancel.is_cancelled() {
            Err(StoreError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Tells a phase that has no bytes to count.
    pub(crate) fn enter(&self, phase: Phase) {
        (self.report)(Progress::new(phase, 0, None));
    }

    /// Runs work that blocks on the blocking pool.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let context = self.clone();
        blocking(move || work(&context)).await
    }
}

/// Runs work that blocks on the blocking pool; its panic is this task's panic.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is shutting down and never started the work.
            Err(_) => Err(StoreError::Cancelled),
        },
    }
}
