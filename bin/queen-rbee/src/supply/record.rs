//! The last decisions, for people and for replay.

use std::collections::VecDeque;
use std::time::Instant;

use chrono::{DateTime, Utc};
use scheduler::{Decision, Problem};
use shared_contract::WorkerId;

use super::view::{DecisionOutcome, DecisionView, Trigger};
use crate::fleet::millis;

/// Decisions that are kept.
pub(crate) const MAX_DECISIONS: usize = 1_000;
/// Devices and workers that they may tell of together: those of a large fleet take much room.
const MAX_WEIGHT: usize = 200_000;

/// The last decisions, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Record {
    kept: VecDeque<Kept>,
    weight: usize,
    count: u64,
}

#[derive(Debug)]
struct Kept {
    view: DecisionView,
    made: Instant,
    weight: usize,
}

impl Record {
    /// Keeps a decision; answers with its number. One that says of a model once more that it goes nowhere, and of the same
    /// devices the same, is not kept again.
    pub(crate) fn keep(
        &mut self,
        trigger: Trigger,
        problem: Problem,
        decision: Decision,
        (now, wall): (Instant, DateTime<Utc>),
    ) -> u64 {
        let earlier = self
            .kept
            .iter()
            .rev()
            .find(|kept| kept.view.problem.model == problem.model);
        if let Some(earlier) = earlier
            && is_same_refusal(&earlier.view.decision, &decision)
        {
            return earlier.view.id;
        }
        self.count += 1;
        let outcome = match decision.choice {
            Some(_) => DecisionOutcome::UnderWay,
            None => DecisionOutcome::Nowhere,
        };
        let weight = weight(&problem);
        self.kept.push_back(Kept {
            view: DecisionView {
                id: self.count,
                timestamp: wall,
                trigger,
                problem,
                decision,
                outcome,
            },
            made: now,
            weight,
        });
        self.weight += weight;
        // The newest is kept, however much it tells.
        while self.kept.len() > MAX_DECISIONS || (self.weight > MAX_WEIGHT && self.kept.len() > 1) {
            let oldest = self.kept.pop_front();
            self.weight -= oldest.map_or(0, |oldest| oldest.weight);
        }
        self.count
    }

    /// The worker of a decision is there.
    pub(crate) fn ready(&mut self, id: u64, worker: WorkerId, now: Instant) {
        if let Some(kept) = self.find(id) {
            let after_ms = millis(now.saturating_duration_since(kept.made));
            kept.view.outcome = DecisionOutcome::Ready { worker, after_ms };
        }
    }

    /// Nothing came of a decision.
    pub(crate) fn over(&mut self, id: u64, outcome: DecisionOutcome) {
        if let Some(kept) = self.find(id) {
            kept.view.outcome = outcome;
        }
    }

    /// The newest first.
    pub(crate) fn list(&self, limit: usize) -> Vec<DecisionView> {
        self.kept
            .iter()
            .rev()
            .take(limit)
            .map(|kept| kept.view.clone())
            .collect()
    }

    fn find(&mut self, id: u64) -> Option<&mut Kept> {
        self.kept.iter_mut().rev().find(|kept| kept.view.id == id)
    }
}

fn weight(problem: &Problem) -> usize {
    let of_host = |host: &scheduler::Host| {
        let devices = host.devices.iter();
        1 + devices.map(|device| 2 + device.tenants.len()).sum::<usize>()
    };
    problem.hosts.iter().map(of_host).sum()
}

/// Whether both say no, and of the same devices for the same kind of reason; figures change all the time.
fn is_same_refusal(one: &Decision, other: &Decision) -> bool {
    let kinds = |decision: &Decision| -> Vec<(String, String, std::mem::Discriminant<scheduler::Outcome>)> {
        let verdicts = decision.verdicts.iter();
        verdicts
            .map(|it| (it.host.clone(), it.device.clone(), std::mem::discriminant(&it.outcome)))
            .collect()
    };
    one.choice.is_none() && other.choice.is_none() && kinds(one) == kinds(other)
}

#[cfg(test)]
mod tests {
    use scheduler::{Device, Host, ModelNeed, Need, Strategy};

    use super::*;

    fn problem(model: &str, hosts: usize, free_bytes: u64) -> Problem {
        let block = std::num::NonZeroU64::new(32).unwrap();
        let need = Need::new(1 << 30, 0, block, 4096, None);
        let device = Device {
            id: "cpu".into(),
            is_gpu: false,
            total_bytes: 8 << 30,
            free_bytes,
            closed: None,
            tenants: Vec::new(),
        };
        let host = |number| Host {
            id: format!("h{number}"),
            closed: None,
            has_file: false,
            devices: vec![device.clone()],
        };
        Problem {
            model: model.into(),
            need: ModelNeed { cpu: need, gpu: need },
            strategy: Strategy::Spread,
            may_evict: true,
            hosts: (0..hosts).map(host).collect(),
        }
    }

    fn keep(record: &mut Record, problem: Problem) -> u64 {
        let decision = scheduler::decide(&problem);
        let trigger = Trigger::Demand { waiting: 1 };
        record.keep(trigger, problem, decision, (Instant::now(), DateTime::UNIX_EPOCH))
    }

    #[test]
    fn a_decision_can_be_made_again_from_its_record_and_shows_what_came_of_it() {
        let mut record = Record::default();
        let id = keep(&mut record, problem("m", 2, 4 << 30));
        record.ready(id, WorkerId::new("w").unwrap(), Instant::now());
        let kept = record.list(10).remove(0);
        assert_eq!(scheduler::decide(&kept.problem), kept.decision);
        assert!(matches!(kept.outcome, DecisionOutcome::Ready { .. }));
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<DecisionView>(&text).unwrap(), kept);
    }

    #[test]
    fn a_refusal_that_is_repeated_is_kept_once() {
        let mut record = Record::default();
        assert_eq!(keep(&mut record, problem("m", 1, 1)), 1);
        assert_eq!(keep(&mut record, problem("m", 1, 2)), 1);
        assert_eq!(keep(&mut record, problem("n", 1, 2)), 2);
        assert_eq!(keep(&mut record, problem("m", 2, 2)), 3, "there is another device");
        assert_eq!(record.list(2).len(), 2);
    }

    #[test]
    fn the_record_is_bounded_in_number_and_in_size() {
        let mut record = Record::default();
        for _ in 0..MAX_DECISIONS + 5 {
            keep(&mut record, problem("m", 1, 4 << 30));
        }
        assert_eq!(record.list(usize::MAX).len(), MAX_DECISIONS);
        assert_eq!(record.list(1)[0].id, MAX_DECISIONS as u64 + 5);
        for _ in 0..5 {
            keep(&mut record, problem("m", MAX_WEIGHT / 4, 4 << 30));
        }
        assert_eq!(record.list(usize::MAX).len(), 1);
    }
}
