use super::*;

const USUAL: Duration = Duration::from_millis(100);

fn health() -> Health {
    Health::new(Clock::start(), 1)
}

fn record(health: &Health) -> Record {
    health.record(Kind::Stream, health.clock.now_ms())
}

async fn asked_and_answered(health: &Health, after: Duration) {
    health.is_asked(1);
    tokio::time::advance(after).await;
    health.owes_no_longer();
    health.answered(Kind::Stream, after);
}

#[tokio::test(start_paused = true)]
async fn the_averages_follow_what_was_seen_last() {
    let health = health();
    assert_eq!(record(&health), Record::UNKNOWN);
    for _ in 0..5 {
        asked_and_answered(&health, USUAL).await;
    }
    assert_eq!((record(&health).first_byte_ms, record(&health).success), (100.0, 1.0));
    assert_eq!(
        health.record(Kind::Plain, 0).first_byte_ms,
        0.0,
        "nothing is known of whole answers"
    );
    for _ in 0..20 {
        asked_and_answered(&health, 10 * USUAL).await;
        health.failed();
    }
    let record = record(&health);
    assert!(
        (record.first_byte_ms - 1_000.0).abs() < 20.0 && (0.3..0.6).contains(&record.success),
        "{record:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_owes_a_first_byte_for_much_longer_than_usual_is_overdue_until_it_gives_one() {
    let health = health();
    asked_and_answered(&health, USUAL).await;
    tokio::time::advance(100 * USUAL).await;
    assert!(!record(&health).is_overdue, "it owes nothing");
    health.is_asked(1);
    tokio::time::advance(4 * USUAL).await;
    health.is_asked(1);
    assert!(!record(&health).is_overdue);
    tokio::time::advance(2 * USUAL).await;
    assert!(
        record(&health).is_overdue,
        "the second request does not begin the count anew"
    );
    health.owes_no_longer();
    health.answered(Kind::Stream, USUAL);
    assert!(!record(&health).is_overdue, "it is at work, although it still owes one");
}

#[tokio::test(start_paused = true)]
async fn a_worker_of_which_nothing_is_known_has_more_time() {
    let health = health();
    health.is_asked(1);
    tokio::time::advance(Duration::from_millis(1_900)).await;
    assert!(!record(&health).is_overdue);
    tokio::time::advance(Duration::from_millis(200)).await;
    assert!(record(&health).is_overdue);
}

#[tokio::test(start_paused = true)]
async fn only_what_was_asked_since_it_failed_mends_it_and_only_the_first_failure_needs_a_probe() {
    let health = health();
    let before = health.is_asked(1);
    let broken = health.break_it(1).expect("it was fine");
    assert_eq!(health.break_it(1), None, "somebody is finding out already");
    health.mend(before);
    assert!(health.is_broken(1), "what was asked before says nothing");
    health.mend(health.is_asked(1));
    assert!(!health.is_broken(1) && !health.is_still(broken, 1));
    let again = health.break_it(1).expect("it was fine again");
    health.mend(broken);
    assert!(
        health.is_still(again, 1),
        "that was an answer to the probe after the first failure"
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_laid_to_the_next_process() {
    let health = health();
    health.is_asked(1);
    asked_and_answered(&health, USUAL).await;
    health.failed();
    health.break_it(1);
    assert!(health.is_broken(1) && !health.is_broken(2));
    health.is_asked(2);
    assert!(!health.is_broken(2));
    assert_eq!(health.break_it(1), None, "an earlier process failed");
    assert_eq!((record(&health).success, record(&health).first_byte_ms), (1.0, 0.0));
}
