//! What the supply does, told in the timeline.

use shared_contract::{HiveId, ModelId, WorkerId};

use super::Service;
use super::attempt::Go;
use super::books::Load;
use super::view::Trigger;
use crate::timeline::{Note, TimelineChange, Tone};

impl Service {
    /// A place was found, and a hive is told.
    pub(super) fn tell_loading(&self, load: &Load, hive: &HiveId, device: &str) {
        let why = match load.trigger {
            Trigger::Demand { waiting: 1 } => "a request waits for it".to_owned(),
            Trigger::Demand { waiting } => format!("{waiting} requests wait for it"),
            Trigger::Line { waiting, running } => format!("{waiting} requests wait at {running} workers"),
            Trigger::Serve { wanted, running } => format!("{wanted} must run and {running} do"),
            Trigger::Operator => "an operator asked for it".to_owned(),
        };
        let text = format!("{} is loaded on {hive} {device}: {why}", load.model);
        let note = Note::model(&load.model, TimelineChange::Loading, Tone::Info, text);
        self.shared.timeline.note(note.on(Some(hive), Some(device)));
    }

    /// The worker is there.
    pub(super) fn tell_loaded(&self, model: &ModelId, hive: &HiveId, worker: &WorkerId) {
        let text = format!("{model} is served by {worker} on {hive}");
        let note = Note::model(model, TimelineChange::Loaded, Tone::Good, text);
        self.shared.timeline.note(note.on(Some(hive), None));
    }

    /// Requests for it are refused, as it goes nowhere.
    pub(super) fn tell_nowhere(&self, load: &Load, why: &str) {
        // What operators ask for or state tells them itself why it cannot be, and a further worker is only a wish.
        let Trigger::Demand { waiting } = load.trigger else {
            return;
        };
        let requests = if waiting == 1 { "a request" } else { "requests" };
        let text = format!("{requests} for {} had to be refused: {why}", load.model);
        let note = Note::model(&load.model, TimelineChange::NoPlace, Tone::Warn, text);
        self.shared.timeline.note_once(note);
    }

    /// It will not be.
    pub(super) fn tell_failed(&self, model: &ModelId, hive: &HiveId, reason: &str) {
        let text = format!("{model} could not be loaded on {hive}: {reason}");
        let note = Note::model(model, TimelineChange::LoadFailed, Tone::Bad, text);
        self.shared.timeline.note(note.on(Some(hive), None));
    }

    /// Workers made room.
    pub(super) fn tell_evicted(&self, go: &Go) {
        for worker in &go.evict {
            let text = format!(
                "{worker} made room for {} on {} {}",
                go.model, go.hive, go.choice.device
            );
            let note = Note::worker(worker, TimelineChange::Evicted, Tone::Info, text).of(&go.model);
            self.shared
                .timeline
                .note(note.on(Some(&go.hive), Some(&go.choice.device)));
        }
    }

    /// An operator stated how many workers of a model must run.
    pub(super) fn tell_stated(&self, model: &ModelId, replicas: u32, is_pinned: bool) {
        let note = match replicas {
            0 => {
                let text = format!("{model} need not run any more, an operator said");
                Note::model(model, TimelineChange::Unstated, Tone::Info, text)
            }
            _ => {
                let workers = if replicas == 1 { "worker" } else { "workers" };
                let pinned = if is_pinned { ", never evicted" } else { "" };
                let text = format!("{replicas} {workers} of {model} must run{pinned}, an operator said");
                Note::model(model, TimelineChange::Stated, Tone::Info, text)
            }
        };
        self.shared.timeline.note(note);
    }

    /// An operator drains a hive, or does not any more.
    pub(super) fn tell_drained(&self, hive: &HiveId, is_drained: bool) {
        let (change, text) = match is_drained {
            true => (
                TimelineChange::Drained,
                format!("{hive} is drained by an operator: it gets no new workers"),
            ),
            false => (
                TimelineChange::Undrained,
                format!("{hive} may get new workers again, an operator said"),
            ),
        };
        self.shared.timeline.note(Note::hive(hive, change, Tone::Info, text));
    }
}
