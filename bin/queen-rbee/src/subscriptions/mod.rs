//! The queen's ear at her hives: exactly one subscription to the telemetry stream of each hive that is a member and not lost.
//!
//! One task for each hive holds its stream and decides by a [`Machine`]; it can hold no second one. A stream that breaks is
//! fast evidence against the hive, and what comes over one is a fresh answer from it.

pub(crate) mod events;
mod machine;
mod stream;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use shared_contract::HiveId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::State;
use machine::{Doing, Happening, Machine, Target};
use stream::{Break, Source};

/// Follows the hives from now on, for as long as it is polled; dropped, it ends all subscriptions.
pub(crate) fn keep(state: Arc<State>) -> impl Future<Output = ()> {
    let mut events = state.hives.subscribe();
    let mut keeper = Keeper {
        state,
        wanted: HashMap::new(),
        tasks: JoinSet::new(),
    };
    async move {
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => keeper.look_at(event.member.id()),
                    Err(RecvError::Lagged(_)) => keeper.look_at_all(),
                    Err(RecvError::Closed) => return,
                },
                Some(_) = keeper.tasks.join_next() => keeper.collect(),
            }
        }
    }
}

struct Keeper {
    state: Arc<State>,
    /// What each task is told; closed once the task has ended.
    wanted: HashMap<HiveId, watch::Sender<Option<Target>>>,
    tasks: JoinSet<()>,
}

impl Keeper {
    /// Makes the subscription to one hive what it should be by now.
    fn look_at(&mut self, hive: &HiveId) {
        let view = self.state.hives.view(hive, Instant::now());
        let target = view.as_ref().and_then(Target::of);
        match (self.wanted.get(hive), target) {
            // A task that is about to end is looked at again once it has.
            (Some(wanted), target) => {
                wanted.send_if_modified(|now| {
                    let is_other = *now != target;
                    *now = target;
                    is_other
                });
            }
            (None, Some(target)) => {
                let (sender, wanted) = watch::channel(Some(target.clone()));
                self.wanted.insert(hive.clone(), sender);
                self.tasks
                    .spawn(subscribe(Arc::clone(&self.state), hive.clone(), target, wanted));
            }
            (None, None) => {}
        }
    }

    fn look_at_all(&mut self) {
        let members = self.state.hives.list_all(Instant::now());
        let mut hives: Vec<HiveId> = members.iter().map(|view| view.id().clone()).collect();
        hives.extend(self.wanted.keys().cloned());
        for hive in &hives {
            self.look_at(hive);
        }
    }

    /// A task has ended: what its hive told is no news any more, and the hive may be back by now.
    fn collect(&mut self) {
        let ended: Vec<HiveId> = self
            .wanted
            .extract_if(|_, wanted| wanted.is_closed())
            .map(|(hive, _)| hive)
            .collect();
        for hive in &ended {
            self.state.telemetry.forget(hive);
            self.look_at(hive);
        }
    }
}

/// Keeps the subscription to one hive until it is wanted no more.
async fn subscribe(state: Arc<State>, hive: HiveId, first: Target, mut wanted: watch::Receiver<Option<Target>>) {
    let mut machine = Machine::new(first);
    let mut told = None;
    loop {
        let happening = match machine.doing() {
            Doing::Streaming(target) => {
                let source = Source {
                    state: &state,
                    hive: &hive,
                    target,
                };
                tokio::select! {
                    // First: a stream that breaks because its hive has moved on is no evidence.
                    biased;
                    target = changed(&mut wanted) => Happening::Wanted(target),
                    (had_events, why) = source.follow() => {
                        accuse(&source, &why);
                        tell(&hive, &why, had_events, &mut told);
                        Happening::Broke { had_events }
                    }
                }
            }
            Doing::Pausing(pause) => tokio::select! {
                biased;
                target = changed(&mut wanted) => Happening::Wanted(target),
                () = tokio::time::sleep(*pause) => Happening::Rested,
            },
            Doing::Ended => return,
        };
        machine.take(happening, rand::random());
    }
}

/// The next target that is wanted.
async fn changed(wanted: &mut watch::Receiver<Option<Target>>) -> Option<Target> {
    wanted.changed().await.ok()?;
    wanted.borrow_and_update().clone()
}

/// Notes the break as evidence, if it is one against the process that the hive is now.
fn accuse(source: &Source<'_>, why: &Break) {
    let now = Instant::now();
    let hives = &source.state.hives;
    if why.is_evidence() {
        hives.mark_suspect(source.hive, &source.target.about(now), why.to_string(), now);
    }
}

/// Logs a break once, however often it is tried again in vain.
fn tell(hive: &HiveId, why: &Break, had_events: bool, told: &mut Option<String>) {
    let why = why.to_string();
    if had_events || told.as_ref() != Some(&why) {
        tracing::warn!(%hive, why, "no telemetry");
    }
    *told = Some(why);
}
