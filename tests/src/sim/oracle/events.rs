//! What subscribers hear.

use std::time::Duration;

use heartbeat_registry::{EventKind, LeaveReason, Liveness};

use super::{Broken, Grave, Heard, Oracle, Order, Rule, must};
use crate::sim::{clock::Time, ground::Ground, journal::Tally};

impl Oracle {
    /// `times` are the world's and the queen's.
    pub(crate) fn event(
        &mut self,
        ground: &Ground,
        times: (Time, Duration),
        place: usize,
        order: Order,
        kind: EventKind,
        tally: &mut Tally,
    ) -> Result<(), Broken> {
        let told_newest = self.slots[place].newest;
        let fits = |holds: bool| {
            must(holds, Rule::EventsTellAll, place, || {
                format!("{kind:?} does not follow from what was told before")
            })
        };
        let slot = &mut self.slots[place];
        match (kind, &mut slot.heard) {
            (EventKind::Joined, heard) => {
                fits(heard.is_none())?;
                *heard = Some(Heard {
                    liveness: Liveness::Online,
                    contended: false,
                });
            }
            (_, None) => return fits(false),
            (EventKind::Updated | EventKind::Restarted, Some(_)) => {
                must(order.0 >= told_newest, Rule::IncarnationsGrow, place, || {
                    format!("incarnation {} is told after {told_newest}", order.0)
                })?;
            }
            (EventKind::StateChanged { from, to }, Some(heard)) => {
                fits(from == heard.liveness && from != to)?;
                heard.liveness = to;
                self.measure(ground, times.0, place, from, to, tally);
            }
            (EventKind::Contended { began }, Some(heard)) => {
                fits(heard.contended != began)?;
                heard.contended = began;
                tally.count(if began { "conflicts began" } else { "conflicts ended" });
            }
            (EventKind::Left { reason }, heard) => {
                *heard = None;
                self.left(times.1, place, reason)?;
            }
        }
        Ok(())
    }

    fn left(&mut self, queen_time: Duration, place: usize, reason: LeaveReason) -> Result<(), Broken> {
        let told = self.slots[place].told;
        if reason != LeaveReason::Lost {
            return must(told.is_none(), Rule::DegradedDeletesNothing, place, || {
                format!("it left ({}) and nobody said so", reason.as_str())
            });
        }
        let deletes = |holds: bool, rule: Rule, what: &str| must(holds, rule, place, || format!("forgotten {what}"));
        let Some(told) = told else {
            return deletes(false, Rule::EventsTellAll, "twice");
        };
        let listened = self.listening.at(queen_time);
        let silence = self.silence(&told, listened);
        let is_time = silence >= told.ttl + self.plan.options.retention;
        deletes(is_time, Rule::DegradedDeletesNothing, "before the retention is over")?;
        deletes(
            self.degraded.is_none(),
            Rule::DegradedDeletesNothing,
            "while the view is degraded",
        )?;
        let is_hasty = self
            .restored
            .is_some_and(|since| listened.saturating_sub(since) < self.plan.pace.interval * 2);
        deletes(
            !is_hasty,
            Rule::DegradedDeletesNothing,
            "right after many returned, before its turn",
        )?;
        let is_believed = self.mass.as_ref().is_none_or(|mass| self.is_believed(mass, listened));
        deletes(is_believed, Rule::MassSilenceDegrades, "in mass silence")?;
        let slot = &mut self.slots[place];
        slot.told = None;
        slot.grave = Some(Grave {
            last: told.order,
            dug: listened,
        });
        Ok(())
    }

    /// The figures.
    fn measure(&self, ground: &Ground, now: Time, place: usize, from: Liveness, to: Liveness, tally: &mut Tally) {
        let mut living = ground.living(place);
        if to == Liveness::Lost {
            let ttl = self.slots[place].told.map_or(Duration::MAX, |told| told.ttl);
            let is_wrong = |process| ground.connected_since(process).is_some_and(|since| now - since >= ttl);
            let deaths = ground.slots[place].iter().filter_map(|it| ground.processes[*it].ended);
            match deaths.max() {
                Some(death) if living.next().is_none() => tally.death_to_lost.push(now - death),
                _ if ground.living(place).any(is_wrong) => tally.count("false positives"),
                _ => {}
            }
        } else if from == Liveness::Lost
            && let Some(healed) = self.slots[place]
                .told
                .and_then(|told| ground.connected_since(told.process))
        {
            tally.heal_to_online.push(now - healed);
        }
    }
}
