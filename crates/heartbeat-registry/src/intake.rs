//! The way of a beat into the registry.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use shared_contract::{DropReason, HeartbeatItem};

use crate::{
    Address, Error, EventKind, LeaveReason, Liveness, Member, Outcome, Reach, Receipt, Recorded, Registry, Report,
    record::Order, rivalry, sharded::lock,
};

/// A beat and the circumstances of its arrival.
pub(crate) struct Arrival<T> {
    pub(crate) item: T,
    pub(crate) order: Order,
    pub(crate) receipt: Receipt,
    /// Listening time of its arrival.
    pub(crate) heard: Duration,
    skew_ms: i64,
}

impl<T: HeartbeatItem> Arrival<T> {
    fn recorded(&self, outcome: Outcome, previous: Option<&Report<T>>) -> Recorded {
        let is_kept = !matches!(outcome, Outcome::Goodbye | Outcome::Dropped(_));
        let gap = previous.map(|previous| previous.silence(self.heard));
        Recorded {
            outcome,
            want_full: is_kept && self.item.wants_full(),
            known_incarnation: None,
            gap,
            missed: gap.zip(previous).map_or(0, |(gap, previous)| previous.pace.missed(gap)),
            skew_ms: self.skew_ms,
        }
    }

    fn dropped(&self, reason: DropReason) -> Recorded {
        self.recorded(Outcome::Dropped(reason), None)
    }

    /// Dropped, since its sender is taken for gone: one that lives goes on above the known incarnation.
    fn departed(&self, known_incarnation: u64) -> Recorded {
        Recorded {
            known_incarnation: Some(known_incarnation),
            ..self.dropped(DropReason::Departed)
        }
    }

    pub(crate) fn address(&self, previous: Option<&Report<T>>) -> Result<Address, Error> {
        let (host, port, peer) = (self.item.host(), self.item.port(), self.receipt.peer);
        let is_same = |p: &&Report<T>| p.peer == peer && p.item.host() == host && p.item.port() == port;
        match previous.filter(is_same) {
            Some(previous) => Ok(previous.address.clone()),
            None => Address::resolve(host, peer, port),
        }
    }

    fn first_report(&self) -> Result<Report<T>, Error> {
        let at = self.receipt.at;
        Ok(Report {
            item: self.item.clone(),
            address: self.address(None)?,
            peer: self.receipt.peer,
            first_seen: at,
            last_seen: at,
            online_since: at,
            suspicion: None,
            reach: Reach::Unknown,
            pace: self.receipt.pace,
            skew_ms: self.skew_ms,
            beats: 1,
            missed: 0,
            outstanding: 0,
            heard: self.heard,
            settled: self.heard,
            rival: None,
            announced: Liveness::Online,
            contended: false,
        })
    }

    /// The report after this beat of the member itself, from this address.
    fn next_report(self, previous: &Report<T>, address: Address, outstanding: u32) -> Report<T> {
        let at = self.receipt.at;
        let before = previous.liveness(self.heard);
        let is_settled = address == previous.address && self.order.incarnation == previous.item.order().0;
        let reach = match &previous.reach {
            // Whoever was suspected or lost should be called back; so should whoever is new at its address.
            _ if !is_settled || before == Liveness::Lost => Reach::Unknown,
            Reach::Reached if previous.suspicion.is_some() => Reach::Unknown,
            reach => reach.clone(),
        };
        let liveness = Liveness::of(false, &reach, false);
        let goes_on = before == Liveness::Online && liveness == Liveness::Online;
        Report {
            item: self.item,
            peer: self.receipt.peer,
            first_seen: previous.first_seen,
            // Two threads may have read the clock in the other order.
            last_seen: previous.last_seen.max(at),
            online_since: if goes_on || liveness != Liveness::Online {
                previous.online_since
            } else {
                at
            },
            suspicion: None,
            reach,
            pace: self.receipt.pace,
            skew_ms: self.skew_ms,
            beats: previous.beats + 1,
            missed: previous.missed + previous.pace.missed(previous.silence(self.heard)),
            outstanding,
            heard: previous.heard.max(self.heard),
            settled: if is_settled { previous.settled } else { self.heard },
            rival: rivalry::after_beat(previous, &address, at, self.heard),
            address,
            announced: previous.announced,
            contended: previous.contended,
        }
    }
}

