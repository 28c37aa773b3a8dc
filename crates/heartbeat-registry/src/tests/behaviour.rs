//! What the registry promises, one sentence each.

use std::time::Duration;

use shared_contract::DropReason::{Departed, Duplicate, OlderIncarnation, Reordered};

use super::probe::{
    Fixture, Probe, RETENTION, SECOND, TOMBSTONES, TTL, goodbye, id, model, peer, probe, receipt, skewed,
};
use crate::{Error, LeaveReason, Liveness, Outcome, Pace, Registry, RegistryOptions};

#[test]
fn a_member_is_online_until_it_was_silent_for_the_ttl_and_nobody_needs_to_sweep() {
    let mut f = Fixture::new();
    assert_eq!(f.outcome(probe("a", 1, 1)), Outcome::New);
    let joined = f.now;
    f.pass(TTL - Duration::from_nanos(1));
    assert!(f.registry.is_online(&id("a"), f.now));
    f.pass(Duration::from_nanos(1));
    assert!(!f.registry.is_online(&id("a"), f.now));
    let view = f.registry.view(&id("a"), f.now).unwrap();
    assert_eq!(
        (view.liveness, view.since, view.age(f.now)),
        (Liveness::Lost, joined + TTL, TTL)
    );
    assert_eq!((f.registry.count_total(), f.registry.count_online(f.now)), (1, 0));
    assert!(f.registry.list_online(f.now).is_empty() && f.registry.list_available(f.now).is_empty());
}

#[test]
fn a_senders_clock_decides_nothing_and_is_shown_as_skew() {
    for seconds in [-3_600, 0, 3_600] {
        let f = Fixture::new();
        f.record(skewed(probe("a", 1, 1), seconds));
        assert!(f.registry.is_online(&id("a"), f.now));
        assert_eq!(f.registry.get(&id("a")).unwrap().report().skew_ms, seconds * 1_000);
    }
}

#[test]
fn a_member_that_beats_again_is_online_again_since_that_beat() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 1));
    let joined = f.now;
    f.pass(30 * SECOND);
    f.record(probe("a", 1, 2));
    assert_eq!(f.registry.view(&id("a"), f.now).unwrap().since, joined);
    f.pass(TTL);
    assert_eq!(f.outcome(probe("a", 1, 3)), Outcome::Updated);
    let view = f.registry.view(&id("a"), f.now).unwrap();
    assert_eq!((view.liveness, view.since), (Liveness::Online, f.now));
    assert_eq!((view.report.first_seen, view.report.beats), (joined, 3));
}

#[test]
fn liveness_is_not_readiness() {
    let f = Fixture::new();
    f.record(Probe {
        available: false,
        ..probe("loading", 1, 1)
    });
    f.record(probe("ready", 1, 1));
    assert_eq!(f.online(), ["loading", "ready"]);
    assert_eq!(Fixture::names(&f.registry.list_available(f.now)), ["ready"]);
    assert!(!f.registry.get(&id("loading")).unwrap().is_available(f.now));
}

#[test]
fn a_goodbye_removes_the_member_at_once() {
    let f = Fixture::new();
    f.record(probe("a", 1, 1));
    let held = f.registry.get(&id("a")).unwrap();
    assert_eq!(f.outcome(goodbye("a", 1, 2)), Outcome::Goodbye);
    assert!(f.registry.get(&id("a")).is_none());
    assert!(f.registry.find_by_model(&model("m")).is_empty());
    assert!(!held.is_available(f.now), "who still holds it sees the goodbye");
    assert_eq!(f.outcome(goodbye("unknown", 1, 2)), Outcome::Goodbye);
    assert_eq!(f.registry.count_total(), 0);
}

#[test]
fn a_beat_overtaken_by_its_goodbye_does_not_bring_the_member_back_but_a_new_start_does() {
    let mut f = Fixture::new();
    f.record(probe("a", 5, 1));
    f.record(goodbye("a", 5, 3));
    assert_eq!(f.outcome(probe("a", 5, 2)), Outcome::Dropped(Departed));
    let older = f.record(probe("a", 4, 9));
    assert_eq!(
        (older.outcome, older.known_incarnation),
        (Outcome::Dropped(Departed), Some(5))
    );
    assert_eq!(f.registry.count_total(), 0);
    assert_eq!(f.outcome(probe("a", 6, 1)), Outcome::New);
    f.record(goodbye("a", 6, 2));
    f.pass(TOMBSTONES - SECOND);
    f.registry.cleanup_stale(f.now, false);
    assert_eq!(f.outcome(probe("a", 6, 1)), Outcome::Dropped(Departed));
    f.pass(SECOND);
    f.registry.cleanup_stale(f.now, false);
    assert_eq!(
        f.outcome(probe("a", 6, 1)),
        Outcome::New,
        "a goodbye is forgotten after a day"
    );
}

