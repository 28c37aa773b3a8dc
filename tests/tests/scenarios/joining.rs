//! A person with several machines: one shares itself, the others join.

use std::collections::HashMap;
use std::path::Path;

use nix::sys::signal::Signal;
use rbee_tests::cluster::chat_body;
use rbee_tests::net::Lan;
use rbee_tests::{Cluster, Process, Program, eventually, http, models};
use serde_json::{Value, json};
use tokio::process::Command;

/// Waits for an event that a program says in JSON.
async fn event(process: &Process, name: &str) -> Value {
    eventually(&format!("it says {name}"), async || {
        let log = process.log();
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.into_iter().find(|event| event["event"] == name)
    })
    .await
}

fn join(mut command: Command, queen_url: &str, state: &Path) -> Process {
    command
        .args(["join", queen_url, "--json", "--port", "0", "--state-dir"])
        .arg(state);
    Process::spawn(command)
}

/// The secrets that `rbee up --share` made.
fn secrets(file: &str) -> HashMap<String, String> {
    let text = std::fs::read_to_string(file).expect("the file that it names");
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What `rbee ps` knows.
async fn fleet(mut rbee: Command, queen: &str, secrets: &HashMap<String, String>) -> Value {
    rbee.env("RBEE_TOKEN", &secrets["RBEE_TOKEN"])
        .args(["--json", "--queen-url", queen, "ps"]);
    let output = rbee.output().await.expect("rbee runs");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Takes more than five seconds: a real model is loaded on each of two hosts.
#[tokio::test]
async fn one_machine_shares_itself_and_another_joins_it_with_what_was_shown() {
    models::smollm2().await;
    let Some(lan) = Lan::build() else { return };
    let (first, second) = (lan.host().await, lan.host().await);
    let state = tempfile::tempdir().unwrap();
    let mut command = first.command(Program::Rbee);
    command
        .args([
            "up",
            "--share",
            "--json",
            "--port",
            "0",
            "--hive-port",
            "0",
            "--state-dir",
        ])
        .arg(state.path());
    let mut up = Process::spawn(command);
    let ready = event(&up, "ready").await;
    let port = ready["base_url"]
        .as_str()
        .unwrap()
        .rsplit([':', '/'])
        .nth(1)
        .unwrap()
        .to_owned();
    let queen = format!("http://{}:{port}", first.address);
    let secrets = secrets(ready["secrets_file"].as_str().unwrap());
    assert!(
        !up.log().contains(&secrets["RBEE_TOKEN"]),
        "a program's output holds no secret"
    );

    // Without the token it is told what is missing, and nothing stays.
    let refused = second
        .command(Program::Rbee)
        .args(["join", &queen])
        .output()
        .await
        .unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("RBEE_TOKEN"),
        "{refused:?}"
    );

    let mut command = second.command(Program::Rbee);
    command.env("RBEE_TOKEN", &secrets["RBEE_TOKEN"]);
    let mut guest = join(command, &queen, &state.path().join("second"));
    let joined = event(&guest, "joined").await;
    assert!(
        joined["hive_url"]
            .as_str()
            .unwrap()
            .starts_with(&format!("http://{}:", second.address)),
        "{joined}"
    );

    // The first host takes nothing more: the next worker runs on the one that joined, with the file of the first.
    let before = fleet(first.command(Program::Rbee), &queen, &secrets).await;
    let hosts: Vec<_> = before["hives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hive| hive["id"].as_str().unwrap())
        .collect();
    assert_eq!(hosts.len(), 2, "{hosts:?}");
    let other = hosts.iter().find(|id| **id != joined["hive_id"]).unwrap();
    let mut rbee = first.command(Program::Rbee);
    rbee.env("RBEE_TOKEN", &secrets["RBEE_TOKEN"])
        .args(["drain", *other, "--queen-url", &queen]);
    assert!(rbee.output().await.unwrap().status.success());
    eventually("the first host is empty", async || {
        let fleet = fleet(first.command(Program::Rbee), &queen, &secrets).await;
        fleet["workers"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    let (chat, key) = (format!("{queen}/v1/chat/completions"), secrets["RBEE_API_KEY"].clone());
    let (keyless, answer) = second
        .run(async move {
            let ask = || http::client().post(&chat).json(&chat_body(models::SMOLLM2, "hello"));
            let keyless = ask().send().await.unwrap().status();
            (keyless, ask().bearer_auth(key).send().await.unwrap())
        })
        .await;
    assert_eq!(keyless, 401);
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-rbee-hive"], joined["hive_id"].as_str().unwrap());

    guest.signal(Signal::SIGINT);
    assert!(guest.ended().await.success(), "{}", guest.log());
    eventually("the guest is gone", async || {
        let fleet = fleet(first.command(Program::Rbee), &queen, &secrets).await;
        let (hives, gone) = (fleet["hives"].as_array()?, fleet["gone"].as_array()?);
        (hives.len() == 1 && gone.iter().any(|gone| gone["id"] == joined["hive_id"])).then_some(())
    })
    .await;
    up.signal(Signal::SIGINT);
    assert!(up.ended().await.success(), "{}", up.log());
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_second_hive_on_one_machine_joins_without_a_token_and_leaves_by_ctrl_c() {
    models::smollm2().await;
    // A goodbye that a busy machine swallows is made up for by the retention.
    let pace = ["--heartbeat-interval-ms", "1000", "--heartbeat-ttl-ms", "10000"];
    let cluster = Cluster::with(pace.iter().chain(&["--retention-ms", "10000"])).await;
    let state = tempfile::tempdir().unwrap();
    let mut guest = join(Program::Rbee.command(), &cluster.url(), state.path());
    let joined = event(&guest, "joined").await;
    assert!(
        joined["devices"].as_array().unwrap().contains(&json!("cpu")),
        "{joined}"
    );
    let answer = cluster.chat(models::SMOLLM2, "hello").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    guest.signal(Signal::SIGINT);
    assert!(guest.ended().await.success(), "{}", guest.log());
    let reason = cluster
        .until("it is gone", |fleet| {
            fleet.gone.iter().find(|gone| gone.kind == "hive").cloned()
        })
        .await;
    assert_eq!(reason.id, joined["hive_id"]);
}
