//! Several hosts: cables that are cut, walls that let one way through, clocks that differ, names that are taken twice.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use queen_rbee::fleet::{FleetView, Liveness};
use rbee_tests::fake::FakeWorker;
use rbee_tests::net::{Lan, Queen, Wall, hive, worker};
use rbee_tests::{models, wire};
use serde_json::json;

use crate::hosts::{PACE, figure, ready_worker, spawn_worker, start_hive};

fn is_hive(fleet: &FleetView, id: &str, liveness: Liveness) -> Option<()> {
    (hive(fleet, id)?.liveness == liveness).then_some(())
}

/// Takes more than five seconds: a model is loaded, and the TTL must pass.
#[tokio::test]
async fn a_host_whose_cable_is_cut_is_lost_and_comes_back_with_the_cable() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let queen = Queen::start(&lan, &PACE).await;
    let (host, other) = (lan.host().await, lan.host().await);
    let cut = start_hive(&host, "cut", &queen.url()).await;
    let _safe = start_hive(&other, "safe", &queen.url()).await;
    let id = spawn_worker(&host, &cut).await;
    let whole = |fleet: &FleetView| ready_worker(fleet, &id).filter(|_| fleet.hives.len() == 2);
    let (before, _) = queen.until("the fleet is whole", whole).await;

    host.cut();
    let all_lost = |fleet: &FleetView| {
        let worker = worker(fleet, &id)?;
        is_hive(fleet, "cut", Liveness::Lost).filter(|()| worker.liveness == Liveness::Lost)
    };
    let ((), time) = queen.until("all of the host is lost", all_lost).await;
    figure(
        "cable cut, until hive and worker are lost (TTL 4 s and one sweep)",
        time,
    );
    let safe = |fleet: &FleetView| {
        is_hive(fleet, "safe", Liveness::Online)
            .filter(|()| !fleet.queen.degraded_view)
            .map(|()| fleet.clone())
    };
    let (fleet, _) = queen.until("one host of two is no reason for doubt", safe).await;
    let reason = worker(&fleet, &id).and_then(|worker| worker.reason.clone());
    assert!(reason.is_some_and(|reason| reason.contains("no heartbeat")));

    host.heal();
    let online = |fleet: &FleetView| is_hive(fleet, "cut", Liveness::Online).and(ready_worker(fleet, &id));
    let (after, time) = queen.until("all of the host is back", online).await;
    figure("cable healed, until hive and worker are online (interval 0.7 s)", time);
    assert_eq!((after.pid, after.incarnation), (before.pid, before.incarnation));
    let answer = queen.chat(models::SMOLLM2).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Takes more than five seconds: a knock that nobody answers is waited for that long.
#[tokio::test]
async fn a_host_that_reaches_the_queen_and_cannot_be_reached_is_unreachable_and_says_why() {
    let Some(lan) = Lan::build() else { return };
    // No request waits long for a worker that cannot be reached.
    let args: Vec<&str> = PACE.into_iter().chain(["--queue-timeout-ms", "200"]).collect();
    let queen = Queen::start(&lan, &args).await;
    let url = queen.url();
    for wall in [Wall::Refuses, Wall::Ignores] {
        let (host, id) = (lan.host().await, format!("{wall:?}"));
        host.one_way(wall);
        let _hive = start_hive(&host, &id, &url).await;
        let address = host.address;
        let (name, queen_url) = (id.clone(), url.clone());
        let _fake = host
            .run(async move {
                let mut fake = FakeWorker::start_at(address, &name, &name).await;
                fake.beat_on(&queen_url, Duration::from_millis(500));
                fake
            })
            .await;

        let unreachable = |fleet: &FleetView| {
            let (hive, worker) = (hive(fleet, &id)?, worker(fleet, &id)?);
            let both = [hive.liveness, worker.liveness] == [Liveness::Unreachable; 2];
            both.then(|| (hive.reason.clone(), worker.clone()))
        };
        let ((reason, worker), time) = queen.until("both are unreachable", unreachable).await;
        figure(
            &format!("first beat from behind a wall ({wall:?}), until unreachable"),
            time,
        );
        let reason = reason.expect("a reason");
        assert!(reason.contains(&address.to_string()), "{reason}");
        assert!(wall != Wall::Refuses || reason.contains("refused"), "{reason}");
        assert!(!worker.ready, "{worker:?}");
        assert_ne!(queen.chat(&id).await.status, 200, "it cannot be reached");

        host.both_ways();
        let reached =
            |fleet: &FleetView| is_hive(fleet, &id, Liveness::Online).filter(|()| ready_worker(fleet, &id).is_some());
        let ((), time) = queen.until("both can be reached", reached).await;
        figure(&format!("wall ({wall:?}) gone, until online"), time);
        assert_eq!(queen.chat(&id).await.text(), id);
    }
}

