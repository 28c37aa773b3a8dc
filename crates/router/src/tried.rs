//! Who was tried for a request, and for how long that speaks against asking again.

use std::sync::Arc;

use heartbeat_registry::Report;
use scheduler::Refusal as Obstacle;
use worker_contract::WorkerHeartbeat;

use crate::MAX_ATTEMPTS;
use crate::attempt::Failure;
use crate::line::Ticket;
use crate::worker::Worker;

/// Those tried since the last answer, and the one that broke that off.
const MAX_TRIED: usize = MAX_ATTEMPTS + 1;

/// The workers tried for one answer.
#[derive(Default, Clone)]
pub(crate) struct Tried {
    attempts: [Option<Attempt>; MAX_TRIED],
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
    pub(crate) fn note(&mut self, ticket: &Ticket, failure: &Failure) {
        let is_known = self.place_of(ticket.worker()).is_some();
        let verdict = match failure {
            Failure::Broke(_) if !is_known => Verdict::OnceMore,
            Failure::Broke(_) | Failure::Unreachable(_) | Failure::Busy(_) => Verdict::UntilBeat(ticket.beats()),
            Failure::Silent(_) | Failure::Failed(_) | Failure::Unauthorized => Verdict::Never,
        };
        self.set(ticket.worker(), verdict);
    }

    /// Begins anew, but for the worker that broke off its answer; `beats` is the number of its newest heartbeat when it was
    /// asked.
    pub(crate) fn restart_without(&mut self, lost: &Worker, beats: u64) {
        *self = Self::default();
        self.set(lost, Verdict::UntilBeat(beats));
    }

    fn place_of(&self, worker: &Worker) -> Option<usize> {
        let is_it =
            |attempt: &Option<Attempt>| matches!(attempt, Some(attempt) if Arc::ptr_eq(&attempt.worker, worker));
        self.attempts.iter().position(is_it)
    }

    fn set(&mut self, worker: &Worker, verdict: Verdict) {
        let free = || self.attempts.iter().position(Option::is_none);
        if let Some(place) = self.place_of(worker).or_else(free) {
            self.attempts[place] = Some(Attempt {
                worker: Arc::clone(worker),
                verdict,
            });
        }
    }

    /// Whether this worker was tried and should not be asked again.
    pub(crate) fn excludes(&self, worker: &Worker, report: &Report<WorkerHeartbeat>) -> bool {
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
    pub(crate) fn is_empty(&self) -> bool {
        self.verdicts().all(|verdict| verdict == Verdict::OnceMore)
    }

    /// Whether a request that met this obstacle may hope for a change.
    pub(crate) fn may_wait(&self, obstacle: Obstacle) -> bool {
        match obstacle {
            Obstacle::AllBusy | Obstacle::NoneReady => true,
            Obstacle::AllTried | Obstacle::AllSuspect => {
                self.is_empty() || self.verdicts().any(|verdict| matches!(verdict, Verdict::UntilBeat(_)))
            }
            Obstacle::Unknown | Obstacle::AllLost => false,
        }
    }

    fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        self.attempts.iter().flatten().map(|attempt| attempt.verdict)
    }
}