#[test]
fn duplicates_overtaken_beats_and_older_incarnations_are_dropped() {
    let mut f = Fixture::new();
    f.record(probe("a", 5, 7));
    f.pass(30 * SECOND);
    for (incarnation, seq, reason) in [(5, 7, Duplicate), (5, 6, Reordered), (4, 99, OlderIncarnation)] {
        assert_eq!(f.outcome(probe("a", incarnation, seq)), Outcome::Dropped(reason));
    }
    assert_eq!(
        f.outcome(goodbye("a", 4, 100)),
        Outcome::Dropped(OlderIncarnation),
        "the former self's goodbye"
    );
    let report = f.registry.get(&id("a")).unwrap().report();
    assert_eq!(
        (report.address.port(), report.beats, f.now - report.last_seen),
        (9301, 1, 30 * SECOND)
    );
}

#[test]
fn a_sender_without_incarnation_is_always_taken() {
    let f = Fixture::new();
    for (seq, outcome) in [
        (0, Outcome::New),
        (0, Outcome::Updated),
        (3, Outcome::Updated),
        (1, Outcome::Updated),
    ] {
        assert_eq!(f.outcome(probe("a", 0, seq)), outcome);
    }
    f.record(goodbye("a", 0, 0));
    assert_eq!(f.outcome(probe("a", 0, 0)), Outcome::New);
}

#[test]
fn brief_beats_are_merged_within_an_incarnation_and_everything_is_asked_for_where_it_lacks() {
    let f = Fixture::new();
    let brief = |incarnation, seq| Probe {
        details: None,
        ..probe("a", incarnation, seq)
    };
    assert!(f.record(brief(1, 1)).want_full, "unknown to a restarted queen");
    assert!(!f.record(probe("a", 1, 2)).want_full);
    assert!(!f.record(brief(1, 3)).want_full);
    assert_eq!(
        f.registry.view(&id("a"), f.now).unwrap().item().details.as_deref(),
        Some("all")
    );
    let restarted = f.record(brief(2, 1));
    assert_eq!((restarted.outcome, restarted.want_full), (Outcome::Restarted, true));
    assert_eq!(f.registry.view(&id("a"), f.now).unwrap().item().details, None);
    assert!(!f.record(brief(1, 9)).want_full, "nothing is asked of a stale sender");
    assert!(
        !f.record(Probe {
            goodbye: true,
            ..brief(2, 2)
        })
        .want_full
    );
}

#[test]
fn the_address_is_the_named_host_or_else_the_peer_and_follows_each_beat() {
    let f = Fixture::new();
    let url = || {
        f.registry
            .view(&id("a"), f.now)
            .unwrap()
            .address()
            .base_url()
            .to_owned()
    };
    f.record(probe("a", 1, 1));
    assert_eq!(url(), "http://10.0.0.7:9301");
    f.record(Probe {
        port: 9302,
        ..probe("a", 1, 2)
    });
    assert_eq!(url(), "http://10.0.0.7:9302");
    f.record_from("fd00::1".parse().unwrap(), probe("a", 1, 3));
    assert_eq!(url(), "http://[fd00::1]:9301");
    f.record(Probe {
        host: Some("gpu-box".to_owned()),
        ..probe("a", 1, 4)
    });
    assert_eq!(url(), "http://gpu-box:9301");
}

#[test]
fn a_host_that_is_none_is_refused_and_changes_nothing() {
    let f = Fixture::new();
    let bad = |seq| Probe {
        host: Some("evil/path".to_owned()),
        ..probe("a", 1, seq)
    };
    let record = |probe| f.registry.record(probe, receipt(peer(), f.now));
    assert_eq!(record(bad(1)), Err(Error::Host("evil/path".to_owned())));
    assert_eq!(f.registry.count_total(), 0);
    f.record(probe("a", 1, 2));
    assert!(record(bad(3)).is_err());
    assert_eq!(f.registry.get(&id("a")).unwrap().report().beats, 1);
}

#[test]
fn evidence_makes_a_member_suspect_and_its_next_beat_or_a_fresh_answer_clears_it() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 1));
    let joined = f.now;
    f.pass(SECOND);
    assert!(f.suspect("a"));
    assert!(!f.suspect("a"), "the first evidence stays");
    let view = f.registry.view(&id("a"), f.now).unwrap();
    assert_eq!((view.liveness, view.since), (Liveness::Suspect, joined + SECOND));
    assert_eq!(&*view.report.suspicion.as_ref().unwrap().reason, "connection refused");
    assert!(f.online().is_empty(), "not chosen while others live");
    assert_eq!(
        (f.registry.count_total(), f.registry.find_by_model(&model("m")).len()),
        (1, 1),
        "and not deleted"
    );

    f.pass(SECOND);
    assert!(f.answer("a"));
    assert!(!f.answer("a"));
    assert_eq!(f.registry.view(&id("a"), f.now).unwrap().since, f.now);

    f.suspect("a");
    f.record(probe("a", 1, 2));
    assert_eq!(f.online(), ["a"]);
}

