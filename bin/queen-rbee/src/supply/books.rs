//! What the queen remembers of each model between two looks: who waits, what is under way, where it failed, what was said.
//!
//! Everything is a plain function of the books and `now`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use shared_contract::{HiveId, ModelId, WorkerId};

use super::errand::Errand;
use super::record::Record;
use super::scene::{HostNow, Promise, seen};
use super::view::Trigger;
use super::words::without_places;

/// First pause before a hive is asked again for a model that it could not start; doubled at each further failure,
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A demand that is not repeated for this long is over: the router repeats it every second.
const DEMAND_TTL: Duration = Duration::from_secs(3);
/// A request stands in its line this soon after it was told of, or never.
const TO_LINE: Duration = Duration::from_millis(100);
/// A refusal is not looked into again for this long, however many ask.
const VERDICT_TTL: Duration = Duration::from_millis(25);
/// A refusal of what no request waits for is looked into again after this.
const QUIET_TTL: Duration = Duration::from_secs(10);
/// What a worker was promised counts for this long after it was said to be ready, unless its hive tells of it before.
const PROMISE_GRACE: Duration = Duration::from_secs(10);
/// The books.
#[derive(Debug, Default)]
pub(crate) struct Books {
    models: HashMap<ModelId, Model>,
    loads: BTreeMap<u64, Load>,
    count: u64,
    /// Promises of loads that are over, and until when they count at most.
    settled: Vec<(Promise, Instant)>,
    /// Workers that are being ended.
    pub(crate) leaving: BTreeSet<WorkerId>,
    /// Of those that are to be ended as their statements have: who has ended, though its hive may still tell of it,
    pub(crate) ended: BTreeSet<WorkerId>,
    /// and since when no hive tells of it.
    pub(crate) unseen: HashMap<WorkerId, Instant>,
    /// Since when workers are seen to take requests.
    ready_since: HashMap<WorkerId, Instant>,
    pub(crate) record: Record,
}

/// What is remembered of one model.
#[derive(Debug, Default)]
struct Model {
    /// Requests in its line, since when the first of them waits, and when that was told.
    demand: Option<(usize, Instant, Instant)>,
    /// Since when its line is above the bound.
    above_since: Option<Instant>,
    /// That it goes nowhere, and why.
    verdict: Option<Verdict>,
    failures: BTreeMap<HiveId, Failure>,
}

/// What the books say to a demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Nobody had asked lately.
    pub(crate) is_new: bool,
    /// It was refused a moment ago, and that may have changed.
    pub(crate) is_stale: bool,
}

/// That a model goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// For clients.
    pub(crate) why: String,
    /// When a hive is asked again where it failed.
    pub(crate) retry_at: Option<Instant>,
    at: Instant,
    /// Something has happened since, or it was not found for requests, for which more is done.
    is_stale: bool,
}

/// A model that a hive could not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the hive said.
    pub(crate) reason: String,
    /// When it is asked again.
    pub(crate) until: Instant,
    times: u32,
}

/// A worker that is being brought up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Load {
    pub(crate) model: ModelId,
    pub(crate) trigger: Trigger,
    /// What an operator asks for, where he does.
    pub(crate) errand: Option<Errand>,
    pub(crate) began: Instant,
    pub(crate) stage: Stage,
    pub(crate) promise: Option<Promise>,
}

/// What is done for it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Stage {
    /// For clients: `looks for a place`.
    pub(crate) words: String,
    /// 0 to 1.
    pub(crate) progress: Option<f32>,
    /// When it will be there.
    pub(crate) due: Option<Instant>,
    /// Whether it waits for room that others take.
    pub(crate) waits_for_room: bool,
}

impl Stage {
    /// In these words.
    pub(crate) fn of(words: impl Into<String>) -> Self {
        Self {
            words: words.into(),
            ..Self::default()
        }
    }
}

impl Books {
    /// Requests wait for a model. Answers with whether that is news, and whether a refusal that was found some time ago is to
    /// be looked into again.
    pub(crate) fn demand(&mut self, model: &ModelId, waiting: usize, waited: Duration, now: Instant) -> Asked {
        let since = now.checked_sub(waited).unwrap_or(now);
        let entry = self.models.entry(model.clone()).or_default();
        let is_new = entry
            .demand
            .is_none_or(|(.., told)| now.saturating_duration_since(told) > DEMAND_TTL);
        entry.demand = Some((waiting, since, now));
        let verdict = entry.verdict.as_ref();
        let is_stale =
            verdict.is_some_and(|verdict| verdict.is_stale || now.saturating_duration_since(verdict.at) >= VERDICT_TTL);
        Asked { is_new, is_stale }
    }

