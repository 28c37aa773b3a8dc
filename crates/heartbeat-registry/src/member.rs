//! One member: what it said last, what is known against it, and who has claimed it.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use shared_contract::HeartbeatItem;

use crate::{About, Address, Contender, Evidence, Lease, Liveness, Pace, Reach, clock::Clock, rivalry::Rival};

/// What a member said last, and what its receiver noted. Never changes: each beat makes a new one.
#[derive(Debug, Clone)]
pub struct Report<T> {
    /// The newest item, brief beats merged into it.
    pub item: T,
    /// Where to dial.
    pub address: Address,
    /// Where the beat came from.
    pub peer: IpAddr,
    /// The first beat since it joined.
    pub first_seen: Instant,
    /// The newest beat.
    pub last_seen: Instant,
    /// Since when it is online without a break; the start of the last such time if it is not online now.
    pub online_since: Instant,
    /// Evidence against it since the newest beat.
    pub suspicion: Option<Evidence>,
    /// Whether it can be reached at its address.
    pub reach: Reach,
    /// What the newest acknowledgement asked of it.
    pub pace: Pace,
    /// How far the sender's wall clock was ahead of ours at the newest beat, travel time included; negative if behind.
    pub skew_ms: i64,
    /// Beats recorded since it joined.
    pub beats: u64,
    /// Beats that should have come between those, and did not.
    pub missed: u64,
    /// Leases held when the newest beat came: so much of the load that it tells of may be ours.
    pub outstanding: u32,
    /// Listening time of the newest beat.
    pub(crate) heard: Duration,
    /// Listening time of the first beat of this incarnation from this address.
    pub(crate) settled: Duration,
    /// Who else has sent under its id, or did before it.
    pub(crate) rival: Option<Arc<Rival>>,
    /// What subscribers were told last.
    pub(crate) announced: Liveness,
    /// Whether subscribers were told that there is another live sender with its id.
    pub(crate) contended: bool,
}

impl<T: HeartbeatItem> Report<T> {
    /// The process that this report is of, asked at this moment.
    pub fn about(&self, asked: Instant) -> About {
        About {
            address: self.address.clone(),
            incarnation: self.item.order().0,
            asked,
        }
    }

    pub(crate) fn is_about(&self, about: &About) -> bool {
        self.address == about.address && self.item.order().0 == about.incarnation
    }
}

impl<T> Report<T> {
    /// Time since the newest beat, at a listening time.
    pub(crate) fn silence(&self, listened: Duration) -> Duration {
        listened.saturating_sub(self.heard)
    }

    /// Liveness at a listening time.
    pub(crate) fn liveness(&self, listened: Duration) -> Liveness {
        let is_silent = self.silence(listened) >= self.pace.ttl;
        Liveness::of(is_silent, &self.reach, self.suspicion.is_some())
    }
}

/// A member as it is now; the same value for as long as it stays one.
pub struct Member<T: HeartbeatItem> {
    pub(crate) id: Arc<T::Id>,
    pub(crate) report: ArcSwap<Report<T>>,
    pub(crate) leases: AtomicU32,
    /// Taken by writers only. True once the member has left: whoever still holds it must look again.
    pub(crate) gone: Mutex<bool>,
    clock: Arc<Clock>,
}

impl<T: HeartbeatItem> fmt::Debug for Member<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({} {}, {} leases)", T::KIND, self.id, self.outstanding())
    }
}

impl<T: HeartbeatItem> Member<T> {
    pub(crate) fn new(report: Report<T>, clock: Arc<Clock>) -> Self {
        Self {
            id: Arc::new(report.item.id().clone()),
            report: ArcSwap::from_pointee(report),
            leases: AtomicU32::new(0),
            gone: Mutex::new(false),
            clock,
        }
    }

    /// Its name.
    pub fn id(&self) -> &T::Id {
        &self.id
    }

    /// What it said last.
    pub fn report(&self) -> Arc<Report<T>> {
        self.report.load_full()
    }

    /// Whether it is there, at `now`.
    pub fn liveness(&self, now: Instant) -> Liveness {
        self.report.load().liveness(self.clock.at(now))
    }

    /// Whether it beats and nothing speaks against it.
    pub fn is_online(&self, now: Instant) -> bool {
        self.liveness(now) == Liveness::Online
    }

    /// Whether it is online and says that it takes work.
    pub fn is_available(&self, now: Instant) -> bool {
        let report = self.report.load();
        report.liveness(self.clock.at(now)) == Liveness::Online && report.item.is_available()
    }

    /// Leases held now.
    pub fn outstanding(&self) -> u32 {
        self.leases.load(Ordering::Relaxed)
    }

    /// Claims it for one request.
    pub fn claim(self: &Arc<Self>) -> Lease<T> {
        Lease::new(Arc::clone(self))
    }

    /// Everything about it at `now`, consistent in itself.
    pub fn view(self: &Arc<Self>, now: Instant) -> MemberView<T> {
        self.view_of(self.report(), now)
    }

    /// The same with one of its earlier reports, as an event carries it: what was known at the time, judged at `now`.
    pub fn view_of(self: &Arc<Self>, report: Arc<Report<T>>, now: Instant) -> MemberView<T> {
        let listened = self.clock.at(now);
        let silence = report.silence(listened);
        let liveness = report.liveness(listened);
        let since = match (liveness, &report.reach, &report.suspicion) {
            (Liveness::Lost, _, _) => now
                .checked_sub(silence.saturating_sub(report.pace.ttl))
                .unwrap_or(report.last_seen),
            (Liveness::Unreachable, Reach::Unreachable(evidence), _) | (Liveness::Suspect, _, Some(evidence)) => {
                evidence.since
            }
            _ => report.online_since,
        };
        MemberView {
            member: Arc::clone(self),
            liveness,
            since,
            outstanding: self.outstanding(),
            missed: report.missed + report.pace.missed(silence),
            contender: report.contender(listened).cloned(),
            report,
        }
    }
}

/// A member as it was at one moment.
#[derive(Debug)]
pub struct MemberView<T: HeartbeatItem> {
    /// The member itself.
    pub member: Arc<Member<T>>,
    /// What it had said last.
    pub report: Arc<Report<T>>,
    /// Whether it was there.
    pub liveness: Liveness,
    /// Since when that is so.
    pub since: Instant,
    /// Leases held.
    pub outstanding: u32,
    /// Beats that should have come since it joined, and did not.
    pub missed: u64,
    /// Another live sender with its id.
    pub contender: Option<Contender>,
}

// Derived, it would demand the same of `T`.
impl<T: HeartbeatItem> Clone for MemberView<T> {
    fn clone(&self) -> Self {
        Self {
            member: Arc::clone(&self.member),
            report: Arc::clone(&self.report),
            liveness: self.liveness,
            since: self.since,
            outstanding: self.outstanding,
            missed: self.missed,
            contender: self.contender.clone(),
        }
    }
}

impl<T: HeartbeatItem> MemberView<T> {
    /// Its name.
    pub fn id(&self) -> &T::Id {
        self.member.id()
    }

    /// The newest item.
    pub fn item(&self) -> &T {
        &self.report.item
    }

    /// Where to dial.
    pub fn address(&self) -> &Address {
        &self.report.address
    }

    /// Time since the newest beat.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.report.last_seen)
    }
}
