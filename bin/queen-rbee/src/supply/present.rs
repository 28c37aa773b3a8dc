//! The fleet as it is now, as the supply needs it: hives, who serves what, what is starting, which models there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use heartbeat_registry::{Liveness, MemberView};
use hive_contract::{ProcessState, ProcessStats};
use router::{Router, candidate};
use scheduler::Problem;
use shared_contract::{HeartbeatItem, HiveId, ModelId, WorkerId};
use worker_contract::{WorkerHeartbeat, WorkerStatus};

use super::Service;
use super::books::Books;
use super::errand::Errand;
use super::known::{KnownModel, Sources, usable};
use super::scene::{Conduct, HostNow, Scene, Wish, seen};
use crate::fleet::{self, Audience};

/// A suspect is counted on for this long: most suspicions are refuted in a moment.
const BENEFIT: Duration = Duration::from_secs(5);
/// A process that runs and has not beaten is expected to for this long: a queen that was restarted hears of processes from
/// their hives before she hears from the workers.
const UNHEARD: Duration = Duration::from_secs(60);
/// A worker that is to be started again is waited for for as long; its supervisor's pauses grow.
const RESTART: Duration = Duration::from_secs(10);
/// Workers whose reasons stand in one error message.
const MAX_REASONS: usize = 3;

/// A worker that takes requests.
#[derive(Debug, Clone)]
pub(super) struct Serving {
    pub(super) worker: WorkerId,
    pub(super) hive: Option<HiveId>,
}

impl Service {
    /// The hives, in the order of their ids.
    pub(crate) fn hosts(&self, now: Instant) -> Vec<HostNow> {
        let stated = self.shared.stated.now();
        let mut hosts: Vec<HostNow> = self
            .shared
            .hives
            .list_all(now)
            .into_iter()
            .map(|view| HostNow {
                id: view.id().clone(),
                liveness: view.liveness,
                closed: match stated.drained.contains(view.id()) {
                    true => Some("drained by the operator".to_owned()),
                    false => fleet::hive_reason(&view, now, Audience::Clients),
                },
                told: self.shared.telemetry.told_since(view.id(), view.report.last_seen, now),
                report: view.report,
            })
            .collect();
        hosts.sort_by(|a, b| a.id.cmp(&b.id));
        hosts
    }

    /// One hive.
    pub(super) fn host(&self, hive: &HiveId, now: Instant) -> Option<HostNow> {
        let view = self.shared.hives.view(hive, now)?;
        Some(HostNow {
            id: hive.clone(),
            liveness: view.liveness,
            closed: fleet::hive_reason(&view, now, Audience::Clients),
            told: self.shared.telemetry.told_since(hive, view.report.last_seen, now),
            report: view.report,
        })
    }

    /// Workers of a model that take requests, as far as is known.
    pub(super) fn serving(&self, model: &ModelId, now: Instant) -> Vec<Serving> {
        let workers = self.shared.workers.find_workers_by_model(model);
        let views = workers.iter().map(|worker| worker.view(now));
        let serving = views.filter(|view| takes_requests(view, now));
        serving
            .map(|view| Serving {
                worker: view.id().clone(),
                hive: view.item().worker.hive_id.clone(),
            })
            .collect()
    }

    /// Workers of a model that are about to take requests, besides those that the books promise.
    pub(super) fn starting(
        &self,
        model: &ModelId,
        hosts: &[HostNow],
        books: &Books,
        now: Instant,
    ) -> BTreeSet<WorkerId> {
        let promises = books.promises(now);
        let promised: BTreeSet<&WorkerId> = seen(&promises, hosts).into_iter().flatten().collect();
        let (_, waited) = books.waiting(model, now);
        let mut starting = BTreeSet::new();
        for host in hosts.iter().filter(|host| is_counted_on(host, now)) {
            for process in host.processes() {
                if let Some(worker) = &process.worker_id
                    && process.model.as_ref() == Some(model)
                    && !promised.contains(worker)
                    && !books.leaving.contains(worker)
                    && self.is_expected(host, process, worker, waited, now)
                {
                    starting.insert(worker.clone());
                }
            }
        }
        for worker in self.shared.workers.find_workers_by_model(model).iter() {
            let view = worker.view(now);
            let is_loading = view.item().worker.status == WorkerStatus::Starting && view.liveness == Liveness::Online;
            // What a hive started, its hive tells of.
            if is_loading && view.item().worker.hive_id.is_none() {
                starting.insert(view.id().clone());
            }
        }
        starting
    }

