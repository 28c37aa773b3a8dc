//! What must be shown of one id.

use std::time::Duration;

use heartbeat_registry::{Liveness, MemberView};

use super::{Broken, Grave, Oracle, Order, Rule, Told, must};
use crate::sim::{clock::Time, ground::Ground, kind::Kind};

/// What is shown of one id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight {
    process: usize,
    order: Order,
    liveness: Liveness,
    contended: bool,
    whole: bool,
}

impl Sight {
    pub(crate) fn of<K: Kind>(view: &MemberView<K>) -> Self {
        let item = view.item();
        Self {
            process: item.process(),
            order: item.order(),
            liveness: view.liveness,
            contended: view.contender.is_some(),
            whole: item.is_whole(),
        }
    }
}

impl Oracle {
    /// Compares what is shown with what was told.
    pub(crate) fn look(&mut self, queen_time: Duration, place: usize, sight: Option<Sight>) -> Result<(), Broken> {
        let listened = self.listening.at(queen_time);
        let slot = &self.slots[place];
        let (told, sight) = match (slot.told, sight) {
            (None, None) => {
                self.slots[place].contended = false;
                return self.as_announced(place, None);
            }
            (Some(told), Some(sight)) => (told, sight),
            (None, Some(sight)) => {
                return must(false, Rule::NoGhosts, place, || {
                    format!("shown as {sight:?}, though it has left")
                });
            }
            (Some(told), None) => {
                return must(false, Rule::DegradedDeletesNothing, place, || {
                    format!("{told:?} is gone without a word")
                });
            }
        };
        must(sight.order.0 >= slot.newest, Rule::IncarnationsGrow, place, || {
            format!("incarnation {} is shown after {}", sight.order.0, slot.newest)
        })?;
        let is_newest = (sight.process, sight.order) == (told.process, told.order);
        must(is_newest, Rule::NewestIsShown, place, || {
            format!("shown as {sight:?}, told was {told:?}")
        })?;
        let silence = self.silence(&told, listened);
        let is_silent = silence >= told.ttl;
        let expected = match told {
            _ if is_silent => Liveness::Lost,
            told if told.unreachable.is_some() => Liveness::Unreachable,
            told if told.suspected.is_some() => Liveness::Suspect,
            _ => Liveness::Online,
        };
        let rule = match (expected, sight.liveness) {
            (_, Liveness::Lost) if self.waking => Rule::WakingLosesNobody,
            (_, Liveness::Lost) => Rule::BeatingIsNotLost,
            (Liveness::Lost, _) => Rule::DeadIsLost,
            _ => Rule::EvidenceIsShown,
        };
        must(sight.liveness == expected, rule, place, || {
            format!(
                "{} after {silence:?} of {:?}, should be {expected}",
                sight.liveness, told.ttl
            )
        })?;
        let is_due = silence >= told.ttl + self.plan.options.retention;
        // Forgotten while another who lives has its id, it would take that one out of sight.
        let mercy = told.ttl + self.plan.options.retention;
        let was_degraded = self
            .restored
            .is_some_and(|since| listened.saturating_sub(since) < mercy);
        let may_stay = !is_due || self.degraded.is_some() || was_degraded || sight.contended;
        must(may_stay || !self.just_swept, Rule::DeadIsLost, place, || {
            format!("still kept after {silence:?}")
        })?;
        self.is_conflict_true(place, listened, &sight)?;
        self.slots[place].contended = sight.contended;
        self.slots[place].whole = sight.whole;
        self.as_announced(place, Some(sight))
    }

    /// After a sweep subscribers know what readers see.
    fn as_announced(&self, place: usize, sight: Option<Sight>) -> Result<(), Broken> {
        if !self.just_swept {
            return Ok(());
        }
        let heard = self.slots[place].heard.map(|heard| (heard.liveness, heard.contended));
        let seen = sight.map(|sight| (sight.liveness, sight.contended));
        must(heard == seen, Rule::EventsTellAll, place, || {
            format!("subscribers know {heard:?}, readers see {seen:?}")
        })
    }

