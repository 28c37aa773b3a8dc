//! The line of one model: who takes the next free worker.
//!
//! Requests are served in the order in which they came. A free worker is handed to the first that waits, claimed already,
//! by whoever made it free: the end of another request, or the registry's event. Nobody polls.

mod pace;
mod ticket;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashMap};
use heartbeat_registry::{About, Members, Registry};
use scheduler::{Candidate, Refusal as Obstacle, Standing, Suspects, Wish};
use shared_contract::ModelId;
use tokio::sync::oneshot;
use tokio::time::Instant;
use worker_contract::WorkerHeartbeat;

use crate::affinity::{Affinity, Known, Prefix};
use crate::health::{Clock, Health, Kind};
use crate::metrics::{Metrics, ModelMetrics};
use crate::terms::Terms;
use crate::upstream::Upstream;
use crate::worker::{NOBODY, Worker, candidate};
use pace::Pace;

pub(crate) use ticket::Ticket;

/// Workers that are all looked at.
const FEW: usize = 16;

/// One model's line.
pub struct Line {
    model: ModelId,
    max_waiting: usize,
    figures: Arc<ModelMetrics>,
    workers: Arc<Registry<WorkerHeartbeat>>,
    metrics: Arc<Metrics>,
    upstream: Arc<Upstream>,
    clock: Clock,
    hasher: DefaultHashBuilder,
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
    /// What is known of the workers that had a request; by address in memory, which the first of the pair keeps from being
    /// another's.
    healths: HashMap<usize, (Worker, Arc<Health>)>,
    pace: Pace,
    affinity: Affinity,
}

impl State {
    /// Whether nobody waits that came before this place and would take any worker: who is choosier holds up nobody.
    fn is_next(&self, place: u64) -> bool {
        let mut before = self.waiting.range(..place);
        !before.any(|(_, waiter)| waiter.request.terms.takes_anybody())
    }
}

struct Waiter {
    request: Request,
    since: Instant,
    grant: oneshot::Sender<Ticket>,
}

/// What the choice of a worker depends on.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) terms: Terms,
    /// What its answer is compared with.
    pub(crate) kind: Kind,
    /// It takes no slot of its worker, so it needs to wait for none.
    pub(crate) is_light: bool,
    /// Its client has half of the answer: it is not refused as too many wait.
    pub(crate) is_under_way: bool,
    /// How its prompt begins, if that matters.
    pub(crate) prefix: Option<Prefix>,
}

/// What became of a request at the line.
pub(crate) enum Entry {
    /// It has a worker.
    Claimed(Ticket),
    /// It waits.
    Waiting(Waiting),
    /// It would have to wait, and too many do.
    Full,
    /// Nobody can take it, and waiting would not help.
    Refused(Obstacle),
}

impl Line {
    pub(crate) fn new(
        model: ModelId,
        max_waiting: usize,
        workers: Arc<Registry<WorkerHeartbeat>>,
        metrics: Arc<Metrics>,
        upstream: Arc<Upstream>,
        clock: Clock,
    ) -> Self {
        Self {
            figures: Arc::new(ModelMetrics::new(metrics.model_label(&model), &metrics)),
            model,
            max_waiting,
            workers,
            metrics,
            upstream,
            clock,
            hasher: DefaultHashBuilder::default(),
            state: Mutex::default(),
        }
    }

    /// The model.
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// Most requests that wait.
    pub(crate) fn max_waiting(&self) -> usize {
        self.max_waiting
    }

    /// The beginning of a prompt, if there is a choice of workers that may have it in their caches.
    pub(crate) fn prefix(&self, prompt: &[u8]) -> Option<Prefix> {
        let has_choice = Prefix::is_worth_it(prompt) && self.workers.find_by_model(&self.model).len() > 1;
        has_choice.then(|| Prefix::of(prompt, &self.hasher)).flatten()
    }

