//! The whole client under paused time, with a queen who follows a script.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use shared_contract::{DropReason, HeartbeatAck};
use tokio::{
    sync::mpsc,
    time::{Instant, advance, sleep},
};

use super::probe::{Probe, ProbeSource, ack};
use crate::{ClientState, Error, HeartbeatHandle, Options, Sequence, client::start, transport::Transport};

const SECOND: Duration = Duration::from_secs(1);

/// What the queen does with a beat.
#[derive(Clone)]
enum Answer {
    Ack(HeartbeatAck),
    AckLate(Duration, HeartbeatAck),
    Fail(Error),
    FailLate(Duration, Error),
    Hang,
}

struct Queen {
    started: Instant,
    answer: Arc<Mutex<Answer>>,
    /// Milliseconds since the start, and what came.
    beats: mpsc::Sender<(u64, Probe)>,
}

impl Transport for Queen {
    async fn send(&self, body: Vec<u8>) -> Result<HeartbeatAck, Error> {
        let at = self.started.elapsed().as_millis() as u64;
        self.beats
            .send((at, serde_json::from_slice(&body).unwrap()))
            .await
            .unwrap();
        let answer = self.answer.lock().unwrap().clone();
        match answer {
            Answer::Ack(ack) => Ok(ack),
            Answer::AckLate(delay, ack) => {
                sleep(delay).await;
                Ok(ack)
            }
            Answer::Fail(error) => Err(error),
            Answer::FailLate(delay, error) => {
                sleep(delay).await;
                Err(error)
            }
            Answer::Hang => std::future::pending().await,
        }
    }
}

struct Scene {
    sequence: Arc<Sequence>,
    source: Arc<ProbeSource>,
    client: HeartbeatHandle,
    answer: Arc<Mutex<Answer>>,
    beats: mpsc::Receiver<(u64, Probe)>,
}

impl Scene {
    fn new(answer: Answer) -> Self {
        let (sender, beats) = mpsc::channel(1_000);
        let answer = Arc::new(Mutex::new(answer));
        let queen = Queen {
            started: Instant::now(),
            answer: Arc::clone(&answer),
            beats: sender,
        };
        let source = ProbeSource::new();
        let sequence = Arc::new(Sequence::new(42));
        let options = Options {
            seed: 1,
            ..Options::new("http://queen:7833", Arc::clone(&sequence))
        };
        let client = start(&options, queen, Arc::clone(&source) as _);
        Self {
            sequence,
            source,
            client,
            answer,
            beats,
        }
    }

    fn queen_answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    async fn beat(&mut self) -> (u64, Probe) {
        self.beats.recv().await.expect("the client has ended")
    }

    async fn beat_at(&mut self) -> u64 {
        self.beat().await.0
    }

    /// Lets the client take what the last beat brought. Time is paused: it passes only while everybody waits.
    async fn settle(&self) {
        sleep(Duration::from_millis(1)).await;
    }

    /// A client that is heartbeating, and the time of its last beat.
    async fn heartbeating() -> (Self, u64) {
        let mut scene = Self::new(Answer::Ack(ack()));
        scene.beat().await;
        let (at, _) = scene.beat().await;
        scene.settle().await;
        assert_eq!(scene.client.state(), ClientState::Heartbeating);
        (scene, at)
    }
}

fn status(status: u16) -> Answer {
    Answer::Fail(Error::Refused {
        status,
        message: "no".to_owned(),
    })
}

fn refused() -> Answer {
    Answer::Fail(Error::Unreachable("connection refused".to_owned()))
}

