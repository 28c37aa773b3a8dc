//! Statements of operators: what must always run, and which hives are drained.

use std::collections::BTreeSet;
use std::time::Instant;

use daemon::ApiError;
use model_store::ModelRef;
use shared_contract::{ErrorKind, HiveId, ModelId, WorkerId};

use super::Service;
use super::known::{KnownModel, printable};
use super::stated::{Serve, StateError, Stated};
use super::view::{DrainView, ServeList, ServeRequest, ServeView};

/// Workers of one model that can be stated.
const MAX_REPLICAS: u32 = 1_000;

impl Service {
    /// States what must run; with 0 replicas, ends the statement.
    pub(crate) async fn serve(&self, request: ServeRequest) -> Result<ServeView, ApiError> {
        if request.replicas > MAX_REPLICAS {
            let message = format!("replicas: at most {MAX_REPLICAS} workers of one model can be stated");
            return Err(ApiError::invalid("replicas", message));
        }
        let (model, reference) = self.named(&request.model)?;
        if request.replicas == 0 {
            return self.unserve(&request.model).await;
        }
        let named = model.clone();
        let (replicas, is_pinned) = (request.replicas, request.pin);
        let change = move |stated: &mut Stated| {
            let before = stated.serve.remove(&named);
            let is_news = before
                .as_ref()
                .is_none_or(|before| (before.replicas, before.pin) != (replicas, is_pinned));
            let serve = Serve {
                reference,
                replicas,
                pin: is_pinned,
                workers: before.map(|serve| serve.workers).unwrap_or_default(),
            };
            stated.serve.insert(named, serve);
            is_news
        };
        if self.state(change).await? {
            self.tell_stated(&model, replicas, is_pinned);
        }
        self.look_again();
        let stated = self.shared.stated.now();
        let serve = stated.serve.get(&model).cloned();
        serve
            .map(|serve| self.serve_view(&model, &serve, Instant::now()))
            .ok_or_else(|| not_stated(&request.model))
    }

    /// Ends a statement: the workers that were started for it are drained.
    pub(crate) async fn unserve(&self, name: &str) -> Result<ServeView, ApiError> {
        let model = self
            .named(name)
            .map(|(model, _)| model)
            .or_else(|error| ModelId::new(name).map_err(|_| error))?;
        let named = model.clone();
        let end = move |stated: &mut Stated| {
            let serve = stated.serve.remove(&named)?;
            stated.ending.extend(serve.workers.iter().cloned());
            Some(serve)
        };
        let serve = self.state(end).await?.ok_or_else(|| not_stated(name))?;
        self.tell_stated(&model, 0, false);
        self.look_again();
        let ended = Serve { replicas: 0, ..serve };
        Ok(self.serve_view(&model, &ended, Instant::now()))
    }

    /// All statements.
    pub(crate) fn serve_list(&self) -> ServeList {
        let now = Instant::now();
        let stated = self.shared.stated.now();
        let models = stated.serve.iter();
        ServeList {
            models: models
                .map(|(model, serve)| self.serve_view(model, serve, now))
                .collect(),
        }
    }

    /// Keeps a hive from taking anything new, or lets it again.
    pub(crate) async fn drain(&self, hive: HiveId, is_drained: bool) -> Result<DrainView, ApiError> {
        let is_there = self.shared.hives.get(&hive).is_some();
        let is_stated = self.shared.stated.now().drained.contains(&hive);
        if !is_there && !is_stated {
            let there: BTreeSet<HiveId> = self.hosts(Instant::now()).into_iter().map(|host| host.id).collect();
            let there: Vec<&str> = there.iter().map(HiveId::as_str).collect();
            let there = if there.is_empty() {
                "none".to_owned()
            } else {
                there.join(", ")
            };
            let message = format!("there is no hive `{hive}`; there are: {there}");
            return Err(ApiError::new(ErrorKind::NotFound, message).with_param("id"));
        }
        let named = hive.clone();
        let change = move |stated: &mut Stated| match is_drained {
            true => stated.drained.insert(named),
            false => stated.drained.remove(&named),
        };
        if self.state(change).await? {
            self.tell_drained(&hive, is_drained);
        }
        self.look_again();
        Ok(self.drain_view(hive, is_drained))
    }

    /// Whether a hive takes nothing new because an operator said so.
    pub(crate) fn is_drained(&self, hive: &HiveId) -> bool {
        self.shared.stated.now().drained.contains(hive)
    }

    /// A worker was started for a statement; if that has ended in between, it goes with it.
    pub(super) fn belongs(&self, model: ModelId, worker: WorkerId) {
        let service = self.clone();
        let now = Instant::now();
        let hosts = self.hosts(now);
        let is_there = move |worker: &WorkerId| hosts.iter().any(|host| host.has(worker));
        tokio::task::spawn_blocking(move || {
            let result = service
                .shared
                .stated
                .change(|stated| match stated.serve.get_mut(&model) {
                    Some(serve) => {
                        serve.workers.retain(is_there);
                        serve.workers.insert(worker);
                    }
                    None => {
                        stated.ending.insert(worker);
                    }
                });
            if let Err(error) = result {
                tracing::warn!(%error, "a worker's statement could not be noted");
            }
            service.shared.wake.notify_one();
        });
    }

    /// Workers that were to be ended are gone.
    pub(super) fn forget(&self, gone: Vec<WorkerId>) {
        let service = self.clone();
        tokio::task::spawn_blocking(move || {
            let result = service
                .shared
                .stated
                .change(|stated| stated.ending.retain(|worker| !gone.contains(worker)));
            if let Err(error) = result {
                tracing::warn!(%error, "that workers are gone could not be noted");
                return;
            }
            let mut books = service.books();
            books.unseen.retain(|worker, _| !gone.contains(worker));
        });
    }

