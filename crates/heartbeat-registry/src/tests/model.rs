//! The registry against a naive model of it: a list, scanned each time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use shared_contract::DropReason;

use super::probe::{Fixture, Probe, RETENTION, TOMBSTONES, TTL, id, model, probe};
use crate::{EventKind, Liveness, Outcome, RegistryOptions};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const MODELS: [&str; 3] = ["m0", "m1", "m2"];

#[derive(Debug, Clone)]
enum Step {
    Beat {
        who: usize,
        incarnation: u64,
        seq: u64,
        model: Option<usize>,
        goodbye: bool,
        available: bool,
    },
    Pass {
        seconds: u64,
    },
    Suspect {
        who: usize,
    },
    Refute {
        who: usize,
    },
    Unreachable {
        who: usize,
    },
    Sweep,
    Remove {
        who: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..NAMES.len();
    // Few values, so that duplicates, reordering and restarts are common.
    let beat = (
        who.clone(),
        0..4_u64,
        0..6_u64,
        proptest::option::weighted(0.8, 0..MODELS.len()),
        0..10_u8,
        any::<bool>(),
    )
        .prop_map(|(who, incarnation, seq, model, dice, available)| Step::Beat {
            who,
            incarnation,
            seq,
            model,
            goodbye: dice == 0,
            available,
        });
    prop_oneof![
        12 => beat,
        3 => (1..=100_u64).prop_map(|seconds| Step::Pass { seconds }),
        1 => (500..=1_500_u64).prop_map(|seconds| Step::Pass { seconds }),
        2 => who.clone().prop_map(|who| Step::Suspect { who }),
        1 => who.clone().prop_map(|who| Step::Refute { who }),
        1 => who.clone().prop_map(|who| Step::Unreachable { who }),
        2 => Just(Step::Sweep),
        1 => who.prop_map(|who| Step::Remove { who }),
    ]
}

/// What is known of one member.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    order: (u64, u64),
    model: Option<usize>,
    available: bool,
    last_seen: Instant,
    suspected: bool,
    unreachable: bool,
}

#[derive(Default)]
struct Naive {
    members: BTreeMap<usize, Known>,
    departed: BTreeMap<usize, ((u64, u64), Instant)>,
}

impl Known {
    fn liveness(&self, now: Instant) -> Liveness {
        match (now - self.last_seen >= TTL, self.unreachable, self.suspected) {
            (true, _, _) => Liveness::Lost,
            (false, true, _) => Liveness::Unreachable,
            (false, false, true) => Liveness::Suspect,
            (false, false, false) => Liveness::Online,
        }
    }
}

/// Why a beat is dropped after this last one of a member in this state; `None` in place of it: of one that has left.
fn stale(next: (u64, u64), last: (u64, u64), here: Option<Liveness>) -> Option<DropReason> {
    if next.0 == 0 || next > last {
        return None;
    }
    let is_own = next.0 == last.0;
    Some(match here {
        None | Some(Liveness::Lost) => DropReason::Departed,
        Some(_) if is_own && next.1 == last.1 => DropReason::Duplicate,
        Some(_) if is_own => DropReason::Reordered,
        Some(_) => DropReason::OlderIncarnation,
    })
}

impl Naive {
    fn beat(&mut self, who: usize, mut new: Known, goodbye: bool) -> Outcome {
        let before = self.members.get(&who);
        let departed = self.departed.get(&who).filter(|_| before.is_none());
        let last = before.map(|known| known.order).or(departed.map(|(order, _)| *order));
        let here = before.map(|known| known.liveness(new.last_seen));
        if let Some(reason) = last.and_then(|last| stale(new.order, last, here)) {
            return Outcome::Dropped(reason);
        }
        // A beat does not prove that its sender can be reached, a new start or a return make one try anew.
        new.unreachable = before.is_some_and(|known| {
            known.liveness(new.last_seen) == Liveness::Unreachable && known.order.0 == new.order.0
        });
        let outcome = match before {
            _ if goodbye => Outcome::Goodbye,
            None => Outcome::New,
            Some(known) if known.order.0 == new.order.0 => Outcome::Updated,
            Some(_) => Outcome::Restarted,
        };
        if before.is_none() {
            self.departed.remove(&who);
        }
        if goodbye {
            self.members.remove(&who);
            self.departed.insert(who, (new.order, new.last_seen));
        } else {
            self.members.insert(who, new);
        }
        outcome
    }

    fn living(&mut self, who: usize, now: Instant) -> Option<&mut Known> {
        self.members
            .get_mut(&who)
            .filter(|known| known.liveness(now) != Liveness::Lost)
    }

    fn sweep(&mut self, now: Instant) {
        let gone = self
            .members
            .extract_if(.., |_, known| now - known.last_seen >= TTL + RETENTION);
        self.departed.extend(gone.map(|(who, known)| (who, (known.order, now))));
        self.departed.retain(|_, (_, since)| now - *since < TOMBSTONES);
    }

    fn names(&self, keep: impl Fn(&Known) -> bool) -> Vec<&'static str> {
        self.members
            .iter()
            .filter(|(_, known)| keep(known))
            .map(|(who, _)| NAMES[*who])
            .collect()
    }
}

