//! Which worker takes a request.
//!
//! What is wanted of [`choose`], and property-tested below:
//! 1. Never a worker that is not ready, cannot be reached, is lost, was tried for this request, or has no free slot.
//! 2. Never a suspect while a ready worker that was not tried lives, even if that one has no slot free. Never one that is
//!    overdue while another ready one that was looked at is free.
//! 3. If a worker can take the request, one is chosen; a refusal says what stands in the way.
//! 4. Among up to 16 (`LOOK_AT_ALL`) candidates the one of the least cost, by chance among equals; among more, no worse
//!    than a random one, and without looking at all of them unless those drawn cannot take it.
//! 5. The cost is the load per slot, and a bad record counts like slots that are taken: who fails fast gets less instead of
//!    more, and who is ten times slower than the others gets nothing before they are nearly full, and never more of the
//!    requests than it has of the speed. The cost is bounded, and now and then (`EXPLORE`) the record does not count: so
//!    every worker that can take requests gets some, and can show that it has recovered.
//! 6. The preferred worker, if it can take the request, unless its cost is more than `IMBALANCE` above the least of those
//!    looked at.
//! 7. The same input and seed give the same choice.

#[cfg(test)]
mod tests;

/// Up to this many candidates are all looked at; among more, a few are drawn by chance.
const LOOK_AT_ALL: usize = 16;
/// Candidates drawn among many: the power of two choices (Mitzenmacher 2001). Each is a cold cache line or two in a large
/// fleet.
const DRAWS: usize = 2;
/// Candidates drawn in all where the first draws met only poor ones. Where none of these can take it either, one after
/// the other is looked at.
const MORE_DRAWS: usize = 4;
/// Cost above which more candidates are drawn: half of the slots taken, or as bad a record.
const POOR: f64 = 0.5;
/// How much busier than the least loaded a worker may be that has the prompt's beginning in its cache: a quarter of its
/// slots. Less would throw away most of what a cache saves; with more, a popular beginning would fill one worker while
/// others are idle.
const IMBALANCE: f64 = 0.25;
/// One choice in so many goes by the load alone.
const EXPLORE: u64 = 32;
/// Up to so many times the best time to the first byte is no slower: prompts differ by more.
const ALIKE: f32 = 2.0;
/// Share of its attempts that a worker must have answered for its time to the first byte to be what others are held to.
const TRUSTED: f32 = 0.9;
/// Steps of a record. Differences below one are noise, and must not send all the traffic to one worker.
const STEPS: f32 = 16.0;

/// What is known of a worker at the moment of the choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Whether it lives and takes requests.
    pub standing: Standing,
    /// Requests that it can work on together.
    pub slots: u32,
    /// Requests that it reported to have, running and waiting.
    pub reported: u32,
    /// Leases held on it when that report came.
    pub leases_at_report: u32,
    /// Leases held on it now.
    pub leases: u32,
    /// It was tried for this request already.
    pub tried: bool,
    /// How it did with the requests before.
    pub record: Record,
}

/// How a worker did with the requests before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// Share of the attempts that were answered, the latest weighing most: 0 to 1; 1, too, if there was none.
    pub success: f32,
    /// Time to the first byte of its answers, the latest weighing most; 0 if unknown.
    pub first_byte_ms: f32,
    /// It owes a first byte for longer than is usual for it.
    pub is_overdue: bool,
}

impl Record {
    /// Of a worker that had no request yet.
    pub const UNKNOWN: Self = Self {
        success: 1.0,
        first_byte_ms: 0.0,
        is_overdue: false,
    };
}

impl Default for Record {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

/// What a request wants of the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Whether it may go to a suspect.
    pub suspects: Suspects,
    /// The candidate that it goes to unless that is clearly busier than another, as it has the prompt's beginning in its
    /// cache. Also a hint in a busy fleet: it is looked at before any other.
    pub prefers: Option<usize>,
    /// Decides between equals: take another one for each choice.
    pub seed: u64,
}

/// Whether a worker lives and takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Lives and takes requests.
    Ready,
    /// Takes requests as far as it said, but something speaks against its being alive.
    Suspect,
    /// Takes requests as far as it said, and a call to where it says it is got no answer: a request would not either.
    Unreachable,
    /// Lives, and takes no requests: it starts, drains or failed.
    NotReady,
    /// Silent for too long.
    Lost,
}