    /// Claims a worker for the request at `place`, or lets it wait if `may_wait` agrees. A request without a place gets the
    /// next one; it keeps it over all its attempts.
    pub(crate) fn enter(
        self: &Arc<Self>,
        place: &mut Option<u64>,
        request: &Request,
        may_wait: impl FnOnce(Obstacle) -> bool,
    ) -> Entry {
        let mut guard = self.lock();
        let state = &mut *guard;
        let place = *place.get_or_insert_with(|| {
            state.places += 1;
            state.places
        });
        let obstacle = if request.is_light || state.is_next(place) {
            match self.claim(state, request, Suspects::LastResort, None) {
                Ok(ticket) => return Entry::Claimed(ticket),
                Err(obstacle) => obstacle,
            }
        } else {
            Obstacle::AllBusy
        };
        // Asked without the lock: whoever decides it may look at this line.
        drop(guard);
        if !may_wait(obstacle) {
            return Entry::Refused(obstacle);
        }
        self.wait(place, request)
    }

    /// Puts a request into the line, unless a worker has become free for it just now.
    fn wait(self: &Arc<Self>, place: u64, request: &Request) -> Entry {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.waiting.len() >= self.max_waiting && !request.is_under_way {
            return Entry::Full;
        }
        let (grant, granted) = oneshot::channel();
        let waiter = Waiter {
            request: request.clone(),
            since: Instant::now(),
            grant,
        };
        state.waiting.insert(place, waiter);
        self.figures.joins_queue();
        if request.is_light || state.is_next(place) {
            // What became free before it stood in the line was not offered to it.
            self.offer_from(state, None);
        }
        drop(guard);
        Entry::Waiting(Waiting {
            line: Arc::clone(self),
            place,
            granted,
        })
    }

    /// Hands what is free to those that wait.
    pub fn offer(self: &Arc<Self>) {
        self.offer_from(&mut self.lock(), None);
    }

    /// The same; `freed` is the place among the model's workers of the one that has become free.
    fn offer_from(self: &Arc<Self>, state: &mut State, freed: Option<usize>) {
        let mut from = 0;
        // The first that can may ask a suspect if there is nobody else, as a request would that need not wait: otherwise they
        // would all wait for a worker that is well.
        let mut suspects = Suspects::LastResort;
        while let Some((&place, waiter)) = state.waiting.range(from..).next() {
            let request = waiter.request.clone();
            match self.claim(state, &request, suspects, freed) {
                Ok(ticket) => {
                    suspects = Suspects::Avoid;
                    match state.waiting.remove(&place).map(|waiter| waiter.grant.send(ticket)) {
                        // It has just given up. Its worker is still free: the next in the line gets it.
                        Some(Err(ticket)) => ticket.discard(),
                        // Only one slot has become free: in a large fleet it takes a while to see that there is no other.
                        Some(Ok(())) if freed.is_some() => return,
                        _ => {}
                    }
                }
                // Whoever is choosier than the others does not hold them up.
                Err(_) if !request.terms.takes_anybody() => from = place + 1,
                Err(_) => break,
            }
        }
    }

    /// What stands in the way of a request; `None` if a worker is free for it.
    pub(crate) fn obstacle(&self, request: &Request) -> Option<Obstacle> {
        let workers = self.workers.find_by_model(&self.model);
        self.choose(&workers, &self.lock(), request, Suspects::Avoid, None)
            .err()
    }

