//! What a person types.

use nix::sys::signal::Signal;
use rbee_tests::process::{group_members, is_alive};
use rbee_tests::{Cluster, PATIENCE, Process, Program, eventually, http, models};
use serde_json::{Value, json};

/// `rbee up --json` on free ports.
struct Up {
    process: Process,
}

impl Up {
    fn start() -> Self {
        let mut command = Program::Rbee.command();
        let state = tempfile::tempdir().expect("a temporary folder").keep();
        command
            .args(["up", "--json", "--port", "0", "--hive-port", "0", "--state-dir"])
            .arg(state);
        Self {
            process: Process::spawn(command),
        }
    }

    /// Waits for an event of this name, such as `ready`.
    async fn event(&mut self, name: &str) -> Value {
        eventually(&format!("`up` says {name}"), async || {
            let log = self.process.log();
            let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            events.into_iter().find(|event| event["event"] == name)
        })
        .await
    }
}

impl Drop for Up {
    /// Its daemons are in a group of their own, which a second signal kills; a scenario that failed must not leave it.
    fn drop(&mut self) {
        if is_alive(self.process.pid()) {
            self.process.signal(Signal::SIGTERM);
            self.process.signal(Signal::SIGINT);
            while is_alive(self.process.pid()) {
                std::thread::yield_now();
            }
        }
    }
}

async fn rbee(queen_url: &str, args: &[&str]) -> std::process::Output {
    let mut command = Program::Rbee.command();
    command
        .args(["--queen-url", queen_url])
        .args(args)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    tokio::time::timeout(PATIENCE, command.output())
        .await
        .expect("rbee ends")
        .expect("rbee runs")
}

async fn json_of(queen_url: &str, args: &[&str]) -> Value {
    let output = rbee(queen_url, args).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn up_gives_a_url_that_answers_and_one_ctrl_c_ends_it_all() {
    let mut up = Up::start();
    let started = up.event("started").await;
    let ready = up.event("ready").await;
    let queen_url = started["queen_url"].as_str().unwrap();

    let base_url = ready["base_url"].as_str().unwrap();
    let body = rbee_tests::cluster::chat_body(models::SMOLLM2, "Hello");
    let answer = http::post(format!("{base_url}/chat/completions"), &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");

    let ask = [
        "run",
        models::SMOLLM2,
        "Why is the sky blue?",
        "--temperature",
        "0",
        "--max-tokens",
        "24",
    ];
    let said = rbee(queen_url, &ask).await;
    assert!(said.status.success(), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stdout).contains("sky"), "{said:?}");

    let fleet = json_of(queen_url, &["ps", "--json"]).await;
    assert_eq!(fleet["workers"][0]["model_id"], models::SMOLLM2);
    let listed = json_of(queen_url, &["models", "--json"]).await;
    assert_eq!(listed["served"][0]["model_id"], models::SMOLLM2, "{listed:#}");
    let table = String::from_utf8(rbee(queen_url, &["ps"]).await.stdout).unwrap();
    assert!(table.contains(models::SMOLLM2) && table.contains("online"), "{table}");

    let worker = fleet["workers"][0]["id"].as_str().unwrap();
    assert!(rbee(queen_url, &["stop", worker]).await.status.success());
    eventually("the worker is gone", async || {
        (json_of(queen_url, &["ps", "--json"]).await["workers"] == json!([])).then_some(())
    })
    .await;
    assert!(rbee(queen_url, &["spawn", models::SMOLLM2]).await.status.success());

    let group = i32::try_from(started["process_group"].as_i64().unwrap()).unwrap();
    assert!(
        group_members(group).len() >= 3,
        "queen, hive and worker: {:?}",
        group_members(group)
    );
    up.process.signal(Signal::SIGINT);
    assert_eq!(up.process.ended().await.code(), Some(0), "{}", up.process.log());
    assert_eq!(group_members(group), [0_i32; 0], "left behind");
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_second_impatient_ctrl_c_leaves_nothing_behind_either() {
    let mut up = Up::start();
    let started = up.event("started").await;
    up.event("ready").await;
    let group = i32::try_from(started["process_group"].as_i64().unwrap()).unwrap();
    up.process.signal(Signal::SIGINT);
    up.event("stopping").await;
    up.process.signal(Signal::SIGINT);
    let code = up.process.ended().await.code();
    // The first one may have been done before the second one came.
    assert!(matches!(code, Some(130 | 0)), "{code:?}: {}", up.process.log());
    eventually("the group is empty", async || {
        group_members(group).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_ctrl_c_while_the_model_loads_leaves_nothing_behind() {
    let mut up = Up::start();
    let started = up.event("started").await;
    let group = i32::try_from(started["process_group"].as_i64().unwrap()).unwrap();
    up.event("job").await;
    up.process.signal(Signal::SIGINT);
    up.process.ended().await;
    assert_eq!(group_members(group), [0_i32; 0], "left behind: {}", up.process.log());
}

#[tokio::test]
async fn without_a_queen_each_command_says_how_to_get_one() {
    for args in [
        &["ps"][..],
        &["models"],
        &["run", "m", "hello"],
        &["stop", "w"],
        &["pull", models::SMOLLM2],
    ] {
        let output = rbee("http://127.0.0.1:9", args).await;
        assert_eq!(output.status.code(), Some(3), "{args:?}: {output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains("rbee up") && error.contains("--queen-url"),
            "{args:?}: {error}"
        );
    }
}

#[tokio::test]
async fn a_model_that_nobody_serves_is_named_with_those_there_are() {
    let cluster = Cluster::start().await;
    let worker = rbee_tests::fake::FakeWorker::start("w", "some-model").await;
    worker.beat_to(&cluster.url()).await;
    let output = rbee(&cluster.url(), &["run", "no-such-model", "hello"]).await;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("no-such-model") && error.contains("some-model"),
        "{error}"
    );
}

#[tokio::test]
async fn the_daemons_are_in_the_one_program() {
    for daemon in ["queen", "hive", "worker"] {
        let output = Program::Rbee.command().args([daemon, "--help"]).output().await.unwrap();
        assert!(output.status.success());
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(
            help.contains("--token") && help.contains(&format!("rbee {daemon}")),
            "{help}"
        );
    }
}