impl<T: HeartbeatItem> Registry<T> {
    /// Takes a beat.
    ///
    /// # Errors
    /// If the beat would be kept and names a host that cannot be dialled.
    pub fn record(&self, item: T, receipt: Receipt) -> Result<Recorded, Error> {
        let arrival = Arrival {
            order: item.order().into(),
            heard: self.clock.at(receipt.at),
            skew_ms: (item.timestamp() - receipt.wall).num_milliseconds(),
            item,
            receipt,
        };
        loop {
            if let Some(member) = self.members.get(arrival.item.id()) {
                let gone = lock(&member.gone);
                // Otherwise it has left between the look-up and the lock.
                if !*gone {
                    return self.update(&member, gone, arrival);
                }
            } else if let Some(recorded) = self.join(&arrival)? {
                return Ok(recorded);
            }
        }
    }

    /// Takes the beat of a sender that is no member. `None` if it has become one meanwhile.
    fn join(&self, arrival: &Arrival<T>) -> Result<Option<Recorded>, Error> {
        let id = arrival.item.id();
        if let Some(known) = self.tombstones.hold_back(id, arrival.order) {
            return Ok(Some(arrival.departed(known)));
        }
        if arrival.item.is_goodbye() {
            // Its earlier beats may be under way.
            let (at, heard) = (arrival.receipt.at, arrival.heard);
            self.tombstones
                .put(&Arc::new(id.clone()), arrival.order, LeaveReason::Goodbye, at, heard);
            return Ok(Some(arrival.recorded(Outcome::Goodbye, None)));
        }
        let member = Arc::new(Member::new(arrival.first_report()?, Arc::clone(&self.clock)));
        // Held from before it can be found until all is said of its arrival, so that its next beat is told after that.
        let gone = lock(&member.gone);
        let (_, is_new) = self
            .members
            .get_or_insert(&member.id, || (Arc::clone(&member.id), Arc::clone(&member)));
        if !is_new {
            return Ok(None);
        }
        self.index.place(&member, arrival.item.model());
        self.emit(&member, EventKind::Joined);
        drop(gone);
        Ok(Some(arrival.recorded(Outcome::New, None)))
    }

    /// Takes the beat of a member.
    fn update(
        &self,
        member: &Arc<Member<T>>,
        gone: MutexGuard<'_, bool>,
        mut arrival: Arrival<T>,
    ) -> Result<Recorded, Error> {
        let previous = member.report();
        match self.refuse(member, &previous, &arrival)? {
            None => {}
            Some(DropReason::Departed) => return Ok(arrival.departed(previous.item.order().0)),
            // It may be the repetition that the sender gets the answer to: that says all that the first answer said.
            Some(reason @ (DropReason::Duplicate | DropReason::Reordered)) => {
                return Ok(Recorded {
                    want_full: previous.item.wants_full(),
                    ..arrival.dropped(reason)
                });
            }
            Some(reason) => return Ok(arrival.dropped(reason)),
        }
        let is_same_run = arrival.order.incarnation == previous.item.order().0;
        if is_same_run {
            arrival.item.inherit(&previous.item);
        }
        let address = arrival.address(Some(&previous))?;
        let outcome = match (arrival.item.is_goodbye(), is_same_run) {
            (true, _) => Outcome::Goodbye,
            (false, true) => Outcome::Updated,
            (false, false) => Outcome::Restarted,
        };
        let recorded = arrival.recorded(outcome, Some(&previous));
        let Receipt { at, .. } = arrival.receipt;
        let heard = arrival.heard;
        let next = arrival.next_report(&previous, address, member.outstanding());
        if outcome == Outcome::Goodbye {
            member.report.store(Arc::new(next));
            self.leave(member, gone, LeaveReason::Goodbye, at);
        } else {
            self.publish(member, &previous, next, heard);
        }
        Ok(recorded)
    }

    /// Publishes the report after a beat, and tells what has changed by it. The caller holds the member's lock.
    fn publish(&self, member: &Arc<Member<T>>, previous: &Arc<Report<T>>, next: Report<T>, heard: Duration) {
        let before = previous.liveness(heard);
        let mut next = next;
        if before != previous.announced {
            // It was lost, and no sweep came by to say so.
            self.announce(member, Report::clone(previous), before);
            next.announced = before;
        }
        let after = Liveness::of(false, &next.reach, false);
        let is_restart = next.item.order().0 != previous.item.order().0;
        let is_news = next.address != previous.address || next.item.is_news_after(&previous.item);
        next.contended = next.contender(heard).is_some();
        let contention = (next.contended != previous.contended).then_some(next.contended);
        let model = (previous.item.model() != next.item.model()).then(|| next.item.model().cloned());
        if after == next.announced {
            member.report.store(Arc::new(next));
        } else {
            self.announce(member, next, after);
        }
        if let Some(model) = model {
            self.index.place(member, model.as_ref());
        }
        if let Some(began) = contention {
            self.emit(member, EventKind::Contended { began });
        }
        if is_restart {
            self.emit(member, EventKind::Restarted);
        } else if is_news {
            self.emit(member, EventKind::Updated);
        }
    }
}
