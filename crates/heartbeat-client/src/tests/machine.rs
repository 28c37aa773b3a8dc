//! The decisions, with time passed in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared_contract::{Delivery, DropReason, HeartbeatAck};

use super::probe::ack;
use crate::{Beat, ClientState, Machine, Sequence, Timing};

const SECOND: Duration = Duration::from_secs(1);

/// A machine and its time, in seconds since its start.
struct Sender {
    machine: Machine,
    start: Instant,
}

impl Sender {
    fn new(seed: u64) -> Self {
        Self::with(Timing::default(), seed)
    }

    fn with(timing: Timing, seed: u64) -> Self {
        let start = Instant::now();
        Self {
            machine: Machine::new(timing, 7, seed, start),
            start,
        }
    }

    fn due(&self) -> f64 {
        (self.machine.due().expect("a beat is in flight") - self.start).as_secs_f64()
    }

    /// Goes to the next due time and sends.
    fn beat(&mut self) -> (f64, Beat) {
        let due = self.machine.due().expect("a beat is in flight");
        assert_eq!(
            self.machine.poll(due - Duration::from_nanos(1)),
            None,
            "polled before it is due"
        );
        let beat = self.machine.poll(due).expect("due, and nothing to send");
        ((due - self.start).as_secs_f64(), beat)
    }

    fn acknowledged(&mut self, at: f64, ack: &HeartbeatAck) {
        self.machine.acknowledged(self.start + Duration::from_secs_f64(at), ack);
    }

    fn failed(&mut self, at: f64) {
        self.machine.failed(self.start + Duration::from_secs_f64(at));
    }

    /// A sender whose queen has acknowledged two beats.
    fn heartbeating(seed: u64) -> (Self, f64) {
        let mut sender = Self::new(seed);
        for _ in 0..2 {
            let (at, _) = sender.beat();
            sender.acknowledged(at, &ack());
        }
        assert_eq!(sender.machine.state(), ClientState::Heartbeating);
        let at = sender.machine.due().unwrap() - sender.start;
        (sender, at.as_secs_f64())
    }
}

#[test]
fn the_first_acknowledgement_discovers_and_the_second_makes_it_steady() {
    let mut sender = Sender::new(1);
    assert_eq!(sender.machine.state(), ClientState::Startup);
    let (at, beat) = sender.beat();
    assert_eq!((at, beat.seq, beat.delivery), (0.0, 1, Delivery::Full));
    assert_eq!(sender.machine.state(), ClientState::DiscoveryPush);
    assert_eq!(sender.machine.due(), None, "one beat at a time");
    sender.acknowledged(0.1, &ack());
    assert_eq!(sender.machine.state(), ClientState::Discovered);
    let (at, beat) = sender.beat();
    assert!((27.0..=30.1).contains(&at), "{at}");
    assert_eq!((beat.seq, beat.delivery), (2, Delivery::Brief));
    sender.acknowledged(at, &ack());
    assert_eq!(sender.machine.state(), ClientState::Heartbeating);
}

#[test]
fn the_schedule_is_0_2_4_8_16_and_then_every_30_seconds_with_a_tenth_of_jitter_for_ever() {
    let mut sender = Sender::new(2);
    let mut last = 0.0;
    for (number, expected) in [0.0, 2.0, 4.0, 8.0, 16.0].into_iter().enumerate() {
        let (at, beat) = sender.beat();
        assert_eq!((at, beat.seq), (expected, number as u64 + 1));
        assert_eq!(sender.machine.state(), ClientState::DiscoveryPush);
        sender.failed(at);
        last = at;
    }
    let mut pauses = Vec::new();
    for _ in 0..500 {
        assert_eq!(sender.machine.state(), ClientState::DiscoveryWait);
        let (at, beat) = sender.beat();
        assert_eq!(beat.delivery, Delivery::Full);
        sender.failed(at);
        pauses.push(at - last);
        last = at;
    }
    assert!(
        pauses.iter().all(|pause| (26.999..=33.001).contains(pause)),
        "{pauses:?}"
    );
    assert!(
        pauses.iter().any(|pause| *pause < 28.0) && pauses.iter().any(|pause| *pause > 32.0),
        "no jitter"
    );
}

