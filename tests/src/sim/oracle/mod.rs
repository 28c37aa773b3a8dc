//! What must be true of the queen's view, told independently of the registry: from the beats that reached her, and from who
//! really lives. Simple where the registry is fast: it counts, looks at all, and remembers everything.
//!
//! Split by what is judged: `intake` each beat's fate, `events` what subscribers hear, `sight` what is shown of one id,
//! `whole` the fleet.

mod events;
mod intake;
mod sight;
mod whole;

pub(super) use intake::Arrival;
pub(super) use sight::Sight;

use std::{fmt, time::Duration};

use heartbeat_registry::Liveness;

use super::{clock::Time, ground::Ground, scenario::Scenario};

/// A rule of the heartbeat plane. Their order is that of the issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// No member that beats is lost within its TTL.
    BeatingIsNotLost,
    /// Every dead one is lost by TTL and one sweep, and forgotten after the retention.
    DeadIsLost,
    /// Nothing is deleted while the view is degraded, nor right after it, when the last are about to return; and nothing before
    /// its time.
    DegradedDeletesNothing,
    /// No incarnation goes backwards within one run of the queen.
    IncarnationsGrow,
    /// After healing the view converges within two intervals.
    Converges,
    /// A departed one does not come back by an old beat.
    NoGhosts,
    /// A conflict is shown if and only if two live senders have one id.
    ConflictIsShown,
    /// The holder of a contended id does not flap.
    HolderStays,
    /// A queen that was stopped declares nobody lost on waking.
    WakingLosesNobody,
    /// Mass silence degrades the view before anything is deleted, and nothing else does.
    MassSilenceDegrades,
    /// What subscribers hear is what readers see, in an order that makes sense.
    EventsTellAll,
    /// Leases count for the member that they were taken from, until they fall.
    LeasesAddUp,
    /// What is shown of a member is what it said last: its newest beat, nothing older, nothing else.
    NewestIsShown,
    /// Evidence is shown until it is cleared, and only then.
    EvidenceIsShown,
}

/// A rule that was broken.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Which.
    pub rule: Rule,
    /// About whom, if it is about one id.
    pub slot: Option<usize>,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot {
            Some(slot) => write!(f, "{:?}: #{slot}: {}", self.rule, self.what),
            None => write!(f, "{:?}: {}", self.rule, self.what),
        }
    }
}

impl Broken {
    pub(super) fn leases() -> Self {
        Self {
            rule: Rule::LeasesAddUp,
            slot: None,
            what: "a member counts other leases than are held".to_owned(),
        }
    }
}

/// Breaks a rule unless the condition holds.
fn must(holds: bool, rule: Rule, slot: usize, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds {
        return Ok(());
    }
    let slot = Some(slot);
    Err(Broken {
        rule,
        slot,
        what: what(),
    })
}

/// Incarnation and sequence number.
type Order = (u64, u64);

/// What the newest beat of an id told.
#[derive(Debug, Clone, Copy)]
struct Told {
    process: usize,
    host: usize,
    order: Order,
    /// In listening time.
    heard: Duration,
    ttl: Duration,
    /// When this process became the holder, in listening time.
    came: Duration,
    /// Since when requests to it have failed, in the queen's time.
    suspected: Option<Duration>,
    /// Since when it has not answered at this address, in the queen's time.
    unreachable: Option<Duration>,
}

/// Up to here the beats of an id are those of somebody who has left.
#[derive(Debug, Clone, Copy)]
struct Grave {
    last: Order,
    /// In listening time.
    dug: Duration,
}

/// What subscribers know of a member.
#[derive(Debug, Clone, Copy)]
struct Heard {
    liveness: Liveness,
    contended: bool,
}

/// Time that passes only while the queen sweeps: a pause beyond the longest one counts for nobody.
#[derive(Debug, Clone, Copy)]
struct Listening {
    longest_pause: Duration,
    swept: Duration,
    total: Duration,
}

impl Listening {
    fn at(&self, queen_time: Duration) -> Duration {
        self.total + queen_time.saturating_sub(self.swept).min(self.longest_pause)
    }

    fn sweep(&mut self, queen_time: Duration) {
        self.total = self.at(queen_time);
        self.swept = queen_time;
    }
}