    /// No conflict is shown without a second sender that lived at the same time and was heard of within the TTL. What was
    /// under way for longer than the documented grace cannot be told from one.
    fn is_conflict_true(&self, place: usize, listened: Duration, sight: &Sight) -> Result<(), Broken> {
        let slot = &self.slots[place];
        let Some(told) = slot.told.filter(|_| sight.contended) else {
            return Ok(());
        };
        let is_recent = |heard: Option<Duration>| heard.is_some_and(|heard| listened.saturating_sub(heard) < told.ttl);
        must(
            is_recent(slot.rival) || is_recent(slot.stray),
            Rule::ConflictIsShown,
            place,
            || format!("a conflict is shown with {sight:?}, and there is no second sender"),
        )
    }

    /// Whoever has been heard well for two intervals is shown so.
    pub(crate) fn converged(&self, ground: &Ground, now: Time, place: usize) -> Result<(), Broken> {
        let bound = |process: usize| {
            let interval = ground.processes[process].interval.max(self.plan.pace.interval);
            interval * 2 + self.plan.network.delay.1 * 2 + Duration::from_secs(2)
        };
        let has_been = |since: Option<Time>, bound: Duration| since.is_some_and(|since| now - since >= bound);
        let well = |it: &usize| has_been(ground.heard_since(*it), bound(*it));
        let Some(best) = ground
            .living(place)
            .filter(well)
            .max_by_key(|it| ground.processes[*it].incarnation)
        else {
            return Ok(());
        };
        let slot = &self.slots[place];
        self.is_best_shown(ground, now, place, best, bound(best))?;
        let Some(told) = slot.told else { return Ok(()) };
        let is_crowded = Self::is_crowded(ground, place, now, told.ttl);
        let both = |it: &usize| has_been(ground.heard_since(*it), bound(*it) * 2 + self.grace());
        let is_contended = !is_crowded && ground.living(place).filter(both).count() > 1;
        must(slot.contended || !is_contended, Rule::ConflictIsShown, place, || {
            "two senders have lived under this id for long, and no conflict is shown".to_owned()
        })?;
        let is_new = self.listening.total.saturating_sub(told.came) < bound(best);
        if told.process != best || is_crowded || is_new {
            return Ok(());
        }
        let can_be_called = self.plan.calls_back && has_been(ground.callable_since(best), bound(best));
        must(
            !can_be_called || told.unreachable.is_none(),
            Rule::Converges,
            place,
            || format!("process {best} can be called back, and is shown as unreachable"),
        )?;
        let is_whole = slot.whole || !has_been(ground.answered_since(best), bound(best));
        must(is_whole, Rule::Converges, place, || {
            format!("process {best} was not asked for the full description")
        })
    }

    /// The living sender with the highest incarnation is the member, unless another was heard of within the TTL. One that is
    /// taken for gone says that it lives under a newer incarnation, if the queen's answers reach it.
    fn is_best_shown(
        &self,
        ground: &Ground,
        now: Time,
        place: usize,
        best: usize,
        bound: Duration,
    ) -> Result<(), Broken> {
        let (slot, listened) = (&self.slots[place], self.listening.total);
        let can_refute = ground.answered_since(best).is_some_and(|since| now - since >= bound);
        let is_fresh = |grave: Option<Grave>| grave.is_some_and(|grave| listened.saturating_sub(grave.dug) < bound);
        let is_renewed = now - ground.processes[best].renewed < bound;
        let is_recent = |told: &Told| is_renewed || listened.saturating_sub(told.came) < bound;
        let is_shown = match slot.told {
            None => !can_refute || is_fresh(slot.grave),
            Some(told) if told.process == best => self.silence(&told, listened) < told.ttl,
            // Of several that lived beside one that died, any may be heard first.
            Some(told) if is_recent(&told) || !can_refute => true,
            Some(told) => {
                told.order.0 >= ground.processes[best].incarnation && self.silence(&told, listened) < told.ttl + bound
            }
        };
        must(is_shown, Rule::Converges, place, || {
            format!(
                "process {best} beats without hindrance, shown is {:?}, left has {:?}",
                slot.told, slot.grave
            )
        })
    }
}
