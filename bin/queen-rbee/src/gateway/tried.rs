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
    verdict: Verdict,
}

/// How long a failed attempt speaks against asking the same worker again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Not yet: whoever closed a kept connection may only have restarted. Asking once more costs little, and tells.
    OnceMore,
    /// Until it has beaten again; this is the number of its newest heartbeat at the time.
    UntilBeat(u64),
    /// Whatever it says later.
    Never,
}

impl Tried {
    /// Notes a failed attempt.
    pub(super) fn note(&mut self, ticket: &Ticket, failure: &Failure) {
        let known = self
            .attempts
            .iter()
            .position(|attempt| matches!(attempt, Some(attempt) if Arc::ptr_eq(&attempt.worker, ticket.worker())));
        let verdict = match failure {
            Failure::Broke(_) if known.is_none() => Verdict::OnceMore,
            Failure::Broke(_) | Failure::Unreachable(_) | Failure::Busy(_) => Verdict::UntilBeat(ticket.beats()),
            Failure::Silent(_) | Failure::Failed(_) | Failure::Unauthorized => Verdict::Never,
        };
        let slot = known.or_else(|| self.attempts.iter().position(Option::is_none));
        if let Some(slot) = slot {
            self.attempts[slot] = Some(Attempt {
                worker: Arc::clone(ticket.worker()),
                verdict,
            });
        }
    }

    /// Whether this worker was tried and should not be asked again.
    pub(super) fn excludes(&self, worker: &Worker, report: &Report<WorkerHeartbeat>) -> bool {
        self.attempts.iter().flatten().any(|attempt| {
            Arc::ptr_eq(&attempt.worker, worker)
                && match attempt.verdict {
                    Verdict::OnceMore => false,
                    Verdict::UntilBeat(beats) => beats == report.beats,
                    Verdict::Never => true,
                }
        })
    }

    /// Whether nobody is excluded.
    pub(super) fn is_empty(&self) -> bool {
        self.verdicts().all(|verdict| verdict == Verdict::OnceMore)
    }

    /// Whether a request that was refused for this reason may hope for a change.
    pub(super) fn may_wait(&self, refusal: Refusal) -> bool {
        match refusal {
            Refusal::AllBusy | Refusal::NoneReady => true,
            Refusal::AllTried | Refusal::AllSuspect => {
                self.is_empty() || self.verdicts().any(|verdict| matches!(verdict, Verdict::UntilBeat(_)))
            }
            Refusal::Unknown | Refusal::AllLost => false,
        }
    }

    fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        self.attempts.iter().flatten().map(|attempt| attempt.verdict)
    }

    /// A copy for the time of waiting.
    pub(super) fn snapshot(&self) -> Self {
        Self {
            attempts: self.attempts.clone(),
        }
    }
}