/// Takes more than five seconds: two models are loaded, and the silence must outlast the TTL and the retention.
#[tokio::test]
async fn a_queen_whose_own_cable_is_cut_doubts_herself_and_forgets_nobody() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    // Longer than an interval: that far apart do those fall silent who beat in turn.
    let args: Vec<&str> = PACE.into_iter().chain(["--retention-ms", "4000"]).collect();
    let queen = Queen::start(&lan, &args).await;
    let (one, other) = (lan.host().await, lan.host().await);
    let first = start_hive(&one, "first", &queen.url()).await;
    let second = start_hive(&other, "second", &queen.url()).await;
    let ids = [spawn_worker(&one, &first).await, spawn_worker(&other, &second).await];
    let whole = |fleet: &FleetView| {
        let workers: Option<Vec<_>> = ids.iter().map(|id| ready_worker(fleet, id)).collect();
        let starts = workers?.iter().map(|worker| worker.incarnation).collect::<Vec<_>>();
        let hives = fleet.hives.iter().filter(|hive| hive.liveness == Liveness::Online);
        (hives.count() == 2).then_some(starts)
    };
    let (before, _) = queen.until("the fleet is whole", whole).await;
    assert!(!queen.fleet().await.queen.degraded_view);

    queen.host.cut();
    // Hives and workers beat in turn: those that beat last are lost last.
    let degraded = |fleet: &FleetView| {
        let nobody = fleet.workers.iter().all(|worker| !worker.ready);
        (fleet.queen.degraded_view && nobody).then(|| fleet.queen.degraded_reason.clone())
    };
    let (reason, time) = queen.until("the queen doubts her view", degraded).await;
    figure("queen's cable cut, until degraded_view (TTL 4 s and one sweep)", time);
    assert!(reason.is_some());
    // More than twice the retention.
    queen
        .watch(Duration::from_secs(6), |fleet| {
            assert!(fleet.queen.degraded_view, "{:?}", fleet.queen);
            assert!(fleet.gone.is_empty(), "{:?}", fleet.gone);
            assert_eq!((fleet.hives.len(), fleet.workers.len()), (2, 2));
            assert!(fleet.workers.iter().all(|worker| !worker.ready), "{fleet:#?}");
        })
        .await;

    queen.host.heal();
    let (after, time) = queen.until("the fleet is whole", whole).await;
    figure(
        "queen's cable healed, until the whole fleet is back (interval 0.7 s)",
        time,
    );
    assert_eq!(after, before, "nobody started again");
    let sure = |fleet: &FleetView| (!fleet.queen.degraded_view).then_some(());
    queen.until("the queen trusts her view", sure).await;
}

