//! One entry, as it is shown.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId, WorkerId};

/// Answer to `GET /v1/timeline?after=`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineView {
    /// The queen's wall clock.
    pub now: DateTime<Utc>,
    /// From when on nothing is missing.
    pub kept_since: DateTime<Utc>,
    /// The newest first.
    pub entries: Vec<TimelineEntry>,
}

/// Something that happened; also the data of the stream's `timeline` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEntry {
    /// Grows with each entry, also over the queen's restarts, as it begins with her wall clock.
    pub id: u64,
    /// The queen's wall clock.
    pub timestamp: DateTime<Utc>,
    /// To what.
    pub kind: TimelineKind,
    /// Its name.
    pub subject: String,
    /// What happened.
    pub change: TimelineChange,
    /// What to think of it.
    pub tone: Tone,
    /// In one sentence, with the reason.
    pub text: String,
    /// The model that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelId>,
    /// The hive where it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hive: Option<HiveId>,
    /// The device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimelineKind {
    /// A worker.
    Worker,
    /// A hive.
    Hive,
    /// A model.
    Model,
    /// The queen.
    Queen,
}

/// What happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimelineChange {
    /// It is a member from now on.
    Joined,
    /// Its process is another one.
    Restarted,
    /// It is there again.
    Online,
    /// Something speaks against it.
    Suspect,
    /// It beats, and does not answer where it says it is.
    Unreachable,
    /// It has been silent for too long.
    Lost,
    /// It is no member any more.
    Left,
    /// A second process uses its name.
    Contended,
    /// That one is silent now.
    ContentionEnded,
    /// It takes requests, or orders.
    Ready,
    /// It does not any more.
    NotReady,
    /// A model is being brought up.
    Loading,
    /// A model is served.
    Loaded,
    /// A model could not be brought up.
    LoadFailed,
    /// Requests for a model were refused, as there is no place for it.
    NoPlace,
    /// A worker made room for another model.
    Evicted,
    /// A hive has a model's file.
    Pulled,
    /// A hive has it no more.
    Deleted,
    /// An operator lets a hive take nothing new.
    Drained,
    /// He lets it again.
    Undrained,
    /// An operator stated that a model must run.
    Stated,
    /// That is over.
    Unstated,
    /// The queen doubts her own view.
    Degraded,
    /// She does not any more.
    Whole,
}

/// What to think of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    /// As it should be.
    Good,
    /// Neither.
    Info,
    /// Somebody may want to look.
    Warn,
    /// Something is not there that was.
    Bad,
}

/// An entry before it has its number and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    kind: TimelineKind,
    subject: String,
    change: TimelineChange,
    tone: Tone,
    pub(super) text: String,
    model: Option<ModelId>,
    hive: Option<HiveId>,
    pub(super) device: Option<String>,
}

impl Note {
    fn new(
        (kind, subject): (TimelineKind, String),
        change: TimelineChange,
        tone: Tone,
        text: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            subject,
            change,
            tone,
            text: text.into(),
            model: None,
            hive: None,
            device: None,
        }
    }

    /// Of a worker.
    pub(crate) fn worker(id: &WorkerId, change: TimelineChange, tone: Tone, text: impl Into<String>) -> Self {
        Self::new((TimelineKind::Worker, id.to_string()), change, tone, text)
    }

    /// Of a hive.
    pub(crate) fn hive(id: &HiveId, change: TimelineChange, tone: Tone, text: impl Into<String>) -> Self {
        let note = Self::new((TimelineKind::Hive, id.to_string()), change, tone, text);
        note.on(Some(id), None)
    }

    /// Of a model.
    pub(crate) fn model(id: &ModelId, change: TimelineChange, tone: Tone, text: impl Into<String>) -> Self {
        let note = Self::new((TimelineKind::Model, id.to_string()), change, tone, text);
        note.of(id)
    }

    /// Of the queen.
    pub(crate) fn queen(change: TimelineChange, tone: Tone, text: impl Into<String>) -> Self {
        Self::new((TimelineKind::Queen, "queen".to_owned()), change, tone, text)
    }

    /// Names the model that it is about.
    pub(crate) fn of(self, model: &ModelId) -> Self {
        Self {
            model: Some(model.clone()),
            ..self
        }
    }

    /// Names where it happened.
    pub(crate) fn on(self, hive: Option<&HiveId>, device: Option<&str>) -> Self {
        Self {
            hive: hive.cloned(),
            device: device.map(str::to_owned),
            ..self
        }
    }

    /// Whether an entry says the same of the same; `None` if it is about something else.
    pub(super) fn repeats(&self, entry: &TimelineEntry) -> Option<bool> {
        let is_of_it = self.kind == entry.kind && self.subject == entry.subject;
        is_of_it.then_some(self.change == entry.change)
    }

    pub(super) fn at(self, id: u64, timestamp: DateTime<Utc>) -> TimelineEntry {
        TimelineEntry {
            id,
            timestamp,
            kind: self.kind,
            subject: self.subject,
            change: self.change,
            tone: self.tone,
            text: self.text,
            model: self.model,
            hive: self.hive,
            device: self.device,
        }
    }
}
