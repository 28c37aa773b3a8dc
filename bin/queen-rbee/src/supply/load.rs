//! One worker being brought up: a place is found, room is made, a hive is told, and its job is followed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hive_contract::{DeviceKind, JobEvent, Operation};
use router::{Hold, Router};
use scheduler::{Choice, Decision, decide};
use shared_contract::{HiveId, ModelId, WorkerId};
use tokio::sync::watch;

use super::books::{Books, Load, Stage};
use super::guards::{Entry, Leaving};
use super::hive::{HiveApi, OrderError};
use super::known::KnownModel;
use super::present::PlainWish;
use super::scene::{HostNow, Promise};
use super::view::{DecisionOutcome, Trigger};
use super::{NO_HIVE, Service};
use crate::metrics::LoadResult;

/// What waits looks again this often, even if nothing happened; and this long after something did, so that much that
/// happens at once is looked at once.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const LOOK_TOGETHER: Duration = Duration::from_millis(20);
/// How long a worker may take to answer what it has before another one's place is given up on.
const LEAVE_LIMIT: Duration = Duration::from_secs(120);
/// How long its hive may take to say that it is gone,
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// and that its memory is free: a moment later than the process is.
const FREE_LIMIT: Duration = Duration::from_secs(3);
/// How long a worker that is ready by its hive's word may take to say so itself.
const BEAT_LIMIT: Duration = Duration::from_secs(30);
/// Seconds without a request after which a worker that is stated to run may be stopped: for as long as nobody needs the
/// room, never. It is not pinned by that.
const FOR_GOOD_S: u64 = 10 * 365 * 24 * 3600;

/// What is to be done next.
enum Step {
    /// A place was found.
    Go(Box<Go>),
    /// Not yet.
    Wait(Stage),
    /// Nothing: nobody wants it any more, another one is there, or it goes nowhere, which stands in the books.
    Over,
}

/// A place, promised.
struct Go {
    decision: u64,
    choice: Choice,
    hive: HiveId,
    /// What the hive is asked for.
    reference: String,
    kind: DeviceKind,
    evict: Vec<WorkerId>,
    /// Those that make room although they are busy: their time is up.
    yields: BTreeSet<WorkerId>,
    api: HiveApi,
}

/// Why a place was no place after all.
enum Setback {
    /// The fleet has changed in between.
    Changed,
    /// The hive could not do it.
    Failed(String),
}

impl Service {
    /// Brings up the worker of one load.
    pub(super) async fn bring_up(self, id: u64, router: Router) {
        let mut entry = Entry::new(&self, id);
        let mut happened = self.shared.happened.subscribe();
        loop {
            happened.mark_unchanged();
            match self.step(id, &router, Instant::now()) {
                Step::Over => return,
                Step::Wait(stage) => {
                    self.stage(id, stage);
                    wait(&mut happened).await;
                }
                Step::Go(go) => {
                    let (decision, hive) = (go.decision, go.hive.clone());
                    let result = self.attempt(id, &router, *go).await;
                    if self.note(id, decision, &hive, result) {
                        entry.is_there = true;
                        return;
                    }
                    tokio::time::sleep(LOOK_TOGETHER).await;
                }
            }
        }
    }

    /// Notes what came of a place; tells whether the worker is there.
    fn note(&self, id: u64, decision: u64, hive: &HiveId, result: Result<WorkerId, Setback>) -> bool {
        let now = Instant::now();
        let mut books = self.books();
        let Some(model) = books.load_mut(id).map(|load| load.model.clone()) else {
            return false;
        };
        match result {
            Ok(worker) => {
                tracing::info!(%model, %hive, %worker, "a worker was brought up");
                let shows = self.host(hive, now).is_some_and(|host| host.has(&worker));
                if let Some(load) = books.load_mut(id).filter(|_| shows) {
                    load.promise = None;
                }
                self.shared.metrics.ended(LoadResult::Ready);
                books.record.ready(decision, worker, now);
                books.succeed(&model, hive);
                return true;
            }
            Err(Setback::Changed) => {
                self.shared.metrics.ended(LoadResult::GivenUp);
                books.record.over(decision, DecisionOutcome::GivenUp);
            }
            Err(Setback::Failed(reason)) => {
                tracing::warn!(%model, %hive, reason, "a worker could not be brought up");
                self.shared.metrics.ended(LoadResult::Failed);
                books.fail(&model, hive, reason.clone(), now);
                books.record.over(decision, DecisionOutcome::Failed { reason });
            }
        }
        if let Some(load) = books.load_mut(id) {
            load.promise = None;
            load.stage = Stage::of("looks for a place");
        }
        false
    }

