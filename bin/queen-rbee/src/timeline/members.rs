//! What the registries' events come to for people: only what is another thing than before.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use heartbeat_registry::{EventKind, LeaveReason, Liveness, MemberView, RegistryEvent};
use hive_contract::HiveHeartbeat;
use shared_contract::{HeartbeatItem, HiveId, ModelId, WorkerId};
use worker_contract::{WorkerHeartbeat, WorkerStatus};

use super::Timeline;
use super::entry::{Note, TimelineChange, Tone};
use crate::fleet::{Audience, Happening, hive_reason, worker_reason};
use crate::registry::{HiveRegistry, WorkerRegistry};

/// Files that came or went at once that are told one by one: a folder that was mounted would fill the timeline.
const MAX_FILES: usize = 5;

/// How the members were when they were told of last.
#[derive(Debug, Default)]
pub(super) struct Members {
    workers: HashMap<WorkerId, Readiness>,
    hives: HashMap<HiveId, Hive>,
}

/// Whether a member takes what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Starting,
    Ready,
    /// It drains or has failed.
    Not,
}

#[derive(Debug, Default)]
struct Hive {
    readiness: Option<Readiness>,
    /// The files that it has; `None` before it said so.
    models: Option<BTreeSet<ModelId>>,
}

impl Timeline {
    /// Something happened to a worker.
    pub(crate) fn worker(&self, event: &RegistryEvent<WorkerHeartbeat>) {
        let now = Instant::now();
        let view = event.member.view_of(Arc::clone(&event.report), now);
        let note = self.members().worker(event.kind, &view, now);
        if let Some(note) = note {
            self.note(note);
        }
    }

    /// Something happened to a hive.
    pub(crate) fn hive(&self, event: &RegistryEvent<HiveHeartbeat>) {
        let now = Instant::now();
        let view = event.member.view_of(Arc::clone(&event.report), now);
        let notes = self.members().hive(event.kind, &view, now);
        notes.into_iter().for_each(|note| self.note(note));
    }

    /// Events were missed: those that have left meanwhile are forgotten.
    pub(crate) fn forget_missing(&self, workers: &WorkerRegistry, hives: &HiveRegistry) {
        self.missed();
        let mut members = self.members();
        members.workers.retain(|id, _| workers.get(id).is_some());
        members.hives.retain(|id, _| hives.get(id).is_some());
    }

    fn members(&self) -> std::sync::MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    fn worker(&mut self, kind: EventKind, view: &MemberView<WorkerHeartbeat>, now: Instant) -> Option<Note> {
        let worker = &view.item().worker;
        let id = &worker.id;
        let before = match kind {
            EventKind::Left { .. } => self.workers.remove(id),
            _ => self.workers.insert(id.clone(), readiness(worker.status)),
        };
        let (change, tone, text) = match kind {
            EventKind::Joined => {
                let place = match &worker.hive_id {
                    Some(hive) => format!("{hive} {}", worker.device),
                    None => worker.device.clone(),
                };
                let text = format!("{id} joined with {} on {place}", worker.model_id);
                (TimelineChange::Joined, Tone::Good, text)
            }
            EventKind::Updated => {
                let after = readiness(worker.status);
                if before.is_none_or(|before| before == after) {
                    return None;
                }
                let why = worker_reason(view, now, Audience::Operators).unwrap_or_default();
                match after {
                    Readiness::Ready => (TimelineChange::Ready, Tone::Good, format!("{id} takes requests")),
                    Readiness::Starting => (TimelineChange::NotReady, Tone::Info, format!("{id} is {why}")),
                    Readiness::Not => {
                        let is_failed = worker.status == WorkerStatus::Failed;
                        let tone = if is_failed { Tone::Bad } else { Tone::Info };
                        (
                            TimelineChange::NotReady,
                            tone,
                            format!("{id} takes no requests any more: {why}"),
                        )
                    }
                }
            }
            kind => common(kind, view, now)?,
        };
        let note = Note::worker(id, change, tone, text).of(&worker.model_id);
        Some(note.on(worker.hive_id.as_ref(), Some(&worker.device)))
    }

    fn hive(&mut self, kind: EventKind, view: &MemberView<HiveHeartbeat>, now: Instant) -> Vec<Note> {
        let id = &view.item().hive.id;
        let mut notes = Vec::new();
        match kind {
            EventKind::Joined => {
                let text = format!("{id} joined from {}", view.address());
                notes.push(Note::hive(id, TimelineChange::Joined, Tone::Good, text));
            }
            EventKind::Updated => {}
            kind => {
                notes.extend(common(kind, view, now).map(|(change, tone, text)| Note::hive(id, change, tone, text)));
            }
        }
        if matches!(kind, EventKind::Left { .. }) {
            self.hives.remove(id);
            return notes;
        }
        let known = self.hives.entry(id.clone()).or_default();
        // Its liveness is told of by itself.
        let reason = match view.liveness {
            Liveness::Online => hive_reason(view, now, Audience::Operators),
            Liveness::Suspect | Liveness::Unreachable | Liveness::Lost => return notes,
        };
        let after = if reason.is_none() {
            Readiness::Ready
        } else {
            Readiness::Not
        };
        let before = known.readiness.replace(after);
        if before.is_some_and(|before| before != after) {
            notes.push(match reason {
                None => Note::hive(id, TimelineChange::Ready, Tone::Good, format!("{id} takes orders")),
                Some(why) => {
                    let text = format!("{id} takes no orders: {why}");
                    Note::hive(id, TimelineChange::NotReady, Tone::Warn, text)
                }
            });
        }
        notes.extend(known.files(id, view.item()));
        notes
    }
}

