//! The supply's one task: looks at what is wanted whenever something happens, and begins what is to be done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heartbeat_registry::RegistryEvent;
use hive_contract::ProcessState;
use router::Router;
use scheduler::{Replicas, Scale, scale};
use shared_contract::{HeartbeatItem, HiveId, ModelId, WorkerId};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::Service;
use super::books::Books;
use super::guards::Leaving;
use super::hive::HiveApi;
use super::scene::HostNow;
use super::stated::{Serve, Stated};
use super::view::Trigger;
use crate::State;
use crate::fleet::millis;

/// What goes by time is looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// Much that happens at once is looked at once.
const LOOK_TOGETHER: Duration = Duration::from_millis(5);
/// Workers that are brought up or ended at one time; the rest follow.
const MAX_TASKS: usize = 256;
/// A worker that could not be ended is left alone for this long.
const END_PAUSE: Duration = Duration::from_secs(5);

/// A worker that is to be ended is given up when no hive has told of it for this long: hives come back with their workers.
const UNSEEN_LIMIT: Duration = Duration::from_secs(3_600);

/// What is to be done.
enum Task {
    /// The load of this number.
    BringUp(u64),
    /// A worker that is not wanted any more.
    End { worker: WorkerId, api: HiveApi },
}

/// The fleet at one look.
struct Look<'a> {
    stated: &'a Stated,
    hosts: &'a [HostNow],
    router: &'a Router,
    now: Instant,
}

/// Keeps the models supplied, for as long as it is polled.
pub(crate) async fn run(state: Arc<State>) {
    let supply = state.supply.clone();
    let (mut workers, mut hives) = (state.workers.subscribe(), state.hives.subscribe());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            () = supply.shared.wake.notified() => {}
            _ = ticks.tick() => {}
            happened = happened(&mut workers) => if !happened { return },
            happened = happened(&mut hives) => {
                if !happened {
                    return;
                }
                supply.books().look_again_at_all(Instant::now());
            }
            Some(_) = tasks.join_next() => {}
            // What hives are at goes on, and the next queen finds it.
            () = state.shutdown.requested() => return,
        }
        tokio::time::sleep(LOOK_TOGETHER).await;
        supply.shared.happened.send_modify(|count| *count += 1);
        let room = MAX_TASKS.saturating_sub(tasks.len());
        for task in supply.look(&state.router, room, Instant::now()) {
            let supply = supply.clone();
            match task {
                Task::BringUp(id) => {
                    let router = state.router.clone();
                    // What came of it stands in the books.
                    tasks.spawn(async move { drop(supply.bring_up(id, router, None).await) })
                }
                Task::End { worker, api } => tasks.spawn(async move { supply.send_away(worker, api).await }),
            };
        }
    }
}

/// Waits until something happens to a member; `false` if nothing will any more.
async fn happened<T: HeartbeatItem>(events: &mut Receiver<RegistryEvent<T>>) -> bool {
    !matches!(events.recv().await, Err(RecvError::Closed))
}

impl Service {
    /// What is to be done now, at most so much of it; it stands in the books already.
    fn look(&self, router: &Router, room: usize, now: Instant) -> Vec<Task> {
        let stated = self.shared.stated.now();
        let ready = self.all_ready(now);
        let models: Vec<ModelId> = {
            let mut books = self.books();
            books.prune(now);
            books.note_ready(&ready, now);
            let mut models = books.models();
            models.extend(stated.serve.keys().cloned());
            models
        };
        let is_idle = models.is_empty() && stated.drained.is_empty() && stated.ending.is_empty();
        if is_idle {
            return Vec::new();
        }
        let hosts = self.hosts(now);
        let seen = Look {
            stated: &stated,
            hosts: &hosts,
            router,
            now,
        };
        let mut books = self.books();
        books.settle(&hosts);
        let mut tasks = Vec::new();
        for model in &models {
            let most = room.saturating_sub(tasks.len());
            tasks.extend(
                self.begin_loads(model, &seen, &mut books, most)
                    .into_iter()
                    .map(Task::BringUp),
            );
        }
        let leavers = self.leavers(&stated, &hosts, &mut books, now);
        for (worker, api) in leavers {
            if tasks.len() < room && books.leaving.insert(worker.clone()) {
                tasks.push(Task::End { worker, api });
            }
        }
        tasks
    }

    /// Begins the loads that a model wants, at most so many.
    fn begin_loads(&self, model: &ModelId, seen: &Look<'_>, books: &mut Books, most: usize) -> Vec<u64> {
        let mut begun = Vec::new();
        let mut replicas = self.replicas(model, seen, books);
        while begun.len() < most && scale(&replicas) == Scale::Up {
            // One that is asked for is looked into again by whoever asks.
            if books.verdict(model).is_some() && !books.may_look(model, seen.now) {
                break;
            }
            begun.push(books.begin(model, trigger(&replicas), seen.now));
            replicas.starting += 1;
        }
        begun
    }