#[test]
fn the_same_seed_gives_the_same_beats_and_another_seed_others() {
    let times = |seed| {
        let mut sender = Sender::new(seed);
        (0..20)
            .map(|_| {
                let (at, _) = sender.beat();
                sender.acknowledged(at, &ack());
                (at * 1e6) as u64
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(times(7), times(7));
    assert_ne!(times(7), times(8));
}

#[test]
fn a_try_that_hangs_ends_when_the_next_one_is_due() {
    let mut sender = Sender::new(3);
    let mut limits = Vec::new();
    for _ in 0..6 {
        let (at, beat) = sender.beat();
        limits.push(beat.limit.as_secs_f64());
        sender.failed(at + beat.limit.as_secs_f64());
    }
    assert_eq!(limits, [2.0, 2.0, 4.0, 8.0, 10.0, 10.0]);
}

#[test]
fn tries_missed_by_a_suspended_host_are_not_made_up_for() {
    let mut sender = Sender::new(4);
    let (at, _) = sender.beat();
    sender.failed(at);
    let woken = sender.start + 600 * SECOND;
    assert!(sender.machine.poll(woken).is_some());
    sender.machine.failed(woken);
    assert_eq!(sender.machine.state(), ClientState::DiscoveryWait);
    assert!(sender.machine.due().unwrap() >= woken + 26 * SECOND);
}

#[test]
fn a_failed_regular_beat_is_the_try_at_0_seconds_of_a_new_discovery() {
    for steady in [false, true] {
        let mut sender = Sender::new(5);
        for _ in 0..=u8::from(steady) {
            let (at, _) = sender.beat();
            sender.acknowledged(at, &ack());
        }
        let (lost, _) = sender.beat();
        sender.failed(lost);
        assert_eq!(sender.machine.state(), ClientState::DiscoveryPush);
        let mut after = Vec::new();
        for _ in 0..4 {
            let (at, beat) = sender.beat();
            assert_eq!(beat.delivery, Delivery::Full);
            sender.failed(at);
            after.push((at - lost).round() as u64);
        }
        assert_eq!(after, [2, 4, 8, 16]);
        assert_eq!(sender.machine.state(), ClientState::DiscoveryWait);
    }
}

#[test]
fn the_sequence_number_grows_with_every_beat_also_with_retries_and_the_goodbye() {
    let mut sender = Sender::new(6);
    let mut seqs = Vec::new();
    for number in 0..10 {
        let (at, beat) = sender.beat();
        seqs.push(beat.seq);
        if number % 3 == 0 {
            sender.acknowledged(at, &ack());
        } else {
            sender.failed(at);
        }
    }
    seqs.push(sender.machine.goodbye().seq);
    assert_eq!(seqs, (1..=11).collect::<Vec<_>>());
}

#[test]
fn a_change_of_status_beats_at_once() {
    let (mut sender, due) = Sender::heartbeating(7);
    sender.machine.beat_now();
    let now = sender.start + Duration::from_secs_f64(due - 10.0);
    let beat = sender.machine.poll(now).expect("at once");
    assert_eq!(beat.delivery, Delivery::Brief);
    sender.machine.acknowledged(now, &ack());
    assert!(
        sender.machine.due().unwrap() >= now + 26 * SECOND,
        "the pause begins anew"
    );
}

#[test]
fn changes_during_a_beat_make_one_more_beat_and_no_more() {
    let (mut sender, _) = Sender::heartbeating(8);
    let (at, _) = sender.beat();
    for _ in 0..1_000 {
        sender.machine.beat_now();
    }
    sender.acknowledged(at + 0.001, &ack());
    let (again, _) = sender.beat();
    assert!((again - at - 0.05).abs() < 1e-6, "{again} after {at}");
    sender.acknowledged(again, &ack());
    assert!(sender.due() > again + 26.0);
}

#[test]
fn in_discovery_a_change_makes_one_extra_try_a_second_and_leaves_the_schedule_alone() {
    let mut sender = Sender::new(9);
    let (at, _) = sender.beat();
    sender.failed(at);
    let mut times = vec![at];
    while *times.last().unwrap() < 8.0 {
        sender.machine.beat_now();
        let (at, _) = sender.beat();
        sender.failed(at);
        times.push(at);
    }
    assert_eq!(times, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
}

#[test]
fn a_pull_ends_discovery_from_each_of_its_states_and_beats_in_full_at_once() {
    for tries in 0..8 {
        let mut sender = Sender::new(10);
        let mut now = 0.0;
        for _ in 0..tries {
            let (at, _) = sender.beat();
            sender.failed(at);
            now = at + 1.0;
        }
        assert!(!sender.machine.discovered_by_pull(), "nothing is in flight");
        assert_eq!(sender.machine.state(), ClientState::Discovered);
        let beat = sender
            .machine
            .poll(sender.start + Duration::from_secs_f64(now))
            .expect("at once");
        assert_eq!(beat.delivery, Delivery::Full);
        sender.acknowledged(now, &ack());
        assert_eq!(sender.machine.state(), ClientState::Heartbeating);
    }
}

#[test]
fn a_pull_gives_up_a_try_that_hangs_but_not_twice_and_not_a_regular_beat() {
    let mut sender = Sender::new(11);
    sender.beat();
    assert!(sender.machine.discovered_by_pull());
    sender.beat();
    assert!(
        !sender.machine.discovered_by_pull(),
        "the beat that answers the pull stays"
    );
    sender.acknowledged(0.2, &ack());
    let (at, beat) = sender.beat();
    assert_eq!(
        (at, beat.delivery),
        (0.1, Delivery::Full),
        "the second pull has its beat, too"
    );
    assert!(!sender.machine.discovered_by_pull());
}

#[test]
fn want_full_is_answered_at_once_and_a_queen_that_never_has_enough_makes_no_hot_loop() {
    let (mut sender, _) = Sender::heartbeating(12);
    let hungry = HeartbeatAck {
        want_full: true,
        ..ack()
    };
    let (brief_at, beat) = sender.beat();
    assert_eq!(beat.delivery, Delivery::Brief);
    sender.acknowledged(brief_at, &hungry);
    let (full_at, beat) = sender.beat();
    assert_eq!(beat.delivery, Delivery::Full);
    assert!(full_at - brief_at < 0.06);
    let mut last = full_at;
    for _ in 0..10 {
        sender.acknowledged(last, &hungry);
        let (at, beat) = sender.beat();
        assert_eq!(beat.delivery, Delivery::Full);
        assert!(at - last > 26.9, "{at} follows {last}");
        last = at;
    }
    sender.acknowledged(last, &ack());
    assert_eq!(sender.beat().1.delivery, Delivery::Brief);
}

#[test]
fn the_acknowledgement_sets_the_pace_within_a_third_of_the_ttl_and_a_floor() {
    let pauses = |interval_ms, ttl_ms| {
        let (mut sender, _) = Sender::heartbeating(13);
        let paced = HeartbeatAck {
            interval_ms,
            ttl_ms,
            ..ack()
        };
        let mut pauses = Vec::new();
        for _ in 0..200 {
            let (at, _) = sender.beat();
            sender.acknowledged(at, &paced);
            pauses.push(sender.due() - at);
        }
        (
            pauses.iter().copied().fold(f64::MAX, f64::min),
            pauses.iter().copied().fold(0.0, f64::max),
        )
    };
    let within = |(shortest, longest): (f64, f64), from: f64, to: f64| {
        assert!(
            from - 1e-3 <= shortest && longest <= to + 1e-3,
            "{shortest}..{longest} is not in {from}..{to}"
        );
        assert!(
            longest - shortest > (to - from) * 0.8,
            "{shortest}..{longest} is no jitter over {from}..{to}"
        );
    };
    within(pauses(10_000, 90_000), 9.0, 11.0);
    within(pauses(30_000, 90_000), 27.0, 30.0);
    within(pauses(60_000, 90_000), 27.0, 30.0);
    within(pauses(120_000, 600_000), 108.0, 132.0);
    within(pauses(0, 90_000), 0.09, 0.11);
    within(pauses(0, 0), 0.09, 0.1);
    within(pauses(u64::MAX, u64::MAX), 3_240.0, 3_600.0);
}

#[test]
fn a_pace_configured_short_shortens_discovery_too() {
    let timing = Timing {
        interval: 3 * SECOND,
        ttl: 9 * SECOND,
        ..Timing::default()
    };
    let mut sender = Sender::with(timing, 14);
    let mut times = Vec::new();
    for _ in 0..6 {
        let (at, _) = sender.beat();
        sender.failed(at);
        times.push(at);
    }
    assert_eq!(times[..5], [0.0, 2.0, 4.0, 7.0, 10.0]);
    assert!((12.7..=13.3).contains(&times[5]), "{times:?}");
}

#[test]
fn a_sender_that_is_taken_for_gone_goes_on_under_a_newer_incarnation_at_once_and_in_full() {
    let (mut sender, _) = Sender::heartbeating(1);
    let gone = |known| HeartbeatAck {
        dropped: Some(DropReason::Departed),
        known_incarnation: Some(known),
        ..ack()
    };
    let (at, beat) = sender.beat();
    assert_eq!((beat.incarnation, beat.seq), (7, 3));
    sender.acknowledged(at, &gone(40));
    let (next, beat) = sender.beat();
    assert!(next - at < 0.1, "{next}");
    assert_eq!((beat.incarnation, beat.seq, beat.delivery), (41, 4, Delivery::Full));
    // A queen who is not convinced gets the next try at the usual pace.
    sender.acknowledged(next, &gone(41));
    let (last, beat) = sender.beat();
    assert!(last - next > 20.0, "{last}");
    assert_eq!(beat.incarnation, 42);
    sender.acknowledged(last, &ack());
    assert_eq!(sender.beat().1.incarnation, 42);
}

#[test]
fn machines_of_one_process_share_an_order_and_a_copied_process_has_its_own() {
    let start = Instant::now();
    let sequence = Arc::new(Sequence::new(7));
    let machine = |seed| Machine::drawing_from(Arc::clone(&sequence), Timing::default(), seed, start);
    let order = |machine: &mut Machine, at| machine.poll(at).map(|beat| (beat.incarnation, beat.seq)).unwrap();
    let (mut one, mut other) = (machine(1), machine(2));
    assert_eq!(order(&mut one, start), (7, 1));
    assert_eq!(order(&mut other, start), (7, 2));
    let gone = HeartbeatAck {
        dropped: Some(DropReason::Departed),
        known_incarnation: Some(40),
        ..ack()
    };
    one.acknowledged(start, &gone);
    other.acknowledged(start, &gone);
    let mut copy = one.clone();
    let later = start + SECOND;
    assert_eq!(order(&mut one, later), (41, 3));
    assert_eq!(order(&mut other, later), (41, 4), "the first has refuted it for both");
    assert_eq!(order(&mut copy, later), (41, 3));
}

#[test]
fn a_sender_without_incarnation_has_nothing_to_refute_with() {
    let start = Instant::now();
    let mut machine = Machine::new(Timing::default(), 0, 1, start);
    machine.poll(start).unwrap();
    let gone = HeartbeatAck {
        dropped: Some(DropReason::Departed),
        ..ack()
    };
    machine.acknowledged(start, &gone);
    assert!(machine.due().unwrap() > start + 20 * SECOND);
}

#[test]
fn a_queen_who_wanted_a_faster_pace_is_looked_for_at_that_pace() {
    let (mut sender, _) = Sender::heartbeating(1);
    let fast = HeartbeatAck {
        interval_ms: 2_500,
        ttl_ms: 7_500,
        ..ack()
    };
    let (at, _) = sender.beat();
    sender.acknowledged(at, &fast);
    let (lost, _) = sender.beat();
    sender.failed(lost);
    let mut last = lost;
    for _ in 0..8 {
        let (at, _) = sender.beat();
        sender.failed(at);
        assert!(at - last <= 2.75 + 1e-6, "{}", at - last);
        last = at;
    }
}