    /// Whether a worker is about to take requests, as its process looks.
    fn is_expected(
        &self,
        host: &HostNow,
        process: &ProcessStats,
        worker: &WorkerId,
        waited: Duration,
        now: Instant,
    ) -> bool {
        let member = self.shared.workers.view(worker, now);
        match process.state {
            // What its worker says itself is newer.
            ProcessState::Starting => !member.is_some_and(|view| view.item().worker.status != WorkerStatus::Starting),
            ProcessState::Running => match member {
                None => {
                    let known_for = now.saturating_duration_since(host.report.first_seen);
                    known_for.min(Duration::from_secs(process.uptime_s)) < UNHEARD
                }
                // Its hive was faster to say that it is ready than itself.
                Some(view) => view.item().worker.status == WorkerStatus::Starting && view.liveness == Liveness::Online,
            },
            ProcessState::Restarting => !host.has_owner(process) && waited < RESTART,
            ProcessState::Stopping | ProcessState::Failed => false,
        }
    }

    /// What is said of a model's worker that is starting without the supply's doing.
    pub(super) fn starting_words(&self, model: &ModelId, now: Instant) -> Option<String> {
        let hosts = self.hosts(now);
        let starting = {
            let books = self.books();
            self.starting(model, &hosts, &books, now)
        };
        let worker = starting.first()?;
        let own = self.shared.workers.view(worker, now);
        let own = own.and_then(|view| fleet::worker_reason(&view, now, Audience::Clients));
        Some(own.map_or_else(|| "its process starts".to_owned(), |words| format!("{worker}: {words}")))
    }

    /// Why no worker of a model is free, for clients.
    pub(super) fn why_busy(&self, model: &ModelId, now: Instant) -> String {
        let workers = self.shared.workers.find_workers_by_model(model);
        let reasons = workers.iter().filter_map(|worker| {
            let reason = fleet::worker_reason(&worker.view(now), now, Audience::Clients)?;
            Some(format!("{}: {reason}", worker.id()))
        });
        match reasons.take(MAX_REASONS).collect::<Vec<_>>().join("; ") {
            text if !text.is_empty() => text,
            _ if workers.is_empty() => "none has reported yet".to_owned(),
            _ => "all are busy".to_owned(),
        }
    }

    /// All workers that take requests.
    pub(super) fn all_ready(&self, now: Instant) -> BTreeSet<WorkerId> {
        let mut ready = BTreeSet::new();
        self.shared.workers.for_each(|worker| {
            if worker.is_available(now) {
                ready.insert(worker.id().clone());
            }
        });
        ready
    }

    /// What is known of a model, by what the hives told so far.
    pub(super) fn known(&self, model: &ModelId, hosts: &[HostNow]) -> Option<KnownModel> {
        self.known_for(model, None, hosts)
    }

    /// The same, with what an operator who asks for it says.
    pub(super) fn known_for(&self, model: &ModelId, errand: Option<&Errand>, hosts: &[HostNow]) -> Option<KnownModel> {
        let config = &self.shared.config;
        let stated = self.shared.stated.now();
        let stated_reference = stated.serve.get(model).and_then(|serve| serve.reference.clone());
        let aliases = config.aliases.values();
        let aliased = aliases
            .filter(|alias| alias.model == *model)
            .find_map(|alias| alias.reference.as_ref());
        let asked = errand.and_then(|errand| errand.reference.clone());
        let reference = asked.or(stated_reference).or_else(|| aliased.map(ToString::to_string));
        let sources = Sources {
            entry: config.catalogue.get(model.as_str()),
            reference: reference.as_deref(),
            tokens: errand.and_then(|errand| errand.context_length).map(u64::from),
        };
        let entries = hosts.iter().flat_map(|host| {
            let capabilities = host.report.item.capabilities.iter();
            capabilities.flat_map(usable).map(|entry| (&host.id, entry))
        });
        KnownModel::gather(model, sources, entries)
    }

    /// The model that a name or an alias means, if it is served or could be brought to be, by requests or by an operator.
    pub(super) fn find(&self, name: &str, now: Instant) -> Option<ModelId> {
        let model = match self.shared.config.aliases.get(name) {
            Some(alias) => alias.model.clone(),
            None => ModelId::new(name).ok()?,
        };
        let is_there = !self.shared.workers.find_workers_by_model(&model).is_empty()
            || self.is_known(&model, now)
            || self.known(&model, &self.hosts(now)).is_some();
        is_there.then_some(model)
    }

    /// Whether requests for the model may be answered one day: it is stated or expected, or a hive could serve it.
    pub(super) fn is_known(&self, model: &ModelId, now: Instant) -> bool {
        let config = &self.shared.config;
        if self.shared.stated.now().serve.contains_key(model) || self.shared.hives.expects(model, now) {
            return true;
        }
        if !config.loads_on_demand {
            return false;
        }
        config.catalogue.get(model.as_str()).is_some()
            || config
                .aliases
                .values()
                .any(|alias| alias.model == *model && alias.reference.is_some())
            || self.is_on_disk(model)
    }

    fn is_on_disk(&self, model: &ModelId) -> bool {
        let mut is_there = false;
        self.shared.hives.for_each(|hive| {
            let report = hive.report();
            let capabilities = report.item.capabilities.iter();
            is_there = is_there || capabilities.flat_map(usable).any(|entry| entry.id == *model);
        });
        is_there
    }

