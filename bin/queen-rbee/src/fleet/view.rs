//! The shown fleet, made of what the registries hold.

use std::time::{Duration, Instant};

use heartbeat_registry::{Contender, Departed, Liveness, MemberView, Pace, Preservation, Registry};
use hive_contract::{HiveHeartbeat, ProcessStats};
use shared_contract::{HeartbeatItem, QueenId};
use worker_contract::WorkerHeartbeat;

use super::reason::{Audience, conflict_reason, hive_reason, preservation_reason, worker_reason};
use super::{ConflictView, Counts, GoneView, HiveView, QueenView, WorkerView};
use crate::registry::{HiveRegistry, WorkerRegistry};

/// Departed members that are shown.
const MAX_GONE: usize = 100;

impl QueenView {
    /// `pace` is what she asks for now; `workers` and `hives` tell whether she doubts what she sees.
    pub(crate) fn new(
        id: QueenId,
        uptime: Duration,
        pace: Pace,
        (workers, hives): (Option<Preservation>, Option<Preservation>),
        now: Instant,
    ) -> Self {
        let workers = workers.map(|it| preservation_reason::<WorkerHeartbeat>(&it, now));
        let hives = hives.map(|it| preservation_reason::<HiveHeartbeat>(&it, now));
        let reasons: Vec<String> = workers.into_iter().chain(hives).collect();
        Self {
            id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: millis(uptime),
            degraded_view: !reasons.is_empty(),
            degraded_reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
            interval_ms: millis(pace.interval),
            ttl_ms: millis(pace.ttl),
        }
    }
}

impl WorkerView {
    /// `process` is the worker's process, as its hive sees it.
    pub(crate) fn new(view: &MemberView<WorkerHeartbeat>, process: Option<ProcessStats>, now: Instant) -> Self {
        let WorkerHeartbeat { worker, load, .. } = view.item();
        let why_not = worker_reason(view, now, Audience::Operators);
        Self {
            id: worker.id.clone(),
            model_id: worker.model_id.clone(),
            device: worker.device.clone(),
            base_url: view.address().base_url().to_owned(),
            hive_id: worker.hive_id.clone(),
            status: worker.status,
            status_detail: worker.status_detail.clone(),
            liveness: view.liveness,
            ready: why_not.is_none(),
            reason: why_not.or_else(|| conflict_reason(view)),
            since_ms_ago: millis(now.saturating_duration_since(view.since)),
            last_beat_age_ms: millis(view.age(now)),
            clock_skew_ms: view.report.skew_ms,
            beats: view.report.beats,
            missed_beats: view.missed,
            conflict: view
                .contender
                .as_ref()
                .map(|contender| ConflictView::new(contender, now)),
            slots: worker.slots,
            context_length: worker.context_length,
            load: *load,
            leases: view.outstanding,
            incarnation: worker.incarnation,
            implementation: worker.implementation.clone(),
            version: worker.version.clone(),
            model_revision: worker.model_revision.clone(),
            pid: worker.pid,
            endpoints: worker.endpoints.clone(),
            process,
        }
    }
}

impl HiveView {
    /// `drained` is what an operator stated.
    pub(crate) fn new(view: &MemberView<HiveHeartbeat>, drained: bool, now: Instant) -> Self {
        let beat = view.item();
        let hive = &beat.hive;
        let why_not = hive_reason(view, now, Audience::Operators);
        Self {
            id: hive.id.clone(),
            base_url: view.address().base_url().to_owned(),
            operational_status: hive.operational_status,
            health_status: hive.health_status,
            health_reason: hive.health_reason.clone(),
            liveness: view.liveness,
            ready: why_not.is_none(),
            reason: why_not.or_else(|| conflict_reason(view)),
            since_ms_ago: millis(now.saturating_duration_since(view.since)),
            last_beat_age_ms: millis(view.age(now)),
            clock_skew_ms: view.report.skew_ms,
            beats: view.report.beats,
            missed_beats: view.missed,
            conflict: view
                .contender
                .as_ref()
                .map(|contender| ConflictView::new(contender, now)),
            version: hive.version.clone(),
            incarnation: hive.incarnation,
            monitor: beat.monitor.clone(),
            capabilities: beat.capabilities.clone(),
            workers: beat.workers.clone(),
            drained,
        }
    }
}

impl ConflictView {
    fn new(contender: &Contender, now: Instant) -> Self {
        Self {
            base_url: contender.address.base_url().to_owned(),
            incarnation: contender.incarnation,
            last_beat_age_ms: millis(now.saturating_duration_since(contender.last_seen)),
            beats: contender.beats,
        }
    }
}

impl Counts {
    /// Counts the members of one kind, without a list of them.
    pub(crate) fn of<T: HeartbeatItem>(members: &Registry<T>, now: Instant) -> Self {
        let mut counts = Self::default();
        members.for_each(|member| counts.add(&member.view(now)));
        counts
    }

    fn add<T: HeartbeatItem>(&mut self, view: &MemberView<T>) {
        self.total += 1;
        match view.liveness {
            Liveness::Online => {
                self.online += 1;
                self.ready += usize::from(view.item().is_available());
            }
            Liveness::Suspect => self.suspect += 1,
            Liveness::Unreachable => self.unreachable += 1,
            Liveness::Lost => self.lost += 1,
        }
        self.contended += usize::from(view.contender.is_some());
    }
}

/// Who has left either registry, the newest first.
pub(crate) fn gone(workers: &WorkerRegistry, hives: &HiveRegistry, now: Instant) -> Vec<GoneView> {
    let workers = workers
        .departed(MAX_GONE)
        .into_iter()
        .map(|it| gone_view::<WorkerHeartbeat>(&it, now));
    let hives = hives
        .departed(MAX_GONE)
        .into_iter()
        .map(|it| gone_view::<HiveHeartbeat>(&it, now));
    let mut gone: Vec<GoneView> = workers.chain(hives).collect();
    gone.sort_by_key(|gone| gone.ms_ago);
    gone.truncate(MAX_GONE);
    gone
}

fn gone_view<T: HeartbeatItem>(departed: &Departed<T::Id>, now: Instant) -> GoneView {
    GoneView {
        kind: T::KIND.to_owned(),
        id: departed.id.to_string(),
        reason: departed.reason,
        ms_ago: millis(now.saturating_duration_since(departed.at)),
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
