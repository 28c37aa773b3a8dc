//! Who was tried for a request, and for how long that speaks against asking again.

use std::sync::Arc;

use heartbeat_registry::Report;
use scheduler::Refusal;
use worker_contract::WorkerHeartbeat;

use super::MAX_ATTEMPTS;
use super::line::Ticket;
use super::upstream::Failure;
use crate::registry::Worker;

/// The workers tried for one request.
#[derive(Default)]
pub(super) struct Tried {
    attempts: [Option<Attempt>; MAX_ATTEMPTS],
}

#[derive(Clone)]
struct Attempt {
    worker: Worker,
    /// The number of its newest heartbeat at the time; `None`: whatever it says later, it is not asked again.
    until_beat: Option<u64>,
}

impl Tried {
    /// Notes a failed attempt.
    pub(super) fn note(&mut self, ticket: &Ticket, failure: &Failure) {
        let until_beat = match failure {
            // Whoever closed the connection may only have restarted: asking once more costs little, and tells.
            Failure::Broke(_) => return,
            Failure::Unreachable(_) | Failure::Busy(_) => Some(ticket.beats()),
            Failure::Silent(_) | Failure::Failed(_) | Failure::Unauthorized => None,
        };
        if let Some(free) = self.attempts.iter_mut().find(|attempt| attempt.is_none()) {
            *free = Some(Attempt {
                worker: Arc::clone(ticket.worker()),
                until_beat,
            });
        }
    }

    /// Whether this worker was tried and should not be asked again.
    pub(super) fn excludes(&self, worker: &Worker, report: &Report<WorkerHeartbeat>) -> bool {
        self.attempts.iter().flatten().any(|attempt| {
            Arc::ptr_eq(&attempt.worker, worker) && attempt.until_beat.is_none_or(|beats| beats == report.beats)
        })
    }

    /// Whether nobody is excluded.
    pub(super) fn is_empty(&self) -> bool {
        self.attempts.iter().all(Option::is_none)
    }

    /// Whether a request that was refused for this reason may hope for a change.
    pub(super) fn may_wait(&self, refusal: Refusal) -> bool {
        match refusal {
            Refusal::AllBusy | Refusal::NoneReady => true,
            Refusal::AllTried | Refusal::AllSuspect => {
                self.is_empty()
                    || self
                        .attempts
                        .iter()
                        .flatten()
                        .any(|attempt| attempt.until_beat.is_some())
            }
            Refusal::Unknown | Refusal::AllLost => false,
        }
    }

    /// A copy for the time of waiting.
    pub(super) fn snapshot(&self) -> Self {
        Self {
            attempts: self.attempts.clone(),
        }
    }
}
