//! One worker being brought up: a place is found, and carried out (`attempt`); where that fails, the next one is found.

use std::sync::Arc;
use std::time::{Duration, Instant};

use router::Router;
use scheduler::{Choice, Decision, decide};
use serde_json::Value;
use shared_contract::{HiveId, WorkerId};
use tokio::sync::watch;

use super::attempt::{Brought, Go, Setback, promise};
use super::books::{Books, Load, Stage};
use super::guards::Entry;
use super::hive::HiveApi;
use super::known::KnownModel;
use super::present::PlainWish;
use super::scene::HostNow;
use super::view::{DecisionOutcome, Trigger};
use super::{NO_HIVE, Service};
use crate::jobs::Job;
use crate::metrics::LoadResult;

/// What waits looks again this often, even if nothing happened; and this long after something did, so that much that
/// happens at once is looked at once.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);
const LOOK_TOGETHER: Duration = Duration::from_millis(20);
/// What is to be done next.
enum Step {
    /// A place was found.
    Go(Box<Go>),
    /// Not yet.
    Wait(Stage),
    /// Nothing: nobody wants it any more, or another one is there.
    Over,
    /// Nothing: it goes nowhere, for this reason. Of what requests want it stands in the books, too.
    Nowhere(String),
}

/// Why no worker came of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unmet {
    /// Nobody wants it any more, or another one is there.
    Unwanted,
    /// It goes nowhere, for this reason.
    Nowhere(String),
    /// The operator has cancelled it.
    Cancelled,
}

impl Service {
    /// Brings up the worker of one load; answers with what its hive says of it. `job` is told, where an operator waits for it.
    pub(super) async fn bring_up(self, id: u64, router: Router, job: Option<Arc<Job>>) -> Result<Value, Unmet> {
        let job = job.as_deref();
        let mut entry = Entry::new(&self, id);
        let mut happened = self.shared.happened.subscribe();
        loop {
            happened.mark_unchanged();
            if job.is_some_and(|job| job.cancelled().is_cancelled()) {
                return Err(Unmet::Cancelled);
            }
            match self.step(id, &router, Instant::now()) {
                Step::Over => return Err(Unmet::Unwanted),
                Step::Nowhere(why) => return Err(Unmet::Nowhere(why)),
                Step::Wait(stage) => {
                    self.stage(id, stage, job);
                    wait(&mut happened).await;
                }
                Step::Go(go) => {
                    let (decision, hive) = (go.decision, go.hive.clone());
                    let result = self.attempt(id, &router, *go, job).await;
                    if let Some(result) = self.note(id, decision, &hive, result) {
                        entry.is_there = true;
                        return Ok(result);
                    }
                    tokio::time::sleep(LOOK_TOGETHER).await;
                }
            }
        }
    }

    /// Notes what came of a place; answers with what the hive says of the worker, if that is there.
    fn note(&self, id: u64, decision: u64, hive: &HiveId, result: Result<Brought, Setback>) -> Option<Value> {
        let now = Instant::now();
        let mut books = self.books();
        let model = books.load_mut(id)?.model.clone();
        match result {
            Ok(Brought { worker, result }) => {
                tracing::info!(%model, %hive, %worker, "a worker was brought up");
                self.tell_loaded(&model, hive, &worker);
                let shows = self.host(hive, now).is_some_and(|host| host.has(&worker));
                if let Some(load) = books.load_mut(id).filter(|_| shows) {
                    load.promise = None;
                }
                self.shared.metrics.ended(LoadResult::Ready);
                books.record.ready(decision, worker, now);
                books.succeed(&model, hive);
                return Some(result);
            }
            Err(Setback::Changed | Setback::Cancelled) => {
                self.shared.metrics.ended(LoadResult::GivenUp);
                books.record.over(decision, DecisionOutcome::GivenUp);
            }
            Err(Setback::Failed(reason)) => {
                tracing::warn!(%model, %hive, reason, "a worker could not be brought up");
                self.tell_failed(&model, hive, &reason);
                self.shared.metrics.ended(LoadResult::Failed);
                match books.load_mut(id).and_then(|load| load.errand.as_mut()) {
                    // What an operator asks for may be at fault, of which requests are to feel nothing.
                    Some(errand) => drop(errand.failures.insert(hive.clone(), reason.clone())),
                    None => books.fail(&model, hive, reason.clone(), now),
                }
                books.record.over(decision, DecisionOutcome::Failed { reason });
            }
        }
        if let Some(load) = books.load_mut(id) {
            load.promise = None;
            load.stage = Stage::of("looks for a place");
        }
        None
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
        let Some(known) = self.known_for(&load.model, load.errand.as_ref(), &hosts) else {
            let why = "no hive has it, and no catalogue says where it comes from";
            return self.nowhere(&mut books, &load, why.to_owned(), true, now);
        };
        let wish = self.wish(&known, &load, &books, now);
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
            self.tell_loading(&load, &go.hive, &choice.device);
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
        self.nowhere(&mut books, &load, why, for_requests, now)
    }