    /// Requests that wait for a model, and for how long the first of them has.
    pub(crate) fn waiting(&self, model: &ModelId, now: Instant) -> (usize, Duration) {
        let demand = self.models.get(model).and_then(|entry| entry.demand);
        match demand.filter(|(.., told)| now.saturating_duration_since(*told) <= DEMAND_TTL) {
            Some((waiting, since, _)) => (waiting, now.saturating_duration_since(since)),
            None => (0, Duration::ZERO),
        }
    }

    /// Requests that were told of in this moment, and may not stand in the model's line yet.
    pub(crate) fn just_told(&self, model: &ModelId, now: Instant) -> usize {
        let demand = self.models.get(model).and_then(|entry| entry.demand);
        let demand = demand.filter(|(.., told)| now.saturating_duration_since(*told) <= TO_LINE);
        demand.map_or(0, |(waiting, ..)| waiting)
    }

    /// Models that anything is remembered of.
    pub(crate) fn models(&self) -> Vec<ModelId> {
        self.models.keys().cloned().collect()
    }

    /// For how long more than `bound` requests have been waiting while the model `is_served`; zero where no more do.
    pub(crate) fn above(&mut self, model: &ModelId, bound: usize, is_served: bool, now: Instant) -> Duration {
        let (waiting, _) = self.waiting(model, now);
        let Some(entry) = self.models.get_mut(model) else {
            return Duration::ZERO;
        };
        // Before the first worker is there, how many wait says nothing of whether it is enough.
        if waiting <= bound || !is_served {
            entry.above_since = None;
            return Duration::ZERO;
        }
        let since = *entry.above_since.get_or_insert(now);
        now.saturating_duration_since(since)
    }

    /// That a model goes nowhere, if that was found out not too long ago.
    pub(crate) fn verdict(&self, model: &ModelId) -> Option<&Verdict> {
        self.models.get(model)?.verdict.as_ref()
    }

    /// Whether it is to be looked into again whether a model goes anywhere.
    pub(crate) fn may_look(&self, model: &ModelId, now: Instant) -> bool {
        let verdict = self.verdict(model);
        verdict.is_none_or(|verdict| now.saturating_duration_since(verdict.at) >= QUIET_TTL)
    }

    /// A model goes nowhere; whether that holds for requests, too.
    pub(crate) fn refuse(&mut self, model: &ModelId, why: &str, for_requests: bool, now: Instant) {
        let entry = self.models.entry(model.clone()).or_default();
        let failures = entry.failures.values().map(|failure| failure.until);
        let retry_at = failures.filter(|until| *until > now).min();
        entry.verdict = Some(Verdict {
            why: without_places(why),
            retry_at,
            at: now,
            is_stale: !for_requests,
        });
    }

    /// A refusal was looked into, and stands.
    pub(crate) fn confirm(&mut self, model: &ModelId, now: Instant) {
        if let Some(verdict) = self.models.get_mut(model).and_then(|entry| entry.verdict.as_mut()) {
            verdict.at = now;
            verdict.is_stale = false;
        }
    }

    /// The fleet is another one now: whatever was refused may be possible. Those that are asked for keep their reason until
    /// somebody asks again.
    pub(crate) fn look_again_at_all(&mut self, now: Instant) {
        for entry in self.models.values_mut() {
            let is_asked = entry
                .demand
                .is_some_and(|(.., told)| now.saturating_duration_since(told) <= DEMAND_TTL);
            match &mut entry.verdict {
                Some(verdict) if is_asked => verdict.is_stale = true,
                verdict => *verdict = None,
            }
        }
    }

    /// The fleet is another one now: what was refused may be possible.
    pub(crate) fn look_again(&mut self, model: &ModelId) {
        if let Some(entry) = self.models.get_mut(model) {
            entry.verdict = None;
        }
    }

    /// Begins to bring up a worker.
    pub(crate) fn begin(&mut self, model: &ModelId, trigger: Trigger, now: Instant) -> u64 {
        self.look_again(model);
        self.enter(model, trigger, None, now)
    }

    /// Begins to bring up a worker that an operator asks for.
    pub(crate) fn begin_errand(&mut self, model: &ModelId, errand: Errand, now: Instant) -> u64 {
        self.enter(model, Trigger::Operator, Some(errand), now)
    }

    fn enter(&mut self, model: &ModelId, trigger: Trigger, errand: Option<Errand>, now: Instant) -> u64 {
        self.count += 1;
        let load = Load {
            model: model.clone(),
            trigger,
            errand,
            began: now,
            stage: Stage::of("looks for a place"),
            promise: None,
        };
        self.loads.insert(self.count, load);
        self.count
    }

