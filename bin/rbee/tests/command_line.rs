//! The program as a shell sees it: output, exit status, and what it does with a closed pipe.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use axum::http::{Method, Uri};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Runs the program without anything of the user's environment.
fn rbee(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rbee"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

/// Runs it to its end while this thread's runtime goes on serving.
async fn finished(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const ANSWER: &str = "\
data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"Hello\"}}]}\n\n\
data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\" there\"},\"finish_reason\":\"stop\"}]}\n\n\
data: {\"model\":\"m\",\"choices\":[],\"usage\":{\"total_tokens\":2}}\n\n\
data: [DONE]\n\n";

#[tokio::test]
async fn without_a_queen_the_exit_status_is_3_and_the_remedy_is_named() {
    let url = serve(Router::new()).await;
    // Below the ports that the system hands out, and used by nobody.
    let nobody = "http://127.0.0.1:1";
    for args in [
        &["ps"][..],
        &["run", "m", "hi"],
        &["models"],
        &["pull", "m"],
        &["rm", "m"],
        &["spawn", "m"],
        &["stop", "w"],
        &["logs", "w"],
        &["why", "m"],
        &["decisions"],
        &["serve", "m"],
        &["drain", "h"],
        &["bench", "m"],
    ] {
        let output = finished(rbee(&[args, &["--queen-url", nobody]].concat())).await;
        assert_eq!(output.status.code(), Some(3), "{args:?}");
        assert!(
            text(&output.stderr).contains("start one with `rbee up`"),
            "{}",
            text(&output.stderr)
        );
    }
    // Somebody who is no queen is another matter.
    let output = finished(rbee(&["ps", "--queen-url", &url])).await;
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn who_would_join_a_queen_that_is_not_there_is_told_what_may_keep_them_apart() {
    let output = finished(rbee(&["join", "http://127.0.0.1:1"])).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("--share") && said.contains("firewall"), "{said}");
}

#[tokio::test]
async fn a_command_line_that_is_not_valid_has_the_exit_status_2() {
    for args in [
        &["nonsense"][..],
        &["run"],
        &["run", "m", ""],
        &["up", "--model", "nonsense"],
        &["up", "--queen-url", "x"],
        &["serve"],
        &["serve", "m", "--list"],
        &["decisions", "--replay", "1", "--limit", "2"],
    ] {
        let output = finished(rbee(args)).await;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn a_misspelt_variable_is_named_by_commands_and_daemons_alike() {
    // A queen ends at once where somebody listens already.
    let port = serve(Router::new()).await.rsplit_once(':').unwrap().1.to_owned();
    for args in [
        &["ps", "--queen-url", "http://127.0.0.1:1"][..],
        &["queen", "--port", &port],
        &["worker"],
    ] {
        let mut command = rbee(args);
        command.envs([
            ("RBEE_TOKN", "correct-horse"),
            ("RBEE_HIVE_PORT", "1"),
            ("RBEE_SLOTS", "1"),
        ]);
        let output = finished(command).await;
        let said = text(&output.stderr);
        assert!(
            said.contains("RBEE_TOKN has no effect") && said.contains("RBEE_TOKEN?"),
            "{said}"
        );
        assert_eq!(said.matches("has no effect").count(), 1, "{said}");
        assert!(!said.contains("correct-horse"), "{said}");
    }
}

#[tokio::test]
async fn a_queen_does_not_stay_open_for_a_key_under_the_clients_name() {
    let port = serve(Router::new()).await.rsplit_once(':').unwrap().1.to_owned();
    let started = async |more: &[&str], variables: &[(&str, &str)]| {
        let mut command = rbee(&[&["queen", "--port", &port], more].concat());
        command
            .envs(variables.iter().copied())
            .env("RBEE_API_KEY", "correct-horse");
        let output = finished(command).await;
        (output.status.code(), text(&output.stderr).contains("RBEE_API_KEYS"))
    };
    assert_eq!(started(&[], &[]).await, (Some(2), true));
    // These come as far as the port, which is taken.
    assert_eq!(started(&["--insecure"], &[]).await, (Some(1), false));
    assert_eq!(
        started(&[], &[("RBEE_API_KEYS", "battery-staple")]).await,
        (Some(1), false)
    );
}

#[tokio::test]
async fn names_reach_the_queen_as_they_were_given() {
    // Answers with the request itself.
    let echo = async |method: Method, uri: Uri, body: String| {
        Json(json!({"method": method.as_str(), "uri": uri.to_string(), "body": body}))
    };
    let url = serve(Router::new().fallback(echo)).await;
    let pinned = json!({"model": "org/m", "replicas": 2, "pin": true}).to_string();
    for (args, method, uri, body) in [
        (&["why", "org/m a"][..], "GET", "/v1/placement?model=org%2Fm+a", ""),
        (&["decisions", "-n", "3"], "GET", "/v1/decisions?limit=3", ""),
        (
            &["serve", "org/m", "--replicas", "2", "--pin"],
            "POST",
            "/v1/serve",
            pinned.as_str(),
        ),
        (&["serve", "--list"], "GET", "/v1/serve", ""),
        (&["drain", "lab/box"], "POST", "/v1/hives/lab%2Fbox/drain", ""),
        (
            &["drain", "lab/box", "--undo"],
            "DELETE",
            "/v1/hives/lab%2Fbox/drain",
            "",
        ),
    ] {
        let output = finished(rbee(&[args, &["--json", "--queen-url", &url]].concat())).await;
        let heard: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(heard, json!({"method": method, "uri": uri, "body": body}), "{args:?}");
    }
}

/// A queen who takes any job, and whose hive `box` does all at once.
async fn serve_jobs() -> (String, mpsc::UnboundedReceiver<Value>) {
    let (told, orders) = mpsc::unbounded_channel();
    let accept = async move |Json(order): Json<Value>| {
        told.send(order).unwrap();
        Json(json!({"job_id": "j", "stream_url": "/v1/jobs/j/stream"}))
    };
    let result = json!({
        "id": "m", "size_bytes": 1_000_000, "freed_bytes": 1_000_000, "worker_id": "w1", "model": "m", "device": "cpu",
        "hive_id": "box",
    });
    let running = json!({"seq": 0, "timestamp": "2026-01-02T03:04:05Z", "state": "running", "message": "a line"});
    let last = json!({"seq": 1, "timestamp": "2026-01-02T03:04:05Z", "state": "succeeded", "result": result});
    let events = format!("data: {running}\n\ndata: {last}\n\n");
    let router = Router::new()
        .route("/v1/jobs", post(accept))
        .route("/v1/jobs/j/stream", get(async || events));
    (serve(router).await, orders)
}

#[tokio::test]
async fn work_is_ordered_of_the_queen_who_says_which_hive_did_it() {
    let (url, mut orders) = serve_jobs().await;
    for (args, order, said) in [
        (
            &["pull", "m"][..],
            json!({"operation": "model_pull", "model": "m"}),
            "m is on box: 1.0 MB\n",
        ),
        (
            &["rm", "m", "--hive", "box"],
            json!({"operation": "model_delete", "model": "m", "hive_id": "box"}),
            "m is removed from box: 1.0 MB are free\n",
        ),
        (
            &["spawn", "m", "--slots", "2"],
            json!({"operation": "worker_spawn", "model": "m", "slots": 2}),
            "w1 serves m on box cpu\n",
        ),
        (
            &["logs", "w1", "--hive", "box"],
            json!({"operation": "worker_logs", "worker_id": "w1", "hive_id": "box"}),
            "a line\n",
        ),
    ] {
        let output = finished(rbee(&[args, &["--queen-url", &url]].concat())).await;
        assert_eq!(text(&output.stdout), said, "{args:?}: {}", text(&output.stderr));
        let heard = orders.recv().await.unwrap();
        for (field, value) in order.as_object().unwrap() {
            assert_eq!(heard[field], *value, "{args:?}: {heard}");
        }
        assert_eq!(heard.get("hive_id"), order.get("hive_id"), "{args:?}: {heard}");
    }
}

#[tokio::test]
async fn a_replay_that_differs_from_its_record_has_the_exit_status_1() {
    // A record by which the model went nowhere, although it fits.
    let need = json!({
        "fixed_bytes": 1, "kv_bytes_per_token": 0, "block_tokens": 1, "least_tokens": 1, "wanted_tokens": 1,
    });
    let cpu = json!({"id": "cpu", "is_gpu": false, "total_bytes": 9, "free_bytes": 9});
    let problem = json!({
        "model": "m", "need": {"cpu": need, "gpu": need}, "may_evict": false,
        "hosts": [{"id": "box", "has_file": true, "devices": [cpu]}],
    });
    let record = json!({
        "id": 5, "timestamp": "2026-01-02T03:04:05Z", "trigger": {"why": "demand", "waiting": 1}, "problem": problem,
        "decision": {"choice": null, "verdicts": []}, "outcome": {"state": "nowhere"},
    });
    let list = Json(json!({"decisions": [record]}));
    let url = serve(Router::new().route("/v1/decisions", get(async move || list))).await;
    let replay = |id: &'static str| finished(rbee(&["decisions", "--replay", id, "--json", "--queen-url", &url]));
    let output = replay("5").await;
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&answer["same"], &answer["replayed"]["choice"]["host"]),
        (&json!(false), &json!("box"))
    );
    let output = replay("6").await;
    assert!(
        text(&output.stderr).contains("keeps no decision 6"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn an_answer_goes_to_standard_output_and_nothing_else_does() {
    let url = serve(Router::new().route("/v1/chat/completions", post(async || ANSWER))).await;
    let output = finished(rbee(&["run", "m", "hi", "--queen-url", &url])).await;
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "Hello there\n"));
    assert_eq!(text(&output.stderr), "");
}

#[tokio::test]
async fn the_prompt_comes_from_a_pipe_if_it_is_left_out() {
    let echo = async |body: Json<Value>| {
        let prompt = &body["messages"][0]["content"];
        format!(
            "data: {}\n\ndata: [DONE]\n\n",
            json!({"choices": [{"delta": {"content": prompt}}]})
        )
    };
    let url = serve(Router::new().route("/v1/chat/completions", post(echo))).await;
    for dash in [&[][..], &["-"]] {
        let mut command = rbee(&[&["run", "m", "--queen-url", &url][..], dash].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all("what is piped in".as_bytes())
            .unwrap();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
            .await
            .unwrap();
        assert_eq!(text(&output.stdout), "what is piped in\n");
    }
}

#[tokio::test]
async fn a_file_comes_before_what_is_asked_about_it() {
    let echo = async |body: Json<Value>| {
        let prompt = &body["messages"][0]["content"];
        format!(
            "data: {}\n\ndata: [DONE]\n\n",
            json!({"choices": [{"delta": {"content": prompt}}]})
        )
    };
    let url = serve(Router::new().route("/v1/chat/completions", post(echo))).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "the notes\n").unwrap();
    let file = file.to_str().unwrap();
    let output = finished(rbee(&["run", "m", "Sum up.", "--file", file, "--queen-url", &url])).await;
    assert_eq!(text(&output.stdout), "the notes\n\nSum up.\n");
    let output = finished(rbee(&["run", "m", "--file", "/no/such", "--queen-url", &url])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("read /no/such"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn without_a_model_the_command_line_is_not_valid_and_the_models_are_named() {
    let list = Json(json!({"data": [{"id": "gemma3-270m"}, {"id": "qwen3-4b"}]}));
    let url = serve(Router::new().route("/v1/models", get(async move || list))).await;
    let output = finished(rbee(&["run", "--queen-url", &url])).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("gemma3-270m, qwen3-4b"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn top_without_a_queen_has_the_exit_status_3() {
    let output = finished(rbee(&["top", "--queen-url", "http://127.0.0.1:1"])).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn programs_get_one_document() {
    let url = serve(Router::new().route("/v1/chat/completions", post(async || ANSWER))).await;
    let output = finished(rbee(&["run", "m", "hi", "--json", "--queen-url", &url])).await;
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        document,
        json!({"model": "m", "text": "Hello there", "finish_reason": "stop", "usage": {"total_tokens": 2}})
    );
}

#[tokio::test]
async fn a_reader_that_has_enough_is_no_failure() {
    let models = "data: {\"choices\":[{\"text\":\"line\\n\"}]}\n\n".repeat(20_000) + "data: [DONE]\n\n";
    let url = serve(Router::new().route("/v1/completions", post(async move || models))).await;
    let mut child = rbee(&["run", "m", "hi", "--raw", "--queen-url", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
        .await
        .unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[tokio::test]
async fn an_interrupted_answer_ends_its_line_and_the_exit_status_is_130() {
    let route = post(async || {
        let first = ANSWER.split_inclusive("\n\n").next().unwrap();
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(first)]);
        axum::body::Body::from_stream(first.chain(futures_util::stream::pending()))
    });
    let url = serve(Router::new().route("/v1/chat/completions", route)).await;
    let mut child = rbee(&["run", "m", "hi", "--queen-url", &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = tokio::task::spawn_blocking(move || {
        let mut stdout = child.stdout.take().unwrap();
        let mut shown = [0; 5];
        std::io::Read::read_exact(&mut stdout, &mut shown).unwrap();
        kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        let rest = std::io::read_to_string(stdout).unwrap();
        (shown, rest, child.wait().unwrap().code())
    });
    assert_eq!(status.await.unwrap(), (*b"Hello", "\n".to_owned(), Some(130)));
}

#[tokio::test]
async fn the_fleet_reaches_programs_as_the_queen_says_it() {
    let fleet = json!({"queen": {"id": "q"}, "hives": [], "workers": [], "added_by_a_later_version": 1});
    let answer = fleet.to_string();
    let url = serve(Router::new().route("/v1/fleet", get(async || answer))).await;
    let output = finished(rbee(&["ps", "--json", "--queen-url", &url])).await;
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), fleet);
}