    /// What is stated is another thing now.
    fn look_again(&self) {
        self.books().look_again_at_all(Instant::now());
        self.shared.wake.notify_one();
    }

    async fn state<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Stated) -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        let service = self.clone();
        let changed = tokio::task::spawn_blocking(move || service.shared.stated.change(change)).await;
        match changed {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error @ StateError::TooMany)) => {
                Err(ApiError::new(ErrorKind::Conflict, format!("failed to {error}")))
            }
            Ok(Err(error)) => Err(ApiError::internal(error)),
            Err(error) => Err(ApiError::internal(error)),
        }
    }

    /// The model that a name, an alias or a reference means, and its reference where it is one.
    pub(crate) fn named(&self, name: &str) -> Result<(ModelId, Option<String>), ApiError> {
        if let Some(model) = self.find(name, Instant::now()) {
            return Ok((model, None));
        }
        match name.parse::<ModelRef>() {
            // A name with a scheme is meant as a reference.
            Err(error) if name.contains(':') => Err(ApiError::invalid("model", format!("failed to {error}"))),
            Ok(ModelRef::Catalogue(_)) | Err(_) => {
                let unknown = self.unknown(name);
                Err(ApiError::new(unknown.kind, unknown.message).with_param("model"))
            }
            Ok(reference) => Ok((reference.model_id(), Some(reference.to_string()))),
        }
    }

    /// What an alias stands for, as hives are asked for it; `None` if it is none.
    pub(crate) fn meant_by_alias(&self, name: &str) -> Option<String> {
        let alias = self.shared.config.aliases.get(name)?;
        let reference = alias.reference.as_ref().map(ToString::to_string);
        Some(reference.unwrap_or_else(|| alias.model.to_string()))
    }

    /// The ids of the models that a name, an alias or a reference may mean.
    pub(crate) fn ids_meant_by(&self, name: &str) -> Vec<ModelId> {
        let alias = self.shared.config.aliases.get(name).map(|alias| alias.model.clone());
        let reference = name.parse::<ModelRef>().ok().map(|reference| reference.model_id());
        let ids = [alias, ModelId::new(name).ok(), reference];
        ids.into_iter().flatten().collect()
    }

    fn serve_view(&self, model: &ModelId, serve: &Serve, now: Instant) -> ServeView {
        let hosts = self.hosts(now);
        let books = self.books();
        let running = self.serving_for_good(model, now);
        let starting = self.starting(model, &hosts, &books, now).len() + books.loads_of(model).count();
        let is_met = running >= serve.replicas as usize;
        let reason = match books.verdict(model) {
            Some(verdict) if !is_met && starting == 0 => Some(verdict.why.clone()),
            _ if is_met => None,
            _ => books.loads_of(model).map(|load| load.stage.words.clone()).next(),
        };
        drop(books);
        let known = self.known(model, &hosts);
        let reference = serve.reference.as_deref().or(known.as_ref().map(KnownModel::reference));
        ServeView {
            model: model.clone(),
            reference: printable(reference.unwrap_or(model.as_str())),
            replicas: serve.replicas,
            pin: serve.pin,
            running: u32::try_from(running).unwrap_or(u32::MAX),
            starting: u32::try_from(starting).unwrap_or(u32::MAX),
            is_met,
            reason,
        }
    }

    fn drain_view(&self, hive: HiveId, is_drained: bool) -> DrainView {
        let now = Instant::now();
        let stated = self.shared.stated.now();
        let host = self.host(&hive, now);
        let processes = host.iter().flat_map(|host| host.processes());
        let (mut workers, mut waits) = (Vec::new(), BTreeSet::new());
        for process in processes {
            let (Some(worker), Some(model)) = (&process.worker_id, &process.model) else {
                continue;
            };
            workers.push(worker.clone());
            if !self.may_leave(model, &stated, now) {
                waits.insert(model.to_string());
            }
        }
        let waits: Vec<String> = waits.into_iter().collect();
        let reason = (is_drained && !waits.is_empty())
            .then(|| format!("{} must run, and is not up elsewhere yet", waits.join(", ")));
        DrainView {
            hive,
            is_drained,
            workers,
            reason,
        }
    }
}

fn not_stated(name: &str) -> ApiError {
    let message = format!("it is not stated that model `{name}` must run; `rbee serve --list` shows what is");
    ApiError::new(ErrorKind::NotFound, message).with_param("model")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shared_contract::QueenId;

    use super::*;
    use crate::changes::Changes;
    use crate::config::Config;
    use crate::metrics::{Metrics, SupplyMetrics};
    use crate::registry::{HiveRegistry, WorkerRegistry};
    use crate::telemetry::TelemetryRegistry;
    use crate::timeline::Timeline;

    #[tokio::test]
    async fn a_worker_that_is_started_for_a_statement_which_has_ended_in_between_goes_again() {
        let workers = Arc::new(WorkerRegistry::new(Default::default()));
        let hives = Arc::new(HiveRegistry::new(Default::default()));
        let telemetry = Arc::new(TelemetryRegistry::new(Arc::clone(&workers), Arc::clone(&hives)));
        let metrics = SupplyMetrics::new(Metrics::new().registry_mut());
        let client = daemon::client::new().unwrap();
        let changes = Arc::new(Changes::new(QueenId::new("queen-1").unwrap()));
        let timeline = Arc::new(Timeline::new(changes));
        let config = Config::default();
        let service = Service::new(&config, workers, hives, telemetry, client, metrics, timeline).unwrap();
        let worker = WorkerId::new("w").unwrap();
        service.belongs(ModelId::new("m").unwrap(), worker.clone());
        service.shared.wake.notified().await;
        assert_eq!(service.shared.stated.now().ending, BTreeSet::from([worker]));
    }
}
