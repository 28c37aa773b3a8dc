//! The sweep: announces who was lost, forgets who has been lost for long, and notices when too many are.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared_contract::HeartbeatItem;

use crate::{LeaveReason, Liveness, Member, Registry, Report, preservation::Place, sharded::lock};

/// What a sweep found.
#[derive(Debug)]
pub struct Cleanup<T: HeartbeatItem> {
    /// Lost since the last sweep.
    pub lost: Vec<Arc<Member<T>>>,
    /// Forgotten by this sweep.
    pub removed: Vec<Arc<Member<T>>>,
    /// Would have been forgotten, were the view not in doubt.
    pub held_back: usize,
}

impl<T: HeartbeatItem> Registry<T> {
    /// Announces who was lost since the last sweep, and forgets who has been lost for longer than the retention, unless too
    /// many fell silent at once. Decides nothing about liveness: that is asked of the member.
    ///
    /// `in_doubt`: the receiver has another reason to doubt its view, such as the silence of another kind of members, and
    /// nothing is forgotten either.
    ///
    /// Also tells the registry that its receiver runs: to be called by one task, well within
    /// [`longest_pause`](crate::RegistryOptions::longest_pause).
    pub fn cleanup_stale(&self, now: Instant, in_doubt: bool) -> Cleanup<T> {
        self.clock.tick(now);
        let listened = self.clock.at(now);
        let mut tally = lock(&self.preservation).tally(listened);
        let mut noteworthy = Vec::new();
        self.for_each(|member| {
            let report = member.report.load();
            let lost_for = lost_for(&report, listened);
            tally.add(lost_for, report.pace.ttl);
            if lost_for.is_some() || report.rival.is_some() {
                noteworthy.push(Arc::clone(member));
            }
        });
        let mut preservation = lock(&self.preservation);
        preservation.conclude(&tally, || self.places(listened), now);
        let is_preserving = preservation.blocks(listened) || in_doubt;
        drop(preservation);
        let mut cleanup = Cleanup {
            lost: Vec::new(),
            removed: Vec::new(),
            held_back: 0,
        };
        for member in noteworthy {
            self.sweep_one(&member, now, is_preserving, &mut cleanup);
        }
        self.tombstones.forget(listened, self.options.tombstones);
        cleanup
    }

    fn places(&self, listened: Duration) -> Vec<Place> {
        let mut places = Vec::with_capacity(self.count_total());
        self.for_each(|member| {
            let report = member.report.load();
            places.push((report.peer, lost_for(&report, listened), report.pace.ttl));
        });
        places
    }

    fn sweep_one(&self, member: &Arc<Member<T>>, now: Instant, is_preserving: bool, cleanup: &mut Cleanup<T>) {
        let gone = lock(&member.gone);
        if *gone {
            return;
        }
        let listened = self.clock.at(now);
        let report = member.report();
        if report.rival.is_some() && !report.has_live_rival(listened) {
            let alone = Report {
                rival: None,
                ..Report::clone(&report)
            };
            self.store(member, alone, listened);
        }
        let report = member.report();
        if report.liveness(listened) != Liveness::Lost {
            return;
        }
        if report.announced != Liveness::Lost {
            self.announce(member, Report::clone(&report), Liveness::Lost);
            cleanup.lost.push(Arc::clone(member));
        }
        let is_due = report.silence(listened) >= report.pace.ttl + self.options.retention;
        if !is_due {
            return;
        }
        if is_preserving {
            cleanup.held_back += 1;
        } else {
            self.leave(member, gone, LeaveReason::Lost, now);
            cleanup.removed.push(Arc::clone(member));
        }
    }
}

/// How long a member has been lost, in listening time; `None` if it is not.
fn lost_for<T>(report: &Report<T>, listened: Duration) -> Option<Duration> {
    report.silence(listened).checked_sub(report.pace.ttl)
}