#[derive(Debug, Default, Clone)]
struct Slot {
    told: Option<Told>,
    grave: Option<Grave>,
    heard: Option<Heard>,
    /// The highest incarnation that was taken in this run of the queen.
    newest: u64,
    /// When a second sender, who lived at the same time as the holder, was last heard of, in listening time.
    rival: Option<Duration>,
    /// When something came that had been under way for longer than the documented grace, in listening time.
    stray: Option<Duration>,
    /// How often twins took the id from each other, and old beats of the former holder came in between.
    swaps: usize,
    /// An old beat of a twin came since the last such swap.
    doubted: bool,
    /// As of the last look.
    contended: bool,
    whole: bool,
}

/// Many that fell silent together.
#[derive(Debug)]
struct Mass {
    /// In listening time.
    since: Duration,
    cohort: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Oracle {
    plan: Scenario,
    listening: Listening,
    slots: Vec<Slot>,
    mass: Option<Mass>,
    /// What the registry says, as of the last sweep, and since when in listening time.
    degraded: Option<Duration>,
    /// When the view was degraded last, in listening time.
    restored: Option<Duration>,
    /// The queen has not swept since she was stopped.
    waking: bool,
    /// Everything that was lost has been announced.
    just_swept: bool,
}

impl Oracle {
    pub(super) fn new(plan: &Scenario) -> Self {
        Self {
            plan: plan.clone(),
            listening: Listening {
                longest_pause: plan.options.longest_pause,
                swept: Duration::ZERO,
                total: Duration::ZERO,
            },
            slots: vec![Slot::default(); plan.slots],
            mass: None,
            degraded: None,
            restored: None,
            waking: false,
            just_swept: false,
        }
    }

    /// She knows nothing.
    pub(super) fn queen_started(&mut self, queen_time: Duration) {
        let plan = std::mem::take(&mut self.slots).len();
        self.slots = vec![Slot::default(); plan];
        self.mass = None;
        self.degraded = None;
        self.restored = None;
        self.waking = false;
        self.listening.swept = queen_time;
    }

    /// She was stopped and runs again.
    pub(super) fn queen_wakes(&mut self) {
        self.waking = true;
    }

    /// A request to the member failed, and the registry took it for news.
    pub(super) fn suspected(&mut self, slot: usize, queen_time: Duration) {
        if let Some(told) = &mut self.slots[slot].told {
            told.suspected = Some(queen_time);
        }
    }

    /// The member was called, or answered a request. Who is silent cannot be called; an answer clears what was known before it
    /// was asked, and nothing of it if there is something newer.
    pub(super) fn called(&mut self, slot: usize, is_answered: bool, asked: Duration, queen_time: Duration) {
        let listened = self.listening.at(queen_time);
        let Some(told) = &mut self.slots[slot].told else { return };
        if listened.saturating_sub(told.heard) >= told.ttl {
            return;
        }
        if !is_answered {
            told.unreachable.get_or_insert(queen_time);
        } else if told.suspected.max(told.unreachable).is_none_or(|since| since <= asked) {
            told.suspected = None;
            told.unreachable = None;
        }
    }

    /// Its process is known to have ended.
    pub(super) fn ended(&mut self, slot: usize, queen_time: Duration) {
        let dug = self.listening.at(queen_time);
        let slot = &mut self.slots[slot];
        if let Some(told) = slot.told.take() {
            let last = (told.order.0, u64::MAX);
            slot.grave = Some(Grave { last, dug });
        }
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.degraded.is_some()
    }

    /// The most that a beat can be under way without being taken for one of another sender.
    fn grace(&self) -> Duration {
        let interval = self.plan.pace.interval.max(Duration::from_secs(1));
        self.plan.options.conflict_grace.min(interval)
    }

    fn silence(&self, told: &Told, listened: Duration) -> Duration {
        listened.saturating_sub(told.heard)
    }

    /// Whether more than two had the id lately: then any two of them may be shown as the ones.
    fn is_crowded(ground: &Ground, slot: usize, now: Time, ttl: Duration) -> bool {
        let is_recent = |it: &&usize| ground.processes[**it].ended.is_none_or(|end| end + ttl * 2 > now);
        ground.slots[slot].iter().filter(is_recent).count() > 2
    }

    /// Whether both lived at one time.
    fn overlap(ground: &Ground, one: usize, other: usize) -> bool {
        let (one_is, other_is) = (&ground.processes[one], &ground.processes[other]);
        let ends_after = |end: Option<Duration>, start| end.is_none_or(|end| end > start);
        one != other && ends_after(one_is.ended, other_is.born) && ends_after(other_is.ended, one_is.born)
    }
}