    /// What is known of a model's workers and of its line.
    fn replicas(&self, model: &ModelId, seen: &Look<'_>, books: &mut Books) -> Replicas {
        let config = &self.shared.config;
        let Look { stated, hosts, now, .. } = *seen;
        let wanted = stated.serve.get(model).map_or(0, |serve| serve.replicas as usize);
        let running = match wanted {
            0 => {
                let serving = self.serving(model, now).into_iter();
                serving.filter(|it| !books.leaving.contains(&it.worker)).count()
            }
            _ => self.serving_for_good(model, now),
        };
        let starting = self.starting(model, hosts, books, now);
        let starting = starting.iter().filter(|worker| !is_on_drained(worker, hosts, stated));
        let starting = starting.count() + books.loads_of(model).count();
        let waiting = match (config.loads_on_demand, running + starting) {
            (false, _) => 0,
            (true, 0) => self.wanting(model, books, seen.router, now),
            // The line alone: those who were told of in this moment may have left it for the worker that is there.
            (true, _) => seen.router.waiting(model),
        };
        let bound = config.scale_up_waiting.unwrap_or(usize::MAX);
        let above = books.above(model, bound, running > 0, now);
        Replicas {
            waiting,
            bound,
            above_bound_ms: millis(above),
            patience_ms: millis(config.scale_up_after),
            running,
            starting,
            wanted,
            max: config.max_replicas,
        }
    }

    /// Workers of a model that take requests and are not about to leave.
    pub(super) fn serving_for_good(&self, model: &ModelId, now: Instant) -> usize {
        let stated = self.shared.stated.now();
        let serving = self.serving(model, now).into_iter();
        serving
            .filter(|it| it.hive.as_ref().is_none_or(|hive| !stated.drained.contains(hive)))
            .count()
    }

    /// Workers that are to go: those of drained hives, once others run in their place where that is stated, and those of
    /// statements that have ended.
    fn leavers(&self, stated: &Stated, hosts: &[HostNow], books: &mut Books, now: Instant) -> Vec<(WorkerId, HiveApi)> {
        let mut leavers = Vec::new();
        let mut known = BTreeMap::new();
        for host in hosts {
            for process in host.processes() {
                let (Some(worker), Some(model)) = (&process.worker_id, &process.model) else {
                    continue;
                };
                known.insert(worker.clone(), host);
                let is_there = !matches!(process.state, ProcessState::Stopping | ProcessState::Failed);
                if is_there && stated.drained.contains(&host.id) && self.may_leave(model, stated, now) {
                    leavers.push((worker.clone(), self.api(host)));
                }
            }
        }
        for serve in stated.serve.values() {
            leavers.extend(self.too_many(serve, stated, &known, now));
        }
        let mut gone = Vec::new();
        for worker in &stated.ending {
            match known.get(worker) {
                Some(host) => {
                    books.unseen.remove(worker);
                    leavers.push((worker.clone(), self.api(host)));
                }
                None => {
                    let since = *books.unseen.entry(worker.clone()).or_insert(now);
                    if books.ended.remove(worker) || now.saturating_duration_since(since) >= UNSEEN_LIMIT {
                        gone.push(worker.clone());
                    }
                }
            }
        }
        if !gone.is_empty() {
            self.forget(gone);
        }
        leavers
    }

    /// Requests that wait for a model; those that were told of in this moment count before they stand in the line.
    pub(super) fn wanting(&self, model: &ModelId, books: &Books, router: &Router, now: Instant) -> usize {
        books.just_told(model, now).max(router.waiting(model))
    }

    /// Whether as many workers of a model run on hives that stay as must.
    pub(super) fn may_leave(&self, model: &ModelId, stated: &Stated, now: Instant) -> bool {
        let wanted = stated.serve.get(model).map_or(0, |serve| serve.replicas as usize);
        self.serving_for_good(model, now) >= wanted
    }

    /// Workers that were started for a statement which wants fewer now.
    fn too_many(
        &self,
        serve: &Serve,
        stated: &Stated,
        known: &BTreeMap<WorkerId, &HostNow>,
        now: Instant,
    ) -> Vec<(WorkerId, HiveApi)> {
        let own = serve.workers.iter().filter(|worker| {
            let member = self.shared.workers.get(worker);
            // Those of drained hives go by themselves.
            let stays = known
                .get(*worker)
                .is_some_and(|host| !stated.drained.contains(&host.id));
            stays && member.is_some_and(|member| member.is_available(now))
        });
        let surplus = own.skip(serve.replicas as usize);
        surplus
            .filter_map(|worker| Some((worker.clone(), self.api(known.get(worker)?))))
            .collect()
    }

    /// Ends a worker that is not wanted any more, once it has answered what it has.
    async fn send_away(&self, worker: WorkerId, api: HiveApi) {
        let _leaving = Leaving::new(self, vec![worker.clone()]);
        tracing::info!(%worker, "a worker that is not wanted any more is drained");
        match self.end(&api, &worker).await {
            Ok(()) => {
                if self.shared.stated.now().ending.contains(&worker) {
                    self.books().ended.insert(worker);
                }
            }
            Err(error) => {
                tracing::warn!(%worker, %error, "a worker could not be drained");
                tokio::time::sleep(END_PAUSE).await;
            }
        }
    }
}

/// Why a model gets one worker more.
fn trigger(replicas: &Replicas) -> Trigger {
    let &Replicas {
        waiting,
        running,
        starting,
        wanted,
        ..
    } = replicas;
    match running + starting {
        there if there < wanted => Trigger::Serve { wanted, running },
        0 => Trigger::Demand { waiting },
        _ => Trigger::Line { waiting, running },
    }
}

fn is_on_drained(worker: &WorkerId, hosts: &[HostNow], stated: &Stated) -> bool {
    let hive: Option<&HiveId> = hosts.iter().find(|host| host.has(worker)).map(|host| &host.id);
    hive.is_some_and(|hive| stated.drained.contains(hive))
}
