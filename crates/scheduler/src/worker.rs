//! Which worker takes a request.
//!
//! What is wanted of [`choose`], and property-tested below:
//! 1. Never a worker that is not ready, cannot be reached, is lost, was tried for this request, or has no free slot.
//! 2. Never a suspect while a ready worker that was not tried lives, even if that one has no slot free.
//! 3. If a worker can take the request, one is chosen; a refusal says what stands in the way.
//! 4. Among up to 16 (`LOOK_AT_ALL`) candidates the least loaded per slot, by chance among equals; among more, no worse than
//!    a random one, and without looking at all of them unless those drawn cannot take it.
//! 5. The same input and seed give the same choice.

/// Up to this many candidates are all looked at; among more, a few are drawn by chance.
const LOOK_AT_ALL: usize = 16;
/// Candidates drawn among many: the power of two choices (Mitzenmacher 2001). Each is a cold cache line or two in a large
/// fleet; where neither can take it, one after the other is looked at.
const DRAWS: usize = 2;

/// What is known of a worker at the moment of the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    fn is_eligible(&self, standing: Standing) -> bool {
        self.standing == standing && !self.tried && self.has_room()
    }

    /// Whether it has less load per slot. Products instead of quotients, so that no rounding makes equals of unequals.
    fn is_freer_than(&self, other: &Self) -> bool {
        u64::from(self.load()) * u64::from(other.slots) < u64::from(other.load()) * u64::from(self.slots)
    }
}

/// Chooses among `count` candidates, of which `look` tells the state; answers with the index of the chosen one.
///
/// `seed` decides between equals: take another one for each choice.
pub fn choose(
    count: usize,
    mut look: impl FnMut(usize) -> Candidate,
    suspects: Suspects,
    seed: u64,
) -> Result<usize, Refusal> {
    let mut chance = Chance(seed);
    if count > LOOK_AT_ALL {
        let mut best = Best::default();
        for _ in 0..DRAWS {
            let index = chance.below(count);
            best.offer(index, look(index), Standing::Ready, &mut chance);
        }
        if let Some(index) = best.index() {
            return Ok(index);
        }
    }
    look_at_all(count, look, suspects, &mut chance)
}