    /// What is under way, oldest first.
    pub(crate) fn loads(&self) -> impl Iterator<Item = (u64, &Load)> {
        self.loads.iter().map(|(id, load)| (*id, load))
    }

    /// What is under way for a model; that which is nearest to its end first.
    pub(crate) fn loads_of<'a>(&'a self, model: &'a ModelId) -> impl Iterator<Item = &'a Load> {
        self.loads.values().filter(move |load| load.model == *model)
    }

    pub(crate) fn load_mut(&mut self, id: u64) -> Option<&mut Load> {
        self.loads.get_mut(&id)
    }

    /// Nothing is under way here any more. What was promised counts until the hive tells of the worker, if it is there.
    pub(crate) fn end(&mut self, id: u64, is_there: bool, now: Instant) {
        let promise = self.loads.remove(&id).and_then(|load| load.promise);
        if let Some(promise) = promise.filter(|_| is_there) {
            self.settled.push((promise, now + PROMISE_GRACE));
        }
    }

    /// All promises that may count, those of loads first.
    pub(crate) fn promises(&self, now: Instant) -> Vec<Promise> {
        let open = self.loads.values().filter_map(|load| load.promise.as_ref());
        let settled = self.settled.iter().filter(|(_, until)| *until > now);
        open.chain(settled.map(|(promise, _)| promise)).cloned().collect()
    }

    /// Forgets the promises of loads that are over whose workers show in what the hives tell: one that shows and goes later is
    /// promised nothing any more.
    pub(crate) fn settle(&mut self, hosts: &[HostNow]) {
        let promises: Vec<Promise> = self.settled.iter().map(|(promise, _)| promise.clone()).collect();
        let mut shows = seen(&promises, hosts).into_iter().map(|worker| worker.is_some());
        self.settled.retain(|_| !shows.next().unwrap_or(false));
    }

    /// A hive could not start a model.
    pub(crate) fn fail(&mut self, model: &ModelId, hive: &HiveId, reason: String, now: Instant) {
        let failures = &mut self.models.entry(model.clone()).or_default().failures;
        let times = failures.get(hive).map_or(0, |failure| failure.times.saturating_add(1));
        let pause = FIRST_PAUSE
            .saturating_mul(2_u32.saturating_pow(times))
            .min(LONGEST_PAUSE);
        let failure = Failure {
            reason,
            until: now + pause,
            times,
        };
        failures.insert(hive.clone(), failure);
    }

    /// A hive started a model: what went wrong before is over.
    pub(crate) fn succeed(&mut self, model: &ModelId, hive: &HiveId) {
        if let Some(entry) = self.models.get_mut(model) {
            entry.failures.remove(hive);
        }
    }

    /// Hives that are not asked for a model now, as it failed there.
    pub(crate) fn failures(&self, model: &ModelId, now: Instant) -> BTreeMap<HiveId, Failure> {
        let failures = self.models.get(model).map(|entry| &entry.failures);
        let failures = failures
            .into_iter()
            .flatten()
            .filter(|(_, failure)| failure.until > now);
        failures
            .map(|(hive, failure)| (hive.clone(), failure.clone()))
            .collect()
    }

    /// Notes who takes requests now.
    pub(crate) fn note_ready(&mut self, ready: &BTreeSet<WorkerId>, now: Instant) {
        self.ready_since.retain(|worker, _| ready.contains(worker));
        for worker in ready {
            if !self.ready_since.contains_key(worker) {
                self.ready_since.insert(worker.clone(), now);
            }
        }
    }

    /// Since when a worker is seen to take requests.
    pub(crate) fn ready_since(&self, worker: &WorkerId) -> Option<Instant> {
        self.ready_since.get(worker).copied()
    }

