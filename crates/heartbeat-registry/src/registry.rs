//! The registry of one kind of members.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use shared_contract::{HeartbeatItem, ModelId, timing};
use tokio::sync::broadcast;

use crate::{
    Address, Error, EventKind, LeaveReason, Liveness, Member, MemberView, Members, Outcome, Recorded, RegistryEvent,
    Report, Suspicion,
    model_index::ModelIndex,
    record::Order,
    sharded::{ShardedMap, lock},
    tombstones::Tombstones,
};

/// An insert copies one shard: 400 pointers with 100,000 members.
const SHARDS: usize = 256;

/// Settings of a registry.
#[derive(Debug, Clone, Copy)]
pub struct RegistryOptions {
    /// A member silent for this long is lost.
    pub ttl: Duration,
    /// A member lost for this long is forgotten; so is a goodbye.
    pub retention: Duration,
    /// Events kept for a slow subscriber before it misses the oldest.
    pub event_capacity: usize,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            ttl: timing::HEARTBEAT_TTL,
            retention: Duration::from_secs(600),
            event_capacity: 1_024,
        }
    }
}

/// The members of one kind. All methods take `&self`; share it in an `Arc`.
///
/// Wherever `now` is passed in, it is the receiver's monotonic clock.
pub struct Registry<T: HeartbeatItem> {
    options: RegistryOptions,
    members: ShardedMap<T::Id, Arc<Member<T>>>,
    index: ModelIndex<T>,
    tombstones: Tombstones<T::Id>,
    events: broadcast::Sender<RegistryEvent<T>>,
}

/// What a sweep found.
#[derive(Debug)]
pub struct Cleanup<T: HeartbeatItem> {
    /// Lost since the last sweep.
    pub lost: Vec<Arc<Member<T>>>,
    /// Forgotten by this sweep.
    pub removed: Vec<Arc<Member<T>>>,
}

/// A beat and the circumstances of its arrival.
struct Arrival<T> {
    item: Arc<T>,
    order: Order,
    peer: IpAddr,
    now: Instant,
    skew_ms: i64,
}

impl<T: HeartbeatItem> Arrival<T> {
    fn recorded(&self, outcome: Outcome) -> Recorded {
        let is_kept = !matches!(outcome, Outcome::Goodbye | Outcome::Stale);
        Recorded {
            outcome,
            want_full: is_kept && self.item.wants_full(),
        }
    }

    fn address(&self, previous: Option<&Report<T>>) -> Result<Address, Error> {
        let (host, port) = (self.item.host(), self.item.port());
        let is_same = |p: &&Report<T>| p.peer == self.peer && p.item.host() == host && p.item.port() == port;
        match previous.filter(is_same) {
            Some(previous) => Ok(previous.address.clone()),
            None => Address::resolve(host, self.peer, port),
        }
    }

    fn first_report(&self) -> Result<Report<T>, Error> {
        Ok(Report {
            item: Arc::clone(&self.item),
            address: self.address(None)?,
            peer: self.peer,
            first_seen: self.now,
            last_seen: self.now,
            online_since: self.now,
            suspicion: None,
            skew_ms: self.skew_ms,
            beats: 1,
            outstanding: 0,
            announced: Liveness::Online,
        })
    }

    fn next_report(&self, previous: &Report<T>, outstanding: u32, ttl: Duration) -> Result<Report<T>, Error> {
        let was_online = previous.liveness(self.now, ttl) == Liveness::Online;
        Ok(Report {
            item: Arc::clone(&self.item),
            address: self.address(Some(previous))?,
            peer: self.peer,
            first_seen: previous.first_seen,
            // Two threads may have read the clock in the other order.
            last_seen: previous.last_seen.max(self.now),
            online_since: if was_online { previous.online_since } else { self.now },
            suspicion: None,
            skew_ms: self.skew_ms,
            beats: previous.beats + 1,
            outstanding,
            announced: Liveness::Online,
        })
    }
}