/// Whether a suspect may be chosen when nobody better is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspects {
    /// Rather nobody.
    Avoid,
    /// If no ready worker is left, a suspect is asked: the suspicion may be wrong.
    LastResort,
}

/// Why nobody can be chosen; the first that applies, from the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no candidate.
    Unknown,
    /// A ready worker that was not tried has no free slot.
    AllBusy,
    /// Every ready worker was tried for this request.
    AllTried,
    /// Those that might be ready cannot be reached, or are suspect and were tried, have no free slot, or are to be avoided.
    AllSuspect,
    /// Those that live take no requests.
    NoneReady,
    /// All are silent for too long.
    AllLost,
}

impl Candidate {
    /// Requests that it has by now: what others gave it, as of its report, and the leases. A late report never erases a
    /// lease, and a lease that ended since is not counted until the next report.
    pub fn load(&self) -> u32 {
        self.reported
            .saturating_sub(self.leases_at_report)
            .saturating_add(self.leases)
    }

    fn has_room(&self) -> bool {
        self.load() < self.slots
    }

    /// Of those that can take the request, how good: a lower one is chosen only where no higher one is there.
    fn tier(&self) -> Option<Tier> {
        if self.tried || !self.has_room() {
            return None;
        }
        match self.standing {
            Standing::Ready if self.record.is_overdue => Some(Tier::Overdue),
            Standing::Ready => Some(Tier::Good),
            Standing::Suspect => Some(Tier::Suspect),
            Standing::Unreachable | Standing::NotReady | Standing::Lost => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Good,
    Overdue,
    Suspect,
}

/// Chooses among `count` candidates, of which `look` tells the state; answers with the index of the chosen one.
pub fn choose(count: usize, mut look: impl FnMut(usize) -> Candidate, wish: Wish) -> Result<usize, Refusal> {
    let mut chance = Chance(wish.seed);
    let goes_by_record = !chance.next().is_multiple_of(EXPLORE);
    let prefers = wish.prefers.filter(|index| *index < count);
    if count > LOOK_AT_ALL {
        let mut field = Field::new(goes_by_record);
        if let Some(index) = prefers {
            field.offer(index, &look(index));
        }
        for draw in 0..MORE_DRAWS {
            if draw >= DRAWS && field.has_fair_one() {
                break;
            }
            let index = chance.below(count);
            field.offer(index, &look(index));
        }
        if field.tier == Some(Tier::Good) {
            return field.best(prefers, &mut chance).ok_or(Refusal::AllBusy);
        }
    }
    let (field, refusal) = look_at_all(count, look, goes_by_record, &mut chance);
    match field.tier {
        // A ready worker that is merely busy lives, so its suspect peers are left alone.
        Some(Tier::Suspect) if wish.suspects == Suspects::Avoid || refusal == Refusal::AllBusy => Err(refusal),
        _ => field.best(prefers, &mut chance).ok_or(refusal),
    }
}

/// Looks at all candidates, or, of many, at all from a random one up to the first good one.
fn look_at_all(
    count: usize,
    mut look: impl FnMut(usize) -> Candidate,
    goes_by_record: bool,
    chance: &mut Chance,
) -> (Field, Refusal) {
    let mut field = Field::new(goes_by_record);
    let mut refusal = match count {
        0 => Refusal::Unknown,
        _ => Refusal::AllLost,
    };
    let first = chance.below(count);
    for index in (first..count).chain(0..first) {
        let candidate = look(index);
        field.offer(index, &candidate);
        if count > LOOK_AT_ALL && field.tier == Some(Tier::Good) {
            break;
        }
        refusal = refusal.or_worse(&candidate);
    }
    (field, refusal)
}

impl Refusal {
    /// The reason after one more candidate that cannot be chosen: the one nearer to the top of the list.
    fn or_worse(self, candidate: &Candidate) -> Self {
        let reason = match candidate.standing {
            Standing::Ready if candidate.tried => Self::AllTried,
            Standing::Ready => Self::AllBusy,
            Standing::Suspect | Standing::Unreachable => Self::AllSuspect,
            Standing::NotReady => Self::NoneReady,
            Standing::Lost => Self::AllLost,
        };
        if reason.rank() < self.rank() { reason } else { self }
    }

    fn rank(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::AllBusy => 1,
            Self::AllTried => 2,
            Self::AllSuspect => 3,
            Self::NoneReady => 4,
            Self::AllLost => 5,
        }
    }
}

/// Those of the best tier among the candidates that were looked at.
struct Field {
    goes_by_record: bool,
    tier: Option<Tier>,
    /// Of a lower tier there may be more in a large fleet. The first are as good, as the look began at a random one.
    entries: [Entry; LOOK_AT_ALL],
    count: usize,
    /// Of those that are trusted.
    best_first_byte_ms: f32,
}

#[derive(Clone, Copy)]
struct Entry {
    index: usize,
    load_per_slot: f64,
    success: f32,
    first_byte_ms: f32,
}

impl Entry {
    const NONE: Self = Self {
        index: 0,
        load_per_slot: 0.0,
        success: 1.0,
        first_byte_ms: 0.0,
    };
}

impl Field {
    fn new(goes_by_record: bool) -> Self {
        Self {
            goes_by_record,
            tier: None,
            entries: [Entry::NONE; LOOK_AT_ALL],
            count: 0,
            best_first_byte_ms: f32::INFINITY,
        }
    }

