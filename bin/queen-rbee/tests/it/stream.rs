//! What the queen tells on `GET /v1/heartbeats/stream`.

use std::time::Duration;

use eventsource_stream::{Event, Eventsource};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use queen_rbee::Config;
use queen_rbee::fleet::{Change, FleetView, HiveEvent, Liveness, QueenBeat, WorkerEvent};
use reqwest::RequestBuilder;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{Queen, Reader, Worker, chat, hive_beat, with, within, worker_beat};

const PATH: &str = "/v1/heartbeats/stream";

/// The events of one reader.
pub(crate) struct Events {
    stream: BoxStream<'static, Event>,
    /// Number of the newest one that had one.
    newest: Option<u64>,
}

impl Events {
    /// Follows the queen's stream from its snapshot on: then the subscription stands.
    pub(crate) async fn of(queen: &Queen) -> Self {
        let mut events = Self::open(queen.get(PATH)).await;
        events.snapshot().await;
        events
    }

    async fn open(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        Self {
            stream: response.bytes_stream().eventsource().map(Result::unwrap).boxed(),
            newest: None,
        }
    }

    /// The next event. Those with a number follow each other without a gap, or a snapshot has come between.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let event = within("an event", self.stream.next()).await?;
        if !event.id.is_empty() {
            // Of an event without an id the reader shows the last one.
            let number = number(&event.id);
            let follows = |newest: u64| number == newest || number == newest + 1;
            assert!(
                event.event == "snapshot" || self.newest.is_none_or(follows),
                "{event:?}"
            );
            self.newest = Some(number);
        }
        Some(event)
    }

    /// The snapshot that comes next, and its id.
    async fn snapshot(&mut self) -> (String, FleetView) {
        let event = self.next().await.unwrap();
        assert_eq!(event.event, "snapshot");
        (event.id.clone(), data(&event))
    }

    /// The next event of this name, and its id. The queen's own beats and entries of the timeline may come between.
    async fn expect<T: DeserializeOwned>(&mut self, name: &str) -> (String, T) {
        loop {
            let event = self.next().await.unwrap();
            if event.event == name {
                return (event.id.clone(), data(&event));
            }
            assert!(["queen", "timeline"].contains(&event.event.as_str()), "{event:?}");
        }
    }

    /// The next change of a worker, and its id; beats may come between.
    async fn change(&mut self) -> (String, WorkerEvent) {
        loop {
            let (id, event) = self.expect::<WorkerEvent>("worker").await;
            if event.change != Change::Beat {
                return (id, event);
            }
        }
    }
}

fn data<T: DeserializeOwned>(event: &Event) -> T {
    serde_json::from_str(&event.data).unwrap_or_else(|error| panic!("{error}: {}", event.data))
}

/// The number in an event's id.
fn number(id: &str) -> u64 {
    id.rsplit_once('-').unwrap().1.parse().unwrap()
}

fn status(id: &str, port: u16, status: &str) -> Value {
    with(worker_beat(id, port), "/worker/status", status)
}

#[tokio::test]
async fn the_stream_begins_with_the_fleet_as_it_is_and_the_queen_herself() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    queen.hive_beat(&hive_beat("h")).await;
    let mut events = Events::open(queen.get(PATH)).await;
    let (id, snapshot) = events.snapshot().await;
    assert_eq!(snapshot.workers[0].id.as_str(), "w");
    assert_eq!(snapshot.hives[0].id.as_str(), "h");
    assert_eq!(id, format!("{}-{}", snapshot.queen.id, number(&id)));
    let (_, beat) = events.expect::<QueenBeat>("queen").await;
    assert_eq!(
        (beat.queen.id, beat.workers.total, beat.hives.total),
        (snapshot.queen.id, 1, 1)
    );
}

