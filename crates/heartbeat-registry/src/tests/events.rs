//! What subscribers are told, and in which order.

use tokio::sync::broadcast::error::TryRecvError;

use super::probe::{Fixture, Probe, RETENTION, SECOND, TTL, drain, goodbye, id, peer, probe, receipt};
use crate::{
    EventKind::{Joined, Left, Restarted, StateChanged, Updated},
    LeaveReason,
    Liveness::{Lost, Online, Suspect},
    Registry, RegistryOptions,
};

#[test]
fn joining_beating_restarting_and_leaving_are_told_in_their_order() {
    let f = Fixture::new();
    let mut events = f.registry.subscribe();
    let mut kinds = || drain(&mut events).into_iter().map(|(_, kind)| kind).collect::<Vec<_>>();
    f.record(probe("a", 1, 1));
    assert_eq!(kinds(), [Joined]);
    f.record(probe("a", 1, 2));
    assert_eq!(kinds(), [], "a beat that says nothing new is no event");
    f.record(probe("a", 1, 2));
    assert_eq!(kinds(), [], "nor is a stale one");
    f.record(Probe {
        available: false,
        ..probe("a", 1, 3)
    });
    f.record(Probe {
        available: false,
        port: 9302,
        ..probe("a", 1, 4)
    });
    assert_eq!(kinds(), [Updated, Updated], "what it says is new, and where it is");
    f.record(probe("a", 2, 1));
    assert_eq!(kinds(), [Restarted]);
    f.record(goodbye("a", 2, 2));
    assert_eq!(
        kinds(),
        [Left {
            reason: LeaveReason::Goodbye
        }]
    );
    f.record(probe("a", 3, 1));
    f.registry.remove(&id("a"), &f.about("a"));
    assert_eq!(
        kinds(),
        [
            Joined,
            Left {
                reason: LeaveReason::Ended
            }
        ]
    );
}

#[test]
fn suspicion_and_its_end_are_told() {
    let f = Fixture::new();
    f.record(probe("a", 1, 1));
    let mut events = f.registry.subscribe();
    f.suspect("a");
    f.answer("a");
    f.suspect("a");
    f.record(probe("a", 1, 2));
    let suspected = StateChanged {
        from: Online,
        to: Suspect,
    };
    let cleared = StateChanged {
        from: Suspect,
        to: Online,
    };
    let expected = [suspected, cleared, suspected, cleared].map(|kind| ("a".to_owned(), kind));
    assert_eq!(drain(&mut events), expected);
}

#[test]
fn a_loss_is_told_by_the_sweep_or_by_the_beat_that_ends_it() {
    let mut f = Fixture::new();
    f.record(probe("a", 1, 1));
    let mut events = f.registry.subscribe();
    let mut kinds = || drain(&mut events).into_iter().map(|(_, kind)| kind).collect::<Vec<_>>();
    let lost = StateChanged { from: Online, to: Lost };
    let back = StateChanged { from: Lost, to: Online };

    f.pass(TTL);
    f.registry.cleanup_stale(f.now, false);
    f.registry.cleanup_stale(f.now, false);
    assert_eq!(kinds(), [lost]);
    f.record(probe("a", 1, 2));
    assert_eq!(kinds(), [back]);

    f.pass(TTL);
    f.record(probe("a", 1, 3));
    assert_eq!(kinds(), [lost, back], "no sweep came by");

    f.suspect("a");
    f.pass(TTL + RETENTION);
    f.registry.cleanup_stale(f.now, false);
    let suspected = StateChanged {
        from: Online,
        to: Suspect,
    };
    let suspect_lost = StateChanged {
        from: Suspect,
        to: Lost,
    };
    assert_eq!(
        kinds(),
        [
            suspected,
            suspect_lost,
            Left {
                reason: LeaveReason::Lost
            }
        ]
    );
}

#[test]
fn an_event_carries_the_report_of_its_moment() {
    let mut f = Fixture::new();
    let mut events = f.registry.subscribe();
    f.record(probe("a", 1, 1));
    f.pass(SECOND);
    f.record(Probe {
        available: false,
        ..probe("a", 1, 2)
    });
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push((event.report.item.seq, event.report.item.available));
    }
    assert_eq!(seen, [(1, true), (2, false)]);
}

#[test]
fn a_slow_subscriber_misses_the_oldest_events_and_is_told_so() {
    let registry = Registry::new(RegistryOptions {
        event_capacity: 4,
        ..RegistryOptions::default()
    });
    let mut events = registry.subscribe();
    let now = std::time::Instant::now();
    for seq in 1..=100 {
        let news = Probe {
            available: seq % 2 == 0,
            ..probe("a", 1, seq)
        };
        registry.record(news, receipt(peer(), now)).unwrap();
    }
    assert!(matches!(events.try_recv(), Err(TryRecvError::Lagged(96))));
    assert_eq!(drain(&mut events).len(), 4);
}