    /// Decides what is to be done next; what is decided is promised at once, so that two loads never count on the same.
    fn step(&self, id: u64, router: &Router, now: Instant) -> Step {
        let mut books = self.books();
        let hosts = self.hosts(now);
        let Some(load) = books.load_mut(id).map(|load| load.clone()) else {
            return Step::Over;
        };
        if self.is_obsolete(&load, &books, router, now) {
            return Step::Over;
        }
        let is_demand = matches!(load.trigger, Trigger::Demand { .. });
        if is_demand && !self.starting(&load.model, &hosts, &books, now).is_empty() {
            return Step::Wait(Stage::of("its process starts"));
        }
        let Some(known) = self.known(&load.model, &hosts) else {
            let why = "no hive has it, and no catalogue says where it comes from";
            books.refuse(&load.model, why, true, now);
            return Step::Over;
        };
        let wish = self.wish(&known, &load.trigger, load.began, &books, now);
        let problem = self.problem(&hosts, &books, Some(router), &wish, now);
        let decision = decide(&problem);
        if let Some(choice) = &decision.choice {
            if self.is_anothers_turn(id, load.began, &hosts, &books, router, now) {
                return Step::Wait(waits_for_room());
            }
            let Some(go) = self.go(&known, choice, &problem, &hosts, router) else {
                return Step::Wait(waits_for_room());
            };
            let clock = (now, chrono::Utc::now());
            self.shared.metrics.begun(&load.trigger);
            let decision = books.record.keep(load.trigger.clone(), problem, decision, clock);
            let promise = promise(&known.id, &go, &hosts);
            books.leaving.extend(go.evict.iter().cloned());
            if let Some(load) = books.load_mut(id) {
                load.promise = Some(promise);
                load.stage = Stage::of("starts");
            }
            return Step::Go(Box::new(Go { decision, ..go }));
        }
        let in_time = PlainWish { in_time: true, ..wish };
        let may_wait = !matches!(load.trigger, Trigger::Line { .. });
        if may_wait
            && decide(&self.problem(&hosts, &books, Some(router), &in_time, now))
                .choice
                .is_some()
        {
            books
                .record
                .keep(load.trigger.clone(), problem, decision, (now, chrono::Utc::now()));
            return Step::Wait(waits_for_room());
        }
        let why = refusal(&decision);
        books
            .record
            .keep(load.trigger.clone(), problem, decision, (now, chrono::Utc::now()));
        let for_requests = !matches!(load.trigger, Trigger::Serve { .. }) || wish.may_evict;
        books.refuse(&load.model, &why, for_requests, now);
        Step::Over
    }

