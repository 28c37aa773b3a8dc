//! The registry of one kind of members: what it holds, who asks it, and what is noted of a member besides its beats.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use shared_contract::{HeartbeatItem, ModelId, timing};
use tokio::sync::broadcast;

use crate::{
    About, Departed, EventKind, Evidence, LeaveReason, Liveness, Member, MemberView, Members, Preservation, Reach,
    RegistryEvent, Report,
    clock::Clock,
    model_index::ModelIndex,
    preservation::Guard,
    record::Order,
    sharded::{ShardedMap, lock},
    tombstones::Tombstones,
};

/// An insert copies one shard: 400 pointers with 100,000 members.
const SHARDS: usize = 256;

/// Settings of a registry.
#[derive(Debug, Clone, Copy)]
pub struct RegistryOptions {
    /// A member lost for this long is forgotten.
    pub retention: Duration,
    /// For this long a member that has left is not brought back by its old beats.
    pub tombstones: Duration,
    /// Mass silence is believed after this long.
    pub preservation: Duration,
    /// The most that a beat can be under way: what comes later from where a member was before was sent by somebody else.
    pub conflict_grace: Duration,
    /// Where no sweep comes for longer than this, the receiver was not running, and the time beyond is not counted against
    /// anybody. `Duration::MAX`: all time counts.
    pub longest_pause: Duration,
    /// Events kept for a slow subscriber before it misses the oldest.
    pub event_capacity: usize,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3_600);
        Self {
            retention: Duration::from_secs(600),
            tombstones: day,
            preservation: day,
            conflict_grace: timing::HEARTBEAT_TIMEOUT,
            longest_pause: Duration::MAX,
            event_capacity: 1_024,
        }
    }
}

/// The members of one kind. All methods take `&self`; share it in an `Arc`.
///
/// Wherever `now` is passed in, it is the receiver's monotonic clock.
pub struct Registry<T: HeartbeatItem> {
    pub(crate) options: RegistryOptions,
    pub(crate) clock: Arc<Clock>,
    pub(crate) members: ShardedMap<T::Id, Arc<Member<T>>>,
    pub(crate) index: ModelIndex<T>,
    pub(crate) tombstones: Tombstones<T::Id>,
    pub(crate) preservation: Mutex<Guard>,
    events: broadcast::Sender<RegistryEvent<T>>,
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
            clock: Arc::new(Clock::new(options.longest_pause)),
            members: ShardedMap::new(SHARDS),
            index: ModelIndex::new(),
            tombstones: Tombstones::new(),
            preservation: Mutex::new(Guard::new(options.preservation)),
            events: broadcast::Sender::new(options.event_capacity.max(1)),
            options,
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

    /// Calls `visit` with each member, in no order and without a copy of them all.
    pub fn for_each(&self, mut visit: impl FnMut(&Arc<Member<T>>)) {
        self.members.for_each(|_, member| visit(member));
    }

    /// How many members there are, the lost ones too. Costs the same however many.
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

    /// Mass silence, as of the last sweep: nothing is forgotten while it lasts.
    pub fn preservation(&self) -> Option<Preservation> {
        lock(&self.preservation).shown()
    }

    /// Whether nothing may be forgotten: there is mass silence, or it has just ended and not everybody has had a turn.
    pub fn holds_back(&self, now: Instant) -> bool {
        lock(&self.preservation).blocks(self.clock.at(now))
    }

    /// Who has left, the newest first, at most `limit` of them.
    pub fn departed(&self, limit: usize) -> Vec<Departed<T::Id>> {
        self.tombstones.list(limit)
    }

    /// Follows what happens from now on. A subscriber that lags misses the oldest events and is told so: it should then
    /// subscribe again and take [`list_all`](Self::list_all) after that.
    pub fn subscribe(&self) -> broadcast::Receiver<RegistryEvent<T>> {
        self.events.subscribe()
    }

    /// Notes fast evidence against an online member, seen at `now`. Its next beat clears it, or a fresh answer. False if
    /// nothing changed: no such member, not online, another process by now, or a beat has come since.
    pub fn mark_suspect(&self, id: &T::Id, about: &About, reason: impl Into<Arc<str>>, now: Instant) -> bool {
        self.note(id, now, |report, liveness| {
            if liveness != Liveness::Online || !report.is_about(about) || now < report.last_seen {
                return None;
            }
            let suspicion = Some(Evidence {
                reason: reason.into(),
                since: now,
            });
            Some(Report {
                suspicion,
                ..Report::clone(report)
            })
        })
    }

