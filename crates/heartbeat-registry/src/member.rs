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

use crate::{Address, Lease, Liveness, Suspicion, liveness};

/// What a member said last, and what its receiver noted. Never changes: each beat makes a new one.
#[derive(Debug)]
pub struct Report<T> {
    /// The newest item, brief beats merged into it.
    pub item: Arc<T>,
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
    pub suspicion: Option<Suspicion>,
    /// How far the sender's wall clock was ahead of ours at the newest beat, travel time included; negative if behind.
    pub skew_ms: i64,
    /// Beats recorded since it joined.
    pub beats: u64,
    /// Leases held when the newest beat came: so much of the load that it tells of may be ours.
    pub outstanding: u32,
    /// What subscribers were told last.
    pub(crate) announced: Liveness,
}

// Derived, it would demand the same of `T`.
impl<T> Clone for Report<T> {
    fn clone(&self) -> Self {
        Self {
            item: Arc::clone(&self.item),
            address: self.address.clone(),
            peer: self.peer,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            online_since: self.online_since,
            suspicion: self.suspicion.clone(),
            skew_ms: self.skew_ms,
            beats: self.beats,
            outstanding: self.outstanding,
            announced: self.announced,
        }
    }
}

impl<T> Report<T> {
    pub(crate) fn liveness(&self, now: Instant, ttl: Duration) -> Liveness {
        liveness(self.last_seen, self.suspicion.is_some(), now, ttl)
    }
}

/// A member as it is now; the same value for as long as it stays one.
pub struct Member<T: HeartbeatItem> {
    pub(crate) id: Arc<T::Id>,
    pub(crate) report: ArcSwap<Report<T>>,
    pub(crate) leases: AtomicU32,
    /// Taken by writers only. True once the member has left: whoever still holds it must look again.
    pub(crate) gone: Mutex<bool>,
    ttl: Duration,
}

impl<T: HeartbeatItem> fmt::Debug for Member<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({} {}, {} leases)", T::KIND, self.id, self.outstanding())
    }
}

impl<T: HeartbeatItem> Member<T> {
    pub(crate) fn new(report: Report<T>, ttl: Duration) -> Self {
        Self {
            id: Arc::new(report.item.id().clone()),
            report: ArcSwap::from_pointee(report),
            leases: AtomicU32::new(0),
            gone: Mutex::new(false),
            ttl,
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
        self.report.load().liveness(now, self.ttl)
    }

    /// Whether it beats and nothing speaks against it.
    pub fn is_online(&self, now: Instant) -> bool {
        self.liveness(now) == Liveness::Online
    }

    /// Whether it is online and says that it takes work.
    pub fn is_available(&self, now: Instant) -> bool {
        let report = self.report.load();
        report.liveness(now, self.ttl) == Liveness::Online && report.item.is_available()
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
        let report = self.report();
        let liveness = report.liveness(now, self.ttl);
        let since = match (liveness, &report.suspicion) {
            (Liveness::Lost, _) => report.last_seen + self.ttl,
            (Liveness::Suspect, Some(suspicion)) => suspicion.since,
            _ => report.online_since,
        };
        MemberView {
            member: Arc::clone(self),
            liveness,
            since,
            outstanding: self.outstanding(),
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

    /// Age of the newest beat.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.report.last_seen)
    }
}
