//! The last hour of requests, for people who look at it: bounded, and cheap where requests pass.
//!
//! A request takes one short lock, at its end; a token none. What is counted while requests run (tokens, retries, migrations)
//! is counted in all, and a point of the hour gets the difference to the point before.

mod spread;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use serde::Serialize;

use crate::metrics::OTHER_MODEL;
use spread::Spread;

/// How much time one point stands for.
pub const BUCKET_S: i64 = 5;
/// How far back points go.
const KEPT_S: i64 = 3_600;
/// Models that are told apart; further ones share one entry.
const MAX_MODELS: usize = 64;
/// What is known of a model is forgotten a segment at a time.
const SEGMENT_S: i64 = 720;
/// Segments of which the last is still being filled: together never more than an hour.
const SEGMENTS: usize = 5;

/// What happened in [`BUCKET_S`] seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// When they began, in seconds since the epoch.
    pub at_s: i64,
    /// Requests that ended, in whatever way.
    pub requests: u32,
    /// Of these: answered with a status of 500 or more (but 503), or broken off.
    pub failed: u32,
    /// Of these: answered 429 or 503, as there was no room.
    pub refused: u32,
    /// Of these: answered with another status of 400 to 499, as what was asked was wrong.
    pub wrong: u32,
    /// Of these: whose client left before the end.
    pub clients_gone: u32,
    /// Attempts at a worker that another one had to follow.
    pub retries: u64,
    /// Streams that their worker left unfinished.
    pub migrations: u64,
    /// Requests that were being answered or waited, at the end of the time.
    pub inflight: u32,
    /// Of these: waited for a worker.
    pub waiting: u32,
    /// Tokens that were relayed.
    pub output_tokens: u64,
    /// From the arrival of requests to the first token of their streams, in milliseconds.
    pub ttft_ms: Option<Percentiles>,
    /// How fast the tokens of a stream came behind its first.
    pub tokens_per_s: Option<Percentiles>,
    /// The time is not over yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
}

/// What became of the requests for one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelTraffic {
    /// The model's name, as the metrics label it.
    pub model: String,
    /// Requests that ended, in whatever way.
    pub requests: u64,
    /// Of these: answered with a status of 500 or more (but 503), or broken off.
    pub failed: u64,
    /// Tokens of the answers that ended.
    pub output_tokens: u64,
    /// From the arrival of requests to the first token of their streams, in milliseconds.
    pub ttft_ms: Option<Percentiles>,
    /// How fast the tokens of a stream came behind its first.
    pub tokens_per_s: Option<Percentiles>,
}

/// What half of the values, and all but the hundredth part of them, do not exceed; a tenth off at most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the values are not above it.
    pub p50: f32,
    /// 99 of 100 are not above it.
    pub p99: f32,
}

/// The last hour, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrafficView {
    /// Oldest first; the last is not over yet. Where the daemon did not run, there are none.
    pub points: Vec<Point>,
    /// Since when what is said of models was counted, in seconds since the epoch: between 48 minutes and an hour ago.
    pub models_since_s: i64,
    /// Most requests first.
    pub models: Vec<ModelTraffic>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With what was asked for.
    Answered,
    /// It broke off, or the fault was on this side.
    Failed,
    /// There was no room.
    Refused,
    /// What was asked was wrong.
    Wrong,
    /// Its client left.
    ClientGone,
}

/// A request that is over.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    /// Its model's label; none if that is not known.
    pub(crate) model: Option<&'a str>,
    pub(crate) outcome: Outcome,
    pub(crate) output_tokens: u32,
    /// From its arrival to the first token of its stream.
    pub(crate) first_token: Option<Duration>,
    pub(crate) tokens_per_s: Option<f64>,
}

/// The recorder.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    output_tokens: AtomicU64,
    retries: AtomicU64,
    migrations: AtomicU64,
    hour: Mutex<Hour>,
}

#[derive(Debug, Default)]
struct Hour {
    /// When the time of the open point began; `None` before anybody has told what time it is.
    open_at_s: Option<i64>,
    open: Open,
    /// Oldest first.
    closed: VecDeque<Point>,
    models: HashMap<String, Box<[Segment; SEGMENTS]>>,
    /// The segment that is being filled: seconds since the epoch, divided.
    segment: i64,
}