impl Hive {
    /// Files that came and went since it told of them last.
    fn files(&mut self, hive: &HiveId, beat: &HiveHeartbeat) -> Vec<Note> {
        let Some(capabilities) = &beat.capabilities else {
            return Vec::new();
        };
        let after: BTreeSet<ModelId> = capabilities.models.iter().map(|entry| entry.id.clone()).collect();
        let Some(before) = self.models.replace(after.clone()) else {
            return Vec::new();
        };
        let came: Vec<&ModelId> = after.difference(&before).collect();
        let gone: Vec<&ModelId> = before.difference(&after).collect();
        let mut notes = told(hive, &came, (TimelineChange::Pulled, Tone::Good), |files| {
            format!("{hive} has the {files}")
        });
        notes.extend(told(hive, &gone, (TimelineChange::Deleted, Tone::Info), |files| {
            format!("{hive} has the {files} no more")
        }));
        notes
    }
}

/// The same of each file; of many, one word of all.
fn told(
    hive: &HiveId,
    models: &[&ModelId],
    (change, tone): (TimelineChange, Tone),
    text: impl Fn(&dyn Display) -> String,
) -> Vec<Note> {
    if models.len() > MAX_FILES {
        let text = text(&format_args!("files of {} models", models.len()));
        return vec![Note::hive(hive, change, tone, text)];
    }
    let each = models.iter().map(|model| {
        let text = text(&format_args!("file of {model}"));
        Note::model(model, change, tone, text).on(Some(hive), None)
    });
    each.collect()
}

fn readiness(status: WorkerStatus) -> Readiness {
    match status {
        WorkerStatus::Starting => Readiness::Starting,
        WorkerStatus::Ready | WorkerStatus::Busy => Readiness::Ready,
        WorkerStatus::Draining | WorkerStatus::Stopped | WorkerStatus::Failed => Readiness::Not,
    }
}

/// What is the same for workers and hives.
fn common<T: HeartbeatItem>(
    kind: EventKind,
    view: &MemberView<T>,
    now: Instant,
) -> Option<(TimelineChange, Tone, String)> {
    let id = view.id();
    let why = Happening::new(kind, view, now).reason.unwrap_or_default();
    Some(match kind {
        EventKind::Joined | EventKind::Updated => return None,
        EventKind::Restarted => (TimelineChange::Restarted, Tone::Warn, format!("{id} started anew")),
        EventKind::StateChanged { to, .. } => match to {
            Liveness::Online => (TimelineChange::Online, Tone::Good, format!("{id} is there again")),
            Liveness::Suspect => (TimelineChange::Suspect, Tone::Warn, format!("{id} is suspect: {why}")),
            Liveness::Unreachable => (TimelineChange::Unreachable, Tone::Bad, format!("{id} {why}")),
            Liveness::Lost => (TimelineChange::Lost, Tone::Bad, format!("{id} is lost: {why}")),
        },
        EventKind::Contended { began: true } => (TimelineChange::Contended, Tone::Bad, why),
        EventKind::Contended { began: false } => (
            TimelineChange::ContentionEnded,
            Tone::Good,
            format!("{id} is used by one process again: {why}"),
        ),
        EventKind::Left { reason } => {
            let tone = match reason {
                LeaveReason::Goodbye => Tone::Info,
                LeaveReason::Lost => Tone::Warn,
                LeaveReason::Ended => Tone::Bad,
            };
            (TimelineChange::Left, tone, format!("{id} left: {why}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_one_by_one_and_a_whole_folder_of_them_in_one_word() {
        let hive = HiveId::new("h").unwrap();
        let models: Vec<ModelId> = (0..=MAX_FILES)
            .map(|number| ModelId::new(format!("m{number}")).unwrap())
            .collect();
        let models: Vec<&ModelId> = models.iter().collect();
        let texts = |models: &[&ModelId]| -> Vec<String> {
            let notes = told(&hive, models, (TimelineChange::Pulled, Tone::Good), |files| {
                format!("h has the {files}")
            });
            notes.into_iter().map(|note| note.text).collect()
        };
        assert_eq!(texts(&models[..2]), ["h has the file of m0", "h has the file of m1"]);
        assert_eq!(texts(&models), ["h has the files of 6 models"]);
        assert_eq!(texts(&[]), [""; 0]);
    }
}
