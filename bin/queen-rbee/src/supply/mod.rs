//! Which models there are, and that each is served where it fits when somebody wants it.
//!
//! A request for a model that nobody serves is a *demand*. The supply's one task looks at demands and statements and begins
//! a *load* for each worker that is wanted: where it goes is decided by the scheduler from a `scene`, which is the fleet's
//! word less what was promised since (`books`, `load`); then room is made, a hive is told to start the worker, and its job is
//! followed until the worker takes requests (`attempt`). A hive's refusal is taken for what it is, and the next one is asked.
//!
//! Owns: names of models, promises, what failed where, the record of decisions, what operators stated.
//! Must not know: requests (it is told how many wait), how a worker is chosen for one, how a hive starts a process.

mod attempt;
mod books;
mod errand;
mod guards;
mod hive;
mod keeper;
mod known;
mod load;
mod present;
mod record;
mod room;
mod scene;
mod serve;
mod show;
mod spawn;
mod stated;
mod tell;
mod view;
mod words;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use daemon::Secret;
use router::{Demand, Prospect, Refusal};
use shared_contract::{ErrorKind, ModelId};
use tokio::sync::{Notify, watch};

pub(crate) use errand::Errand;
pub(crate) use hive::{HiveApi, OrderError};
pub(crate) use keeper::run;
pub(crate) use scene::HostNow;
pub(crate) use show::ShownModel;
pub use stated::StateError;
pub use view::{
    DecisionList, DecisionOutcome, DecisionView, DrainView, FailureView, LoadingView, ModelState, PlacementView,
    ServeList, ServeRequest, ServeView, ServingView, Trigger,
};

use self::books::Books;
use self::present::PlainWish;
use self::stated::Keeper;
use crate::config::{Config, SupplyConfig};
use crate::metrics::SupplyMetrics;
use crate::registry::{HiveRegistry, WorkerRegistry};
use crate::telemetry::TelemetryRegistry;
use crate::timeline::Timeline;

/// Names in one error message,
const MAX_NAMES: usize = 20;
/// and letters of the one that was asked for.
const MAX_NAME: usize = 256;
/// How whoever asks for a job says which hive is to do it, over HTTP and on the command line.
pub(crate) const BY_HIVE: &str = "`hive_id` (`rbee`: `--hive`)";
/// Why no worker is brought up where nobody could, and what helps.
const NO_HIVE: &str = "no host is there that could start one; start a hive with `rbee up`, or with `rbee hive --queen-url` on another machine";

/// The supply. Clones are cheap and are the same supply.
#[derive(Clone)]
pub(crate) struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    config: SupplyConfig,
    token: Option<Secret>,
    workers: Arc<WorkerRegistry>,
    hives: Arc<HiveRegistry>,
    telemetry: Arc<TelemetryRegistry>,
    /// For calls to hives.
    client: reqwest::Client,
    metrics: SupplyMetrics,
    timeline: Arc<Timeline>,
    books: Mutex<Books>,
    stated: Keeper,
    /// Something is to be done.
    wake: Notify,
    /// Counts what happened in the fleet.
    happened: watch::Sender<u64>,
}

impl Service {
    /// Over these registries.
    ///
    /// # Errors
    /// The state folder cannot be used.
    pub(crate) fn new(
        config: &Config,
        workers: Arc<WorkerRegistry>,
        hives: Arc<HiveRegistry>,
        telemetry: Arc<TelemetryRegistry>,
        client: reqwest::Client,
        metrics: SupplyMetrics,
        timeline: Arc<Timeline>,
    ) -> Result<Self, StateError> {
        let stated = Keeper::open(config.supply.state_dir.as_deref())?;
        Ok(Self {
            shared: Arc::new(Shared {
                config: config.supply.clone(),
                token: config.token.clone(),
                workers,
                hives,
                telemetry,
                client,
                metrics,
                timeline,
                books: Mutex::default(),
                stated,
                wake: Notify::new(),
                happened: watch::Sender::new(0),
            }),
        })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.shared.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a client is told that asks for a model that there is not.
    pub(crate) fn unknown(&self, name: &str) -> Refusal {
        if let Some(model) = self.find(name, Instant::now()) {
            return self.unlisted(&model);
        }
        let name: String = name.chars().take(MAX_NAME).collect();
        let mut names: Vec<String> = self.all_models(Instant::now()).into_iter().map(String::from).collect();
        names.extend(self.shared.config.aliases.keys().cloned());
        let count = names.len();
        names.truncate(MAX_NAMES);
        let message = match count {
            0 => format!(
                "model `{name}` does not exist; no worker serves any model yet: {}",
                self.why_not_loaded()
            ),
            count if count > MAX_NAMES => format!(
                "model `{name}` does not exist; there are {} and {} more",
                names.join(", "),
                count - MAX_NAMES
            ),
            _ => format!("model `{name}` does not exist; there are: {}", names.join(", ")),
        };
        Refusal::new(ErrorKind::ModelNotFound, message).with_param("model")
    }

    /// What a client is told that asks for a model which only operators can bring up, or nobody any more.
    fn unlisted(&self, model: &ModelId) -> Refusal {
        let message = format!("no worker serves model `{model}`: {}", self.why_not_loaded());
        Refusal::new(ErrorKind::ModelNotFound, message).with_param("model")
    }
}

/// The router holds none of its locks while it asks.
impl router::Supply for Service {
    fn resolve(&self, name: &str) -> Result<ModelId, Refusal> {
        let aliases = &self.shared.config.aliases;
        let model = match aliases.get(name) {
            Some(alias) => alias.model.clone(),
            None => ModelId::new(name).map_err(|_| self.unknown(name))?,
        };
        if !self.shared.workers.find_workers_by_model(&model).is_empty() || self.is_known(&model, Instant::now()) {
            return Ok(model);
        }
        Err(self.unknown(name))
    }

