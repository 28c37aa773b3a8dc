//! The queens of one process, under paused time: addresses lead to queens as a script says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use shared_contract::{DropReason, HeartbeatAck};
use tokio::time::{Instant, sleep, timeout};

use super::probe::{Probe, ProbeSource, ack};
use crate::{Error, MAX_QUEENS, Options, QueenUrl, Queens, Sequence, client, transport::Transport};

/// Longer than any pause between two regular beats.
const INTERVAL: Duration = Duration::from_secs(34);
/// Time for what is to happen at once.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Where the addresses lead, and what was sent there.
#[derive(Default)]
struct Network {
    /// Which run of which queen answers; nobody does where there is none. An empty name is a queen that does not say.
    runs: Mutex<BTreeMap<String, &'static str>>,
    /// Each queen takes a sender up to this incarnation for gone.
    gone: Mutex<u64>,
    beats: Mutex<Vec<(String, Probe)>>,
}

struct Road {
    url: String,
    network: Arc<Network>,
}

impl Transport for Road {
    async fn send(&self, body: Vec<u8>) -> Result<HeartbeatAck, Error> {
        let probe: Probe = serde_json::from_slice(&body).unwrap();
        let gone = *self.network.gone.lock().unwrap();
        let is_gone = probe.incarnation <= gone;
        self.network.beats.lock().unwrap().push((self.url.clone(), probe));
        let run = self.network.runs.lock().unwrap().get(&self.url).copied();
        let run = run.ok_or_else(|| Error::Unreachable("connection refused".to_owned()))?;
        Ok(HeartbeatAck {
            queen_id: (!run.is_empty()).then(|| run.parse().unwrap()),
            dropped: is_gone.then_some(DropReason::Departed),
            known_incarnation: is_gone.then_some(gone),
            ..ack()
        })
    }
}

struct Scene {
    network: Arc<Network>,
    source: Arc<ProbeSource>,
    queens: Queens,
}

fn url(name: &str) -> QueenUrl {
    format!("http://{name}").parse().unwrap()
}