#[tokio::test]
async fn two_live_hives_with_one_name_are_a_conflict_that_shows_both_addresses() {
    let Some(lan) = Lan::build() else { return };
    // A holder who is silent for a TTL loses the name.
    let queen = Queen::start(&lan, &["--heartbeat-interval-ms", "700", "--heartbeat-ttl-ms", "20000"]).await;
    let (one, other) = (lan.host().await, lan.host().await);
    let _first = start_hive(&one, "twin", &queen.url()).await;
    queen
        .until("the first hive beats", |fleet| hive(fleet, "twin").cloned())
        .await;
    let mut second = start_hive(&other, "twin", &queen.url()).await;
    let contended = |fleet: &FleetView| {
        let view = hive(fleet, "twin")?;
        Some((view.base_url.clone(), view.conflict.as_ref()?.base_url.clone()))
    };
    let ((holder, contender), time) = queen.until("the conflict is seen", contended).await;
    figure(
        "second hive with the same name started, until the conflict is shown",
        time,
    );
    let mut shown = [holder.clone(), contender];
    shown.sort();
    let mut addresses = [one.address, other.address].map(|address| format!("http://{address}:"));
    addresses.sort();
    for (shown, address) in shown.iter().zip(&addresses) {
        assert!(shown.starts_with(address), "{shown} is not at {address}");
    }
    // No flapping: the one that has the name keeps it.
    queen
        .watch(Duration::from_secs(2), |fleet| {
            let view = hive(fleet, "twin").expect("one of them has the name");
            assert_eq!(view.base_url, holder);
            assert_eq!(fleet.hives.len(), 1);
        })
        .await;

    assert!(second.stop().await.success());
    let settled = |fleet: &FleetView| {
        let conflict = hive(fleet, "twin").map(|view| view.conflict.is_some());
        (conflict == Some(false)).then_some(())
    };
    let ((), time) = queen.until("one of them is left", settled).await;
    figure("one of the two stopped, until the conflict is over", time);
}

#[tokio::test]
async fn hosts_whose_clocks_are_an_hour_off_are_online() {
    let Some(lan) = Lan::build() else { return };
    // Each beats once.
    let queen = Queen::start(&lan, &["--heartbeat-ttl-ms", "120000"]).await;
    for (name, hours) in [("ahead", 1), ("behind", -1)] {
        let host = lan.host().await;
        let (address, url) = (host.address, queen.url());
        let fake = host
            .run(async move { FakeWorker::start_at(address, name, name).await })
            .await;
        let stamp = Utc::now() + TimeDelta::hours(hours);
        let (worker_beat, mut hive_beat) = (fake.beat(stamp), wire::payload("hive_full"));
        hive_beat["timestamp"] = json!(stamp);
        hive_beat["hive"]["id"] = json!(name);
        hive_beat["hive"]["hostname"] = json!(address);
        hive_beat["hive"]["port"] = worker_beat["worker"]["port"].clone();
        for (path, beat) in [("worker-heartbeat", worker_beat), ("hive-heartbeat", hive_beat)] {
            let answer = host.post(format!("{url}/v1/{path}"), beat).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let online = |fleet: &FleetView| {
            let hive = hive(fleet, name).filter(|hive| hive.liveness == Liveness::Online)?;
            Some([ready_worker(fleet, name)?.clock_skew_ms, hive.clock_skew_ms])
        };
        let (skews, _) = queen.until("both are online", online).await;
        for skew in skews {
            assert!((skew - hours * 3_600_000).abs() < 60_000, "{skew} ms");
        }
        assert_eq!(queen.chat(name).await.text(), name);
    }
}

/// Takes more than five seconds: that is how long the noise lasts.
#[tokio::test]
async fn nobody_is_lost_while_a_twentieth_of_all_packets_is() {
    let Some(lan) = Lan::build() else { return };
    // A lost packet is sent again by the kernel after 0.2, 0.4, 0.8 s and so on: far less than this TTL.
    let queen = Queen::start(&lan, &["--heartbeat-interval-ms", "200", "--heartbeat-ttl-ms", "6000"]).await;
    let hosts = [lan.host().await, lan.host().await, lan.host().await];
    let mut hives = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        hives.push(start_hive(host, &format!("noisy-{number}"), &queen.url()).await);
    }
    let all = |fleet: &FleetView| {
        let online = fleet.hives.iter().filter(|hive| hive.liveness == Liveness::Online);
        (online.count() == hosts.len()).then_some(())
    };
    queen.until("all hives are online", all).await;
    hosts.iter().for_each(|host| host.loss(5));
    queen
        .watch(Duration::from_secs(8), |fleet| {
            for hive in &fleet.hives {
                assert_ne!(hive.liveness, Liveness::Lost, "{hive:#?}");
            }
        })
        .await;
    hosts.iter().for_each(|host| host.loss(0));
    queen.until("all hives are online", all).await;
    let fleet = queen.fleet().await;
    let (beats, missed) = fleet.hives.iter().fold((0, 0), |(beats, missed), hive| {
        (beats + hive.beats, missed + hive.missed_beats)
    });
    println!("figure: at 5 % loss each way and an interval of 0.2 s: {missed} beats missed, {beats} came");
}