    fn demand(&self, model: &ModelId, demand: Demand) {
        let now = Instant::now();
        let asked = self.books().demand(model, demand.waiting, demand.longest_wait, now);
        if asked.is_stale {
            self.reconsider(model, now);
        }
        if asked.is_new || asked.is_stale {
            self.shared.wake.notify_one();
        }
    }

    fn prospect(&self, model: &ModelId) -> Prospect {
        let now = Instant::now();
        if let Some(coming) = self.coming(model, now) {
            return coming;
        }
        let (why, retry) = self.why_none(model, now);
        Prospect::None { why, retry }
    }
}

impl Service {
    /// What is under way for a model.
    fn coming(&self, model: &ModelId, now: Instant) -> Option<Prospect> {
        {
            let books = self.books();
            // Of several the one that waits for nobody's leaving.
            if let Some(load) = books.loads_of(model).min_by_key(|load| load.stage.waits_for_room) {
                let stage = &load.stage;
                return Some(Prospect::Coming {
                    words: stage.words.clone(),
                    progress: stage.progress,
                    eta: stage.due.map(|due| due.saturating_duration_since(now)),
                });
            }
            if !self.serving(model, now).is_empty() {
                return None;
            }
            let (waiting, _) = books.waiting(model, now);
            if waiting > 0 && books.verdict(model).is_none() && self.may_load(model) {
                // The supply's task has not come to it yet.
                return Some(words("looks for a place"));
            }
        }
        self.starting_words(model, now).map(words)
    }

    /// Why nothing is under way for a model, and when that may change.
    fn why_none(&self, model: &ModelId, now: Instant) -> (String, Option<Duration>) {
        let has_workers = !self.shared.workers.find_workers_by_model(model).is_empty();
        let verdict = self.books().verdict(model).cloned();
        match verdict.filter(|_| self.serving(model, now).is_empty()) {
            Some(verdict) => {
                let retry = verdict.retry_at.map(|at| at.saturating_duration_since(now));
                let why = match has_workers {
                    true => format!("{}; and no other one: {}", self.why_busy(model, now), verdict.why),
                    false => verdict.why,
                };
                (why, retry)
            }
            None if !has_workers && !self.may_load(model) => (self.why_not_loaded(), None),
            None => (self.why_busy(model, now), None),
        }
    }

    /// Looks again at a model that went nowhere: whoever asks now is not to be refused for what was true a moment ago.
    fn reconsider(&self, model: &ModelId, now: Instant) {
        // Under the lock, so that what is known of a worker and what is planned for it are of one moment.
        let mut books = self.books();
        let hosts = self.hosts(now);
        let known = self.known(model, &hosts);
        let is_possible = known.is_some_and(|known| {
            let wish = PlainWish {
                model: &known,
                // For a further one nobody goes.
                may_evict: self.serving(model, now).is_empty(),
                waited: Duration::ZERO,
                in_time: true,
                errand: None,
            };
            scheduler::decide(&self.problem(&hosts, &books, None, &wish, now))
                .choice
                .is_some()
        });
        match is_possible {
            true => books.look_again(model),
            false => books.confirm(model, now),
        }
    }

    /// Whether a worker may be brought up for requests to this model.
    fn may_load(&self, model: &ModelId) -> bool {
        let is_wanted = self.shared.config.loads_on_demand || self.shared.stated.now().serve.contains_key(model);
        is_wanted && self.shared.hives.count_total() > 0
    }

    fn why_not_loaded(&self) -> String {
        match self.shared.config.loads_on_demand {
            true => NO_HIVE.to_owned(),
            false => "this queen starts none for requests; start one with `rbee spawn MODEL` or `rbee serve MODEL`"
                .to_owned(),
        }
    }
}

fn words(words: impl Into<String>) -> Prospect {
    Prospect::Coming {
        words: words.into(),
        progress: None,
        eta: None,
    }
}