/// What was noted for the point that is not over yet.
#[derive(Debug, Default)]
struct Open {
    requests: u32,
    failed: u32,
    refused: u32,
    wrong: u32,
    clients_gone: u32,
    ttft_ms: Spread,
    tokens_per_s: Spread,
    /// What had been counted in all when it began.
    before: Totals,
}

#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    output_tokens: u64,
    retries: u64,
    migrations: u64,
}

/// How much is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) inflight: usize,
    pub(crate) waiting: usize,
}

#[derive(Debug, Clone, Default)]
struct Segment {
    requests: u32,
    failed: u32,
    output_tokens: u64,
    ttft_ms: Spread,
    tokens_per_s: Spread,
}

impl Traffic {
    /// So many tokens were relayed.
    pub(crate) fn relayed(&self, tokens: u32) {
        self.output_tokens.fetch_add(tokens.into(), Ordering::Relaxed);
    }

    /// An attempt at a worker has to be followed by another.
    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker left a stream unfinished.
    pub(crate) fn migrated(&self) {
        self.migrations.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is over.
    pub(crate) fn ended(&self, ended: &Ended<'_>) {
        let mut guard = self.lock();
        let hour = &mut *guard;
        hour.open.note(ended);
        if let Some(model) = ended.model {
            let place = hour.segment.rem_euclid(SEGMENTS as i64) as usize;
            hour.model(model)[place].note(ended);
        }
    }

    /// Called at least once every [`BUCKET_S`] seconds, with the seconds since the epoch.
    pub(crate) fn sample(&self, now_s: i64, load: Load) {
        let mut hour = self.lock();
        // Read under the lock: what is counted in all never falls from one point to the next.
        let totals = self.totals();
        hour.roll(now_s, totals, load);
    }

    /// The hour before now; of the points only those that began later than `after_s`.
    pub(crate) fn view(&self, now_s: i64, after_s: Option<i64>, load: Load) -> TrafficView {
        let mut guard = self.lock();
        let hour = &mut *guard;
        let totals = self.totals();
        hour.roll(now_s, totals, load);
        let is_new = |point: &&Point| after_s.is_none_or(|after_s| point.at_s > after_s);
        let mut open = hour.open.point(start_of(now_s), totals, load);
        open.open = true;
        let points = hour.closed.iter().chain([&open]).filter(is_new).cloned().collect();
        let mut models: Vec<_> = hour.models.iter().map(|(model, of)| summary(model, of)).collect();
        models.sort_by(|a, b| (b.requests, &a.model).cmp(&(a.requests, &b.model)));
        TrafficView {
            points,
            models_since_s: (hour.segment - SEGMENTS as i64 + 1) * SEGMENT_S,
            models,
        }
    }

    fn totals(&self) -> Totals {
        Totals {
            output_tokens: self.output_tokens.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            migrations: self.migrations.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Hour> {
        self.hour.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hour {
    /// Closes the open point if its time is over, and forgets what is older than an hour.
    fn roll(&mut self, now_s: i64, totals: Totals, load: Load) {
        let start = start_of(now_s);
        match self.open_at_s {
            Some(open_at_s) if start > open_at_s => {
                let point = self.open.point(open_at_s, totals, load);
                self.closed.push_back(point);
                self.open = Open {
                    before: totals,
                    ..Open::default()
                };
            }
            // The wall clock was set back: what it had named before it has not come yet.
            Some(open_at_s) if start < open_at_s => self.closed.retain(|point| point.at_s < start),
            Some(_) => {}
            // What has been noted before anybody told the time belongs to now.
            None => self.segment = now_s.div_euclid(SEGMENT_S),
        }
        self.open_at_s = Some(start);
        while self.closed.front().is_some_and(|point| point.at_s <= start - KEPT_S) {
            self.closed.pop_front();
        }
        self.turn(now_s.div_euclid(SEGMENT_S));
    }

    /// Goes on to this segment: those of an hour ago are emptied for it, and models without any requests are forgotten.
    fn turn(&mut self, segment: i64) {
        let passed = segment.saturating_sub(self.segment).clamp(0, SEGMENTS as i64);
        for number in segment - passed + 1..=segment {
            let place = number.rem_euclid(SEGMENTS as i64) as usize;
            for segments in self.models.values_mut() {
                segments[place] = Segment::default();
            }
        }
        if passed > 0 {
            self.models
                .retain(|_, segments| segments.iter().any(|segment| segment.requests > 0));
        }
        self.segment = segment;
    }

    fn model(&mut self, model: &str) -> &mut [Segment; SEGMENTS] {
        let is_room = self.models.len() < MAX_MODELS || self.models.contains_key(model);
        let name = if is_room { model } else { OTHER_MODEL };
        self.models.entry_ref(name).or_default()
    }
}

impl Open {
    fn note(&mut self, ended: &Ended<'_>) {
        self.requests += 1;
        match ended.outcome {
            Outcome::Answered => {}
            Outcome::Failed => self.failed += 1,
            Outcome::Refused => self.refused += 1,
            Outcome::Wrong => self.wrong += 1,
            Outcome::ClientGone => self.clients_gone += 1,
        }
        ended.spread(&mut self.ttft_ms, &mut self.tokens_per_s);
    }

    fn point(&self, at_s: i64, totals: Totals, load: Load) -> Point {
        Point {
            at_s,
            requests: self.requests,
            failed: self.failed,
            refused: self.refused,
            wrong: self.wrong,
            clients_gone: self.clients_gone,
            retries: totals.retries - self.before.retries,
            migrations: totals.migrations - self.before.migrations,
            inflight: u32::try_from(load.inflight).unwrap_or(u32::MAX),
            waiting: u32::try_from(load.waiting).unwrap_or(u32::MAX),
            output_tokens: totals.output_tokens - self.before.output_tokens,
            ttft_ms: Percentiles::of(&self.ttft_ms),
            tokens_per_s: Percentiles::of(&self.tokens_per_s),
            open: false,
        }
    }
}

impl Segment {
    fn note(&mut self, ended: &Ended<'_>) {
        self.requests += 1;
        self.failed += u32::from(ended.outcome == Outcome::Failed);
        self.output_tokens += u64::from(ended.output_tokens);
        ended.spread(&mut self.ttft_ms, &mut self.tokens_per_s);
    }
}

impl Ended<'_> {
    fn spread(&self, ttft_ms: &mut Spread, tokens_per_s: &mut Spread) {
        if let Some(first_token) = self.first_token {
            ttft_ms.note(first_token.as_secs_f64() * 1_000.0);
        }
        if let Some(speed) = self.tokens_per_s {
            tokens_per_s.note(speed);
        }
    }
}

impl Percentiles {
    fn of(spread: &Spread) -> Option<Self> {
        // Two digits behind the point are more than are known.
        let shown = |value: f64| ((value * 100.0).round() / 100.0) as f32;
        Some(Self {
            p50: shown(spread.quantile(0.5)?),
            p99: shown(spread.quantile(0.99)?),
        })
    }
}

/// When the point began that a moment belongs to.
fn start_of(now_s: i64) -> i64 {
    now_s - now_s.rem_euclid(BUCKET_S)
}

fn summary(model: &str, segments: &[Segment; SEGMENTS]) -> ModelTraffic {
    let (mut ttft_ms, mut tokens_per_s) = (Spread::default(), Spread::default());
    for segment in segments {
        ttft_ms.add(&segment.ttft_ms);
        tokens_per_s.add(&segment.tokens_per_s);
    }
    ModelTraffic {
        model: model.to_owned(),
        requests: segments.iter().map(|segment| u64::from(segment.requests)).sum(),
        failed: segments.iter().map(|segment| u64::from(segment.failed)).sum(),
        output_tokens: segments.iter().map(|segment| segment.output_tokens).sum(),
        ttft_ms: Percentiles::of(&ttft_ms),
        tokens_per_s: Percentiles::of(&tokens_per_s),
    }
}

#[cfg(test)]
mod tests;