/// Looks at all candidates, or, of many, at all from a random one up to the first that can take it.
fn look_at_all(
    count: usize,
    mut look: impl FnMut(usize) -> Candidate,
    suspects: Suspects,
    chance: &mut Chance,
) -> Result<usize, Refusal> {
    let mut ready = Best::default();
    let mut suspect = Best::default();
    let mut refusal = Refusal::AllLost;
    let first = chance.below(count.max(1));
    for index in (first..count).chain(0..first) {
        let candidate = look(index);
        ready.offer(index, candidate, Standing::Ready, chance);
        if count > LOOK_AT_ALL && ready.index().is_some() {
            break;
        }
        suspect.offer(index, candidate, Standing::Suspect, chance);
        refusal = refusal.or_worse(&candidate);
    }
    let last_resort = match (suspects, refusal) {
        // A ready worker that is merely busy lives, so its suspect peers are left alone.
        (Suspects::Avoid, _) | (_, Refusal::AllBusy) => None,
        (Suspects::LastResort, _) => suspect.index(),
    };
    ready.index().or(last_resort).ok_or(match count {
        0 => Refusal::Unknown,
        _ => refusal,
    })
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

/// The least loaded of the candidates offered so far; each of several equals is kept with the same chance.
#[derive(Default)]
struct Best {
    kept: Option<(usize, Candidate)>,
    equals: u64,
}

impl Best {
    fn offer(&mut self, index: usize, candidate: Candidate, standing: Standing, chance: &mut Chance) {
        if !candidate.is_eligible(standing) {
            return;
        }
        match &self.kept {
            Some((_, kept)) if kept.is_freer_than(&candidate) => return,
            Some((_, kept)) if !candidate.is_freer_than(kept) => {
                self.equals += 1;
                if !chance.next().is_multiple_of(self.equals) {
                    return;
                }
            }
            _ => self.equals = 1,
        }
        self.kept = Some((index, candidate));
    }

    fn index(&self) -> Option<usize> {
        self.kept.as_ref().map(|(index, _)| *index)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FREE: Candidate = Candidate {
        standing: Standing::Ready,
        slots: 4,
        reported: 0,
        leases_at_report: 0,
        leases: 0,
        tried: false,
    };

    fn pick(candidates: &[Candidate], suspects: Suspects, seed: u64) -> Result<usize, Refusal> {
        choose(candidates.len(), |index| candidates[index], suspects, seed)
    }

    fn any_candidate() -> impl Strategy<Value = Candidate> {
        let standing = prop_oneof![
            4 => Just(Standing::Ready),
            2 => Just(Standing::Suspect),
            1 => Just(Standing::Unreachable),
            1 => Just(Standing::NotReady),
            1 => Just(Standing::Lost),
        ];
        (
            standing,
            1..4_u32,
            0..5_u32,
            0..3_u32,
            0..4_u32,
            prop::bool::weighted(0.2),
        )
            .prop_map(
                |(standing, slots, reported, leases_at_report, leases, tried)| Candidate {
                    standing,
                    slots,
                    reported,
                    leases_at_report,
                    leases,
                    tried,
                },
            )
    }

    fn any_fleet() -> impl Strategy<Value = Vec<Candidate>> {
        prop::collection::vec(any_candidate(), 0..40)
    }

    fn any_suspects() -> impl Strategy<Value = Suspects> {
        prop_oneof![Just(Suspects::Avoid), Just(Suspects::LastResort)]
    }

    proptest! {
        #[test]
        fn the_chosen_one_can_take_the_request(fleet in any_fleet(), suspects in any_suspects(), seed: u64) {
            if let Ok(index) = pick(&fleet, suspects, seed) {
                let chosen = fleet[index];
                prop_assert!(!chosen.tried && chosen.load() < chosen.slots);
                match chosen.standing {
                    Standing::Ready => {}
                    Standing::Suspect => {
                        prop_assert_eq!(suspects, Suspects::LastResort);
                        prop_assert!(!fleet.iter().any(|c| c.standing == Standing::Ready && !c.tried));
                    }
                    other => prop_assert!(false, "{other:?} was chosen"),
                }
            }
        }

        #[test]
        fn nobody_is_refused_who_could_be_served(fleet in any_fleet(), suspects in any_suspects(), seed: u64) {
            if let Err(refusal) = pick(&fleet, suspects, seed) {
                prop_assert!(!fleet.iter().any(|c| c.is_eligible(Standing::Ready)));
                let ready = |c: &&Candidate| c.standing == Standing::Ready;
                let expected = if fleet.is_empty() {
                    Refusal::Unknown
                } else if fleet.iter().filter(ready).any(|c| !c.tried) {
                    Refusal::AllBusy
                } else if fleet.iter().any(|c| ready(&c)) {
                    Refusal::AllTried
                } else if fleet.iter().any(|c| matches!(c.standing, Standing::Suspect | Standing::Unreachable)) {
                    Refusal::AllSuspect
                } else if fleet.iter().any(|c| c.standing == Standing::NotReady) {
                    Refusal::NoneReady
                } else {
                    Refusal::AllLost
                };
                prop_assert_eq!(refusal, expected);
                if suspects == Suspects::LastResort && refusal != Refusal::AllBusy {
                    prop_assert!(!fleet.iter().any(|c| c.is_eligible(Standing::Suspect)));
                }
            }
        }

        #[test]
        fn of_a_few_the_least_loaded_per_slot_is_chosen(
            fleet in prop::collection::vec(any_candidate(), 1..=LOOK_AT_ALL),
            seed: u64,
        ) {
            if let Ok(index) = pick(&fleet, Suspects::Avoid, seed) {
                let freer = fleet.iter().any(|c| c.is_eligible(Standing::Ready) && c.is_freer_than(&fleet[index]));
                prop_assert!(!freer);
            }
        }

        #[test]
        fn the_same_seed_gives_the_same_choice(fleet in any_fleet(), suspects in any_suspects(), seed: u64) {
            prop_assert_eq!(pick(&fleet, suspects, seed), pick(&fleet, suspects, seed));
        }

        #[test]
        fn leases_alone_never_exceed_the_slots(slots in 1..6_u32, reports in prop::collection::vec(0..6_u32, 0..12)) {
            // A lone worker under requests that never end, with reports of any kind coming in between.
            let mut worker = Candidate { slots, ..FREE };
            for (seed, reported) in reports.into_iter().enumerate() {
                while pick(&[worker], Suspects::Avoid, seed as u64).is_ok() {
                    worker.leases += 1;
                }
                prop_assert!(worker.leases <= slots);
                worker.reported = reported;
                worker.leases_at_report = worker.leases;
            }
        }
    }

    #[test]
    fn equals_get_equal_shares() {
        for count in [3, 60] {
            let fleet = vec![FREE; count];
            let mut taken = vec![0_u32; count];
            for seed in 0..count as u64 * 400 {
                taken[pick(&fleet, Suspects::Avoid, seed).unwrap()] += 1;
            }
            assert!(taken.iter().all(|&n| (300..500).contains(&n)), "{taken:?}");
        }
    }

    #[test]
    fn among_many_few_are_looked_at() {
        let mut looks = 0;
        let look = |_| {
            looks += 1;
            FREE
        };
        choose(100_000, look, Suspects::Avoid, 7).unwrap();
        assert_eq!(looks, DRAWS);
    }

    #[test]
    fn a_report_counts_for_what_others_gave_the_worker_and_leases_for_themselves() {
        let at_report = Candidate {
            reported: 3,
            leases_at_report: 1,
            leases: 1,
            ..FREE
        };
        assert_eq!(at_report.load(), 3);
        assert_eq!(
            Candidate { leases: 0, ..at_report }.load(),
            2,
            "a lease that ended since"
        );
        assert_eq!(Candidate { leases: 2, ..at_report }.load(), 4, "a lease claimed since");
        let late = Candidate {
            reported: 0,
            leases_at_report: 2,
            leases: 2,
            ..FREE
        };
        assert_eq!(late.load(), 2, "a report that knows nothing of the leases yet");
    }

    #[test]
    fn a_suspect_is_asked_only_when_no_untried_ready_worker_is_left() {
        let suspect = Candidate {
            standing: Standing::Suspect,
            ..FREE
        };
        let busy = Candidate { leases: 4, ..FREE };
        let tried = Candidate { tried: true, ..FREE };
        assert_eq!(pick(&[suspect, busy], Suspects::LastResort, 1), Err(Refusal::AllBusy));
        assert_eq!(pick(&[suspect, tried], Suspects::LastResort, 1), Ok(0));
        assert_eq!(pick(&[suspect, tried], Suspects::Avoid, 1), Err(Refusal::AllTried));
        assert_eq!(pick(&[suspect], Suspects::Avoid, 1), Err(Refusal::AllSuspect));
    }

    #[test]
    fn who_cannot_be_reached_is_not_asked_even_as_a_last_resort() {
        let unreachable = Candidate {
            standing: Standing::Unreachable,
            ..FREE
        };
        let suspect = Candidate {
            standing: Standing::Suspect,
            ..FREE
        };
        assert_eq!(pick(&[unreachable], Suspects::LastResort, 1), Err(Refusal::AllSuspect));
        assert_eq!(pick(&[unreachable, suspect], Suspects::LastResort, 1), Ok(1));
    }
}