    pub(super) fn wish<'a>(
        &self,
        known: &'a KnownModel,
        trigger: &Trigger,
        began: Instant,
        books: &Books,
        now: Instant,
    ) -> PlainWish<'a> {
        let (waiting, waited) = books.waiting(&known.id, now);
        let stated = self.shared.stated.now();
        let (may_evict, waited) = match trigger {
            Trigger::Demand { .. } => (true, waited),
            Trigger::Line { .. } => (false, waited),
            Trigger::Serve { .. } => {
                let is_pinned = stated.serve.get(&known.id).is_some_and(|serve| serve.pin);
                // Requests for it are as good as those for a model of which nothing is stated.
                (
                    is_pinned || waiting > 0,
                    waited.max(now.saturating_duration_since(began)),
                )
            }
        };
        PlainWish {
            model: known,
            may_evict,
            waited,
            in_time: false,
        }
    }

    /// Whether nobody wants this worker any more.
    fn is_obsolete(&self, load: &Load, books: &Books, router: &Router, now: Instant) -> bool {
        let model = &load.model;
        match load.trigger {
            Trigger::Demand { .. } => {
                self.wanting(model, books, router, now) == 0 || !self.serving(model, now).is_empty()
            }
            Trigger::Line { .. } => self.wanting(model, books, router, now) == 0,
            Trigger::Serve { .. } => {
                let stated = self.shared.stated.now();
                let wanted = stated.serve.get(model).map_or(0, |serve| serve.replicas as usize);
                self.serving_for_good(model, now) >= wanted
            }
        }
    }

    /// Whether somebody has waited longer for room who would have it now: he comes first.
    fn is_anothers_turn(
        &self,
        id: u64,
        began: Instant,
        hosts: &[HostNow],
        books: &Books,
        router: &Router,
        now: Instant,
    ) -> bool {
        let older = books
            .loads()
            .filter(|(other, load)| *other != id && load.began < began && load.stage.waits_for_room);
        let mut older = older.filter(|(_, load)| !self.is_obsolete(load, books, router, now));
        older.any(|(_, load)| {
            let Some(known) = self.known(&load.model, hosts) else {
                return false;
            };
            let wish = self.wish(&known, &load.trigger, load.began, books, now);
            decide(&self.problem(hosts, books, Some(router), &wish, now))
                .choice
                .is_some()
        })
    }

    /// A choice with all that is needed to carry it out; `None` if its hive has gone in between.
    fn go(
        &self,
        known: &KnownModel,
        choice: &Choice,
        problem: &scheduler::Problem,
        hosts: &[HostNow],
        router: &Router,
    ) -> Option<Go> {
        let host = hosts.iter().find(|host| host.id.as_str() == choice.host)?;
        let device = host.devices().iter().find(|device| device.id == choice.device)?;
        let evict: Vec<WorkerId> = choice
            .evict
            .iter()
            .filter_map(|worker| WorkerId::new(worker.as_str()).ok())
            .collect();
        let tenants = problem.hosts.iter().find(|host| host.id == choice.host)?.devices.iter();
        let tenants = tenants.flat_map(|device| &device.tenants);
        let yields = tenants
            .filter(|tenant| tenant.idle_ms == Some(0))
            .filter_map(|tenant| WorkerId::new(tenant.worker.as_str()).ok())
            .filter(|worker| router.idle_since(worker).is_none())
            .collect();
        Some(Go {
            decision: 0,
            choice: choice.clone(),
            hive: host.id.clone(),
            reference: known.reference_on(&host.id)?.to_owned(),
            kind: device.kind,
            evict,
            yields,
            api: self.api(host),
        })
    }

    pub(super) fn api(&self, host: &HostNow) -> HiveApi {
        let address = host.report.address.base_url();
        HiveApi::new(self.shared.client.clone(), address, self.shared.token.clone())
    }

    /// Makes room and has the worker started.
    async fn attempt(&self, id: u64, router: &Router, go: Go) -> Result<WorkerId, Setback> {
        let leaving = Leaving::new(self, go.evict.clone());
        let mut holds: Vec<Hold> = Vec::new();
        for worker in &go.evict {
            match router.hold(worker) {
                Some(hold) => holds.push(hold),
                // Nobody asks one that is no member, and the time of the others is up.
                None if go.yields.contains(worker) || self.shared.workers.get(worker).is_none() => {}
                // It was given a request in this moment.
                None => return Err(Setback::Changed),
            }
        }
        if !go.evict.is_empty() {
            self.stage(id, Stage::of("makes room"));
            self.make_room(&go).await?;
        }
        drop(holds);
        drop(leaving);
        if self.is_drained(&go.hive) {
            return Err(Setback::Changed);
        }
        self.stage(id, Stage::of("starts"));
        let result = go
            .api
            .order(&self.spawn_order(id, &go), |event| {
                if let Some(stage) = stage_of(event, Instant::now()) {
                    self.stage(id, stage);
                }
            })
            .await;
        let result = result.map_err(|error| Setback::Failed(error.to_string()))?;
        let worker = result.get("worker_id").and_then(|id| id.as_str());
        let worker = worker.and_then(|id| WorkerId::new(id).ok());
        let worker =
            worker.ok_or_else(|| Setback::Failed("its hive did not say which worker it started".to_owned()))?;
        self.started(id, &worker);
        match self.until_ready(&worker).await {
            true => Ok(worker),
            // Or it would be started there again and again.
            false => Err(Setback::Failed(format!(
                "worker {worker} runs by its hive's word, and takes no requests of this queen"
            ))),
        }
    }

    fn spawn_order(&self, id: u64, go: &Go) -> Operation {
        let mut books = self.books();
        let load = books.load_mut(id);
        let is_stated = load
            .as_ref()
            .is_some_and(|load| matches!(load.trigger, Trigger::Serve { .. }));
        let stated = self.shared.stated.now();
        let is_pinned = load.is_some_and(|load| stated.serve.get(&load.model).is_some_and(|serve| serve.pin));
        Operation::WorkerSpawn {
            model: go.reference.clone(),
            worker: None,
            device: Some(go.choice.device.clone()),
            context_length: None,
            slots: None,
            keep_alive_s: is_stated.then_some(if is_pinned { 0 } else { FOR_GOOD_S }),
        }
    }

    /// Has the workers end that stand in the way, and waits until their memory is free.
    async fn make_room(&self, go: &Go) -> Result<(), Setback> {
        let orders = go.evict.iter().map(|worker| self.end(&go.api, worker));
        for (worker, result) in go.evict.iter().zip(join_all(orders).await) {
            // One that is not known has gone by itself.
            if let Err(error) = result
                && self.host(&go.hive, Instant::now()).is_some_and(|host| host.has(worker))
            {
                return Err(Setback::Failed(format!("worker {worker} did not make room: {error}")));
            }
        }
        let are_gone = |host: &HostNow| !go.evict.iter().any(|worker| host.has(worker));
        if !self.until(&go.hive, GONE_LIMIT, are_gone).await {
            return Err(Setback::Failed(
                "its hive does not say that there is room now".to_owned(),
            ));
        }
        let is_free = |host: &HostNow| {
            let free = host.free_bytes(&go.choice.device, go.kind);
            free.is_some_and(|free| free >= go.choice.bytes)
        };
        self.shared.metrics.evicted(go.evict.len());
        // If it does not show by then, the hive itself knows best.
        self.until(&go.hive, FREE_LIMIT, is_free).await;
        Ok(())
    }

    /// Has a worker answer what it has, and end.
    pub(super) async fn end(&self, api: &HiveApi, worker: &WorkerId) -> Result<(), OrderError> {
        let order = Operation::WorkerDrain {
            worker_id: worker.clone(),
        };
        match tokio::time::timeout(LEAVE_LIMIT, api.order(&order, |_| {})).await {
            Ok(result) => result.map(drop),
            Err(_) => {
                let seconds = LEAVE_LIMIT.as_secs();
                Err(OrderError::Lost(format!("it still answers requests after {seconds} s")))
            }
        }
    }

    /// Waits until a hive says something; `false` if it does not within the limit.
    async fn until(&self, hive: &HiveId, limit: Duration, says: impl Fn(&HostNow) -> bool) -> bool {
        let mut happened = self.shared.happened.subscribe();
        let wait = async {
            loop {
                happened.mark_unchanged();
                if self.host(hive, Instant::now()).is_some_and(|host| says(&host)) {
                    return;
                }
                // Telemetry is no event of the fleet.
                let _ = tokio::time::timeout(LOOK_AGAIN / 5, happened.changed()).await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// Waits until a worker that is ready by its hive's word has taken requests; `false` if it does not come to that.
    async fn until_ready(&self, worker: &WorkerId) -> bool {
        let mut happened = self.shared.happened.subscribe();
        let wait = async {
            loop {
                happened.mark_unchanged();
                let member = self.shared.workers.get(worker);
                if member.is_some_and(|member| member.is_available(Instant::now())) {
                    return;
                }
                wait(&mut happened).await;
            }
        };
        tokio::time::timeout(BEAT_LIMIT, wait).await.is_ok()
    }

    fn started(&self, id: u64, worker: &WorkerId) {
        let mut books = self.books();
        let Some(load) = books.load_mut(id) else { return };
        if let Some(promise) = &mut load.promise {
            promise.worker = Some(worker.clone());
        }
        let (model, is_stated) = (load.model.clone(), matches!(load.trigger, Trigger::Serve { .. }));
        drop(books);
        if is_stated {
            self.belongs(model, worker.clone());
        }
    }

    fn stage(&self, id: u64, stage: Stage) {
        if let Some(load) = self.books().load_mut(id) {
            load.stage = stage;
        }
    }
}

/// Waits until something happens in the fleet, or it is time to look again.
async fn wait(happened: &mut watch::Receiver<u64>) {
    if let Ok(Ok(())) = tokio::time::timeout(LOOK_AGAIN, happened.changed()).await {
        tokio::time::sleep(LOOK_TOGETHER).await;
    }
}

fn waits_for_room() -> Stage {
    Stage {
        waits_for_room: true,
        ..Stage::of("waits for room")
    }
}

fn promise(model: &ModelId, go: &Go, hosts: &[HostNow]) -> Promise {
    let host = hosts.iter().find(|host| host.id == go.hive);
    let processes = host.into_iter().flat_map(HostNow::processes);
    Promise {
        hive: go.hive.clone(),
        device: go.choice.device.clone(),
        model: model.clone(),
        bytes: go.choice.bytes,
        evict: go.evict.clone(),
        earlier: processes.filter_map(|process| process.worker_id.clone()).collect(),
        worker: None,
    }
}

/// How far a hive's job is, for clients.
fn stage_of(event: &JobEvent, now: Instant) -> Option<Stage> {
    let progress = event.progress.as_ref()?;
    let share = progress.total.filter(|total| *total > 0);
    Some(Stage {
        words: progress.phase.chars().filter(|c| !c.is_control()).take(40).collect(),
        progress: share.map(|total| progress.done as f32 / total as f32),
        due: progress.eta_s.map(|seconds| now + Duration::from_secs(seconds)),
        waits_for_room: false,
    })
}

/// Why a model goes nowhere, for clients.
fn refusal(decision: &Decision) -> String {
    match decision.verdicts.is_empty() {
        true => NO_HIVE.to_owned(),
        false => decision.to_string(),
    }
}
