//! What is shown of the supply.

use std::time::Instant;

use heartbeat_registry::Liveness;
use router::{Refusal, Router, Supply, candidate};
use scheduler::decide;
use shared_contract::{ErrorKind, HeartbeatItem, HiveId, ModelId};
use worker_contract::WorkerStatus;

use super::Service;
use super::known::printable;
use super::present::PlainWish;
use super::view::{DecisionList, FailureView, LoadingView, ModelState, PlacementView, ServingView};
use crate::fleet::{self, Audience, millis};

/// A model as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShownModel {
    pub(crate) id: ModelId,
    pub(crate) state: ModelState,
    /// Workers that are online.
    pub(crate) workers: usize,
    /// Those of them that would take a request now.
    pub(crate) ready_workers: usize,
    /// Longest prompt plus answer in tokens; 0 is unknown.
    pub(crate) context_length: u32,
    /// Size of its files, where that is known.
    pub(crate) size_bytes: Option<u64>,
    /// Hives that serve it or have its file.
    pub(crate) hives: Vec<HiveId>,
}

impl Service {
    /// All models that are served or could be, in the order of their names.
    pub(crate) fn models(&self) -> Vec<ShownModel> {
        let now = Instant::now();
        let hosts = self.hosts(now);
        let models = self.all_models(now);
        models
            .iter()
            .filter_map(|model| self.shown(model, &hosts, now))
            .collect()
    }

    /// Aliases of models that there are, each with its model.
    pub(crate) fn aliases(&self) -> impl Iterator<Item = (&str, &ModelId)> {
        let aliases = self.shared.config.aliases.iter();
        aliases.map(|(name, alias)| (name.as_str(), &alias.model))
    }

    /// One of them, by its name or an alias.
    pub(crate) fn find_model(&self, name: &str) -> Option<ShownModel> {
        let now = Instant::now();
        let model = self.resolve(name).ok()?;
        self.shown(&model, &self.hosts(now), now)
    }

    fn shown(&self, model: &ModelId, hosts: &[super::scene::HostNow], now: Instant) -> Option<ShownModel> {
        let known = self.known(model, hosts);
        let mut shown = ShownModel {
            id: model.clone(),
            state: match &known {
                Some(known) if !known.copies.is_empty() => ModelState::OnDisk,
                _ => ModelState::Available,
            },
            workers: 0,
            ready_workers: 0,
            context_length: 0,
            size_bytes: known.as_ref().and_then(|known| known.size_bytes),
            hives: known.iter().flat_map(|known| known.copies.keys().cloned()).collect(),
        };
        for worker in self.shared.workers.find_workers_by_model(model).iter() {
            let view = worker.view(now);
            let info = &view.item().worker;
            let state = match info.status {
                WorkerStatus::Ready | WorkerStatus::Busy => {
                    let candidate = candidate(&view.report, view.liveness, view.outstanding);
                    match candidate.load() < candidate.slots {
                        true => ModelState::Ready,
                        false => ModelState::Busy,
                    }
                }
                WorkerStatus::Starting => ModelState::Loading,
                WorkerStatus::Draining | WorkerStatus::Stopped | WorkerStatus::Failed => continue,
            };
            if view.liveness != Liveness::Online {
                continue;
            }
            // The best of them speaks for the model: the order of the states.
            shown.state = shown.state.min(state);
            shown.workers += 1;
            shown.ready_workers += usize::from(state == ModelState::Ready);
            shown.context_length = shown.context_length.max(info.context_length);
            shown.hives.extend(info.hive_id.clone());
        }
        if shown.context_length == 0 {
            shown.context_length = known.as_ref().map_or(0, |known| known.context_length);
        }
        let is_loading = {
            let books = self.books();
            books.loads_of(model).next().is_some() || !self.starting(model, hosts, &books, now).is_empty()
        };
        if is_loading {
            shown.state = shown.state.min(ModelState::Loading);
        }
        shown.hives.sort();
        shown.hives.dedup();
        let is_there = known.is_some() || shown.workers > 0 || is_loading;
        is_there.then_some(shown)
    }

    /// Where a model would go now, and why.
    pub(crate) fn placement(&self, name: &str, router: &Router) -> Result<PlacementView, Refusal> {
        let now = Instant::now();
        let model = self.find(name, now).ok_or_else(|| self.unknown(name))?;
        let hosts = self.hosts(now);
        let known = self.known(&model, &hosts).ok_or_else(|| {
            let message = format!(
                "model `{model}` can be placed nowhere: no hive has its file, and neither the catalogue nor an alias says \
                 where it comes from"
            );
            Refusal::new(ErrorKind::NotFound, message).with_param("model")
        })?;
        let state = self
            .shown(&model, &hosts, now)
            .map_or(ModelState::Available, |shown| shown.state);
        let books = self.books();
        let (_, waited) = books.waiting(&model, now);
        let wish = PlainWish {
            model: &known,
            may_evict: true,
            waited,
            in_time: false,
            errand: None,
        };
        let problem = self.problem(&hosts, &books, Some(router), &wish, now);
        let loading = books.loads_of(&model).next().map(|load| LoadingView {
            hive: load.promise.as_ref().map(|promise| promise.hive.clone()),
            device: load.promise.as_ref().map(|promise| promise.device.clone()),
            words: load.stage.words.clone(),
            progress: load.stage.progress,
            eta_ms: load.stage.due.map(|due| millis(due.saturating_duration_since(now))),
            for_ms: millis(now.saturating_duration_since(load.began)),
        });
        let failures = books
            .failures(&model, now)
            .into_iter()
            .map(|(hive, failure)| FailureView {
                hive,
                reason: failure.reason,
                retry_in_ms: millis(failure.until.saturating_duration_since(now)),
            });
        Ok(PlacementView {
            alias: (name != model.as_str()).then(|| name.to_owned()),
            state,
            reference: printable(known.reference()),
            size_bytes: known.size_bytes,
            estimate: known.estimate.clone(),
            workers: self.serving_views(&model, now),
            loading,
            waiting: router.waiting(&model),
            failures: failures.collect(),
            decision: decide(&problem),
            problem,
            model,
        })
    }

    fn serving_views(&self, model: &ModelId, now: Instant) -> Vec<ServingView> {
        let workers = self.shared.workers.find_workers_by_model(model);
        let mut views: Vec<ServingView> = workers
            .iter()
            .map(|worker| {
                let view = worker.view(now);
                let reason = fleet::worker_reason(&view, now, Audience::Operators);
                let info = &view.item().worker;
                ServingView {
                    worker: info.id.clone(),
                    hive: info.hive_id.clone(),
                    device: info.device.clone(),
                    ready: reason.is_none() && view.item().is_available(),
                    reason,
                }
            })
            .collect();
        views.sort_by(|a, b| a.worker.cmp(&b.worker));
        views
    }

    /// The last decisions, the newest first.
    pub(crate) fn decisions(&self, limit: usize) -> DecisionList {
        DecisionList {
            decisions: self.books().record.list(limit),
        }
    }
}