impl<T: HeartbeatItem> fmt::Debug for Registry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("kind", &T::KIND)
            .field("members", &self.count_total())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<T: HeartbeatItem> Registry<T> {
    /// Empty.
    pub fn new(options: RegistryOptions) -> Self {
        Self {
            options,
            members: ShardedMap::new(SHARDS),
            index: ModelIndex::new(),
            tombstones: Tombstones::new(),
            events: broadcast::Sender::new(options.event_capacity.max(1)),
        }
    }

    /// Silence after which a member is lost.
    pub fn ttl(&self) -> Duration {
        self.options.ttl
    }

    /// Takes a beat that came from `peer`. `wall` is the receiver's wall clock and yields the skew gauge, nothing else.
    ///
    /// # Errors
    /// If the beat would be kept and names a host that is none.
    pub fn record(&self, item: T, peer: IpAddr, now: Instant, wall: DateTime<Utc>) -> Result<Recorded, Error> {
        let skew_ms = item.timestamp().signed_duration_since(wall).num_milliseconds();
        let order = item.order().into();
        let id = item.id().clone();
        let mut arrival = Arrival {
            item: Arc::new(item),
            order,
            peer,
            now,
            skew_ms,
        };
        loop {
            let recorded = match self.members.get(&id) {
                Some(member) => self.update(&member, &mut arrival)?,
                None => self.join(&arrival)?,
            };
            // None: it joined or left between the look-up and the lock.
            if let Some(recorded) = recorded {
                return Ok(recorded);
            }
        }
    }

    /// The member of this name.
    pub fn get(&self, id: &T::Id) -> Option<Arc<Member<T>>> {
        self.members.get(id)
    }

    /// The member of this name as it is at `now`.
    pub fn view(&self, id: &T::Id, now: Instant) -> Option<MemberView<T>> {
        Some(self.get(id)?.view(now))
    }

    /// Removes a member by hand. If it still beats, it joins again.
    pub fn remove(&self, id: &T::Id) -> Option<Arc<Member<T>>> {
        let member = self.get(id)?;
        let gone = lock(&member.gone);
        if *gone {
            return None;
        }
        self.leave(&member, gone, LeaveReason::Removed);
        Some(member)
    }

    /// All members, the lost ones too, in the order of their ids.
    pub fn list_all(&self, now: Instant) -> Vec<MemberView<T>> {
        self.list(now, |_| true)
    }

    /// The members that beat and that nothing speaks against, in the order of their ids.
    pub fn list_online(&self, now: Instant) -> Vec<MemberView<T>> {
        self.list(now, |view| view.liveness == Liveness::Online)
    }

    /// The online members that say that they take work, in the order of their ids.
    pub fn list_available(&self, now: Instant) -> Vec<MemberView<T>> {
        self.list(now, |view| {
            view.liveness == Liveness::Online && view.item().is_available()
        })
    }

    fn list(&self, now: Instant, keep: impl Fn(&MemberView<T>) -> bool) -> Vec<MemberView<T>> {
        let mut views = Vec::with_capacity(self.count_total());
        self.members
            .for_each(|_, member| views.extend(Some(member.view(now)).filter(&keep)));
        views.sort_unstable_by(|a, b| a.id().cmp(b.id()));
        views
    }

    /// How many members there are, the lost ones too.
    pub fn count_total(&self) -> usize {
        self.members.len()
    }

    /// How many members are online.
    pub fn count_online(&self, now: Instant) -> usize {
        let mut count = 0;
        self.members
            .for_each(|_, member| count += usize::from(member.is_online(now)));
        count
    }

    /// Whether there is an online member of this name.
    pub fn is_online(&self, id: &T::Id, now: Instant) -> bool {
        self.get(id).is_some_and(|member| member.is_online(now))
    }

    /// The members that serve a model, whatever their liveness: it is asked of each at the pick, so that no sweep needs to
    /// have come first. Costs the same for one member and for 100,000.
    pub fn find_by_model(&self, model: &ModelId) -> Members<T> {
        self.index.find(model)
    }

    /// The models that members name, lost ones too, sorted.
    pub fn models(&self) -> Vec<ModelId> {
        self.index.models()
    }

    /// Notes fast evidence against an online member, seen at `now`. The next beat or [`refute`](Self::refute) clears it.
    /// False if nothing changed: no such member, not online, or a beat has come since.
    pub fn mark_suspect(&self, id: &T::Id, reason: impl Into<Arc<str>>, now: Instant) -> bool {
        let Some(member) = self.get(id) else { return false };
        let gone = lock(&member.gone);
        let report = member.report();
        if *gone || now < report.last_seen || report.liveness(now, self.options.ttl) != Liveness::Online {
            return false;
        }
        let suspicion = Some(Suspicion {
            reason: reason.into(),
            since: now,
        });
        self.announce(
            &member,
            Report {
                suspicion,
                ..Report::clone(&report)
            },
            Liveness::Suspect,
        );
        true
    }

    /// The member gave a fresh answer: clears the evidence against it. False if nothing changed.
    pub fn refute(&self, id: &T::Id, now: Instant) -> bool {
        let Some(member) = self.get(id) else { return false };
        if member.liveness(now) != Liveness::Suspect {
            return false;
        }
        let gone = lock(&member.gone);
        let report = member.report();
        if *gone || report.liveness(now, self.options.ttl) != Liveness::Suspect {
            return false;
        }
        let cleared = Report {
            suspicion: None,
            online_since: now,
            ..Report::clone(&report)
        };
        self.announce(&member, cleared, Liveness::Online);
        true
    }

    /// Announces who was lost since the last sweep, and forgets who has been lost for longer than the retention. Decides
    /// nothing about liveness: that is asked of the member.
    pub fn cleanup_stale(&self, now: Instant) -> Cleanup<T> {
        let mut silent = Vec::new();
        self.members.for_each(|_, member| {
            if member.liveness(now) == Liveness::Lost {
                silent.push(Arc::clone(member));
            }
        });
        let mut cleanup = Cleanup {
            lost: Vec::new(),
            removed: Vec::new(),
        };
        for member in silent {
            let gone = lock(&member.gone);
            let report = member.report();
            if *gone || report.liveness(now, self.options.ttl) != Liveness::Lost {
                continue;
            }
            if report.announced != Liveness::Lost {
                self.announce(&member, Report::clone(&report), Liveness::Lost);
                cleanup.lost.push(Arc::clone(&member));
            }
            if now.saturating_duration_since(report.last_seen) >= self.options.ttl + self.options.retention {
                self.leave(&member, gone, LeaveReason::Lost);
                cleanup.removed.push(Arc::clone(&member));
            }
        }
        self.tombstones.forget(now, self.options.retention);
        cleanup
    }

    /// Follows what happens from now on. A subscriber that lags misses the oldest events and is told so: it should then
    /// subscribe again and take [`list_all`](Self::list_all) after that.
    pub fn subscribe(&self) -> broadcast::Receiver<RegistryEvent<T>> {
        self.events.subscribe()
    }

    /// Takes the beat of a sender that is no member. `None` if it has become one meanwhile.
    fn join(&self, arrival: &Arrival<T>) -> Result<Option<Recorded>, Error> {
        if self.tombstones.holds_back(arrival.item.id(), arrival.order) {
            return Ok(Some(arrival.recorded(Outcome::Stale)));
        }
        if arrival.item.is_goodbye() {
            return Ok(Some(arrival.recorded(Outcome::Goodbye)));
        }
        let member = Arc::new(Member::new(arrival.first_report()?, self.options.ttl));
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
        self.emit(&member, EventKind::Beat);
        drop(gone);
        Ok(Some(arrival.recorded(Outcome::New)))
    }

    /// Takes the beat of a member. `None` if it has left meanwhile.
    fn update(&self, member: &Arc<Member<T>>, arrival: &mut Arrival<T>) -> Result<Option<Recorded>, Error> {
        let gone = lock(&member.gone);
        if *gone {
            return Ok(None);
        }
        let previous = member.report();
        let last = Order::from(previous.item.order());
        if arrival.order.is_stale_after(last) {
            return Ok(Some(arrival.recorded(Outcome::Stale)));
        }
        let is_same_run = arrival.order.incarnation == last.incarnation;
        if is_same_run {
            Arc::make_mut(&mut arrival.item).inherit(&previous.item);
        }
        let next = arrival.next_report(&previous, member.outstanding(), self.options.ttl)?;
        if arrival.item.is_goodbye() {
            member.report.store(Arc::new(next));
            self.leave(member, gone, LeaveReason::Goodbye);
            return Ok(Some(arrival.recorded(Outcome::Goodbye)));
        }
        let before = previous.liveness(arrival.now, self.options.ttl);
        if before != previous.announced {
            // It was lost, and no sweep came by to say so.
            self.announce(member, Report::clone(&previous), before);
        }
        if before == Liveness::Online {
            member.report.store(Arc::new(next));
        } else {
            self.announce(member, next, Liveness::Online);
        }
        if previous.item.model() != arrival.item.model() {
            self.index.place(member, arrival.item.model());
        }
        if !is_same_run {
            self.emit(member, EventKind::Restarted);
        }
        self.emit(member, EventKind::Beat);
        Ok(Some(arrival.recorded(if is_same_run {
            Outcome::Updated
        } else {
            Outcome::Restarted
        })))
    }

    /// Publishes a report with a new liveness and tells the subscribers. The caller holds the member's lock.
    fn announce(&self, member: &Arc<Member<T>>, report: Report<T>, to: Liveness) {
        let from = member.report.load().announced;
        member.report.store(Arc::new(Report {
            announced: to,
            ..report
        }));
        self.emit(member, EventKind::StateChanged { from, to });
    }

    fn leave(&self, member: &Arc<Member<T>>, mut gone: MutexGuard<'_, bool>, reason: LeaveReason) {
        *gone = true;
        if reason == LeaveReason::Goodbye {
            let report = member.report();
            self.tombstones
                .put(&member.id, report.item.order().into(), report.last_seen);
        }
        // Before the name is free: its next bearer must find the index without it.
        self.index.place(member, None);
        self.members
            .remove(&member.id, || self.emit(member, EventKind::Left { reason }));
    }

    fn emit(&self, member: &Arc<Member<T>>, kind: EventKind) {
        // An error means that nobody listens.
        let _ = self.events.send(RegistryEvent {
            member: Arc::clone(member),
            report: member.report(),
            kind,
        });
    }
}
