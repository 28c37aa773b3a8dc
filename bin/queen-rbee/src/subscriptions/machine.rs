//! What becomes of the subscription to one hive: a plain function of what happens.

use std::time::{Duration, Instant};

use heartbeat_registry::{About, Address, Liveness, MemberView};
use hive_contract::HiveHeartbeat;

/// Pause after the first break, before jitter; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two tries, before jitter.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Share of a pause that jitter adds at most, so that a queen that comes back does not meet all her hives at once.
const JITTER: f64 = 0.25;

/// The process whose telemetry is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: Address,
    pub(super) incarnation: u64,
}

impl Target {
    /// Where a hive's telemetry is to be had: of one that is a member, is not lost, and says on which port it listens.
    pub(super) fn of(view: &MemberView<HiveHeartbeat>) -> Option<Self> {
        let is_there = view.liveness != Liveness::Lost && view.address().port() != 0;
        is_there.then(|| Self {
            address: view.address().clone(),
            incarnation: view.item().hive.incarnation,
        })
    }

    /// The hive that is there, asked at this moment.
    pub(super) fn about(&self, asked: Instant) -> About {
        About {
            address: self.address.clone(),
            incarnation: self.incarnation,
            asked,
        }
    }
}

/// The subscription to one hive.
///
/// `Streaming` -> (it breaks) -> `Pausing` -> (the pause is over) -> `Streaming`; another target leads to `Streaming` from
/// both, none to `Ended`. There is no way from one stream to the next but over the end of the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doing {
    /// Connects to the target and reads from it.
    Streaming(Target),
    /// Waits for the next try.
    Pausing(Duration),
    /// Nothing is wanted any more.
    Ended,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Happening {
    /// This target is wanted from now on; none: the hive has left or is lost.
    Wanted(Option<Target>),
    /// The stream ended, or never began.
    Broke {
        /// Whether an event had come.
        had_events: bool,
    },
    /// The pause is over.
    Rested,
}

/// Decides for one hive.
#[derive(Debug)]
pub(super) struct Machine {
    target: Target,
    doing: Doing,
    /// Breaks since an event came.
    failures: u32,
}

impl Machine {
    /// Begins with a stream.
    pub(super) fn new(target: Target) -> Self {
        Self {
            doing: Doing::Streaming(target.clone()),
            target,
            failures: 0,
        }
    }

    /// What is to be done now.
    pub(super) fn doing(&self) -> &Doing {
        &self.doing
    }

    /// Moves on. `jitter` is a random number from 0 to 1.
    pub(super) fn take(&mut self, happening: Happening, jitter: f64) {
        self.doing = match happening {
            Happening::Wanted(None) => Doing::Ended,
            Happening::Wanted(Some(target)) => {
                if target == self.target && self.doing != Doing::Ended {
                    return;
                }
                self.failures = 0;
                self.target = target.clone();
                Doing::Streaming(target)
            }
            Happening::Broke { had_events } => {
                self.failures = if had_events { 1 } else { self.failures.saturating_add(1) };
                Doing::Pausing(pause(self.failures, jitter))
            }
            Happening::Rested => Doing::Streaming(self.target.clone()),
        };
    }
}

/// The pause after so many failures in a row.
fn pause(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
    pause.mul_f64(1.0 + JITTER * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn target(port: u16, incarnation: u64) -> Target {
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Target {
            address: Address::resolve(None, peer, port).unwrap(),
            incarnation,
        }
    }

    const FAILED: Happening = Happening::Broke { had_events: false };
    const BROKE: Happening = Happening::Broke { had_events: true };

    #[test]
    fn it_starts_at_once_and_again_after_growing_pauses_up_to_half_a_minute() {
        let mut machine = Machine::new(target(1, 1));
        assert_eq!(machine.doing(), &Doing::Streaming(target(1, 1)));
        for seconds in [1, 2, 4, 8, 16, 30, 30, 30] {
            machine.take(FAILED, 0.0);
            assert_eq!(machine.doing(), &Doing::Pausing(Duration::from_secs(seconds)));
            machine.take(Happening::Rested, 0.0);
            assert_eq!(machine.doing(), &Doing::Streaming(target(1, 1)));
        }
    }

    #[test]
    fn a_stream_that_had_told_something_is_tried_again_after_a_second() {
        let mut machine = Machine::new(target(1, 1));
        (0..9).for_each(|_| machine.take(FAILED, 0.0));
        machine.take(BROKE, 0.0);
        assert_eq!(machine.doing(), &Doing::Pausing(FIRST_PAUSE));
        machine.take(FAILED, 0.0);
        assert_eq!(machine.doing(), &Doing::Pausing(2 * FIRST_PAUSE));
    }

    #[test]
    fn jitter_makes_a_pause_longer_by_a_quarter_at_most() {
        assert_eq!(pause(1, 1.0), Duration::from_millis(1_250));
        assert_eq!(pause(u32::MAX, 1.0), Duration::from_millis(37_500));
        assert!(pause(1, 0.5) > FIRST_PAUSE);
    }

    #[test]
    fn another_address_or_incarnation_replaces_the_stream_and_ends_a_pause() {
        for next in [target(2, 1), target(1, 2)] {
            let mut streaming = Machine::new(target(1, 1));
            streaming.take(Happening::Wanted(Some(next.clone())), 0.0);
            assert_eq!(streaming.doing(), &Doing::Streaming(next.clone()));

            let mut pausing = Machine::new(target(1, 1));
            (0..5).for_each(|_| pausing.take(FAILED, 0.0));
            pausing.take(Happening::Wanted(Some(next.clone())), 0.0);
            assert_eq!(pausing.doing(), &Doing::Streaming(next));
            pausing.take(FAILED, 0.0);
            assert_eq!(pausing.doing(), &Doing::Pausing(FIRST_PAUSE), "a new start");
        }
    }

    #[test]
    fn the_same_target_again_disturbs_neither_stream_nor_pause() {
        let mut machine = Machine::new(target(1, 1));
        machine.take(Happening::Wanted(Some(target(1, 1))), 0.0);
        assert_eq!(machine.doing(), &Doing::Streaming(target(1, 1)));
        machine.take(FAILED, 0.5);
        let pausing = machine.doing().clone();
        machine.take(Happening::Wanted(Some(target(1, 1))), 0.0);
        assert_eq!(machine.doing(), &pausing);
    }

    #[test]
    fn a_hive_that_left_ends_it_until_it_is_wanted_again() {
        for before in [None, Some(FAILED)] {
            let mut machine = Machine::new(target(1, 1));
            before.into_iter().for_each(|happening| machine.take(happening, 0.0));
            machine.take(Happening::Wanted(None), 0.0);
            assert_eq!(machine.doing(), &Doing::Ended);
            machine.take(Happening::Wanted(Some(target(1, 1))), 0.0);
            assert_eq!(machine.doing(), &Doing::Streaming(target(1, 1)));
        }
    }
}