#[test]
fn evidence_older_than_the_last_beat_or_against_the_lost_and_unknown_counts_nothing() {
    let mut f = Fixture::new();
    let before = f.now;
    f.pass(SECOND);
    f.record(probe("a", 1, 1));
    assert!(!f.registry.mark_suspect(&id("a"), &f.about("a"), "refused", before));
    assert!(!f.suspect("unknown"));
    f.suspect("a");
    f.pass(TTL);
    assert_eq!(
        f.registry.get(&id("a")).unwrap().liveness(f.now),
        Liveness::Lost,
        "lost outranks suspect"
    );
    assert!(!f.suspect("a"));
    assert!(!f.answer("a"), "silence is not refuted by an answer");
}

#[test]
fn the_index_follows_a_member_that_changes_its_model() {
    let f = Fixture::new();
    f.record(probe("a", 1, 1));
    f.record(probe("b", 1, 1));
    f.record(Probe {
        model: Some(model("other")),
        ..probe("a", 1, 2)
    });
    let found = |name| {
        f.registry
            .find_by_model(&model(name))
            .iter()
            .map(|m| m.id().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (found("m"), found("other")),
        (vec!["b".to_owned()], vec!["a".to_owned()])
    );
    assert_eq!(f.registry.models(), [model("m"), model("other")]);
    f.record(Probe {
        model: None,
        ..probe("a", 1, 3)
    });
    assert!(found("other").is_empty());
    assert_eq!(f.registry.models(), [model("m")]);
}

#[test]
fn a_list_by_model_is_dense_over_many_members_and_a_taken_one_never_changes() {
    let f = Fixture::new();
    let name = |n: usize| format!("w{n:04}");
    for n in 0..1_000 {
        f.record(probe(&name(n), 1, 1));
    }
    let taken = f.registry.find_by_model(&model("m"));
    for n in (0..1_000).step_by(3) {
        f.registry.remove(&id(&name(n)), &f.about(&name(n))).unwrap();
    }
    assert_eq!(taken.len(), 1_000);
    let left = f.registry.find_by_model(&model("m"));
    assert_eq!(left.len(), 666);
    let mut names: Vec<_> = (0..left.len())
        .map(|place| left.get(place).unwrap().id().to_string())
        .collect();
    assert!(left.get(left.len()).is_none());
    names.sort_unstable();
    assert_eq!(names, (0..1_000).filter(|n| n % 3 != 0).map(name).collect::<Vec<_>>());
}

#[test]
fn a_sweep_names_the_newly_lost_once_and_forgets_them_after_the_retention() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 1));
    f.pass(30 * SECOND);
    f.record(probe("b", 1, 1));
    f.pass(60 * SECOND);
    let names = |members: &[std::sync::Arc<crate::Member<Probe>>]| {
        members.iter().map(|member| member.id().to_string()).collect::<Vec<_>>()
    };
    let sweep = f.registry.cleanup_stale(f.now, false);
    assert_eq!(
        (names(&sweep.lost), names(&sweep.removed)),
        (vec!["a".to_owned()], vec![])
    );
    assert!(f.registry.cleanup_stale(f.now, false).lost.is_empty());
    f.pass(RETENTION - Duration::from_nanos(1));
    assert!(f.registry.cleanup_stale(f.now, false).removed.is_empty());
    f.pass(Duration::from_nanos(1));
    assert_eq!(names(&f.registry.cleanup_stale(f.now, false).removed), ["a"]);
    assert_eq!(f.registry.count_total(), 1);
    assert_eq!(f.outcome(probe("a", 1, 2)), Outcome::New);
}

#[test]
fn a_process_that_ended_is_brought_back_by_none_of_its_beats_and_by_its_next_start() {
    let f = Fixture::new();
    f.record(probe("a", 1, 1));
    assert!(f.registry.remove(&id("a"), &f.about("a")).is_some());
    assert!(f.registry.remove(&id("a"), &f.about("a")).is_none());
    assert_eq!(f.outcome(probe("a", 1, 99)), Outcome::Dropped(Departed));
    let departed = f.registry.departed(10);
    assert_eq!((departed.len(), departed[0].reason), (1, LeaveReason::Ended));
    assert_eq!(f.outcome(probe("a", 2, 1)), Outcome::New);
    assert!(f.registry.departed(10).is_empty());
}

#[test]
fn a_claim_lasts_as_long_as_its_lease_and_no_report_erases_it() {
    let f = Fixture::new();
    f.record(probe("a", 1, 1));
    let member = f.registry.get(&id("a")).unwrap();
    let leases = [member.claim(), member.claim()];
    f.record(probe("a", 1, 2));
    assert_eq!(f.registry.view(&id("a"), f.now).unwrap().outstanding, 2);
    assert_eq!(leases[0].member().id(), &id("a"));
    drop(leases);
    assert_eq!(member.outstanding(), 0);
}

#[test]
fn the_defaults_are_the_contracts() {
    let registry = Registry::<Probe>::new(RegistryOptions::default());
    assert_eq!(registry.options.retention, RETENTION);
    assert_eq!(registry.options.tombstones, TOMBSTONES);
    assert_eq!(Pace::default().ttl, TTL);
}