/// Equal to the millisecond that a timer may round up to.
fn assert_close(times: &[u64], expected: &[u64]) {
    let close = |(a, b): (&u64, &u64)| a.abs_diff(*b) <= 2;
    assert!(
        times.len() == expected.len() && times.iter().zip(expected).all(close),
        "{times:?} is not {expected:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_failure_is_tried_again_on_the_same_schedule() {
    for failure in [
        refused(),
        status(404),
        status(503),
        status(401),
        status(400),
        Answer::Hang,
    ] {
        let mut scene = Scene::new(failure);
        assert_eq!(scene.client.state(), ClientState::Startup);
        let mut times = Vec::new();
        for number in 1..=5 {
            let (at, probe) = scene.beat().await;
            assert_eq!((probe.incarnation, probe.seq, probe.full), (42, number, true));
            if number < 5 {
                assert_eq!(scene.client.state(), ClientState::DiscoveryPush);
            }
            times.push(at);
        }
        assert_close(&times, &[0, 2_000, 4_000, 8_000, 16_000]);
        let mut last = times[4];
        for _ in 0..20 {
            let at = scene.beat_at().await;
            assert_eq!(scene.client.state(), ClientState::DiscoveryWait);
            assert!((27_000..=33_002).contains(&(at - last)), "{at} follows {last}");
            last = at;
        }
        assert!(scene.client.last_error().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_queen_that_starts_late_is_found_by_the_next_try() {
    let mut scene = Scene::new(refused());
    for _ in 0..7 {
        scene.beat().await;
    }
    scene.queen_answers(Answer::Ack(ack()));
    let (found, probe) = scene.beat().await;
    assert!(probe.full);
    scene.settle().await;
    assert_eq!(scene.client.state(), ClientState::Discovered);
    assert_eq!(scene.client.last_error(), None);
    assert_eq!(scene.source.delivered.load(Ordering::SeqCst), probe.seq);
    let (regular, probe) = scene.beat().await;
    assert!((27_000..=30_002).contains(&(regular - found)));
    assert!(!probe.full);
    scene.settle().await;
    assert_eq!(scene.client.state(), ClientState::Heartbeating);
}

#[tokio::test(start_paused = true)]
async fn a_lost_queen_leads_back_to_discovery_and_her_return_to_heartbeating() {
    let (mut scene, _) = Scene::heartbeating().await;
    scene.queen_answers(status(503));
    let lost = scene.beat_at().await;
    scene.settle().await;
    assert_eq!(scene.client.state(), ClientState::DiscoveryPush);
    let error = scene.client.last_error().unwrap().to_string();
    assert_eq!(error, "the queen answered 503: no");
    assert_close(
        &[scene.beat_at().await, scene.beat_at().await],
        &[lost + 2_000, lost + 4_000],
    );
    scene.queen_answers(Answer::Ack(ack()));
    let (at, probe) = scene.beat().await;
    assert_close(&[at], &[lost + 8_000]);
    assert!(probe.full, "a restarted queen needs everything");
    scene.settle().await;
    assert_eq!(scene.client.state(), ClientState::Discovered);
    scene.beat().await;
    scene.settle().await;
    assert_eq!(scene.client.state(), ClientState::Heartbeating);
}

#[tokio::test(start_paused = true)]
async fn a_queen_that_stops_answering_is_lost_after_one_timeout() {
    let (mut scene, _) = Scene::heartbeating().await;
    scene.queen_answers(Answer::Hang);
    let hung = scene.beat_at().await;
    let retry = scene.beat_at().await;
    assert_close(&[retry], &[hung + 10_000 + 2_000]);
    assert_eq!(
        *scene.client.last_error().unwrap(),
        Error::TimedOut(Duration::from_secs(10))
    );
}

#[tokio::test(start_paused = true)]
async fn a_change_of_status_is_sent_at_once_and_a_burst_of_changes_once() {
    let (mut scene, last) = Scene::heartbeating().await;
    advance(Duration::from_secs(5)).await;
    for status in ["ready", "busy", "draining"] {
        scene.source.set(status);
        scene.client.beat_now();
    }
    let (at, probe) = scene.beat().await;
    assert_close(&[at], &[last + 5_001]);
    assert_eq!(probe.status, "draining");
    assert!(!probe.full);
    let next = scene.beat_at().await;
    assert!(next - at >= 27_000, "{next} follows {at}");
}

#[tokio::test(start_paused = true)]
async fn a_change_during_a_beat_is_followed_by_a_beat_that_shows_it() {
    let (mut scene, _) = Scene::heartbeating().await;
    scene.queen_answers(Answer::Hang);
    let (_, probe) = scene.beat().await;
    assert_eq!(probe.status, "starting");
    scene.source.set("ready");
    scene.client.beat_now();
    scene.queen_answers(Answer::Ack(ack()));
    let (_, probe) = scene.beat().await;
    assert_eq!(probe.status, "ready");
}

#[tokio::test(start_paused = true)]
async fn a_pull_ends_discovery_even_while_a_try_hangs() {
    let mut scene = Scene::new(refused());
    for _ in 0..6 {
        scene.beat().await;
    }
    scene.queen_answers(Answer::Hang);
    let hung = scene.beat_at().await;
    advance(Duration::from_secs(1)).await;
    scene.queen_answers(Answer::Ack(ack()));
    scene.client.discovered_by_pull();
    let (at, probe) = scene.beat().await;
    assert_close(&[at], &[hung + 1_000]);
    assert!(probe.full);
    scene.settle().await;
    assert_eq!(scene.client.state(), ClientState::Heartbeating);
}

#[tokio::test(start_paused = true)]
async fn a_try_given_up_for_a_pull_cannot_fail_any_more() {
    let late = Error::Unreachable("reset".to_owned());
    let mut scene = Scene::new(Answer::FailLate(Duration::from_millis(20), late));
    scene.beat().await;
    advance(Duration::from_millis(10)).await;
    scene.queen_answers(Answer::Ack(ack()));
    scene.client.discovered_by_pull();
    let (at, probe) = scene.beat().await;
    assert_close(&[at], &[50]);
    assert!(probe.full);
    scene.settle().await;
    assert_eq!(scene.client.state(), ClientState::Heartbeating);
    assert_eq!(scene.client.last_error(), None);
}

#[tokio::test(start_paused = true)]
async fn want_full_brings_a_full_beat_at_once() {
    let (mut scene, _) = Scene::heartbeating().await;
    scene.queen_answers(Answer::Ack(HeartbeatAck {
        want_full: true,
        ..ack()
    }));
    let (brief_at, brief) = scene.beat().await;
    let (full_at, full) = scene.beat().await;
    assert!(!brief.full && full.full);
    assert!(full_at - brief_at <= 60, "{full_at} follows {brief_at}");
    let next = scene.beat_at().await;
    assert!(next - full_at >= 27_000, "{next} follows {full_at}");
}

#[tokio::test(start_paused = true)]
async fn the_goodbye_is_the_last_beat_and_ends_the_client() {
    let (mut scene, _) = Scene::heartbeating().await;
    let states = scene.client.watch();
    scene.source.set("stopped");
    scene.client.goodbye().await;
    let (_, probe) = scene.beat().await;
    assert_eq!(
        (probe.status.as_str(), probe.incarnation, probe.seq),
        ("stopped", 42, 3)
    );
    assert!(scene.beats.recv().await.is_none(), "nothing follows");
    assert!(states.has_changed().is_err(), "the watch is closed");
    scene.client.goodbye().await;
}

#[tokio::test(start_paused = true)]
async fn the_goodbye_waits_two_seconds_for_a_queen_that_is_gone_and_comes_after_the_beat_in_flight() {
    let (mut scene, _) = Scene::heartbeating().await;
    scene.queen_answers(Answer::Hang);
    let (hung, in_flight) = scene.beat().await;
    scene.source.set("stopped");
    let called = Instant::now();
    scene.client.goodbye().await;
    assert_close(&[called.elapsed().as_millis() as u64], &[2_000]);
    let (at, goodbye) = scene.beat().await;
    assert_close(&[at], &[hung + 1_000]);
    assert_eq!(
        (in_flight.status.as_str(), goodbye.status.as_str()),
        ("starting", "stopped")
    );
    assert!(goodbye.seq > in_flight.seq);
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_tried_once_even_before_the_queen_is_found() {
    let mut scene = Scene::new(refused());
    scene.beat().await;
    scene.source.set("stopped");
    scene.client.goodbye().await;
    assert_eq!(scene.beat().await.1.status, "stopped");
    assert!(scene.beats.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_client_ends_with_its_last_handle() {
    let (scene, _) = Scene::heartbeating().await;
    let Scene { client, mut beats, .. } = scene;
    let clone = client.clone();
    drop(client);
    assert!(beats.recv().await.is_some(), "a clone keeps it alive");
    drop(clone);
    assert!(beats.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_watch_shows_each_state_on_the_way() {
    use ClientState::{Discovered, DiscoveryPush, DiscoveryWait, Heartbeating, Startup};
    let scene = Scene::new(refused());
    let mut states = scene.client.watch();
    let mut seen = vec![*states.borrow_and_update()];
    while seen.len() < 5 {
        states.changed().await.unwrap();
        seen.push(*states.borrow_and_update());
        if seen.ends_with(&[DiscoveryWait]) {
            scene.queen_answers(Answer::Ack(ack()));
        }
    }
    assert_eq!(seen, [Startup, DiscoveryPush, DiscoveryWait, Discovered, Heartbeating]);
}

fn dropped(reason: DropReason) -> Answer {
    Answer::Ack(dropped_ack(reason))
}

fn dropped_ack(reason: DropReason) -> HeartbeatAck {
    HeartbeatAck {
        dropped: Some(reason),
        ..ack()
    }
}

#[tokio::test(start_paused = true)]
async fn a_queen_who_drops_the_beats_is_shown_until_she_takes_one() {
    let (mut scene, _) = Scene::heartbeating().await;
    assert_eq!(scene.client.last_drop(), None);
    for reason in [DropReason::Conflict, DropReason::OlderIncarnation, DropReason::Unknown] {
        scene.queen_answers(dropped(reason));
        scene.beat().await;
        scene.settle().await;
        assert_eq!(scene.client.last_drop(), Some(reason));
        assert_eq!(
            scene.client.state(),
            ClientState::Heartbeating,
            "she is there all the same"
        );
        assert_eq!(scene.client.last_error(), None);
    }
    scene.queen_answers(Answer::Ack(ack()));
    scene.beat().await;
    scene.settle().await;
    assert_eq!(scene.client.last_drop(), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_the_networks_doing_is_not_shown() {
    let (mut scene, _) = Scene::heartbeating().await;
    for reason in [DropReason::Duplicate, DropReason::Reordered] {
        scene.queen_answers(dropped(reason));
        scene.beat().await;
        scene.settle().await;
        assert_eq!(scene.client.last_drop(), None);
    }
    scene.queen_answers(dropped(DropReason::Conflict));
    scene.beat().await;
    scene.queen_answers(dropped(DropReason::Duplicate));
    scene.beat().await;
    scene.settle().await;
    assert_eq!(scene.client.last_drop(), Some(DropReason::Conflict));
}

#[tokio::test(start_paused = true)]
async fn that_she_took_the_sender_for_gone_is_shown_only_if_it_could_not_be_refuted() {
    let (mut scene, _) = Scene::heartbeating().await;
    scene.queen_answers(dropped(DropReason::Departed));
    scene.beat().await;
    scene.queen_answers(Answer::Ack(ack()));
    scene.settle().await;
    assert_eq!(scene.client.last_drop(), None);
    assert_eq!(scene.beat().await.1.incarnation, 43);

    scene.queen_answers(dropped(DropReason::Departed));
    scene.beat().await;
    scene.beat().await;
    scene.settle().await;
    assert_eq!(scene.client.last_drop(), Some(DropReason::Departed));
    scene.queen_answers(Answer::Ack(ack()));
    scene.beat().await;
    scene.settle().await;
    assert_eq!(scene.client.last_drop(), None);
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_the_senders_own_newer_incarnation_has_outrun_is_no_conflict() {
    let (mut scene, _) = Scene::heartbeating().await;
    scene.queen_answers(Answer::AckLate(SECOND, dropped_ack(DropReason::OlderIncarnation)));
    scene.beat().await;
    scene.sequence.rise_above(50);
    sleep(2 * SECOND).await;
    assert_eq!(scene.client.last_drop(), None);
    let (_, probe) = scene.beat().await;
    assert_eq!(probe.incarnation, 51);
    sleep(2 * SECOND).await;
    assert_eq!(scene.client.last_drop(), Some(DropReason::OlderIncarnation));
}

#[tokio::test(start_paused = true)]
async fn the_handle_shows_which_run_of_the_queen_answers_for_as_long_as_she_does() {
    let run = |id: &str| {
        Answer::Ack(HeartbeatAck {
            queen_id: Some(id.parse().unwrap()),
            ..ack()
        })
    };
    let shown = |scene: &Scene| scene.client.queen().map(|id| id.to_string());
    let (mut scene, _) = Scene::heartbeating().await;
    assert_eq!(shown(&scene), None, "she does not say");
    for (answer, expected) in [(run("q-1"), Some("q-1")), (run("q-2"), Some("q-2")), (refused(), None)] {
        scene.queen_answers(answer);
        scene.beat().await;
        scene.settle().await;
        assert_eq!(shown(&scene).as_deref(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_queen_dropped_counts_as_not_said_unless_she_had_it_already() {
    let (mut scene, _) = Scene::heartbeating().await;
    let said = |scene: &Scene| scene.source.delivered.load(Ordering::SeqCst);
    let before = said(&scene);
    scene.queen_answers(dropped(DropReason::Conflict));
    scene.beat().await;
    scene.settle().await;
    assert_eq!(said(&scene), before);
    scene.queen_answers(dropped(DropReason::Duplicate));
    let (_, probe) = scene.beat().await;
    scene.settle().await;
    assert_eq!(said(&scene), probe.seq);
}

/// Counts the warnings of the thread that it is the default of.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn event(&self, _event: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}
    fn enter(&self, _span: &tracing::span::Id) {}
    fn exit(&self, _span: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn each_change_of_the_reason_is_one_warning_however_many_beats_are_dropped() {
    let warnings = Warnings::default();
    let _default = tracing::subscriber::set_default(warnings.clone());
    let (mut scene, _) = Scene::heartbeating().await;
    for (reason, so_far) in [
        (DropReason::Duplicate, 0),
        (DropReason::Departed, 0),
        (DropReason::Conflict, 1),
        (DropReason::Conflict, 1),
        (DropReason::Reordered, 1),
        (DropReason::Conflict, 1),
        (DropReason::OlderIncarnation, 2),
        (DropReason::Conflict, 3),
    ] {
        scene.queen_answers(dropped(reason));
        scene.beat().await;
        scene.settle().await;
        assert_eq!(warnings.0.load(Ordering::SeqCst), so_far, "{reason:?}");
    }
}
