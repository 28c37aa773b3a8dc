//! What speaks against a member: call-backs, pauses of the receiver, mass silence, a second sender with its id.

use std::{net::IpAddr, time::Duration};

use shared_contract::DropReason;
use tokio::sync::broadcast::Receiver;

use super::probe::{Fixture, Probe, RETENTION, SECOND, TTL, drain, elsewhere, goodbye, id, peer, probe, receipt};
use crate::{EventKind, Liveness, Outcome, Pace, Reach, Receipt, Recorded, RegistryEvent, RegistryOptions};

const GRACE: Duration = Duration::from_secs(10);

fn liveness(f: &Fixture) -> Liveness {
    f.view("a").liveness
}

#[test]
fn a_member_that_cannot_be_called_back_is_unreachable_until_it_answers_however_often_it_beats() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 1));
    assert_eq!(f.view("a").report.reach, Reach::Unknown, "it should be called back");
    assert!(f.fail("a"));
    let noticed = f.now;
    f.pass(SECOND);
    f.record(probe("a", 1, 2));
    let view = f.view("a");
    assert_eq!((view.liveness, view.since), (Liveness::Unreachable, noticed));
    assert!(f.online().is_empty());
    assert!(f.answer("a"));
    let view = f.view("a");
    assert_eq!((view.liveness, view.since), (Liveness::Online, f.now));
    assert!(!f.answer("a"), "no news");
    f.record(probe("a", 1, 3));
    assert_eq!(f.view("a").report.reach, Reach::Reached, "it need not be called again");
}

#[test]
fn what_is_learnt_of_a_former_process_or_address_counts_nothing() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 1));
    let former = f.about("a");
    let counts = |f: &Fixture| {
        f.registry.mark_suspect(&id("a"), &former, "refused", f.now)
            || f.registry.mark_unreachable(&id("a"), &former, "no route", f.now)
            || f.registry.mark_reached(&id("a"), &former, f.now)
    };
    f.record_from(elsewhere(), probe("a", 1, 2));
    assert!(!counts(&f));
    f.pass(TTL);
    f.record(probe("a", 2, 1));
    assert!(!counts(&f));
    assert_eq!(f.view("a").report.reach, Reach::Unknown);
}

#[test]
fn an_answer_that_may_be_older_than_the_evidence_clears_nothing() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 1));
    let asked = f.about("a");
    f.pass(SECOND);
    assert!(f.suspect("a"));
    f.pass(SECOND);
    assert!(!f.registry.mark_reached(&id("a"), &asked, f.now));
    assert_eq!(liveness(&f), Liveness::Suspect);
    assert!(f.answer("a"));
    assert_eq!(liveness(&f), Liveness::Online);
}

#[test]
fn whoever_restarts_moves_comes_back_or_was_suspected_is_called_back_again() {
    let mut f = Fixture::new();
    let reached = |f: &Fixture| {
        f.answer("a");
        assert_eq!(f.view("a").report.reach, Reach::Reached);
    };
    let is_unknown = |f: &Fixture| f.view("a").report.reach == Reach::Unknown;
    f.record(probe("a", 1, 1));
    reached(&f);
    f.record(probe("a", 2, 1));
    assert!(is_unknown(&f), "restarted");
    reached(&f);
    f.record_from(elsewhere(), probe("a", 2, 2));
    assert!(is_unknown(&f), "moved");
    reached(&f);
    f.suspect("a");
    f.record_from(elsewhere(), probe("a", 2, 3));
    assert!(is_unknown(&f), "suspected");
    reached(&f);
    f.pass(TTL);
    f.record_from(elsewhere(), probe("a", 2, 4));
    assert!(is_unknown(&f), "was lost");
}

#[test]
fn each_member_has_the_ttl_that_its_newest_acknowledgement_gave_it() {
    let mut f = Fixture::new();
    let slow = Receipt {
        pace: Pace::default().stretched(3_000, 50),
        ..receipt(peer(), f.now)
    };
    f.registry.record(probe("a", 1, 1), slow).unwrap();
    f.record(probe("b", 1, 1));
    f.pass(TTL);
    assert_eq!(f.online(), ["a"]);
    f.pass(TTL);
    assert!(f.online().is_empty());
}

#[test]
fn beats_that_did_not_come_are_counted_also_while_they_are_awaited() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 1));
    f.pass(65 * SECOND);
    assert_eq!(f.view("a").missed, 1);
    let recorded = f.record(probe("a", 1, 2));
    assert_eq!((recorded.gap, recorded.missed), (Some(65 * SECOND), 1));
    f.pass(31 * SECOND);
    assert_eq!(f.record(probe("a", 1, 3)).missed, 0);
    assert_eq!(f.view("a").missed, 1);
}