impl Scene {
    fn new(leads: &[(&str, &'static str)]) -> Self {
        let network = Arc::new(Network::default());
        let source = ProbeSource::new();
        let sequence = Arc::new(Sequence::new(7));
        let start = {
            let (network, source) = (Arc::clone(&network), Arc::clone(&source));
            move |url: &QueenUrl| {
                let options = Options {
                    seed: 1,
                    ..Options::new(url.as_str(), Arc::clone(&sequence))
                };
                let road = Road {
                    url: url.to_string(),
                    network: Arc::clone(&network),
                };
                Ok(client::start(&options, road, Arc::clone(&source) as _))
            }
        };
        let scene = Self {
            network,
            source,
            queens: Queens::started_by(start),
        };
        for (name, run) in leads {
            scene.leads(name, run);
        }
        scene
    }

    /// One address of the settings.
    async fn with_setting(name: &str, leads: &[(&str, &'static str)]) -> Self {
        let scene = Self::new(leads);
        scene.queens.add(url(name), true).unwrap();
        scene.at_once().await;
        scene
    }

    fn leads(&self, name: &str, run: &'static str) {
        self.network.runs.lock().unwrap().insert(url(name).to_string(), run);
    }

    fn leads_nowhere(&self, name: &str) {
        self.network.runs.lock().unwrap().remove(url(name).as_str());
    }

    async fn pulled_by(&self, name: &str) {
        self.queens.pulled_by(&url(name)).unwrap();
        self.at_once().await;
    }

    async fn at_once(&self) {
        sleep(AT_ONCE).await;
    }

    /// The addresses that are beaten to.
    fn used(&self) -> Vec<String> {
        let urls = self.queens.urls();
        urls.iter()
            .map(|url| url.as_str()["http://".len()..].to_owned())
            .collect()
    }

    /// Where the beats since the last call went. Each of them is newer than the one before.
    fn heard(&self) -> Vec<String> {
        let beats = std::mem::take(&mut *self.network.beats.lock().unwrap());
        let orders: Vec<_> = beats.iter().map(|(_, beat)| (beat.incarnation, beat.seq)).collect();
        assert!(orders.windows(2).all(|pair| pair[0] < pair[1]), "{orders:?}");
        beats
            .into_iter()
            .map(|(url, _)| url["http://".len()..].to_owned())
            .collect()
    }
}

#[tokio::test(start_paused = true)]
async fn two_addresses_of_one_queen_get_one_sender_and_she_hears_no_goodbye() {
    let scene = Scene::with_setting("name", &[("name", "q-1"), ("address", "q-1")]).await;
    scene.pulled_by("address").await;
    assert_eq!(scene.used(), ["name"]);
    assert_eq!(scene.heard(), ["name", "address", "name"]);
    assert_eq!(scene.queens.counts(), (1, 1));
    sleep(3 * INTERVAL).await;
    let heard = scene.heard();
    assert!((3..=4).contains(&heard.len()), "{heard:?}");
    assert!(heard.iter().all(|to| to == "name"), "{heard:?}");

    scene.source.set("stopped");
    scene.queens.goodbye().await;
    assert_eq!(scene.heard(), ["name"]);
}

#[tokio::test(start_paused = true)]
async fn the_older_address_stays_but_one_of_the_settings_before_one_that_was_pulled() {
    let scene = Scene::new(&[("first", "q-1"), ("second", "q-1"), ("named", "q-1")]);
    scene.pulled_by("first").await;
    scene.pulled_by("second").await;
    assert_eq!(scene.used(), ["first"]);
    scene.queens.add(url("named"), true).unwrap();
    scene.at_once().await;
    assert_eq!(scene.used(), ["named"]);
}

#[tokio::test(start_paused = true)]
async fn a_pull_by_the_other_address_brings_a_beat_by_the_one_that_stays() {
    let scene = Scene::with_setting("name", &[("name", "q-1"), ("address", "q-1")]).await;
    scene.pulled_by("address").await;
    sleep(INTERVAL).await;
    scene.heard();
    scene.pulled_by("address").await;
    assert_eq!(scene.heard(), ["name"]);
    assert_eq!(scene.used(), ["name"]);
}

#[tokio::test(start_paused = true)]
async fn a_queen_that_took_over_the_other_address_is_found_out_by_her_second_pull() {
    let scene = Scene::with_setting("name", &[("name", "q-1"), ("address", "q-1")]).await;
    scene.pulled_by("address").await;
    scene.leads("address", "q-2");
    scene.pulled_by("address").await;
    assert_eq!(scene.used(), ["name"]);
    scene.pulled_by("address").await;
    assert_eq!(scene.used(), ["name", "address"]);
    assert_eq!(scene.queens.counts(), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn the_other_way_is_taken_up_when_the_one_that_stays_loses_the_queen_and_left_again_when_it_finds_her() {
    let scene = Scene::with_setting("name", &[("name", "q-1"), ("address", "q-1")]).await;
    scene.pulled_by("address").await;
    scene.leads_nowhere("name");
    scene.heard();
    sleep(INTERVAL).await;
    assert_eq!(scene.used(), ["name", "address"]);
    assert_eq!(
        scene.heard()[..2],
        ["name", "address"],
        "at once, and not with the next pull"
    );
    assert_eq!(scene.queens.counts(), (1, 2));
    scene.leads("name", "q-1");
    sleep(INTERVAL).await;
    assert_eq!(scene.used(), ["name"]);
}

#[tokio::test(start_paused = true)]
async fn a_queen_that_was_started_again_is_still_one_queen() {
    let scene = Scene::with_setting("name", &[("name", "q-1"), ("address", "q-1")]).await;
    scene.pulled_by("address").await;
    scene.leads("name", "q-2");
    scene.leads("address", "q-2");
    sleep(INTERVAL).await;
    scene.heard();
    assert_eq!(scene.used(), ["name"]);
    sleep(INTERVAL).await;
    assert!(!scene.heard().contains(&"address".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn both_queens_of_a_standby_pair_are_reported_to_also_when_their_common_address_moves() {
    let leads = [("common", "q-1"), ("one", "q-1"), ("two", "q-2")];
    let scene = Scene::with_setting("common", &leads).await;
    for name in ["one", "two"] {
        scene.queens.add(url(name), true).unwrap();
    }
    scene.at_once().await;
    assert_eq!(scene.used(), ["common", "two"]);
    scene.leads("common", "q-2");
    sleep(INTERVAL).await;
    assert_eq!(scene.used(), ["common", "one"]);
}

#[tokio::test(start_paused = true)]
async fn queens_that_do_not_say_who_they_are_are_all_reported_to() {
    let scene = Scene::with_setting("name", &[("name", ""), ("address", "")]).await;
    scene.pulled_by("address").await;
    sleep(INTERVAL).await;
    assert_eq!(scene.used(), ["name", "address"]);
}

#[tokio::test(start_paused = true)]
async fn what_one_client_refuted_holds_for_all() {
    let scene = Scene::with_setting("name", &[("name", "q-1"), ("other", "q-2")]).await;
    scene.pulled_by("other").await;
    *scene.network.gone.lock().unwrap() = 40;
    sleep(INTERVAL).await;
    scene.queens.beat_now();
    scene.at_once().await;
    let incarnations: Vec<_> = {
        let beats = scene.network.beats.lock().unwrap();
        beats.iter().map(|(_, beat)| beat.incarnation).collect()
    };
    assert!(incarnations.ends_with(&[41, 41, 41]), "{incarnations:?}");
    assert!(
        incarnations.iter().all(|incarnation| [7, 41].contains(incarnation)),
        "{incarnations:?}"
    );
    assert_eq!(scene.queens.drops(), []);
    scene.heard();
}

#[tokio::test(start_paused = true)]
async fn one_queen_too_many_replaces_a_silent_one_but_no_pinned_one_and_none_that_answers() {
    let scene = Scene::with_setting("name", &[("queen-3", "q-3")]).await;
    for n in 1..MAX_QUEENS {
        scene.pulled_by(&format!("queen-{n}")).await;
    }
    scene.pulled_by("queen-8").await;
    let expected = [
        "name", "queen-2", "queen-3", "queen-4", "queen-5", "queen-6", "queen-7", "queen-8",
    ];
    assert_eq!(scene.used(), expected);
    for n in 9..30 {
        scene.pulled_by(&format!("queen-{n}")).await;
    }
    let used = scene.used();
    assert_eq!(
        (used.len(), &used[..2]),
        (MAX_QUEENS, &["name".to_owned(), "queen-3".to_owned()][..])
    );
    scene.pulled_by("queen-1").await;
    scene.heard();
}

#[tokio::test(start_paused = true)]
async fn a_way_that_is_not_used_is_given_up_before_a_queen_is_refused() {
    let scene = Scene::with_setting("queen-0", &[("queen-0", "q"), ("address", "q")]).await;
    for n in 1..MAX_QUEENS - 1 {
        scene.queens.add(url(&format!("queen-{n}")), true).unwrap();
    }
    scene.pulled_by("address").await;
    scene.pulled_by("queen-7").await;
    assert_eq!(scene.used().len(), MAX_QUEENS);
    scene.leads("queen-7", "q-7");
    sleep(INTERVAL).await;
    let refused = scene.queens.pulled_by(&url("queen-8"));
    assert_eq!(refused, Err(Error::TooManyQueens));
    scene.queens.pulled_by(&url("queen-3")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_roll_shows_the_newest_pull_of_each_queen_by_the_way_that_is_used() {
    let scene = Scene::with_setting("name", &[("name", "q-1"), ("address", "q-1"), ("other", "q-2")]).await;
    let roll = scene.queens.roll();
    let shown = || roll.borrow().clone();
    assert_eq!(shown(), [(url("name"), 0)]);
    scene.pulled_by("other").await;
    scene.queens.pulled_by(&url("address")).unwrap();
    assert_eq!(shown(), [(url("name"), 0), (url("other"), 1), (url("address"), 2)]);
    scene.at_once().await;
    assert_eq!(shown(), [(url("name"), 2), (url("other"), 1)]);
    scene.pulled_by("address").await;
    scene.pulled_by("other").await;
    assert_eq!(shown(), [(url("name"), 3), (url("other"), 4)]);
}

#[tokio::test(start_paused = true)]
async fn the_goodbye_is_the_last_that_is_heard_whoever_pulls_after_it() {
    let scene = Scene::with_setting("name", &[("name", "q-1"), ("other", "q-2")]).await;
    scene.pulled_by("other").await;
    scene.heard();
    scene.source.set("stopped");
    let called = Instant::now();
    scene.queens.goodbye().await;
    assert!(called.elapsed() <= Duration::from_secs(2));
    for name in ["name", "other", "third"] {
        assert_eq!(scene.queens.pulled_by(&url(name)), Err(Error::Ended));
        assert_eq!(scene.queens.add(url(name), true), Err(Error::Ended));
    }
    scene.queens.beat_now();
    sleep(3 * INTERVAL).await;
    let mut heard = scene.heard();
    heard.sort();
    assert_eq!(heard, ["name", "other"]);
}

#[tokio::test(start_paused = true)]
async fn the_clients_end_with_the_last_handle_of_all() {
    let scene = Scene::with_setting("name", &[("name", "q-1"), ("address", "q-1")]).await;
    let Scene { network, queens, .. } = scene;
    let mut roll = queens.roll();
    drop(queens);
    timeout(INTERVAL, async { while roll.changed().await.is_ok() {} })
        .await
        .expect("nothing holds them any more");
    network.beats.lock().unwrap().clear();
    sleep(3 * INTERVAL).await;
    assert!(network.beats.lock().unwrap().is_empty());
}
