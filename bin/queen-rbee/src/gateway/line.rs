//! The line of one model: who takes the next free worker.
//!
//! Requests are served in the order in which they came. A free worker is handed to the first that waits, claimed already,
//! by whoever made it free: the end of another request, or the registry's event. Nobody polls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use heartbeat_registry::{Address, Lease, Reach, Report};
use prometheus_client::metrics::counter::Counter;
use scheduler::{Refusal, Suspects};
use shared_contract::ModelId;
use tokio::sync::oneshot;
use worker_contract::WorkerHeartbeat;

use super::tried::Tried;
use super::upstream::Failure;
use crate::fleet;
use crate::metrics::Metrics;
use crate::registry::{Worker, WorkerRegistry};

/// Workers whose reasons stand in one error message.
const MAX_REASONS: usize = 3;

/// One model's line.
pub(crate) struct Line {
    pub(super) model: ModelId,
    pub(super) max_waiting: usize,
    pub(super) counters: Counters,
    workers: Arc<WorkerRegistry>,
    metrics: Arc<Metrics>,
    /// Held while a worker is chosen and claimed, so that the last free slot is given once.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By place: the first has waited longest.
    waiting: BTreeMap<u64, Waiter>,
    /// Places given so far.
    places: u64,
    /// Choices made so far: what breaks ties.
    choices: u64,
}

struct Waiter {
    tried: Tried,
    grant: oneshot::Sender<Ticket>,
}

/// What became of a request at the line.
pub(super) enum Entry {
    /// It has a worker.
    Claimed(Ticket),
    /// It waits.
    Waiting(Waiting),
    /// It would have to wait, and too many do.
    Full,
    /// Nobody can take it, and waiting would not help.
    Refused(Refusal),
}

impl Line {
    pub(super) fn new(model: ModelId, max_waiting: usize, workers: Arc<WorkerRegistry>, metrics: Arc<Metrics>) -> Self {
        Self {
            counters: Counters::new(metrics.model_label(&model), &metrics),
            model,
            max_waiting,
            workers,
            metrics,
            state: Mutex::default(),
        }
    }

    /// Claims a worker for the request at `place`, or lets it wait if `may_wait` agrees. A request without a place gets the
    /// next one; it keeps it over all its attempts.
    pub(super) fn enter(
        self: &Arc<Self>,
        place: &mut Option<u64>,
        tried: &Tried,
        may_wait: impl FnOnce(Refusal) -> bool,
    ) -> Entry {
        let mut guard = self.lock();
        let state = &mut *guard;
        let place = *place.get_or_insert_with(|| {
            state.places += 1;
            state.places
        });
        let is_first = state.waiting.first_key_value().is_none_or(|(first, _)| place < *first);
        let refusal = if is_first {
            state.choices += 1;
            match self.claim(tried, Suspects::LastResort, state.choices) {
                Ok(lease) => return Entry::Claimed(self.ticket(lease)),
                Err(refusal) => refusal,
            }
        } else {
            Refusal::AllBusy
        };
        if !may_wait(refusal) {
            return Entry::Refused(refusal);
        }
        if state.waiting.len() >= self.max_waiting {
            return Entry::Full;
        }
        let (grant, granted) = oneshot::channel();
        let tried = tried.snapshot();
        state.waiting.insert(place, Waiter { tried, grant });
        self.metrics.waiting.inc();
        Entry::Waiting(Waiting {
            line: Arc::clone(self),
            place,
            granted,
        })
    }

    /// Hands what is free to those that wait.
    pub(crate) fn offer(self: &Arc<Self>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut from = 0;
        // The first in the line may ask a suspect if there is nobody else, as a request would that need not wait: otherwise
        // they would all wait for a worker that is well.
        let mut suspects = Suspects::LastResort;
        while let Some((&place, waiter)) = state.waiting.range(from..).next() {
            state.choices += 1;
            match self.claim(
                &waiter.tried,
                std::mem::replace(&mut suspects, Suspects::Avoid),
                state.choices,
            ) {
                Ok(lease) => {
                    if let Some(waiter) = state.waiting.remove(&place)
                        && let Err(ticket) = waiter.grant.send(self.ticket(lease))
                    {
                        // It has just given up. Its worker is still free: the next in the line gets it.
                        ticket.discard();
                    }
                }
                // Whoever is choosier than the others does not hold them up.
                Err(_) if !waiter.tried.is_empty() => from = place + 1,
                Err(_) => break,
            }
        }
    }

    /// Why nobody is free now, for people; without a reason if somebody is.
    pub(super) fn why_not(&self) -> (Option<Refusal>, String) {
        let refusal = self.workers.refusal(&self.model);
        let now = Instant::now();
        let workers = self.workers.find_workers_by_model(&self.model);
        let reasons = workers.iter().filter_map(|worker| {
            let reason = fleet::worker_reason(&worker.view(now), now, fleet::Audience::Clients)?;
            Some(format!("{}: {reason}", worker.id()))
        });
        let text = match reasons.take(MAX_REASONS).collect::<Vec<_>>().join("; ") {
            text if !text.is_empty() => text,
            _ if workers.is_empty() => "none has reported yet".to_owned(),
            _ => "others were first".to_owned(),
        };
        (refusal, text)
    }

