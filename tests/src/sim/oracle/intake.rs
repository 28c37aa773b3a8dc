//! What must become of a beat.

use std::time::Duration;

use heartbeat_registry::{Outcome, Pace, Recorded};

use super::{Broken, Grave, Oracle, Order, Rule, Told, must};
use crate::sim::{clock::Time, ground::Ground};

/// How often twins in step may take the id from each other before it is certain that they are two.
const SWAPS: usize = 3;

/// A beat that reached the queen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) slot: usize,
    pub(crate) process: usize,
    /// Where it was sent from.
    pub(crate) host: usize,
    pub(crate) order: Order,
    pub(crate) goodbye: bool,
    /// What the queen grants with it.
    pub(crate) pace: Pace,
    pub(crate) sent: Time,
    /// How far its sender's wall clock is ahead.
    pub(crate) ahead_ms: i64,
}

impl Oracle {
    pub(crate) fn arrived(
        &mut self,
        ground: &Ground,
        queen_time: Duration,
        now: Time,
        beat: &Arrival,
        recorded: &Recorded,
    ) -> Result<(), Broken> {
        let listened = self.listening.at(queen_time);
        let travel_ms = (now - beat.sent).as_millis() as i64;
        let is_right = (recorded.skew_ms - (beat.ahead_ms - travel_ms)).abs() <= 1;
        must(is_right, Rule::NewestIsShown, beat.slot, || {
            format!(
                "a skew of {} ms is shown as {} ms",
                beat.ahead_ms - travel_ms,
                recorded.skew_ms
            )
        })?;
        let verdict = match self.slots[beat.slot].told {
            None => self.of_a_stranger(listened, beat, recorded.outcome),
            Some(told) => self.of_a_member(ground, (now, listened), beat, &told, recorded.outcome),
        };
        if now - beat.sent > self.grace() {
            self.slots[beat.slot].stray = Some(listened);
        }
        verdict
    }

    fn of_a_stranger(&mut self, listened: Duration, beat: &Arrival, outcome: Outcome) -> Result<(), Broken> {
        let is_dropped = matches!(outcome, Outcome::Dropped(_));
        if let Some(grave) = self.grave_over(listened, beat) {
            must(is_dropped, Rule::NoGhosts, beat.slot, || {
                format!(
                    "{:?} is {outcome:?}, though it had left with {:?}",
                    beat.order, grave.last
                )
            })?;
        }
        if is_dropped {
            // A sweep may be about to forget it.
            let has_grave = self.slots[beat.slot]
                .grave
                .is_some_and(|grave| beat.order <= grave.last);
            return must(has_grave, Rule::NewestIsShown, beat.slot, || {
                format!("{:?} of nobody known is {outcome:?}", beat.order)
            });
        }
        let expected = if beat.goodbye { Outcome::Goodbye } else { Outcome::New };
        must(outcome == expected, Rule::NewestIsShown, beat.slot, || {
            format!("{:?} of nobody known is {outcome:?}", beat.order)
        })?;
        let slot = &mut self.slots[beat.slot];
        if beat.goodbye {
            slot.grave = Some(grave_of(beat, listened));
        } else {
            slot.newest = beat.order.0;
            slot.swaps = 0;
            slot.told = Some(told_by(beat, listened));
        }
        Ok(())
    }