/// Sweeps each second, as long as the receiver runs.
fn run(f: &mut Fixture, seconds: u32) {
    for _ in 0..seconds {
        f.pass(SECOND);
        f.registry.cleanup_stale(f.now, false);
    }
}

#[test]
fn a_receiver_that_was_stopped_for_minutes_loses_nobody_on_waking_and_the_dead_a_ttl_later() {
    let mut f = Fixture::with(RegistryOptions {
        longest_pause: 2 * SECOND,
        ..RegistryOptions::default()
    });
    f.registry.cleanup_stale(f.now, false);
    f.record(probe("a", 1, 1));
    f.record(probe("b", 1, 1));
    run(&mut f, 30);
    f.pass(600 * SECOND);
    assert_eq!(f.online(), ["a", "b"], "asked before the first sweep");
    assert!(f.registry.cleanup_stale(f.now, false).lost.is_empty());
    assert_eq!(
        f.view("a").age(f.now),
        630 * SECOND,
        "the age that is shown is the true one"
    );
    f.record(probe("a", 1, 2));
    run(&mut f, 57);
    assert_eq!(
        f.online(),
        ["a", "b"],
        "30 s before the pause, 2 s of it, 57 s after it"
    );
    run(&mut f, 1);
    assert_eq!(f.online(), ["a"]);
}

#[test]
fn nothing_is_forgotten_while_many_are_silent_at_once() {
    let mut f = Fixture::new();
    for name in ["a", "b", "c"] {
        f.record(probe(name, 1, 1));
    }
    f.pass(TTL);
    assert_eq!(f.registry.cleanup_stale(f.now, false).lost.len(), 3);
    assert_eq!(f.registry.preservation().unwrap().silent, 3);
    assert!(f.online().is_empty(), "none of them is chosen");
    f.pass(RETENTION);
    let cleanup = f.registry.cleanup_stale(f.now, false);
    assert_eq!((cleanup.removed.len(), cleanup.held_back), (0, 3));
    for name in ["a", "b"] {
        f.record(probe(name, 1, 2));
    }
    let cleanup = f.registry.cleanup_stale(f.now, false);
    assert_eq!(f.registry.preservation(), None, "one is one");
    assert!(f.registry.holds_back(f.now));
    assert_eq!(cleanup.held_back, 1, "and has not had its turn yet");
    f.pass(TTL);
    for name in ["a", "b"] {
        f.record(probe(name, 1, 3));
    }
    let cleanup = f.registry.cleanup_stale(f.now, false);
    assert_eq!((cleanup.removed.len(), f.registry.count_total()), (1, 2));
}

#[test]
fn nothing_is_forgotten_while_the_receiver_has_another_reason_to_doubt_its_view() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 1));
    f.pass(TTL + RETENTION);
    assert_eq!(f.registry.cleanup_stale(f.now, true).held_back, 1);
    assert_eq!(f.registry.cleanup_stale(f.now, false).removed.len(), 1);
}

#[test]
fn two_live_senders_with_one_id_are_a_conflict_with_both_addresses_and_the_first_keeps_the_id() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 7));
    f.pass(30 * SECOND);
    f.record(probe("a", 1, 8));
    let mut events = f.registry.subscribe();
    // A copy of the machine: the same identity and incarnation.
    assert_eq!(
        f.record_from(elsewhere(), probe("a", 1, 8)).outcome,
        Outcome::Dropped(DropReason::Conflict)
    );
    let view = f.view("a");
    let contender = view.contender.as_ref().unwrap();
    assert_eq!(view.address().base_url(), "http://10.0.0.7:9301");
    assert_eq!(
        (contender.address.base_url(), contender.beats),
        ("http://10.0.0.8:9301", 1)
    );
    assert_eq!(
        f.record_from(elsewhere(), probe("a", 1, 9)).outcome,
        Outcome::Dropped(DropReason::Conflict),
        "its beats are newer by chance only"
    );
    assert_eq!(f.outcome(probe("a", 1, 9)), Outcome::Updated);
    assert_eq!(f.view("a").contender.unwrap().beats, 2);
    f.pass(TTL - SECOND);
    f.record(probe("a", 1, 10));
    assert!(f.view("a").contender.is_some());
    f.pass(SECOND);
    assert!(f.view("a").contender.is_none(), "it has been silent for its TTL");
    f.registry.cleanup_stale(f.now, false);
    assert_eq!(contentions(&mut events), [true, false]);
}

