//! Hives and queens find each other, whoever starts first and whoever asks.

use queen_rbee::fleet::FleetView;
use rbee_tests::net::{Lan, Queen, hive};
use rbee_tests::{Program, models};

use crate::hosts::{PACE, figure, ready_worker, spawn_worker, start_hive};

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    PACE.iter().chain(more).copied().collect()
}

fn all_known(fleet: &FleetView, ids: &[&str]) -> Option<()> {
    let is_known = |id: &&str| hive(fleet, id).is_some_and(|hive| hive.ready && hive.capabilities.is_some());
    ids.iter().all(is_known).then_some(())
}

/// Takes more than five seconds: that is when the queen begins to ask.
#[tokio::test]
async fn a_queen_asks_the_hives_of_her_settings_of_the_ssh_configuration_and_of_the_local_network() {
    let Some(lan) = Lan::build() else { return };
    let hosts = [lan.host().await, lan.host().await, lan.host().await];
    let mut hives = Vec::new();
    let more: [&[&str]; 3] = [&[], &[], &["--mdns"]];
    for ((host, id), more) in hosts.iter().zip(["named", "ssh", "announced"]).zip(more) {
        let args = ["--port", "0", "--hive-id", id].into_iter().chain(more.iter().copied());
        hives.push(host.daemon(Program::Hive, args).await);
    }
    let ssh = hives[1].folder().join("ssh_config");
    let (address, port) = (hives[1].address.ip(), hives[1].address.port());
    let text = format!(
        "Host *.example !bad\n  User nobody\n\nHost gpu-box\n  HostName {address}\n  # rbee-hive-port: {port}\n  User me\n"
    );
    std::fs::write(&ssh, text).expect("a file");
    let (named, ssh) = (hives[0].url(), ssh.to_string_lossy());
    let start = std::time::Instant::now();
    let queen = Queen::start(&lan, &with(&["--hive", &named, "--hives-from-ssh", &ssh, "--mdns"])).await;
    let known = |fleet: &FleetView| all_known(fleet, &["named", "ssh", "announced"]);
    queen.until("all three have been asked and beat", known).await;
    figure(
        "queen started, until three hives that she asked are online (asks after 5 s)",
        start.elapsed(),
    );
}

/// Takes more than five seconds: that is when the queen begins to ask.
#[tokio::test]
async fn with_a_token_a_queen_finds_the_hives_that_have_it_and_no_other() {
    let Some(lan) = Lan::build() else { return };
    let token = ["--token", "a-fleet-token"];
    let hosts = [lan.host().await, lan.host().await, lan.host().await];
    let mut hives = Vec::new();
    let settings: [(&str, &[&str]); 3] = [
        ("named", &token),
        ("announced", &["--mdns", "--token", "a-fleet-token"]),
        ("stranger", &["--mdns", "--token", "another-token"]),
    ];
    for (host, (id, more)) in hosts.iter().zip(settings) {
        let args = ["--port", "0", "--hive-id", id].into_iter().chain(more.iter().copied());
        hives.push(host.daemon(Program::Hive, args).await);
    }
    let named = hives[0].url();
    let args = with(&["--hive", &named, "--mdns", "--token", "a-fleet-token"]);
    let queen = Queen::start(&lan, &args).await;
    let known = |fleet: &FleetView| all_known(fleet, &["named", "announced"]);
    queen
        .until("the hives with the token have been asked and beat", known)
        .await;
    let fleet = queen.fleet().await;
    assert!(hive(&fleet, "stranger").is_none(), "{fleet:#?}");
    for process in [&queen.process, &hives[2]] {
        assert!(!process.log().contains("a-fleet-token"), "the token is in a log");
    }
}

/// Takes more than five seconds: a model is loaded twice, and the second queen begins to ask after five.
#[tokio::test]
async fn a_second_queen_has_the_whole_fleet_also_the_worker_that_ran_before_she_came() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let first = Queen::start(&lan, &PACE).await;
    let host = lan.host().await;
    let hive_process = start_hive(&host, "box", &first.url()).await;
    let early = spawn_worker(&host, &hive_process).await;
    first
        .until("the worker is ready", |fleet| ready_worker(fleet, &early))
        .await;

    let second = Queen::start(&lan, &with(&["--hive", &hive_process.url()])).await;
    let whole = |fleet: &FleetView| all_known(fleet, &["box"]).and(ready_worker(fleet, &early));
    let (_, time) = second.until("the second queen has the whole fleet", whole).await;
    figure(
        "second queen started, until she has hive and worker (asks after 5 s)",
        time,
    );
    let late = spawn_worker(&host, &hive_process).await;
    for queen in [&first, &second] {
        let both = |fleet: &FleetView| ready_worker(fleet, &early).and(ready_worker(fleet, &late));
        queen.until("each queen has both workers", both).await;
        let answer = queen.chat(models::SMOLLM2).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_hive_that_names_two_queens_gives_each_the_whole_fleet_and_one_may_die() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let (mut first, second) = (Queen::start(&lan, &PACE).await, Queen::start(&lan, &PACE).await);
    let host = lan.host().await;
    let urls = [first.url(), second.url()];
    let args = [
        "--port",
        "0",
        "--hive-id",
        "box",
        "--queen-url",
        &urls[0],
        "--queen-url",
        &urls[1],
    ];
    let hive_process = host.daemon(Program::Hive, args).await;
    let id = spawn_worker(&host, &hive_process).await;
    let whole = |fleet: &FleetView| all_known(fleet, &["box"]).and(ready_worker(fleet, &id));
    for queen in [&first, &second] {
        queen.until("each queen has the whole fleet", whole).await;
    }
    first.process.kill().await;
    let answer = second.chat(models::SMOLLM2).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    first.restart().await;
    let (_, time) = first.until("the first queen has the whole fleet again", whole).await;
    figure("one of two queens started again, until she has the whole fleet", time);
    second.until("the other queen has the whole fleet still", whole).await;
}