    fn offer(&mut self, index: usize, candidate: &Candidate) {
        let Some(tier) = candidate.tier() else { return };
        match self.tier {
            Some(kept) if kept < tier => return,
            Some(kept) if kept == tier => {}
            _ => {
                *self = Self {
                    tier: Some(tier),
                    ..Self::new(self.goes_by_record)
                }
            }
        }
        // Quotients of integers: equals stay equals, and no two numbers of slots that exist are mistaken for each other.
        let entry = Entry {
            index,
            load_per_slot: f64::from(candidate.load()) / f64::from(candidate.slots),
            success: candidate.record.success,
            first_byte_ms: candidate.record.first_byte_ms,
        };
        if let Some(place) = self.entries.get_mut(self.count) {
            *place = entry;
            self.count += 1;
            // A quick refusal sets no pace for those who do the work.
            if entry.first_byte_ms > 0.0 && entry.success >= TRUSTED {
                self.best_first_byte_ms = self.best_first_byte_ms.min(entry.first_byte_ms);
            }
        }
    }

    fn entries(&self) -> &[Entry] {
        &self.entries[..self.count]
    }

    fn has_fair_one(&self) -> bool {
        self.tier == Some(Tier::Good) && self.entries().iter().any(|entry| self.cost(entry) <= POOR)
    }

    /// Share of the slots that is taken, or as good as taken: a worker whose record is worth half of a good one's counts as
    /// half full before it has anything to do. 0 to 2.
    fn cost(&self, entry: &Entry) -> f64 {
        if !self.goes_by_record {
            return entry.load_per_slot;
        }
        let speed = match entry.first_byte_ms {
            slower if slower > self.best_first_byte_ms * ALIKE => self.best_first_byte_ms * ALIKE / slower,
            _ => 1.0,
        };
        // Whole steps, kept in their range by the conversion, whatever the record holds.
        let steps = ((1.0 - entry.success * speed) * STEPS) as u8;
        entry.load_per_slot + f64::from(steps.min(STEPS as u8)) / f64::from(STEPS)
    }

    /// The preferred one, unless it is clearly busier than the one of the least cost, which it is else; each of several
    /// equals with the same chance.
    fn best(&self, prefers: Option<usize>, chance: &mut Chance) -> Option<usize> {
        let mut least: Option<(usize, f64)> = None;
        let mut preferred = f64::INFINITY;
        let mut equals = 1;
        for entry in self.entries() {
            let cost = self.cost(entry);
            if Some(entry.index) == prefers {
                preferred = cost;
            }
            match least {
                Some((_, kept)) if kept < cost => continue,
                Some((_, kept)) if kept == cost => {
                    equals += 1;
                    if !chance.next().is_multiple_of(equals) {
                        continue;
                    }
                }
                _ => equals = 1,
            }
            least = Some((entry.index, cost));
        }
        let (index, cost) = least?;
        prefers.filter(|_| preferred <= cost + IMBALANCE).or(Some(index))
    }
}

/// A small pseudo-random sequence (SplitMix64): good enough to spread requests, and repeatable.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        // The remainder's bias is far below anything that shows in a balance.
        (self.next() % bound.max(1) as u64) as usize
    }
}