/// Each conflict's beginning and end, as they were told.
fn contentions(events: &mut Receiver<RegistryEvent<Probe>>) -> Vec<bool> {
    let contention = |(_, kind)| match kind {
        EventKind::Contended { began } => Some(began),
        _ => None,
    };
    drain(events).into_iter().filter_map(contention).collect()
}

#[test]
fn a_restart_elsewhere_is_no_conflict_though_late_beats_of_the_former_process_follow() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 7));
    assert_eq!(f.record_from(elsewhere(), probe("a", 2, 1)).outcome, Outcome::Restarted);
    f.pass(GRACE);
    assert_eq!(
        f.outcome(probe("a", 1, 8)),
        Outcome::Dropped(DropReason::OlderIncarnation)
    );
    assert!(f.view("a").contender.is_none());
    f.pass(SECOND);
    f.record(probe("a", 1, 9));
    let view = f.view("a");
    assert_eq!(view.address().base_url(), "http://10.0.0.8:9301");
    assert_eq!(
        view.contender.unwrap().address.base_url(),
        "http://10.0.0.7:9301",
        "it lives after all"
    );
}

#[test]
fn a_sender_that_moves_or_has_two_addresses_is_no_conflict() {
    let mut f = Fixture::new();
    for seq in 1..10 {
        let peer = if seq % 2 == 0 { peer() } else { elsewhere() };
        assert!(!matches!(
            f.record_from(peer, probe("a", 1, seq)).outcome,
            Outcome::Dropped(_)
        ));
        f.pass(30 * SECOND);
    }
    assert!(f.view("a").contender.is_none());
}

#[test]
fn two_senders_without_incarnation_are_told_apart_by_coming_back_after_having_moved() {
    let mut f = Fixture::new();
    f.record(probe("a", 0, 0));
    f.pass(30 * SECOND);
    assert_eq!(
        f.record_from(elsewhere(), probe("a", 0, 0)).outcome,
        Outcome::Updated,
        "it may have moved"
    );
    f.pass(30 * SECOND);
    assert_eq!(f.outcome(probe("a", 0, 0)), Outcome::Dropped(DropReason::Conflict));
    let view = f.view("a");
    assert_eq!(view.address().base_url(), "http://10.0.0.8:9301");
    assert_eq!(view.contender.unwrap().address.base_url(), "http://10.0.0.7:9301");
}

#[test]
fn twins_that_were_copied_in_step_are_found_out_at_the_second_swap() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 51));
    f.pass(30 * SECOND);
    for seq in 52..55 {
        f.record_from([elsewhere(), peer()][seq as usize % 2], probe("a", 1, seq));
        f.pass(SECOND);
        f.record_from([peer(), elsewhere()][seq as usize % 2], probe("a", 1, seq));
        f.pass(29 * SECOND);
    }
    assert!(f.view("a").contender.is_some());
    let holder = f.address("a");
    for seq in 55..60 {
        f.record_from(elsewhere(), probe("a", 1, seq));
        f.record(probe("a", 1, seq));
        f.pass(30 * SECOND);
    }
    assert_eq!(f.address("a"), holder, "from then on it stays");
}

#[test]
fn a_third_sender_does_not_put_the_second_out_of_sight() {
    let mut f = Fixture::new();
    let third = "10.0.0.9".parse().unwrap();
    f.record(probe("a", 1, 51));
    f.pass(30 * SECOND);
    for seq in 51..54 {
        f.record_from(elsewhere(), probe("a", 1, seq));
        f.record_from(third, probe("a", 1, seq));
        f.record(probe("a", 1, seq + 1));
        assert!(f.view("a").contender.is_some());
        f.pass(30 * SECOND);
    }
}

#[test]
fn a_repeated_beat_gets_the_answer_of_the_first() {
    let f = Fixture::new();
    let brief = || Probe {
        details: None,
        ..probe("a", 1, 1)
    };
    assert!(f.record(brief()).want_full);
    let again = f.record(brief());
    assert_eq!(again.outcome, Outcome::Dropped(DropReason::Duplicate));
    assert!(again.want_full, "it may be the only answer that arrives");
}

/// What a live sender does that is told that it is taken for gone: goes on above the known incarnation.
fn refute(f: &Fixture, peer: IpAddr, incarnation: u64, seq: u64) -> Recorded {
    let told = f.record_from(peer, probe("a", incarnation, seq));
    assert_eq!(told.outcome, Outcome::Dropped(DropReason::Departed));
    f.record_from(peer, probe("a", told.known_incarnation.unwrap() + 1, seq + 1))
}