fn apply(f: &mut Fixture, naive: &mut Naive, step: &Step) {
    match *step {
        Step::Beat {
            who,
            incarnation,
            seq,
            model: index,
            goodbye,
            available,
        } => {
            let item = Probe {
                model: index.map(|index| model(MODELS[index])),
                goodbye,
                available,
                ..probe(NAMES[who], incarnation, seq)
            };
            let known = Known {
                order: (incarnation, seq),
                model: index,
                available,
                last_seen: f.now,
                suspected: false,
                unreachable: false,
            };
            assert_eq!(f.outcome(item), naive.beat(who, known, goodbye));
        }
        Step::Pass { seconds } => f.pass(Duration::from_secs(seconds)),
        Step::Suspect { who } => {
            let known = naive
                .members
                .get_mut(&who)
                .filter(|known| known.liveness(f.now) == Liveness::Online);
            assert_eq!(f.suspect(NAMES[who]), known.is_some());
            known.into_iter().for_each(|known| known.suspected = true);
        }
        Step::Refute { who } => {
            let known = naive.living(who, f.now);
            f.answer(NAMES[who]);
            known.into_iter().for_each(|known| {
                known.suspected = false;
                known.unreachable = false;
            });
        }
        Step::Unreachable { who } => {
            let known = naive.living(who, f.now);
            let is_news = f.fail(NAMES[who]);
            assert_eq!(is_news, known.as_ref().is_some_and(|known| !known.unreachable));
            known.into_iter().for_each(|known| known.unreachable = true);
        }
        Step::Sweep => {
            f.registry.cleanup_stale(f.now, false);
            naive.sweep(f.now);
        }
        Step::Remove { who } => {
            let known = naive.members.remove(&who);
            assert_eq!(
                f.registry.remove(&id(NAMES[who]), &f.about(NAMES[who])).is_some(),
                known.is_some()
            );
            if let Some(known) = known {
                naive.departed.insert(who, ((known.order.0, u64::MAX), f.now));
            }
        }
    }
}

fn assert_same(f: &Fixture, naive: &Naive) {
    let now = f.now;
    let online = |known: &Known| known.liveness(now) == Liveness::Online;
    assert_eq!(Fixture::names(&f.registry.list_all(now)), naive.names(|_| true));
    assert_eq!(Fixture::names(&f.registry.list_online(now)), naive.names(online));
    assert_eq!(
        Fixture::names(&f.registry.list_available(now)),
        naive.names(|known| online(known) && known.available)
    );
    assert_eq!(f.registry.count_total(), naive.members.len());
    assert_eq!(f.registry.count_online(now), naive.names(online).len());
    for view in f.registry.list_all(now) {
        let who = NAMES.iter().position(|name| *name == view.id().as_str()).unwrap();
        assert_eq!(view.liveness, naive.members[&who].liveness(now));
        assert!(view.since <= now);
    }
    for (index, name) in MODELS.iter().enumerate() {
        let members = f.registry.find_by_model(&model(name));
        let mut found: Vec<_> = members.iter().map(|member| member.id().as_str()).collect();
        found.sort_unstable();
        assert_eq!(
            found,
            naive.names(|known| known.model == Some(index)),
            "by model {name}"
        );
        assert_eq!(f.registry.models().contains(&model(name)), !found.is_empty());
    }
}

/// What a subscriber who believes the events would think that there is.
#[derive(Default)]
struct Believed(BTreeMap<String, Liveness>);

impl Believed {
    fn take(&mut self, name: String, kind: EventKind) {
        match kind {
            EventKind::Joined => assert_eq!(self.0.insert(name, Liveness::Online), None),
            EventKind::Updated | EventKind::Restarted => assert!(matches!(
                self.0.get(&name),
                Some(Liveness::Online | Liveness::Unreachable)
            )),
            EventKind::Contended { .. } => panic!("nobody has a second address"),
            EventKind::StateChanged { from, to } => {
                assert_ne!(from, to);
                assert_eq!(self.0.insert(name, to), Some(from));
            }
            EventKind::Left { .. } => assert!(self.0.remove(&name).is_some()),
        }
    }
}

/// One host: were it silent as a whole, nothing would be forgotten.
fn believing() -> Fixture {
    Fixture::with(RegistryOptions {
        preservation: Duration::ZERO,
        ..RegistryOptions::default()
    })
}

proptest! {
    #[test]
    fn the_registry_does_what_a_naive_list_would_do(steps in proptest::collection::vec(step(), 1..80)) {
        let mut f = believing();
        let mut naive = Naive::default();
        for step in &steps {
            apply(&mut f, &mut naive, step);
            assert_same(&f, &naive);
        }
    }

    #[test]
    fn who_believes_the_events_knows_the_fleet_after_each_sweep(steps in proptest::collection::vec(step(), 1..80)) {
        let mut f = believing();
        let mut naive = Naive::default();
        let mut events = f.registry.subscribe();
        let mut believed = Believed::default();
        for step in &steps {
            apply(&mut f, &mut naive, step);
            while let Ok(event) = events.try_recv() {
                believed.take(event.member.id().to_string(), event.kind);
            }
        }
        f.registry.cleanup_stale(f.now, false);
        while let Ok(event) = events.try_recv() {
            believed.take(event.member.id().to_string(), event.kind);
        }
        let is: BTreeMap<_, _> =
            f.registry.list_all(f.now).iter().map(|view| (view.id().to_string(), view.liveness)).collect();
        prop_assert_eq!(believed.0, is);
    }
}
