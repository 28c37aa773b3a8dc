use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::RouterOptions;
use crate::attempt::Failure;
use crate::testing::{self, beat, registry};

const SLOTS: u32 = testing::SLOTS;

fn line() -> Arc<Line> {
    let workers = registry(&["w"]);
    let model = ModelId::new("m").unwrap();
    let metrics = Arc::new(Metrics::new(&mut prometheus_client::registry::Registry::default()));
    let upstream = Arc::new(Upstream::new(&RouterOptions::default()));
    Arc::new(Line::new(model, 1_000, workers, metrics, upstream, Clock::start()))
}

fn request() -> Request {
    Request {
        terms: Terms::default(),
        kind: Kind::Plain,
        is_light: false,
        is_under_way: false,
        prefix: None,
    }
}

/// One request; `false` if it left the line before it got a worker.
async fn run(line: &Arc<Line>, patience: Duration, running: &AtomicU32) -> bool {
    let ticket = match line.enter(&mut None, &request(), |_| true) {
        Entry::Claimed(ticket) => ticket,
        Entry::Waiting(mut waiting) => match tokio::time::timeout(patience, waiting.granted()).await {
            Ok(ticket) => ticket,
            Err(_) => return false,
        },
        Entry::Full | Entry::Refused(_) => panic!("there is room, and it may wait"),
    };
    assert!(
        running.fetch_add(1, Ordering::SeqCst) < SLOTS,
        "more requests than slots"
    );
    tokio::task::yield_now().await;
    running.fetch_sub(1, Ordering::SeqCst);
    drop(ticket);
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn slots_are_never_given_twice_and_no_one_is_forgotten_however_many_come_and_leave() {
    let line = line();
    let running = Arc::new(AtomicU32::new(0));
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..200 {
        let (line, running) = (Arc::clone(&line), Arc::clone(&running));
        requests.spawn(async move {
            for round in 0..20 {
                // Every third may leave the line at any moment; the others wait for as long as it takes.
                let may_leave = (number + round) % 3 == 0;
                let patience = Duration::from_micros(if may_leave { 50 } else { 60_000_000 });
                assert!(
                    run(&line, patience, &running).await || may_leave,
                    "forgotten in the line"
                );
            }
        });
    }
    while let Some(result) = requests.join_next().await {
        result.unwrap();
    }
    let state = line.lock();
    assert!(state.waiting.is_empty());
    assert_eq!(line.metrics.waiting.get(), 0);
}

#[tokio::test]
async fn the_first_in_the_line_is_given_a_suspect_if_there_is_nobody_else() {
    let line = line();
    let mut held: Vec<_> = (0..SLOTS)
        .map(|_| line.enter(&mut None, &request(), |_| true))
        .collect();
    let [Entry::Waiting(mut first), Entry::Waiting(mut second)] =
        [(); 2].map(|()| line.enter(&mut None, &request(), |_| true))
    else {
        panic!("all slots are taken")
    };
    let Some(Entry::Claimed(ticket)) = held.pop() else {
        panic!("there were free slots")
    };
    ticket.blame(&Failure::Broke("on purpose".into()));
    drop(ticket);
    let probe = first.granted().await;
    assert!(probe.worker().report().suspicion.is_some());
    // Only one asks; the others wait for what comes of it.
    let others = tokio::time::timeout(Duration::from_millis(1), second.granted());
    assert!(others.await.is_err());
}

/// A request that only a worker may take that there is not.
fn pinned_elsewhere() -> Request {
    let mut headers = http::HeaderMap::new();
    headers.insert("x-rbee-worker", http::HeaderValue::from_static("elsewhere"));
    Request {
        terms: Terms::take(&mut headers, None),
        ..request()
    }
}

#[tokio::test]
async fn what_becomes_free_just_before_a_request_stands_in_the_line_is_not_lost_to_it() {
    let line = line();
    let Entry::Waiting(_choosy) = line.enter(&mut None, &pinned_elsewhere(), |_| true) else {
        panic!("nobody fits")
    };
    let mut held: Vec<_> = (0..SLOTS).map(|_| claimed(&line)).collect();
    // The question is asked between the look at the workers and the wait.
    let entry = line.enter(&mut None, &request(), |_| {
        held.pop();
        true
    });
    let Entry::Waiting(mut waiting) = entry else {
        panic!("all slots were taken")
    };
    assert!(futures_util::poll!(Box::pin(waiting.granted())).is_ready());
}

#[tokio::test]
async fn those_that_wait_are_offered_a_worker_as_soon_as_it_has_answered_again() {
    let line = line();
    let early = claimed(&line);
    early.blame(&Failure::Unauthorized);
    let first = claimed(&line);
    let _others: Vec<_> = (2..SLOTS).map(|_| claimed(&line)).collect();
    let [Entry::Waiting(mut one), Entry::Waiting(mut other)] =
        [(); 2].map(|()| line.enter(&mut None, &request(), |_| true))
    else {
        panic!("all slots are taken")
    };
    // More room than one request needs: by its next heartbeat, of which the line is told by nobody here.
    let mut beat = testing::heartbeat("w", 1);
    beat.worker.slots = 2 * SLOTS;
    beat.seq = 1;
    testing::record(&line.workers, beat);
    first.confirm();
    assert!(futures_util::poll!(Box::pin(one.granted())).is_ready());
    assert!(futures_util::poll!(Box::pin(other.granted())).is_ready());
}

fn claimed(line: &Arc<Line>) -> Ticket {
    match line.enter(&mut None, &request(), |_| true) {
        Entry::Claimed(ticket) => ticket,
        _ => panic!("there are free slots"),
    }
}

#[tokio::test]
async fn what_an_earlier_process_did_is_not_laid_to_the_one_that_took_its_place() {
    let line = line();
    let of_earlier = claimed(&line);
    beat(&line.workers, "w", 2);
    let is_suspect = || of_earlier.worker().report().suspicion.is_some();
    of_earlier.blame(&Failure::Broke("on purpose".into()));
    assert!(!is_suspect());
    claimed(&line).blame(&Failure::Broke("on purpose".into()));
    assert!(is_suspect());
    of_earlier.confirm();
    assert!(is_suspect(), "an answer of another process says nothing for this one");
}

#[tokio::test]
async fn only_an_answer_to_what_was_asked_since_clears_a_suspicion() {
    let line = line();
    let (early, failed) = (claimed(&line), claimed(&line));
    let is_suspect = || early.worker().report().suspicion.is_some();
    failed.blame(&Failure::Broke("on purpose".into()));
    early.confirm();
    assert!(is_suspect(), "it may have answered before it broke");
    claimed(&line).confirm();
    assert!(!is_suspect());
}

#[tokio::test]
async fn a_request_that_comes_back_keeps_its_place() {
    let line = line();
    let mut place = None;
    let Entry::Claimed(ticket) = line.enter(&mut place, &request(), |_| true) else {
        panic!("there are free slots")
    };
    let held: Vec<_> = (1..SLOTS)
        .map(|_| line.enter(&mut None, &request(), |_| true))
        .collect();
    let Entry::Waiting(_later) = line.enter(&mut None, &request(), |_| true) else {
        panic!("all slots are taken")
    };
    // The first one failed at its worker and comes back: whoever came later does not go before it.
    ticket.discard();
    let again = line.enter(&mut place, &request(), |_| true);
    assert!(matches!(again, Entry::Claimed(_)));
    drop(held);
}