    /// The member answered: whatever spoke against it before it was asked is cleared. False if nothing changed; so, too, if it
    /// is another process by now.
    pub fn mark_reached(&self, id: &T::Id, about: &About, now: Instant) -> bool {
        self.note(id, now, |report, liveness| {
            let is_fresh = |evidence: &Evidence| evidence.since <= about.asked;
            let is_refuted = report.suspicion.as_ref().is_none_or(is_fresh)
                && match &report.reach {
                    Reach::Unreachable(evidence) => is_fresh(evidence),
                    Reach::Unknown | Reach::Reached => true,
                };
            let is_known = report.reach == Reach::Reached && report.suspicion.is_none();
            // Silence is not refuted by an answer: whoever is lost is called back when it beats again.
            if !report.is_about(about) || !is_refuted || is_known || liveness == Liveness::Lost {
                return None;
            }
            let is_back = liveness != Liveness::Online;
            Some(Report {
                suspicion: None,
                reach: Reach::Reached,
                online_since: if is_back { now } else { report.online_since },
                ..Report::clone(report)
            })
        })
    }

    /// The member did not answer when it was called back. An answer clears it, a beat does not. False if nothing changed; so,
    /// too, if it is another process by now.
    pub fn mark_unreachable(&self, id: &T::Id, about: &About, reason: impl Into<Arc<str>>, now: Instant) -> bool {
        self.note(id, now, |report, liveness| {
            if !report.is_about(about) || liveness == Liveness::Lost {
                return None;
            }
            let since = match &report.reach {
                Reach::Unreachable(evidence) => evidence.since,
                Reach::Unknown | Reach::Reached => now,
            };
            let reach = Reach::Unreachable(Evidence {
                reason: reason.into(),
                since,
            });
            (report.reach != reach).then(|| Report {
                reach,
                ..Report::clone(report)
            })
        })
    }

    /// Publishes what `change` makes of a member's report and tells the subscribers if its liveness is another by that.
    fn note(
        &self,
        id: &T::Id,
        now: Instant,
        change: impl FnOnce(&Arc<Report<T>>, Liveness) -> Option<Report<T>>,
    ) -> bool {
        let Some(member) = self.get(id) else { return false };
        let gone = lock(&member.gone);
        if *gone {
            return false;
        }
        let listened = self.clock.at(now);
        let report = member.report();
        let Some(next) = change(&report, report.liveness(listened)) else {
            return false;
        };
        let to = next.liveness(listened);
        if to == report.announced {
            member.report.store(Arc::new(next));
        } else {
            self.announce(&member, next, to);
        }
        true
    }

    /// The member's process is known to have ended: it leaves, and no beat of that incarnation brings it back. Should it live
    /// after all, it goes on under a newer one. `None` if it is no member, or another process by now.
    pub fn remove(&self, id: &T::Id, about: &About) -> Option<Arc<Member<T>>> {
        let member = self.get(id)?;
        let gone = lock(&member.gone);
        if *gone || !member.report.load().is_about(about) {
            return None;
        }
        self.leave(&member, gone, LeaveReason::Ended, about.asked);
        Some(member)
    }

    /// Publishes a report with a new liveness and tells the subscribers. The caller holds the member's lock.
    pub(crate) fn announce(&self, member: &Arc<Member<T>>, report: Report<T>, to: Liveness) {
        let from = report.announced;
        member.report.store(Arc::new(Report {
            announced: to,
            ..report
        }));
        self.emit(member, EventKind::StateChanged { from, to });
    }

    pub(crate) fn leave(
        &self,
        member: &Arc<Member<T>>,
        mut gone: MutexGuard<'_, bool>,
        reason: LeaveReason,
        now: Instant,
    ) {
        *gone = true;
        let mut last = Order::from(member.report.load().item.order());
        if reason == LeaveReason::Ended {
            // Beats that it had sent before may be under way.
            last.seq = u64::MAX;
        }
        self.tombstones.put(&member.id, last, reason, now, self.clock.at(now));
        // Before the name is free: its next bearer must find the index without it.
        self.index.place(member, None);
        self.members
            .remove(&member.id, || self.emit(member, EventKind::Left { reason }));
    }

    pub(crate) fn emit(&self, member: &Arc<Member<T>>, kind: EventKind) {
        // An error means that nobody listens.
        let _ = self.events.send(RegistryEvent {
            member: Arc::clone(member),
            report: member.report(),
            kind,
        });
    }
}
