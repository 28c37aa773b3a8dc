//! Two senders with one id: who keeps it, and when it is certain that there are two.
//!
//! A member may move: restart elsewhere, roam, or have several addresses. Its beats are then in order, and what comes from
//! where it was is old and comes within the time that a beat can be under way. Anything else takes two live senders. The
//! holder of the id keeps it, the other one is shown beside it; so nothing flaps. A newer incarnation always takes over; once
//! the holder is silent or has left, the other one is told to go on under one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared_contract::{DropReason, HeartbeatItem};

use crate::{Address, Error, EventKind, Liveness, Member, Registry, Report, intake::Arrival, record::Order};

/// Swaps of the holder, each with an old beat from where it was before, that prove two senders: twins that were copied with
/// their sequence number overtake each other at every beat.
const PROOF: u8 = 2;

/// Another sender with a member's id, or where the member was before.
#[derive(Debug, Clone)]
pub(crate) struct Rival {
    contender: Contender,
    /// Listening time of its newest beat.
    heard: Duration,
    /// Swaps after which old beats came from there, and the newest of them, as the holder's settling time.
    doubts: (u8, Option<Duration>),
    /// It was heard of when it could no longer be the member's own past: there are two.
    is_proven: bool,
}

/// A second live sender with a member's id: two processes were given one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// Where to dial it.
    pub address: Address,
    /// Of its newest beat.
    pub incarnation: u64,
    /// When it was first heard of beside the member.
    pub since: Instant,
    /// Its newest beat.
    pub last_seen: Instant,
    /// Its beats since then; all were dropped.
    pub beats: u64,
}

impl Rival {
    fn is_live(&self, listened: Duration, ttl: Duration) -> bool {
        listened.saturating_sub(self.heard) < ttl
    }

    /// One more swap after which an old beat came from there.
    fn doubted(&self, settled: Duration) -> Self {
        let (swaps, newest) = self.doubts;
        let swaps = if newest == Some(settled) { swaps } else { swaps + 1 };
        Self {
            doubts: (swaps, Some(settled)),
            ..self.clone()
        }
    }
}

impl<T> Report<T> {
    /// Who was heard of within the TTL, proven or not.
    fn live_rival(&self, listened: Duration) -> Option<&Arc<Rival>> {
        self.rival
            .as_ref()
            .filter(|rival| rival.is_live(listened, self.pace.ttl))
    }

    /// The other live sender with its id.
    pub(crate) fn contender(&self, listened: Duration) -> Option<&Contender> {
        let rival = self.live_rival(listened).filter(|rival| rival.is_proven)?;
        Some(&rival.contender)
    }

    /// Whether one is kept that has not fallen silent, proven or not.
    pub(crate) fn has_live_rival(&self, listened: Duration) -> bool {
        self.live_rival(listened).is_some()
    }
}

/// Who else has the id after a beat of the member from this address. Where the member has moved, that is its former address:
/// should it be heard of from there again, there are two.
pub(crate) fn after_beat<T: HeartbeatItem>(
    previous: &Report<T>,
    address: &Address,
    at: Instant,
    heard: Duration,
) -> Option<Arc<Rival>> {
    let rival = previous.live_rival(heard);
    if *address == previous.address {
        return rival.cloned();
    }
    let swapped = rival.filter(|rival| rival.contender.address == *address);
    if let (Some(rival), None) = (rival.filter(|rival| rival.is_proven), swapped) {
        // A third address does not put the second out of sight.
        return Some(Arc::clone(rival));
    }
    let former = Rival {
        contender: Contender {
            address: previous.address.clone(),
            incarnation: previous.item.order().0,
            since: at,
            last_seen: previous.last_seen,
            beats: 0,
        },
        heard: previous.heard,
        doubts: swapped.map_or((0, None), |rival| rival.doubts),
        // Where it is known already that both live, they have changed places.
        is_proven: swapped.is_some_and(|rival| rival.is_proven),
    };
    former.is_live(heard, previous.pace.ttl).then(|| Arc::new(former))
}