    /// Nothing comes of a load.
    fn nowhere(&self, books: &mut Books, load: &Load, why: String, for_requests: bool, now: Instant) -> Step {
        self.tell_nowhere(load, &why);
        // What an operator cannot have may be possible for requests, which ask for less.
        if load.errand.is_none() {
            books.refuse(&load.model, &why, for_requests, now);
        }
        Step::Nowhere(why)
    }

    fn wish<'a>(&self, known: &'a KnownModel, load: &'a Load, books: &Books, now: Instant) -> PlainWish<'a> {
        let (waiting, waited) = books.waiting(&known.id, now);
        let stated = self.shared.stated.now();
        let own_waited = now.saturating_duration_since(load.began);
        let (may_evict, waited) = match load.trigger {
            Trigger::Demand { .. } => (true, waited),
            Trigger::Operator => (true, waited.max(own_waited)),
            Trigger::Line { .. } => (false, waited),
            Trigger::Serve { .. } => {
                let is_pinned = stated.serve.get(&known.id).is_some_and(|serve| serve.pin);
                // Requests for it are as good as those for a model of which nothing is stated.
                (is_pinned || waiting > 0, waited.max(own_waited))
            }
        };
        PlainWish {
            model: known,
            may_evict,
            waited,
            in_time: false,
            errand: load.errand.as_ref(),
        }
    }

    /// Whether nobody wants this worker any more.
    fn is_obsolete(&self, load: &Load, books: &Books, router: &Router, now: Instant) -> bool {
        let model = &load.model;
        match load.trigger {
            Trigger::Demand { .. } => {
                self.wanting(model, books, router, now) == 0 || !self.serving(model, now).is_empty()
            }
            Trigger::Line { .. } => router.waiting(model) == 0,
            Trigger::Serve { .. } => {
                let stated = self.shared.stated.now();
                let wanted = stated.serve.get(model).map_or(0, |serve| serve.replicas as usize);
                self.serving_for_good(model, now) >= wanted
            }
            Trigger::Operator => false,
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
            let Some(known) = self.known_for(&load.model, load.errand.as_ref(), hosts) else {
                return false;
            };
            let wish = self.wish(&known, load, books, now);
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
            model: known.id.clone(),
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

    pub(crate) fn api(&self, host: &HostNow) -> HiveApi {
        let address = host.report.address.base_url();
        HiveApi::new(self.shared.client.clone(), address, self.shared.token.clone())
    }

    /// Notes what is done for a load, and tells it to the job that waits for it.
    pub(super) fn stage(&self, id: u64, stage: Stage, job: Option<&Job>) {
        let mut books = self.books();
        let Some(load) = books.load_mut(id) else { return };
        if let Some(job) = job.filter(|_| load.stage.words != stage.words) {
            job.say(&stage.words);
        }
        load.stage = stage;
    }
}

/// Waits until something happens in the fleet, or it is time to look again.
pub(super) async fn wait(happened: &mut watch::Receiver<u64>) {
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

/// Why a model goes nowhere, for clients.
pub(super) fn refusal(decision: &Decision) -> String {
    match decision.verdicts.is_empty() {
        true => NO_HIVE.to_owned(),
        false => decision.to_string(),
    }
}
