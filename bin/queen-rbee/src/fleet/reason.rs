//! Why a member is not what it should be, in words.

use std::time::Instant;

use heartbeat_registry::{Liveness, MemberView, Preservation, Reach};
use hive_contract::HiveHeartbeat;
use router::candidate;
use shared_contract::{HealthStatus, HeartbeatItem, OperationalStatus};
use worker_contract::{WorkerHeartbeat, WorkerStatus};

/// Who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Whoever may see the fleet.
    Operators,
    /// Whoever may use its models: the addresses inside are not their business.
    Clients,
}

/// Why a worker would not take a request now; `None` if it would.
pub(crate) fn worker_reason(view: &MemberView<WorkerHeartbeat>, now: Instant, audience: Audience) -> Option<String> {
    if let Some(reason) = liveness_reason(view, now, audience) {
        return Some(reason);
    }
    let worker = &view.item().worker;
    let word = match worker.status {
        WorkerStatus::Ready | WorkerStatus::Busy => {
            let candidate = candidate(&view.report, view.liveness, view.outstanding);
            return (candidate.load() >= candidate.slots).then(|| match worker.slots {
                1 => "its one slot is taken".to_owned(),
                slots => format!("all {slots} slots are taken"),
            });
        }
        WorkerStatus::Starting => "starting",
        WorkerStatus::Draining => "draining",
        WorkerStatus::Stopped => "stopped",
        WorkerStatus::Failed => "failed",
    };
    let mut text = word.to_owned();
    if let Some(detail) = &worker.status_detail {
        if let Some(phase) = &detail.phase {
            text.push_str(&format!(", {phase}"));
        }
        if let Some(progress) = detail.progress {
            text.push_str(&format!(" {:.0} %", progress * 100.0));
        }
        if let Some(reason) = &detail.reason {
            text.push_str(&format!(": {reason}"));
        }
    }
    Some(text)
}

/// Why a hive would not take an order now; `None` if it would.
pub(crate) fn hive_reason(view: &MemberView<HiveHeartbeat>, now: Instant, audience: Audience) -> Option<String> {
    if let Some(reason) = liveness_reason(view, now, audience) {
        return Some(reason);
    }
    let hive = &view.item().hive;
    match (hive.operational_status, hive.health_status) {
        (OperationalStatus::Starting, _) => Some("starting".to_owned()),
        (OperationalStatus::Draining, _) => Some("draining".to_owned()),
        (OperationalStatus::Stopped, _) => Some("stopped".to_owned()),
        (OperationalStatus::Ready, HealthStatus::Unhealthy) => Some(match &hive.health_reason {
            Some(reason) => format!("unhealthy: {reason}"),
            None => "unhealthy".to_owned(),
        }),
        (OperationalStatus::Ready, HealthStatus::Healthy | HealthStatus::Degraded) => None,
    }
}

/// Why a member is not online; `None` if it is.
pub(crate) fn liveness_reason<T: HeartbeatItem>(
    view: &MemberView<T>,
    now: Instant,
    audience: Audience,
) -> Option<String> {
    let report = &view.report;
    match (view.liveness, &report.reach, &report.suspicion) {
        (Liveness::Online, _, _) => None,
        (Liveness::Suspect, _, Some(suspicion)) => Some(suspicion.reason.to_string()),
        (Liveness::Unreachable, Reach::Unreachable(evidence), _) => Some(match audience {
            Audience::Operators => format!(
                "cannot be reached from the queen at {}: {}",
                view.address(),
                evidence.reason
            ),
            Audience::Clients => format!("cannot be reached: {}", evidence.reason),
        }),
        (Liveness::Lost, _, _) => Some(format!("no heartbeat for {:.1} s", view.age(now).as_secs_f64())),
        (Liveness::Suspect | Liveness::Unreachable, _, _) => Some(view.liveness.to_string()),
    }
}

/// Who else uses a member's name, with both addresses; `None` if nobody does.
pub(super) fn conflict_reason<T: HeartbeatItem>(view: &MemberView<T>) -> Option<String> {
    let contender = view.contender.as_ref()?;
    Some(format!(
        "two live processes use the id {}: {} has it, and what {} says is dropped; give one of them another id",
        view.id(),
        view.address(),
        contender.address
    ))
}

/// Why the queen doubts what she sees of one kind.
pub(super) fn preservation_reason<T: HeartbeatItem>(preservation: &Preservation, now: Instant) -> String {
    let Preservation { since, silent, of } = *preservation;
    format!(
        "{silent} of {of} {}s fell silent together {:.0} s ago: rather a fault of the queen or her network than of all of \
         them, so none is forgotten until most are back",
        T::KIND,
        now.saturating_duration_since(since).as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_degraded_view_is_explained_in_numbers() {
        let now = Instant::now();
        let preservation = Preservation {
            since: now,
            silent: 3,
            of: 4,
        };
        let reason = preservation_reason::<WorkerHeartbeat>(&preservation, now + Duration::from_secs(12));
        assert!(
            reason.starts_with("3 of 4 workers fell silent together 12 s ago"),
            "{reason}"
        );
    }
}