#[test]
fn when_the_holder_of_an_id_falls_silent_the_other_one_takes_it_also_if_it_is_older() {
    for older in [1, 2] {
        let mut f = Fixture::new();
        f.record(probe("a", 2, 7));
        f.pass(30 * SECOND);
        f.record_from(elsewhere(), probe("a", older, 5));
        assert!(f.view("a").contender.is_some());
        f.pass(TTL);
        assert_eq!(refute(&f, elsewhere(), older, 6).outcome, Outcome::Restarted);
        let view = f.view("a");
        assert_eq!((view.liveness, view.address().host()), (Liveness::Online, "10.0.0.8"));
        let late = f.outcome(probe("a", 2, 7));
        assert_eq!(
            late,
            Outcome::Dropped(DropReason::OlderIncarnation),
            "an old beat of the dead"
        );
        assert_eq!(f.address("a").host(), "10.0.0.8");
    }
    let mut f = Fixture::new();
    f.record(probe("a", 0, 0));
    f.pass(TTL);
    assert_eq!(f.record_from(elsewhere(), probe("a", 0, 0)).outcome, Outcome::Updated);
}

#[test]
fn a_machine_that_was_set_back_to_an_earlier_state_is_back_once_its_silence_is_noticed() {
    let mut f = Fixture::new();
    f.record(probe("a", 2, 700));
    f.pass(30 * SECOND);
    assert_eq!(f.outcome(probe("a", 2, 40)), Outcome::Dropped(DropReason::Reordered));
    f.pass(TTL);
    assert_eq!(liveness(&f), Liveness::Lost);
    assert_eq!(refute(&f, peer(), 2, 41).outcome, Outcome::Restarted);
    assert_eq!(liveness(&f), Liveness::Online);
}

#[test]
fn when_the_holder_of_an_id_says_goodbye_the_other_one_has_it_and_late_beats_change_nothing() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 7));
    f.record_from(elsewhere(), probe("a", 2, 1));
    f.pass(SECOND);
    f.record_from(elsewhere(), goodbye("a", 2, 3));
    assert_eq!(
        refute(&f, peer(), 1, 8).outcome,
        Outcome::New,
        "nobody knew yet that it lives"
    );
    assert_eq!(
        f.record_from(elsewhere(), probe("a", 2, 2)).outcome,
        Outcome::Dropped(DropReason::OlderIncarnation)
    );
    assert_eq!(f.address("a").host(), "10.0.0.7");
}

#[test]
fn a_conflict_that_ends_between_two_sweeps_is_told_as_ended() {
    let mut f = Fixture::new();
    let mut events = f.registry.subscribe();
    f.record(probe("a", 1, 7));
    f.pass(30 * SECOND);
    f.record_from(elsewhere(), probe("a", 1, 7));
    f.pass(60 * SECOND - Duration::from_nanos(1));
    f.record(probe("a", 1, 8));
    f.pass(60 * SECOND);
    f.record(probe("a", 1, 9));
    f.registry.cleanup_stale(f.now, false);
    assert_eq!(contentions(&mut events), [true, false]);
}

#[test]
fn a_contenders_goodbye_ends_the_conflict_and_does_not_remove_the_member() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 7));
    f.pass(30 * SECOND);
    f.record_from(elsewhere(), probe("a", 1, 7));
    assert!(f.view("a").contender.is_some());
    f.record_from(elsewhere(), goodbye("a", 1, 8));
    assert!(f.view("a").contender.is_none());
    assert_eq!(liveness(&f), Liveness::Online);
}

#[test]
fn a_loss_leaves_a_tombstone_that_a_newer_beat_lifts() {
    let mut f = Fixture::with(RegistryOptions {
        preservation: Duration::ZERO,
        ..RegistryOptions::default()
    });
    f.record(probe("a", 3, 7));
    f.pass(TTL + RETENTION);
    f.registry.cleanup_stale(f.now, false);
    assert_eq!(f.registry.count_total(), 0);
    assert_eq!(f.outcome(probe("a", 3, 7)), Outcome::Dropped(DropReason::Departed));
    assert_eq!(
        f.outcome(Probe {
            port: 1,
            ..probe("a", 2, 9)
        }),
        Outcome::Dropped(DropReason::Departed)
    );
    assert_eq!(
        f.outcome(probe("a", 3, 8)),
        Outcome::New,
        "a partition of a quarter of an hour"
    );
}
