//! A worker, claimed for one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use heartbeat_registry::{Address, Lease, Reach, Report};
use worker_contract::WorkerHeartbeat;

use super::{Line, Request};
use crate::attempt::Failure;
use crate::health::{Break, Health, Kind};
use crate::probe;
use crate::worker::Worker;

/// A worker, claimed for one request. When it is dropped, the claim falls and the next in the line gets the worker.
pub(crate) struct Ticket {
    /// There until it is dropped.
    lease: Option<Lease<WorkerHeartbeat>>,
    worker: Worker,
    report: Arc<Report<WorkerHeartbeat>>,
    /// Where the worker stands among those of its model, unless that has changed since.
    place: usize,
    health: Arc<Health>,
    /// Its newest failure before the claim.
    newest_break: Break,
    kind: Kind,
    /// Its request takes no slot.
    is_light: bool,
    /// When it was claimed: no answer to the request is older.
    claimed: Instant,
    /// It owes the first byte.
    owes: AtomicBool,
    line: Arc<Line>,
}

impl Ticket {
    pub(super) fn new(
        line: &Arc<Line>,
        lease: Lease<WorkerHeartbeat>,
        place: usize,
        health: Arc<Health>,
        request: &Request,
    ) -> Self {
        let worker = Arc::clone(lease.member());
        let report = worker.report();
        let newest_break = health.is_asked(report.item.worker.incarnation);
        Self {
            lease: Some(lease),
            worker,
            report,
            place,
            health,
            newest_break,
            kind: request.kind,
            is_light: request.is_light,
            claimed: Instant::now(),
            owes: AtomicBool::new(true),
            line: Arc::clone(line),
        }
    }

    /// Who was claimed.
    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// What it had said last at the time of the claim.
    pub(crate) fn report(&self) -> &Arc<Report<WorkerHeartbeat>> {
        &self.report
    }

    /// Where it is reached.
    pub(crate) fn address(&self) -> &Address {
        &self.report.address
    }

    /// The number of its newest heartbeat at the time of the claim.
    pub(crate) fn beats(&self) -> u64 {
        self.report.beats
    }

    /// It answered: whatever spoke against it before is refuted.
    pub(crate) fn confirm(&self) {
        self.owes_no_longer();
        self.health.answered(self.kind, self.claimed.elapsed());
        let is_mended = self.health.mend(self.newest_break);
        let report = self.worker.report();
        if report.suspicion.is_some() || matches!(report.reach, Reach::Unreachable(_)) {
            self.line.is_reached(&self.worker, &self.report.about(self.claimed));
        } else if is_mended {
            // Those that wait passed over it until now.
            self.line.offer();
        }
    }

    /// It failed: others are chosen first until it has answered, if the failure speaks against it. A process that has taken
    /// its place meanwhile is not to blame.
    pub(crate) fn blame(&self, failure: &Failure) {
        self.owes_no_longer();
        self.health.failed();
        if failure.is_fast_evidence() {
            let about = self.report.about(self.claimed);
            self.line
                .workers
                .mark_suspect(self.worker.id(), &about, failure.to_string(), Instant::now());
        }
        if failure.is_evidence()
            && let Some(broken) = self.health.break_it(self.report.item.worker.incarnation)
        {
            let (line, worker) = (Arc::downgrade(&self.line), Arc::clone(&self.worker));
            // It ends by itself: with the failure, the worker or the line.
            tokio::spawn(probe::run(line, worker, Arc::clone(&self.health), broken));
        }
    }

    fn owes_no_longer(&self) {
        if self.owes.swap(false, Ordering::Relaxed) {
            self.health.owes_no_longer();
        }
    }

    /// Drops the claim without offering the worker to anybody.
    pub(super) fn discard(mut self) {
        self.lease = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.owes_no_longer();
        if let Some(lease) = self.lease.take() {
            let mut state = self.line.lock();
            // Not before: whoever comes now must not go before those that wait, some of whom wait for just this worker.
            drop(lease);
            self.health.lease_ended();
            // A request that took no slot says nothing of how fast the others end.
            if !self.is_light {
                state.pace.note(self.claimed.elapsed());
            }
            self.line.offer_from(&mut state, Some(self.place));
        }
    }
}
