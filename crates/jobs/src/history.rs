//! What a job has told so far, within limits, and those who read it.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::Utc;
use hive_contract::{JobEvent, JobProgress, JobState};
use tokio::sync::watch;
use tokio::time::Instant;

/// Events of one job that are remembered.
pub(crate) const EVENT_LIMIT: usize = 256;
/// Bytes of their messages that are remembered: those of a log can be long.
pub(crate) const MESSAGES_LIMIT: usize = 4 * 1024 * 1024;
/// Progress of one phase is told at most once in this time.
pub(crate) const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct History {
    events: VecDeque<JobEvent>,
    next_seq: u64,
    /// Of their messages and of the result.
    bytes: usize,
    state: JobState,
    /// What it is at, as a failure names it.
    step: String,
    /// When the last event is progress without a message: when it was told.
    told: Option<Instant>,
    /// When it came to its end.
    ended: Option<Instant>,
}

/// An event that says that the job runs.
pub(crate) fn blank() -> JobEvent {
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
    /// That the job runs, and is at this step.
    pub(crate) fn new(step: &str) -> Self {
        let mut history = Self {
            events: VecDeque::new(),
            next_seq: 0,
            bytes: 0,
            state: JobState::Running,
            step: step.to_owned(),
            told: None,
            ended: None,
        };
        history.push(blank());
        history
    }

    pub(crate) fn state(&self) -> JobState {
        self.state
    }

    pub(crate) fn ended(&self) -> Option<Instant> {
        self.ended
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn step(&self) -> &str {
        &self.step
    }

    pub(crate) fn begin_step(&mut self, name: &str) {
        name.clone_into(&mut self.step);
    }

    pub(crate) fn last(&self) -> Option<&JobEvent> {
        self.events.back()
    }

    #[cfg(test)]
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub(crate) fn push(&mut self, mut event: JobEvent) {
        event.seq = self.next_seq;
        self.next_seq += 1;
        self.state = event.state;
        self.told = None;
        if event.state.is_final() {
            self.ended = Some(Instant::now());
        }
        self.bytes += bytes_of(&event);
        self.events.push_back(event);
        // The last one stays, however long it is.
        while self.events.len() > EVENT_LIMIT || (self.bytes > MESSAGES_LIMIT && self.events.len() > 1) {
            let oldest = self.events.pop_front();
            self.bytes -= oldest.as_ref().map_or(0, bytes_of);
        }
    }

    /// Of the progress of one phase the last is kept, and the rest forgotten. `false` if it came too fast to be told.
    pub(crate) fn progress(&mut self, progress: JobProgress, now: Instant) -> bool {
        let is_done = progress.total == Some(progress.done);
        if let Some((last, told)) = self.outdated_by(&progress) {
            if *last == progress || (now.duration_since(told) < PROGRESS_PAUSE && !is_done) {
                return false;
            }
            self.events.pop_back();
        }
        progress.phase.clone_into(&mut self.step);
        self.push(JobEvent {
            progress: Some(progress),
            ..blank()
        });
        self.told = Some(now);
        true
    }

    /// A message that stays, with the progress that it is.
    pub(crate) fn piece(&mut self, message: String, progress: JobProgress) {
        if self.outdated_by(&progress).is_some() {
            self.events.pop_back();
        }
        progress.phase.clone_into(&mut self.step);
        self.push(JobEvent {
            message: Some(message),
            progress: Some(progress),
            ..blank()
        });
    }

    /// The last event, and when it was told, if it is mere progress of the same phase.
    fn outdated_by(&self, progress: &JobProgress) -> Option<(&JobProgress, Instant)> {
        let told = self.told?;
        let last = self.events.back()?.progress.as_ref()?;
        (last.phase == progress.phase).then_some((last, told))
    }
}

fn bytes_of(event: &JobEvent) -> usize {
    let result = event.result.as_ref().map_or(0, |result| result.to_string().len());
    event.message.as_ref().map_or(0, String::len) + result
}

/// Somebody who reads a history from some event on.
pub(crate) struct Reader {
    history: watch::Receiver<History>,
    /// Events before this number are known.
    next: u64,
    pending: VecDeque<JobEvent>,
}

impl Reader {
    pub(crate) fn new(history: watch::Receiver<History>, after: Option<u64>) -> Self {
        Self {
            history,
            next: after.map_or(0, |seq| seq.saturating_add(1)),
            pending: VecDeque::new(),
        }
    }

    /// The next event; waits for it. `None` after the final one.
    pub(crate) async fn next(&mut self) -> Option<JobEvent> {
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