    /// All models that are served or could be, in the order of their names.
    pub(super) fn all_models(&self, now: Instant) -> BTreeSet<ModelId> {
        let config = &self.shared.config;
        let mut models: BTreeSet<ModelId> = self.shared.workers.models().into_iter().collect();
        models.extend(self.shared.stated.now().serve.keys().cloned());
        if config.loads_on_demand && self.shared.hives.count_total() > 0 {
            models.extend(config.catalogue.entries().iter().map(|entry| entry.id.clone()));
            let aliased = config.aliases.values().filter(|alias| alias.reference.is_some());
            models.extend(aliased.map(|alias| alias.model.clone()));
            for host in self.hosts(now) {
                let capabilities = host.report.item.capabilities.iter();
                models.extend(capabilities.flat_map(usable).map(|entry| entry.id.clone()));
            }
        }
        models
    }

    /// The problem of placing a model, with what is promised in the books. `router` tells who has been idle, which is of no
    /// matter where the wish supposes that all are.
    pub(super) fn problem(
        &self,
        hosts: &[HostNow],
        books: &Books,
        router: Option<&Router>,
        wish: &PlainWish<'_>,
        now: Instant,
    ) -> Problem {
        let failures = failures(books, wish, now);
        let stated = self.shared.stated.now();
        let scene = Scene {
            hosts,
            promises: &books.promises(now),
            leaving: &books.leaving.union(&stated.ending).cloned().collect(),
            pinned: &|model| stated.serve.get(model).is_some_and(|serve| serve.pin),
            conduct: &|worker| self.conduct(worker, books, router?, now),
            now,
        };
        scene.problem(&Wish {
            model: wish.model,
            strategy: self.shared.config.strategy,
            may_evict: wish.may_evict,
            waited: wish.waited,
            failures: &failures,
            in_time: wish.in_time,
            errand: wish.errand,
        })
    }

    fn conduct(&self, worker: &WorkerId, books: &Books, router: &Router, now: Instant) -> Option<Conduct> {
        let view = self.shared.workers.view(worker, now)?;
        let model = &view.item().worker.model_id;
        let candidate = candidate(&view.report, view.liveness, view.outstanding);
        let idle_since = match view.liveness {
            // Nobody asks it, and nobody gets an answer from it.
            Liveness::Lost | Liveness::Unreachable if view.outstanding == 0 => Some(view.since),
            Liveness::Online if view.item().is_available() && candidate.load() == 0 => router.idle_since(worker),
            _ => None,
        };
        let others = self
            .serving(model, now)
            .into_iter()
            .filter(|other| other.worker != *worker);
        Some(Conduct {
            idle_since,
            ready_since: books.ready_since(worker),
            is_awaited: router.waiting(model) > 0,
            is_replica: others.count() > 0,
        })
    }
}

/// A model that wants a worker; see [`Wish`].
#[derive(Debug, Clone, Copy)]
pub(super) struct PlainWish<'a> {
    pub(super) model: &'a KnownModel,
    pub(super) may_evict: bool,
    pub(super) waited: Duration,
    pub(super) in_time: bool,
    pub(super) errand: Option<&'a Errand>,
}

/// Hives that are not asked now, and what is said of it. An operator has each asked once, whatever came of it before.
fn failures(books: &Books, wish: &PlainWish<'_>, now: Instant) -> BTreeMap<HiveId, String> {
    if let Some(errand) = wish.errand {
        let failures = errand.failures.iter();
        return failures
            .map(|(hive, reason)| (hive.clone(), format!("it failed there: {reason}")))
            .collect();
    }
    let failures = books.failures(&wish.model.id, now).into_iter();
    failures
        .map(|(hive, failure)| {
            let pause = failure.until.saturating_duration_since(now).as_secs_f64().ceil();
            let reason = super::words::for_clients(&failure.reason);
            (
                hive,
                format!("it failed there, and is tried again in {pause:.0} s: {reason}"),
            )
        })
        .collect()
}

/// Whether a worker would take requests, now or once it has answered others.
fn takes_requests(view: &MemberView<WorkerHeartbeat>, now: Instant) -> bool {
    let is_there = match view.liveness {
        Liveness::Online => true,
        Liveness::Suspect => now.saturating_duration_since(view.since) < BENEFIT,
        Liveness::Unreachable | Liveness::Lost => false,
    };
    is_there && view.item().is_available()
}

/// Whether what a hive told last of its processes still holds.
fn is_counted_on(host: &HostNow, now: Instant) -> bool {
    match host.liveness {
        Liveness::Online => true,
        Liveness::Suspect => {
            let suspicion = host.report.suspicion.as_ref();
            suspicion.is_none_or(|evidence| now.saturating_duration_since(evidence.since) < BENEFIT)
        }
        Liveness::Unreachable | Liveness::Lost => false,
    }
}
