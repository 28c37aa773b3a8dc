//! A worker as the scheduler sees it.

use std::sync::Arc;

use heartbeat_registry::{Liveness, Member, Report};
use scheduler::{Candidate, Record, Standing};
use shared_contract::HeartbeatItem;
use worker_contract::WorkerHeartbeat;

/// A worker as a member of the fleet.
pub(crate) type Worker = Arc<Member<WorkerHeartbeat>>;

/// Takes no request: a place beyond a list's end, or a worker that the request is not for.
pub(crate) const NOBODY: Candidate = Candidate {
    standing: Standing::Lost,
    slots: 0,
    reported: 0,
    leases_at_report: 0,
    leases: 0,
    tried: true,
    record: Record::UNKNOWN,
};

/// A worker as the scheduler sees it, by what it says and by the requests that it has of this queen.
pub fn candidate(report: &Report<WorkerHeartbeat>, liveness: Liveness, leases: u32) -> Candidate {
    let WorkerHeartbeat { worker, load, .. } = &report.item;
    let standing = match liveness {
        Liveness::Lost => Standing::Lost,
        _ if !report.item.is_available() => Standing::NotReady,
        Liveness::Suspect => Standing::Suspect,
        Liveness::Unreachable => Standing::Unreachable,
        Liveness::Online => Standing::Ready,
    };
    Candidate {
        standing,
        slots: worker.slots,
        reported: load.running.saturating_add(load.waiting),
        leases_at_report: report.outstanding,
        leases,
        tried: false,
        record: Record::UNKNOWN,
    }
}