#[tokio::test]
async fn every_change_is_told_once_with_its_reason_under_a_number_of_its_own() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let port = worker.address.port();
    let mut events = Events::open(queen.get(PATH)).await;
    let (mut last, _) = events.snapshot().await;
    let mut change = async || {
        let (id, event) = events.change().await;
        assert!(number(&id) > number(&last));
        last = id;
        event
    };

    queen.worker_beat(&worker.beat("w")).await;
    let joined = change().await;
    assert_eq!(
        (joined.change, joined.worker.id.as_str(), joined.reason),
        (Change::Joined, "w", None)
    );
    queen.workers_reached(1).await;
    queen.worker_beat(&status("w", port, "draining")).await;
    let updated = change().await;
    assert_eq!((updated.change, updated.worker.ready), (Change::Updated, false));
    queen.worker_beat(&status("w", port, "ready")).await;
    assert_eq!(change().await.change, Change::Updated);

    worker.stop().await;
    let asked = queen.ask(&chat());
    let suspect = change().await;
    assert_eq!(
        (suspect.change, suspect.from, suspect.to),
        (Change::StateChanged, Some(Liveness::Online), Some(Liveness::Suspect))
    );
    assert!(suspect.reason.unwrap().contains("cannot be reached"));
    assert!(!suspect.worker.ready);
    drop(asked);

    queen.worker_beat(&status("w", port, "stopped")).await;
    let left = change().await;
    assert_eq!(
        (left.change, left.reason.as_deref()),
        (Change::Left, Some("said goodbye"))
    );
}

#[tokio::test]
async fn a_hives_changes_are_told_too() {
    let queen = Queen::start(Config::default()).await;
    let mut events = Events::of(&queen).await;
    queen.hive_beat(&hive_beat("h")).await;
    let (id, joined) = events.expect::<HiveEvent>("hive").await;
    assert_eq!((joined.change, joined.hive.id.as_str()), (Change::Joined, "h"));
    assert!(number(&id) > 0);
}

#[tokio::test]
async fn beats_without_news_are_told_together_and_have_no_id() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let mut events = Events::of(&queen).await;
    const BEATS: u64 = 50;
    for _ in 0..BEATS {
        queen.worker_beat(&worker.beat("w")).await;
    }
    let (id, joined) = events.expect::<WorkerEvent>("worker").await;
    assert_eq!(joined.change, Change::Joined);
    assert!(number(&id) > 0);
    let mut told = 0;
    loop {
        let (id, beat) = events.expect::<WorkerEvent>("worker").await;
        assert_eq!(beat.change, Change::Beat);
        // That of its joining, or of the timeline's entry about it.
        assert!(id.is_empty() || number(&id) <= 2, "a beat has no id of its own: {id}");
        told += 1;
        if beat.worker.beats == BEATS {
            break;
        }
    }
    assert!(told < BEATS, "each beat was told");
}

#[tokio::test]
async fn a_reader_goes_on_after_the_event_that_it_had_last() {
    let queen = Queen::start(Config::default()).await;
    let mut first = Events::of(&queen).await;
    // Port 0: it is not called back, so nothing else happens to it.
    queen.worker_beat(&status("a", 0, "starting")).await;
    let (after_a, _) = first.change().await;
    drop(first);
    queen.worker_beat(&status("b", 0, "starting")).await;
    queen.worker_beat(&status("b", 0, "failed")).await;

    let by_header = queen.get(PATH).header("last-event-id", &after_a);
    let by_query = queen.get(&format!("{PATH}?last_event_id={after_a}"));
    let by_both = queen
        .get(&format!("{PATH}?last_event_id=long-ago-1"))
        .header("last-event-id", &after_a);
    for request in [by_header, by_query, by_both] {
        let mut events = Events::open(request).await;
        let (id, joined) = events.change().await;
        assert_eq!((joined.change, joined.worker.id.as_str()), (Change::Joined, "b"));
        assert!(number(&id) > number(&after_a));
        let (_, failed) = events.change().await;
        assert_eq!(
            (failed.change, failed.worker.reason.as_deref()),
            (Change::Updated, Some("failed"))
        );
    }
}

#[tokio::test]
async fn whoever_names_an_event_of_another_queen_or_one_that_is_not_kept_gets_a_snapshot() {
    let (queen, other) = (
        Queen::start(Config::default()).await,
        Queen::start(Config::default()).await,
    );
    let own = queen.fleet().await.queen.id;
    let others = other.fleet().await.queen.id;
    queen.worker_beat(&status("w", 0, "starting")).await;
    for id in [
        format!("{others}-0"),
        format!("{own}-99"),
        "nonsense".to_owned(),
        String::new(),
    ] {
        let mut events = Events::open(queen.get(PATH).header("last-event-id", &id)).await;
        let (_, snapshot) = events.snapshot().await;
        assert_eq!(snapshot.workers.len(), 1, "{id}");
    }
}

