//! Many silent at once: rather the receiver's own trouble than that of the senders.

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Fewer than these at once are never the receiver's trouble.
const LEAST: usize = 2;
/// One of so many at once is not, either.
const SHARE: usize = 3;

/// Mass silence: nothing is forgotten for the time being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preservation {
    /// When it was noticed.
    pub since: Instant,
    /// Members that fell silent together, and still are.
    pub silent: usize,
    /// Those and the ones that beat.
    pub of: usize,
}

/// The rule, and what it remembers from sweep to sweep.
///
/// Begins when, within one TTL, more than a third of the members and at least two are lost; unless all of them are on one
/// host and another host lives, for then it is that host that died. Ends when so many have returned that the share is no
/// longer reached, and those that have not had their turn yet are given another TTL; or when the limit has passed: then the
/// silence is believed.
#[derive(Debug)]
pub(crate) struct Guard {
    limit: Duration,
    active: Option<Active>,
    /// Nobody is forgotten before this listening time.
    mercy: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Active {
    /// In listening time.
    began: Duration,
    /// Whoever was lost since then fell silent together. In listening time.
    cohort_since: Duration,
    shown: Preservation,
}

/// One sweep's count of the members that were lost together and of those that live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tally {
    listened: Duration,
    cohort_since: Option<Duration>,
    silent: usize,
    alive: usize,
    longest_ttl: Duration,
}

impl Tally {
    /// Counts one member: how long it has been lost in listening time, `None` if it is not.
    pub(crate) fn add(&mut self, lost_for: Option<Duration>, ttl: Duration) {
        match lost_for {
            None => self.alive += 1,
            Some(lost_for) => self.silent += usize::from(self.is_together(lost_for, ttl)),
        }
        self.longest_ttl = self.longest_ttl.max(ttl);
    }

    /// Whether a member that has been lost for so long counts as lost together with the others.
    fn is_together(&self, lost_for: Duration, ttl: Duration) -> bool {
        match self.cohort_since {
            None => lost_for < ttl,
            Some(since) => self.listened.saturating_sub(lost_for) >= since,
        }
    }

    fn is_mass(&self) -> bool {
        self.silent >= LEAST && self.silent * SHARE > self.silent + self.alive
    }
}

/// Where a member is, besides what [`Tally::add`] takes.
pub(crate) type Place = (IpAddr, Option<Duration>, Duration);

impl Guard {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            active: None,
            mercy: Duration::ZERO,
        }
    }

    /// Whether nobody may be forgotten.
    pub(crate) fn blocks(&self, listened: Duration) -> bool {
        self.active.is_some() || listened < self.mercy
    }

    pub(crate) fn shown(&self) -> Option<Preservation> {
        self.active.map(|active| active.shown)
    }

    /// The count for a sweep at this listening time.
    pub(crate) fn tally(&self, listened: Duration) -> Tally {
        Tally {
            listened,
            cohort_since: self.active.map(|active| active.cohort_since),
            silent: 0,
            alive: 0,
            longest_ttl: Duration::ZERO,
        }
    }

    /// Draws the conclusion from a count of all members. `places` are asked for only where it depends on the hosts.
    pub(crate) fn conclude(&mut self, tally: &Tally, places: impl FnOnce() -> Vec<Place>, now: Instant) {
        let (silent, of) = (tally.silent, tally.silent + tally.alive);
        match &mut self.active {
            None => {
                if tally.is_mass() && !self.limit.is_zero() && !is_one_host(tally, &places()) {
                    self.active = Some(Active {
                        began: tally.listened,
                        cohort_since: tally.listened.saturating_sub(tally.longest_ttl),
                        shown: Preservation { since: now, silent, of },
                    });
                }
            }
            Some(active) => {
                active.shown.silent = silent;
                active.shown.of = of;
                if tally.listened.saturating_sub(active.began) >= self.limit {
                    self.active = None;
                } else if !tally.is_mass() {
                    self.active = None;
                    self.mercy = tally.listened + tally.longest_ttl;
                }
            }
        }
    }
}