    /// Forgets what is of no use any more.
    pub(crate) fn prune(&mut self, now: Instant) {
        self.settled.retain(|(_, until)| *until > now);
        self.models.retain(|_, entry| {
            // How often it failed is remembered for a while longer, or the pauses would never grow.
            entry
                .failures
                .retain(|_, failure| now.saturating_duration_since(failure.until) < LONGEST_PAUSE);
            let is_wanted = entry
                .demand
                .is_some_and(|(.., told)| now.saturating_duration_since(told) <= DEMAND_TTL);
            let is_refused = entry
                .verdict
                .as_ref()
                .is_some_and(|verdict| now.saturating_duration_since(verdict.at) < QUIET_TTL);
            is_wanted || is_refused || !entry.failures.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> ModelId {
        ModelId::new(name).unwrap()
    }

    fn hive(name: &str) -> HiveId {
        HiveId::new(name).unwrap()
    }

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_demand_counts_for_as_long_as_it_is_repeated() {
        let (mut books, now, m) = (Books::default(), Instant::now(), model("m"));
        assert!(books.demand(&m, 3, S(2), now).is_new);
        assert!(!books.demand(&m, 4, S(3), now + S(1)).is_new, "it goes on");
        assert_eq!(books.waiting(&m, now + S(2)), (4, S(4)));
        assert_eq!(books.waiting(&m, now + S(5)), (0, Duration::ZERO));
        books.prune(now + S(5));
        assert!(books.models().is_empty());
    }

    #[test]
    fn a_hive_that_failed_is_left_alone_for_longer_each_time_and_not_for_ever() {
        let (mut books, now, m, h) = (Books::default(), Instant::now(), model("m"), hive("h"));
        let mut at = now;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            books.fail(&m, &h, "no".into(), at);
            let until = books.failures(&m, at)[&h].until;
            pauses.push((until - at).as_secs());
            at = until;
            assert!(books.failures(&m, at).is_empty(), "it is asked again");
            books.prune(at);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
        books.succeed(&m, &h);
        books.fail(&m, &h, "no".into(), at);
        assert_eq!(books.failures(&m, at)[&h].until - at, S(5));
    }

    #[test]
    fn a_refusal_stands_for_a_moment_and_tells_when_it_is_tried_again() {
        let (mut books, now, m) = (Books::default(), Instant::now(), model("m"));
        books.demand(&m, 1, S(0), now);
        books.fail(&m, &hive("a"), "no".into(), now);
        books.refuse(&m, "nowhere", false, now);
        assert!(books.demand(&m, 2, S(0), now).is_stale, "it was for a statement");
        books.refuse(&m, "nowhere", true, now);
        assert_eq!(books.verdict(&m).unwrap().retry_at, Some(now + FIRST_PAUSE));
        assert!(!books.demand(&m, 2, S(0), now + VERDICT_TTL / 2).is_stale);
        assert!(books.demand(&m, 2, S(0), now + VERDICT_TTL).is_stale);
        books.confirm(&m, now + VERDICT_TTL);
        assert!(
            !books.demand(&m, 2, S(0), now + VERDICT_TTL).is_stale,
            "it was looked into"
        );
        books.look_again_at_all(now + VERDICT_TTL);
        assert!(books.verdict(&m).is_some());
        assert!(
            books.demand(&m, 2, S(0), now + VERDICT_TTL).is_stale,
            "something has happened"
        );
        books.look_again_at_all(now + S(5));
        assert!(books.verdict(&m).is_none());
    }

    #[test]
    fn a_promise_counts_until_some_time_after_its_worker_is_there_and_not_after_a_failure() {
        let (mut books, now, m) = (Books::default(), Instant::now(), model("m"));
        let promise = Promise {
            hive: hive("h"),
            device: "cpu".into(),
            model: m.clone(),
            bytes: 1,
            evict: Vec::new(),
            earlier: BTreeSet::new(),
            worker: None,
        };
        let mut begun = || {
            let id = books.begin(&m, Trigger::Demand { waiting: 1 }, now);
            books.load_mut(id).unwrap().promise = Some(promise.clone());
            id
        };
        let (there, failed) = (begun(), begun());
        assert_eq!(books.promises(now).len(), 2);
        books.end(failed, false, now);
        books.end(there, true, now);
        assert_eq!(books.promises(now), [promise]);
        assert!(books.promises(now + PROMISE_GRACE).is_empty());
    }

    #[test]
    fn a_line_is_above_its_bound_since_it_rose_above_it() {
        let (mut books, now, m) = (Books::default(), Instant::now(), model("m"));
        books.demand(&m, 9, S(0), now);
        assert_eq!(books.above(&m, 8, true, now), Duration::ZERO);
        books.demand(&m, 12, S(0), now + S(2));
        assert_eq!(books.above(&m, 8, true, now + S(2)), S(2));
        assert_eq!(
            books.above(&m, 8, false, now + S(3)),
            Duration::ZERO,
            "nobody serves it"
        );
        books.demand(&m, 9, S(0), now + S(4));
        assert_eq!(books.above(&m, 8, true, now + S(4)), Duration::ZERO, "it begins anew");
        books.demand(&m, 8, S(0), now + S(5));
        assert_eq!(books.above(&m, 8, true, now + S(5)), Duration::ZERO);
        books.demand(&m, 9, S(0), now + S(6));
        assert_eq!(books.above(&m, 8, true, now + S(6)), Duration::ZERO, "it begins anew");
    }

    #[test]
    fn who_is_told_of_and_comes_into_no_line_is_soon_gone() {
        let (mut books, now, m) = (Books::default(), Instant::now(), model("m"));
        books.demand(&m, 2, S(0), now);
        assert_eq!((books.just_told(&m, now), books.just_told(&m, now + S(1))), (2, 0));
    }
}