#[tokio::test]
async fn a_parameter_that_there_is_not_is_refused_by_name() {
    let queen = Queen::start(Config::default()).await;
    for (path, name) in [(PATH, "since"), ("/v1/workers", "vram")] {
        let response = queen.get(&format!("{path}?{name}=1")).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let error: Value = response.json().await.unwrap();
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(name), "{message}");
    }
}

#[tokio::test]
async fn a_queen_that_begins_to_doubt_her_view_says_so_at_once() {
    let config = Config {
        heartbeat_interval: Duration::from_millis(200),
        heartbeat_ttl: Duration::from_millis(600),
        ..Config::default()
    };
    let queen = Queen::start(config).await;
    let mut events = Events::of(&queen).await;
    for id in ["a", "b", "c"] {
        queen.worker_beat(&status(id, 0, "starting")).await;
    }
    let mut doubt = async |expected: bool| loop {
        let event = events.next().await.unwrap();
        if event.event == "queen" {
            let beat: QueenBeat = data(&event);
            assert_eq!(beat.queen.degraded_reason.is_some(), beat.queen.degraded_view);
            if beat.queen.degraded_view == expected {
                return (number(&event.id), beat);
            }
        }
    };
    let (_, calm) = doubt(false).await;
    assert!(!calm.queen.degraded_view);
    let (began, _) = doubt(true).await;
    assert!(began > 0, "a change with an id");
    let stop_beating = async {
        loop {
            for id in ["a", "b", "c"] {
                queen.worker_beat(&status(id, 0, "starting")).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        (ended, _) = doubt(false) => assert!(ended > began),
        () = stop_beating => unreachable!("it beats for ever"),
    }
}

/// The next complete event of a body that is read by hand: its lines are too long for a parser made for short ones.
async fn raw_event(reader: &mut Reader, text: &mut String) -> (String, u64, Value) {
    let end = loop {
        if let Some(end) = text.find("\n\n") {
            break end;
        }
        text.push_str(&reader.next().await.unwrap());
    };
    let event: String = text.drain(..end + 2).collect();
    let field = |name: &str| {
        event
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default()
    };
    let id = field("id: ")
        .rsplit_once('-')
        .map_or(0, |(_, number)| number.parse().unwrap());
    (
        field("event: ").to_owned(),
        id,
        serde_json::from_str(field("data: ")).unwrap(),
    )
}

#[tokio::test]
async fn a_reader_that_falls_behind_what_is_kept_gets_a_new_snapshot_that_has_it_all() {
    let queen = Queen::start(Config::default()).await;
    let response = queen.get(PATH).send().await.unwrap();
    const CHANGES: u64 = 48;
    // More than the queen keeps and the connection holds together.
    for number in 1..=CHANGES {
        let models = json!([{"id": "m", "reference": format!("{number}-{}", "x".repeat(900_000)), "size_bytes": 1}]);
        let capabilities = json!({"devices": [], "models": models, "engines": []});
        let beat = with(hive_beat("h"), "/hive/operational_status", "starting");
        let beat = with(with(beat, "/hive/port", 0), "/capabilities", capabilities);
        queen.hive_beat(&beat).await;
    }
    let newest = |hive: &Value| {
        let reference = hive["capabilities"]["models"][0]["reference"].as_str().unwrap();
        reference.split('-').next().unwrap().parse::<u64>().unwrap()
    };
    let (mut reader, mut text) = (Reader::new(response), String::new());
    let (name, mut last, _) = raw_event(&mut reader, &mut text).await;
    assert_eq!(name, "snapshot");
    let mut changes = 0;
    loop {
        let (name, id, data) = raw_event(&mut reader, &mut text).await;
        match name.as_str() {
            "hive" | "timeline" if id > 0 => {
                assert_eq!(id, last + 1, "a change was left out without a snapshot");
                last = id;
                changes += u64::from(name == "hive");
            }
            "snapshot" => {
                assert!(id > last + 1);
                assert_eq!(newest(&data["hives"][0]), CHANGES);
                break;
            }
            _ => {}
        }
    }
    assert!(changes < CHANGES);
    // It goes on from there.
    queen
        .hive_beat(&with(hive_beat("h"), "/hive/operational_status", "stopped"))
        .await;
    loop {
        let (name, _, data) = raw_event(&mut reader, &mut text).await;
        if name == "hive" && data["change"] == "left" {
            break;
        }
    }
}