    /// Whether nobody waits and there are no workers.
    pub(super) fn is_deserted(&self) -> bool {
        self.lock().waiting.is_empty() && self.workers.find_workers_by_model(&self.model).is_empty()
    }

    fn claim(&self, tried: &Tried, suspects: Suspects, seed: u64) -> Result<Lease<WorkerHeartbeat>, Refusal> {
        let excludes = |worker: &Worker, report: &Report<WorkerHeartbeat>| tried.excludes(worker, report);
        self.workers
            .find_best_worker_for_model(&self.model, excludes, suspects, seed)
    }

    fn ticket(self: &Arc<Self>, lease: Lease<WorkerHeartbeat>) -> Ticket {
        let worker = Arc::clone(lease.member());
        Ticket {
            report: worker.report(),
            claimed: Instant::now(),
            worker,
            lease: Some(lease),
            line: Arc::clone(self),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line. Dropping it leaves the line.
pub(super) struct Waiting {
    line: Arc<Line>,
    place: u64,
    granted: oneshot::Receiver<Ticket>,
}

impl Waiting {
    /// Ends with a worker; never, if none becomes free.
    pub(super) async fn granted(mut self) -> Ticket {
        match (&mut self.granted).await {
            Ok(ticket) => ticket,
            // The sender lies in the line, which this place keeps alive, and only this place takes it out.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waiter = self.line.lock().waiting.remove(&self.place);
        drop(waiter);
        self.line.metrics.waiting.dec();
    }
}

/// A worker, claimed for one request. When it is dropped, the claim falls and the next in the line gets the worker.
pub(super) struct Ticket {
    /// There until it is dropped.
    lease: Option<Lease<WorkerHeartbeat>>,
    worker: Worker,
    report: Arc<Report<WorkerHeartbeat>>,
    /// When it was claimed: no answer to the request is older.
    claimed: Instant,
    line: Arc<Line>,
}

impl Ticket {
    /// Who was claimed.
    pub(super) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Where it is reached.
    pub(super) fn address(&self) -> &Address {
        &self.report.address
    }

    /// The number of its newest heartbeat at the time of the claim.
    pub(super) fn beats(&self) -> u64 {
        self.report.beats
    }

    /// It answered: whatever spoke against it before is refuted.
    pub(super) fn confirm(&self) {
        let report = self.worker.report();
        if report.suspicion.is_some() || matches!(report.reach, Reach::Unreachable(_)) {
            let about = self.report.about(self.claimed);
            self.line.workers.mark_reached(self.worker.id(), &about, Instant::now());
        }
    }

    /// It failed: others are chosen first until it is heard of again, if the failure speaks against its being alive. A process
    /// that has taken its place meanwhile is not to blame.
    pub(super) fn blame(&self, failure: &Failure) {
        if failure.is_evidence() {
            let about = self.report.about(self.claimed);
            self.line
                .workers
                .mark_suspect(self.worker.id(), &about, failure.to_string(), Instant::now());
        }
    }

    /// Drops the claim without offering the worker to anybody.
    fn discard(mut self) {
        self.lease = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            drop(lease);
            self.line.offer();
        }
    }
}

/// Counts the answers for one model by status.
pub(super) struct Counters {
    label: String,
    metrics: Arc<Metrics>,
    /// Nearly all answers are.
    ok: Counter,
}

impl Counters {
    fn new(label: String, metrics: &Arc<Metrics>) -> Self {
        Self {
            ok: metrics.requests(&label, 200),
            label,
            metrics: Arc::clone(metrics),
        }
    }

    pub(super) fn count(&self, status: u16) {
        match status {
            200 => self.ok.inc(),
            _ => self.metrics.requests(&self.label, status).inc(),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use chrono::Utc;
    use heartbeat_registry::{Pace, Receipt, RegistryOptions};

    use super::*;

    const SLOTS: u32 = 3;

    fn beat(workers: &WorkerRegistry, incarnation: u64) {
        let beat = daemon::extract::from_slice(
            format!(
                r#"{{"worker": {{"id": "w", "model_id": "m", "device": "cpu", "port": 1, "status": "ready",
                     "implementation": "x", "version": "0", "slots": {SLOTS}, "incarnation": {incarnation}}},
                     "timestamp": "2025-10-24T10:00:00Z"}}"#
            )
            .as_bytes(),
        )
        .unwrap();
        let receipt = Receipt {
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
            at: Instant::now(),
            wall: Utc::now(),
            pace: Pace::default(),
        };
        workers.record(beat, receipt).unwrap();
    }

    fn line() -> Arc<Line> {
        let workers = Arc::new(WorkerRegistry::new(RegistryOptions::default()));
        beat(&workers, 1);
        let model = ModelId::new("m").unwrap();
        Arc::new(Line::new(model, 1_000, workers, Arc::new(Metrics::new())))
    }

    /// One request; `false` if it left the line before it got a worker.
    async fn request(line: &Arc<Line>, patience: Duration, running: &AtomicU32) -> bool {
        let ticket = match line.enter(&mut None, &Tried::default(), |_| true) {
            Entry::Claimed(ticket) => ticket,
            Entry::Waiting(waiting) => match tokio::time::timeout(patience, waiting.granted()).await {
                Ok(ticket) => ticket,
                Err(_) => return false,
            },
            Entry::Full | Entry::Refused(_) => panic!("there is room, and it may wait"),
        };
        assert!(
            running.fetch_add(1, Ordering::SeqCst) < SLOTS,
            "more requests than slots"
        );
        tokio::task::yield_now().await;
        running.fetch_sub(1, Ordering::SeqCst);
        drop(ticket);
        true
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn slots_are_never_given_twice_and_no_one_is_forgotten_however_many_come_and_leave() {
        let line = line();
        let running = Arc::new(AtomicU32::new(0));
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..200 {
            let (line, running) = (Arc::clone(&line), Arc::clone(&running));
            requests.spawn(async move {
                for round in 0..20 {
                    // Every third may leave the line at any moment; the others wait for as long as it takes.
                    let may_leave = (number + round) % 3 == 0;
                    let patience = Duration::from_micros(if may_leave { 50 } else { 60_000_000 });
                    assert!(
                        request(&line, patience, &running).await || may_leave,
                        "forgotten in the line"
                    );
                }
            });
        }
        while let Some(result) = requests.join_next().await {
            result.unwrap();
        }
        let state = line.lock();
        assert!(state.waiting.is_empty());
        assert_eq!(line.metrics.waiting.get(), 0);
    }

    #[tokio::test]
    async fn the_first_in_the_line_is_given_a_suspect_if_there_is_nobody_else() {
        let line = line();
        let mut held: Vec<_> = (0..SLOTS)
            .map(|_| line.enter(&mut None, &Tried::default(), |_| true))
            .collect();
        let [Entry::Waiting(first), Entry::Waiting(second)] =
            [(); 2].map(|()| line.enter(&mut None, &Tried::default(), |_| true))
        else {
            panic!("all slots are taken")
        };
        let Some(Entry::Claimed(ticket)) = held.pop() else {
            panic!("there were free slots")
        };
        ticket.blame(&Failure::Broke("on purpose".into()));
        drop(ticket);
        let probe = first.granted().await;
        assert!(probe.worker().report().suspicion.is_some());
        // Only one asks; the others wait for what comes of it.
        let others = tokio::time::timeout(Duration::from_millis(1), second.granted());
        assert!(others.await.is_err());
    }

    fn claimed(line: &Arc<Line>) -> Ticket {
        match line.enter(&mut None, &Tried::default(), |_| true) {
            Entry::Claimed(ticket) => ticket,
            _ => panic!("there are free slots"),
        }
    }

    #[tokio::test]
    async fn what_an_earlier_process_did_is_not_laid_to_the_one_that_took_its_place() {
        let line = line();
        let of_earlier = claimed(&line);
        beat(&line.workers, 2);
        let is_suspect = || of_earlier.worker().report().suspicion.is_some();
        of_earlier.blame(&Failure::Broke("on purpose".into()));
        assert!(!is_suspect());
        claimed(&line).blame(&Failure::Broke("on purpose".into()));
        assert!(is_suspect());
        of_earlier.confirm();
        assert!(is_suspect(), "an answer of another process says nothing for this one");
    }

    #[tokio::test]
    async fn only_an_answer_to_what_was_asked_since_clears_a_suspicion() {
        let line = line();
        let (early, failed) = (claimed(&line), claimed(&line));
        let is_suspect = || early.worker().report().suspicion.is_some();
        failed.blame(&Failure::Broke("on purpose".into()));
        early.confirm();
        assert!(is_suspect(), "it may have answered before it broke");
        claimed(&line).confirm();
        assert!(!is_suspect());
    }

    #[tokio::test]
    async fn a_request_that_comes_back_keeps_its_place() {
        let line = line();
        let mut place = None;
        let Entry::Claimed(ticket) = line.enter(&mut place, &Tried::default(), |_| true) else {
            panic!("there are free slots")
        };
        let held: Vec<_> = (1..SLOTS)
            .map(|_| line.enter(&mut None, &Tried::default(), |_| true))
            .collect();
        let Entry::Waiting(_later) = line.enter(&mut None, &Tried::default(), |_| true) else {
            panic!("all slots are taken")
        };
        // The first one failed at its worker and comes back: whoever came later does not go before it.
        ticket.discard();
        let again = line.enter(&mut place, &Tried::default(), |_| true);
        assert!(matches!(again, Entry::Claimed(_)));
        drop(held);
    }
}