    /// Whether any worker of the model, whatever its state, is one that the request may go to; or the next one, as there is
    /// none.
    pub(crate) fn may_fit(&self, terms: &Terms) -> bool {
        if terms.fits_anybody() {
            return true;
        }
        let workers = self.workers.find_by_model(&self.model);
        if workers.is_empty() {
            return !terms.is_pinned();
        }
        workers.iter().any(|worker| terms.fits(&worker.report()))
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether the request at `place` waits, and nobody has waited for longer.
    pub(crate) fn is_first(&self, place: u64) -> bool {
        let state = self.lock();
        state
            .waiting
            .first_key_value()
            .is_some_and(|(first, _)| *first == place)
    }

    /// Where the request at `place` stands, from 1, and how many wait; `None` if it does not.
    pub(crate) fn rank(&self, place: u64) -> Option<(usize, usize)> {
        let state = self.lock();
        state
            .waiting
            .contains_key(&place)
            .then(|| (state.waiting.range(..=place).count(), state.waiting.len()))
    }

    /// How many wait, and for how long the first of them has.
    pub(crate) fn queue(&self) -> (usize, Duration) {
        let state = self.lock();
        let first = state.waiting.first_key_value();
        (
            state.waiting.len(),
            first.map_or(Duration::ZERO, |(_, waiter)| waiter.since.elapsed()),
        )
    }

    /// How long it will take until a request that came now would have a worker, by how fast those before it ended; `None` if
    /// too few did lately.
    pub(crate) fn expected_wait(&self) -> Option<Duration> {
        let workers = self.workers.find_by_model(&self.model);
        let running = workers
            .iter()
            .map(|worker| worker.outstanding())
            .fold(0, u32::saturating_add);
        let state = self.lock();
        state.pace.time_for(state.waiting.len() + 1, running)
    }

    /// What is counted for the model.
    pub(crate) fn figures(&self) -> &Arc<ModelMetrics> {
        &self.figures
    }

    /// Whether nobody waits and there are no workers.
    pub(crate) fn is_deserted(&self) -> bool {
        self.lock().waiting.is_empty() && self.workers.find_by_model(&self.model).is_empty()
    }

    /// Forgets what is known of workers that are members no longer.
    pub(crate) fn forget_those_that_left(&self) {
        let workers = self.workers.find_by_model(&self.model);
        let mut state = self.lock();
        if state.healths.len() > workers.len() {
            state
                .healths
                .retain(|_, (worker, health)| Arc::strong_count(health) > 1 || self.is_member(worker));
        }
    }

    /// Whether this worker has not left.
    pub(crate) fn is_member(&self, worker: &Worker) -> bool {
        self.workers
            .get(worker.id())
            .is_some_and(|member| Arc::ptr_eq(&member, worker))
    }

    /// A worker that something spoke against has answered.
    pub(crate) fn is_reached(self: &Arc<Self>, worker: &Worker, about: &About) {
        self.workers.mark_reached(worker.id(), about, std::time::Instant::now());
        self.offer();
    }

    /// Whether a worker of this name is passed over as it failed.
    #[cfg(test)]
    pub(crate) fn is_broken(&self, id: &shared_contract::WorkerId) -> bool {
        let worker = self.workers.get(id);
        let state = self.lock();
        let health = worker.as_ref().and_then(|worker| state.healths.get(&key(worker)));
        health.is_some_and(|(worker, health)| health.is_broken(worker.report().item.worker.incarnation))
    }

    /// The connections to the workers.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Where is counted what becomes of them.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Since when a worker has had no request; `None` while it has one.
    pub(crate) fn idle_since(&self, worker: &Worker) -> Option<std::time::Instant> {
        let state = self.lock();
        let ended = || {
            state
                .healths
                .get(&key(worker))
                .and_then(|(_, health)| health.idle_since())
        };
        (worker.outstanding() == 0).then(|| ended().unwrap_or_else(|| worker.report().first_seen))
    }

    /// Keeps a worker from being chosen; `None` if it has a request, or is held already.
    pub(crate) fn hold(self: &Arc<Self>, worker: &Worker) -> Option<Hold> {
        let mut state = self.lock();
        if worker.outstanding() > 0 {
            return None;
        }
        let health = self.health(&mut state, worker);
        (!health.set_held(true)).then(|| Hold {
            line: Arc::clone(self),
            health,
        })
    }

    fn claim(
        self: &Arc<Self>,
        state: &mut State,
        request: &Request,
        suspects: Suspects,
        freed: Option<usize>,
    ) -> Result<Ticket, Obstacle> {
        state.choices += 1;
        let workers = self.workers.find_by_model(&self.model);
        let cached = || place_of(state.affinity.find(request.prefix.as_ref()?)?, &workers);
        let place = self.choose(&workers, state, request, suspects, freed.or_else(cached))?;
        let worker = workers.get(place).ok_or(Obstacle::Unknown)?;
        let health = self.health(state, worker);
        if let Some(prefix) = &request.prefix {
            let worker = key(worker);
            state.affinity.note(prefix, Known { worker, place });
        }
        Ok(Ticket::new(self, worker.claim(), place, health, request))
    }

    fn choose(
        &self,
        workers: &Members<WorkerHeartbeat>,
        state: &State,
        request: &Request,
        suspects: Suspects,
        prefers: Option<usize>,
    ) -> Result<usize, Obstacle> {
        let now = std::time::Instant::now();
        let now_ms = self.clock.now_ms();
        let look = |place| match workers.get(place) {
            Some(worker) => {
                let report = worker.report();
                if !request.terms.fits(&report) {
                    return NOBODY;
                }
                let mut candidate = Candidate {
                    tried: request.terms.excludes(worker, &report),
                    ..candidate(&report, worker.liveness(now), worker.outstanding())
                };
                if request.is_light {
                    candidate.slots = u32::MAX;
                }
                if let Some((_, health)) = state.healths.get(&key(worker)) {
                    judge(
                        &mut candidate,
                        health,
                        report.item.worker.incarnation,
                        request.kind,
                        now_ms,
                    );
                }
                candidate
            }
            None => NOBODY,
        };
        let wish = Wish {
            suspects,
            prefers,
            seed: state.choices,
        };
        scheduler::choose(workers.len(), look, wish)
    }

    fn health(&self, state: &mut State, worker: &Worker) -> Arc<Health> {
        let (_, health) = state.healths.entry(key(worker)).or_insert_with(|| {
            let incarnation = worker.report().item.worker.incarnation;
            (Arc::clone(worker), Arc::new(Health::new(self.clock, incarnation)))
        });
        Arc::clone(health)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts into a candidate what is known of it by how it answered.
fn judge(candidate: &mut Candidate, health: &Health, incarnation: u64, kind: Kind, now_ms: u64) {
    candidate.record = health.record(kind, now_ms);
    if health.is_held() {
        candidate.standing = Standing::NotReady;
    } else if candidate.standing == Standing::Ready && health.is_broken(incarnation) {
        candidate.standing = Standing::Suspect;
    }
}

/// Where a worker stands now. Of many only where it stood is looked at: it seldom moves.
fn place_of(known: Known, workers: &Members<WorkerHeartbeat>) -> Option<usize> {
    let is_it = |worker: &Worker| key(worker) == known.worker;
    if workers.get(known.place).is_some_and(is_it) {
        return Some(known.place);
    }
    workers.iter().take(FEW).position(is_it)
}

fn key(worker: &Worker) -> usize {
    Arc::as_ptr(worker).addr()
}

/// A place in the line. Dropping it leaves the line.
pub(crate) struct Waiting {
    line: Arc<Line>,
    place: u64,
    granted: oneshot::Receiver<Ticket>,
}

impl Waiting {
    /// Ends with a worker; never, if none becomes free. Dropped before that, it can be called again.
    pub(crate) async fn granted(&mut self) -> Ticket {
        match (&mut self.granted).await {
            Ok(ticket) => ticket,
            // The sender lies in the line, which this place keeps alive, and only this place takes it out.
            Err(_) => std::future::pending().await,
        }
    }

    /// Which place it is.
    pub(crate) fn place(&self) -> u64 {
        self.place
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waiter = self.line.lock().waiting.remove(&self.place);
        drop(waiter);
        self.line.figures.leaves_queue();
    }
}

/// Keeps a worker from being chosen for as long as it lives.
#[must_use = "the worker may be chosen again when this is dropped"]
pub struct Hold {
    line: Arc<Line>,
    health: Arc<Health>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.health.set_held(false);
        self.line.offer();
    }
}

#[cfg(test)]
mod tests;
