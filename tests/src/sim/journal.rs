//! What is kept of a run: a digest that tells two runs apart, counts, and the story for a person when a run fails.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher as _},
    time::Duration,
};

use super::clock::Time;

/// Counts and times of one run or of many.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// How often each thing happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// From the death of a member's last process to the event that says lost.
    pub death_to_lost: Vec<Duration>,
    /// From the healing of a host's link to the event that says online, for members that were lost meanwhile.
    pub heal_to_online: Vec<Duration>,
    /// Virtual time that members were alive for, in seconds.
    pub node_seconds: u64,
}

impl Tally {
    /// One more.
    pub fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// So many more.
    pub fn add(&mut self, what: &'static str, by: u64) {
        *self.counts.entry(what).or_default() += by;
    }

    /// How often it happened.
    pub fn of(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    /// Both together.
    pub fn merge(&mut self, other: Self) {
        for (what, count) in other.counts {
            self.add(what, count);
        }
        self.death_to_lost.extend(other.death_to_lost);
        self.heal_to_online.extend(other.heal_to_online);
        self.node_seconds += other.node_seconds;
    }
}

/// One line of the story.
#[derive(Debug, Clone)]
struct Line {
    at: Time,
    slot: Option<usize>,
    text: String,
}

#[derive(Debug)]
pub(super) struct Journal {
    hasher: DefaultHasher,
    pub(super) tally: Tally,
    /// `None` where nobody will read it: writing it costs more than the run.
    story: Option<Vec<Line>>,
}

impl Journal {
    pub(super) fn new(is_told: bool) -> Self {
        Self {
            hasher: DefaultHasher::new(),
            tally: Tally::default(),
            story: is_told.then(Vec::new),
        }
    }

    /// Something happened, to one id or to all. `facts` enter the digest.
    pub(super) fn note(&mut self, at: Time, slot: Option<usize>, facts: impl Hash, text: impl FnOnce() -> String) {
        (at, slot).hash(&mut self.hasher);
        facts.hash(&mut self.hasher);
        if let Some(story) = &mut self.story {
            let text = text();
            story.push(Line { at, slot, text });
        }
    }

    pub(super) fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last lines about one id and about the whole.
    pub(super) fn story(&self, slot: Option<usize>, most: usize) -> Vec<String> {
        let lines = self.story.as_deref().unwrap_or_default();
        let matters = |line: &&Line| slot.is_none() || line.slot.is_none() || line.slot == slot;
        let mut told: Vec<_> = lines.iter().rev().filter(matters).take(most).map(write).collect();
        told.reverse();
        told
    }
}

fn write(line: &Line) -> String {
    let seconds = line.at.as_secs_f64();
    match line.slot {
        Some(slot) => format!("{seconds:>12.3} s  #{slot}: {}", line.text),
        None => format!("{seconds:>12.3} s  {}", line.text),
    }
}