impl<T: HeartbeatItem> Registry<T> {
    /// Why a beat is not taken for one of the member; `None` if it is. Notes a second live sender with its id.
    pub(crate) fn refuse(
        &self,
        member: &Arc<Member<T>>,
        previous: &Arc<Report<T>>,
        arrival: &Arrival<T>,
    ) -> Result<Option<DropReason>, Error> {
        let last = Order::from(previous.item.order());
        let stale = arrival.order.stale_after(last);
        let address = match (arrival.address(Some(previous)), stale) {
            (Ok(address), _) => address,
            // Whatever it says, it is dropped.
            (Err(_), Some(reason)) => return Ok(Some(reason)),
            (Err(error), None) => return Err(error),
        };
        let is_same_run = arrival.order.incarnation == last.incarnation;
        if previous.liveness(arrival.heard) == Liveness::Lost {
            // Whoever lives may have the id, under a newer incarnation: another sender, or this one, set back to an earlier
            // state.
            return Ok(stale.map(|_| DropReason::Departed));
        }
        if address == previous.address || (stale.is_none() && last.is_known() && !is_same_run) {
            return Ok(stale);
        }
        let known = previous
            .live_rival(arrival.heard)
            .filter(|rival| rival.contender.address == address);
        let is_proven = known.is_some_and(|known| known.is_proven);
        let is_late = arrival.heard.saturating_sub(previous.settled) > self.grace(previous);
        let reason = match (stale, known) {
            (Some(reason @ DropReason::OlderIncarnation), _) => reason,
            (Some(_), _) if is_late || is_proven => DropReason::Conflict,
            (Some(reason), Some(known)) => {
                return Ok(Some(self.doubt(member, previous, arrival, known, reason)));
            }
            (Some(reason), None) => reason,
            (None, _) if is_proven => DropReason::Conflict,
            // Without an order, whoever comes back after having moved is one of two.
            (None, Some(_)) if !arrival.order.is_known() && is_late => DropReason::Conflict,
            (None, Some(_)) if !arrival.order.is_known() => DropReason::Reordered,
            (None, _) => return Ok(None),
        };
        if is_late || is_proven {
            self.note_rival(member, previous, arrival, address);
        }
        Ok(Some(reason))
    }

    /// An old beat from where the member was a moment ago: it may have been under way, unless that happens at every swap.
    fn doubt(
        &self,
        member: &Arc<Member<T>>,
        previous: &Arc<Report<T>>,
        arrival: &Arrival<T>,
        known: &Rival,
        reason: DropReason,
    ) -> DropReason {
        let doubted = known.doubted(previous.settled);
        if doubted.doubts.0 >= PROOF {
            self.note_rival(member, previous, arrival, known.contender.address.clone());
            return DropReason::Conflict;
        }
        let doubted = Report {
            rival: Some(Arc::new(doubted)),
            ..Report::clone(previous)
        };
        self.store(member, doubted, arrival.heard);
        reason
    }

    /// Another sender with the member's id lives, or has just said goodbye.
    fn note_rival(&self, member: &Arc<Member<T>>, previous: &Arc<Report<T>>, arrival: &Arrival<T>, address: Address) {
        let contender = previous.contender(arrival.heard);
        let known = contender.filter(|contender| contender.address == address);
        if contender.is_some() && known.is_none() {
            // A third one; the second is still there to be shown.
            return;
        }
        let is_contended = !arrival.item.is_goodbye();
        let at = arrival.receipt.at;
        let rival = Rival {
            contender: Contender {
                address,
                incarnation: arrival.order.incarnation,
                since: known.map_or(at, |contender| contender.since),
                last_seen: at,
                beats: known.map_or(0, |contender| contender.beats) + 1,
            },
            heard: arrival.heard,
            doubts: (0, None),
            is_proven: true,
        };
        let noted = Report {
            rival: is_contended.then(|| Arc::new(rival)),
            ..Report::clone(previous)
        };
        self.store(member, noted, arrival.heard);
    }

    /// Stores a report that differs in its rival, and tells subscribers where that makes a conflict or ends one. The caller
    /// holds the member's lock.
    pub(crate) fn store(&self, member: &Arc<Member<T>>, report: Report<T>, listened: Duration) {
        let contended = report.contender(listened).is_some();
        let is_news = contended != report.contended;
        member.report.store(Arc::new(Report { contended, ..report }));
        if is_news {
            self.emit(member, EventKind::Contended { began: contended });
        }
    }

    /// The most that a beat of this sender can be under way: its request is given up after an interval.
    fn grace(&self, report: &Report<T>) -> Duration {
        self.options
            .conflict_grace
            .min(report.pace.interval.max(Duration::from_secs(1)))
    }
}