    fn of_a_member(
        &mut self,
        ground: &Ground,
        (now, listened): (Time, Duration),
        beat: &Arrival,
        told: &Told,
        outcome: Outcome,
    ) -> Result<(), Broken> {
        let is_dropped = matches!(outcome, Outcome::Dropped(_));
        let is_lost = self.silence(told, listened) >= told.ttl;
        let lived_beside = Self::overlap(ground, told.process, beat.process);
        let is_twin = beat.order.0 == told.order.0 && beat.process != told.process;
        if lived_beside {
            let was_heard = self.slots[beat.slot].rival.replace(listened);
            if was_heard.is_none_or(|heard| listened.saturating_sub(heard) >= told.ttl) || is_lost {
                self.slots[beat.slot].swaps = 0;
            }
        }
        if self.slots[beat.slot].contended && beat.process != told.process {
            // Shown already, and heard of once more: its last words may outlive it and the holder.
            self.slots[beat.slot].rival = Some(listened);
        }
        let is_news = beat.order > told.order;
        if is_dropped {
            self.slots[beat.slot].doubted |= is_twin;
            // Which of two twins is the holder is the registry's choice, as long as it keeps to it.
            return must(!is_news || is_twin, Rule::NewestIsShown, beat.slot, || {
                format!(
                    "{:?} is {outcome:?}, though it is news after {:?}",
                    beat.order, told.order
                )
            });
        }
        let rule = if beat.order.0 < told.order.0 {
            Rule::IncarnationsGrow
        } else {
            Rule::NewestIsShown
        };
        must(is_news, rule, beat.slot, || {
            format!("{:?} is {outcome:?} after {:?}", beat.order, told.order)
        })?;
        let expected = match () {
            () if beat.goodbye => Outcome::Goodbye,
            () if beat.order.0 != told.order.0 => Outcome::Restarted,
            () => Outcome::Updated,
        };
        must(outcome == expected, Rule::NewestIsShown, beat.slot, || {
            format!("{:?} after {:?} is {outcome:?}", beat.order, told.order)
        })?;
        if is_twin && !is_lost && !Self::is_crowded(ground, beat.slot, now, told.ttl) {
            self.twin_took_over(ground, now, beat, told)?;
        }
        let slot = &mut self.slots[beat.slot];
        if beat.goodbye {
            slot.told = None;
            slot.grave = Some(grave_of(beat, listened));
            return Ok(());
        }
        slot.newest = beat.order.0;
        if slot.contended && beat.process != told.process {
            // What was taken for the other sender may be taken for its successor now.
            slot.stray = slot.stray.max(Some(told.heard));
        }
        let is_settled = (beat.process, beat.host, beat.order.0) == (told.process, told.host, told.order.0);
        slot.told = Some(Told {
            unreachable: told.unreachable.filter(|_| is_settled && !is_lost),
            came: if beat.process == told.process {
                told.came
            } else {
                listened
            },
            ..told_by(beat, listened)
        });
        Ok(())
    }

    /// The departure that this beat came before, unless it is so long ago that it may be forgotten.
    fn grave_over(&self, listened: Duration, beat: &Arrival) -> Option<Grave> {
        let grave = self.slots[beat.slot].grave.filter(|grave| beat.order <= grave.last)?;
        let age = listened.saturating_sub(grave.dug) + self.plan.sweep_pause * 3;
        (age < self.plan.options.tombstones).then_some(grave)
    }

    /// Another process of the same incarnation is the holder now. A few times there and back is how two are told from
    /// one that moves; more is flapping.
    fn twin_took_over(&mut self, ground: &Ground, now: Time, beat: &Arrival, told: &Told) -> Result<(), Broken> {
        let is_alike = |it: &&usize| ground.processes[**it].incarnation == beat.order.0;
        let twins = ground.slots[beat.slot].iter().filter(is_alike).count();
        let has_moved = |it: usize| {
            let facts = &ground.processes[it];
            facts.settled > facts.started && now - facts.settled < told.ttl * 2
        };
        let slot = &mut self.slots[beat.slot];
        if has_moved(beat.process) || has_moved(told.process) {
            // Whatever was known of the two was known of other addresses.
            slot.swaps = 0;
        }
        slot.swaps += usize::from(slot.doubted);
        slot.doubted = false;
        must(
            slot.swaps <= SWAPS * twins.saturating_sub(1).max(1),
            Rule::HolderStays,
            beat.slot,
            || {
                format!(
                    "process {} took the id from its twin {} again",
                    beat.process, told.process
                )
            },
        )
    }
}

fn grave_of(goodbye: &Arrival, listened: Duration) -> Grave {
    Grave {
        last: goodbye.order,
        dug: listened,
    }
}

fn told_by(beat: &Arrival, listened: Duration) -> Told {
    Told {
        process: beat.process,
        host: beat.host,
        order: beat.order,
        heard: listened,
        ttl: beat.pace.ttl,
        came: listened,
        suspected: None,
        unreachable: None,
    }
}