/// Whether all that were lost together are on one host, and another host lives.
fn is_one_host(tally: &Tally, places: &[Place]) -> bool {
    let (mut silent, mut alive) = (HashSet::new(), HashSet::new());
    for (host, lost_for, ttl) in places {
        match lost_for {
            None => drop(alive.insert(host)),
            Some(lost_for) if tally.is_together(*lost_for, *ttl) => drop(silent.insert(host)),
            Some(_) => {}
        }
    }
    silent.len() == 1 && alive.iter().any(|host| !silent.contains(host))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const TTL: Duration = Duration::from_secs(90);
    const DAY: Duration = Duration::from_secs(86_400);

    /// One member for each entry: its host, and how long it has been lost in seconds.
    fn look(guard: &mut Guard, members: &[(u8, Option<u64>)], listened_s: u64) -> bool {
        let place = |(host, lost_for): &(u8, Option<u64>)| {
            let host = IpAddr::V4(Ipv4Addr::new(10, 0, 0, *host));
            (host, lost_for.map(Duration::from_secs), TTL)
        };
        let mut tally = guard.tally(Duration::from_secs(listened_s));
        for (_, lost_for, ttl) in members.iter().map(place) {
            tally.add(lost_for, ttl);
        }
        guard.conclude(&tally, || members.iter().map(place).collect(), Instant::now());
        guard.shown().is_some()
    }

    fn begins(members: &[(u8, Option<u64>)]) -> bool {
        look(&mut Guard::new(DAY), members, 1_000)
    }

    #[test]
    fn more_than_a_third_at_once_and_at_least_two_are_too_many() {
        assert!(begins(&[(1, Some(0)), (2, Some(5)), (3, None), (4, None), (5, None)]));
        assert!(begins(&[(1, Some(0)), (2, Some(0))]), "all");
        assert!(!begins(&[(1, Some(0)), (2, None)]), "one is one");
        assert!(!begins(&[
            (1, Some(0)),
            (2, Some(0)),
            (3, None),
            (4, None),
            (5, None),
            (6, None)
        ]));
    }

    #[test]
    fn those_that_were_lost_one_after_the_other_were_not_lost_at_once() {
        assert!(!begins(&[(1, Some(0)), (2, Some(90)), (3, Some(600)), (4, None)]));
    }

    #[test]
    fn a_host_that_dies_with_all_its_workers_is_not_the_receivers_trouble() {
        assert!(!begins(&[(1, Some(0)), (1, Some(0)), (1, Some(1)), (2, None)]));
        assert!(begins(&[(1, Some(0)), (1, Some(0)), (1, None)]), "the host lives");
        assert!(begins(&[(1, Some(0)), (1, Some(0))]), "there is no other host");
    }

    #[test]
    fn it_ends_when_enough_have_returned_and_not_because_time_passes() {
        let mut guard = Guard::new(DAY);
        assert!(look(
            &mut guard,
            &[(1, Some(0)), (2, Some(0)), (3, Some(0)), (4, None)],
            1_000
        ));
        assert!(look(
            &mut guard,
            &[(1, Some(500)), (2, Some(500)), (3, None), (4, None)],
            1_500
        ));
        assert!(!look(
            &mut guard,
            &[(1, Some(600)), (2, None), (3, None), (4, None)],
            1_600
        ));
    }

    #[test]
    fn when_enough_have_returned_the_others_have_another_ttl() {
        let mut guard = Guard::new(DAY);
        look(&mut guard, &[(1, Some(0)), (2, Some(0)), (3, Some(0))], 1_000);
        assert!(!look(&mut guard, &[(1, Some(3_600)), (2, None), (3, None)], 4_600));
        let blocks = |seconds| guard.blocks(Duration::from_secs(seconds));
        assert!(blocks(4_600) && blocks(4_689) && !blocks(4_690));
    }

    #[test]
    fn in_the_end_the_silence_is_believed_and_does_not_begin_again() {
        let mut guard = Guard::new(DAY);
        assert!(look(&mut guard, &[(1, Some(0)), (2, Some(0))], 1_000));
        assert!(look(&mut guard, &[(1, Some(86_399)), (2, Some(86_399))], 87_399));
        assert!(!look(&mut guard, &[(1, Some(86_400)), (2, Some(86_400))], 87_400));
        assert!(!guard.blocks(Duration::from_secs(87_400)));
        assert!(!look(&mut guard, &[(1, Some(86_401)), (2, Some(86_401))], 87_401));
    }

    #[test]
    fn whoever_is_lost_later_joins_those_that_are_counted() {
        let mut guard = Guard::new(DAY);
        assert!(look(&mut guard, &[(1, Some(0)), (2, Some(0)), (3, None)], 1_000));
        look(&mut guard, &[(1, Some(300)), (2, Some(300)), (3, Some(10))], 1_300);
        let shown = guard.shown().unwrap();
        assert_eq!((shown.silent, shown.of), (3, 3));
    }
}
