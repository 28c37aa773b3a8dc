//! What a person sees who sits at a terminal.

use rbee_tests::terminal::{CTRL_C, CTRL_D, Terminal};
use rbee_tests::{Cluster, Program, models};

/// The prompt of a chat behind its last refresh, which ends with the cursor behind it.
const PROMPT: &str = ">>> ";
/// What a terminal is told to show the screen that it had before.
const OLD_SCREEN: &str = "\u{1b}[?1049l";

fn on_terminal(cluster: &Cluster, state: &std::path::Path, args: &[&str]) -> Terminal {
    let mut command = Program::Rbee.command();
    command
        .args(args)
        .args(["--queen-url", &cluster.url()])
        .env("XDG_STATE_HOME", state);
    Terminal::start(&command)
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_chat_remembers_stops_at_ctrl_c_and_ends_at_ctrl_d() {
    let (cluster, _worker) = Cluster::serving(models::SMOLLM2).await;
    let state = tempfile::tempdir().expect("a temporary folder");
    let mut chat = on_terminal(&cluster, state.path(), &["run", models::SMOLLM2, "--temperature", "0"]);
    let at = chat.until("/help shows the commands", 0).await;
    let at = chat.until(PROMPT, at).await;

    // A typing mistake is taken back before it is sent.
    chat.line("/set max_tokens 1x\u{7f}6");
    let at = chat.until("max_tokens is 16", at).await;
    chat.line("Why is the sky blue?");
    let at = chat.until("cut off after 16 tokens", at).await;
    chat.line("/stats");
    let at = chat.until("worker      worker-", at).await;

    // Ctrl-C at the prompt drops the line, and only that.
    chat.keys("half a question");
    let at = chat.until("half a question", at).await;
    chat.keys(CTRL_C);
    let at = chat.until(PROMPT, at).await;

    chat.line("/set max_tokens 2000");
    let at = chat.until("max_tokens is 2000", at).await;
    chat.line("/clear");
    let at = chat.until("a new conversation", at).await;
    // From here on it is the editor who shows what is typed, once.
    let at = chat.until(PROMPT, at).await;
    chat.line("Write a very long story about a dog and a cat.");
    let at = chat.until("a dog and a cat.", at).await;
    let at = chat.until("cat", at).await;
    chat.keys(CTRL_C);
    let at = chat.until("(stopped; what came stays in the conversation)", at).await;
    let at = chat.until(PROMPT, at).await;
    cluster
        .until("the worker is idle again", |fleet| {
            (fleet.workers[0].load.running == 0).then_some(())
        })
        .await;

    let saved = state.path().join("talk.json");
    chat.line(&format!("/save {}", saved.display()));
    let at = chat.until("saved in", at).await;
    chat.until(PROMPT, at).await;
    chat.keys(CTRL_D);
    assert_eq!(chat.ended().await.code(), Some(0), "{}", chat.shown());

    let talk: serde_json::Value = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
    let messages = talk["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 2, "{talk:#}");
    assert!(messages[1]["content"].as_str().unwrap().ends_with('…'), "{talk:#}");
    assert_eq!(talk["max_tokens"], 2000);

    // The next chat knows what was typed in this one.
    let mut chat = on_terminal(&cluster, state.path(), &["run", models::SMOLLM2]);
    let at = chat.until(PROMPT, 0).await;
    chat.keys("\u{1b}[A\u{1b}[A");
    chat.until("Write a very long story", at).await;
    chat.terminate();
    chat.ended().await;
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_base_model_continues_the_text() {
    let (cluster, _worker) = Cluster::serving(models::GEMMA3).await;
    let state = tempfile::tempdir().expect("a temporary folder");
    let mut chat = on_terminal(
        &cluster,
        state.path(),
        &["run", models::GEMMA3, "--max-tokens", "4", "--no-history"],
    );
    let at = chat.until("base model", 0).await;
    let at = chat.until(PROMPT, at).await;
    chat.line("Once upon a");
    let at = chat.until("cut off after 4 tokens", at).await;
    chat.line("/bye");
    chat.until("/bye", at).await;
    assert_eq!(chat.ended().await.code(), Some(0), "{}", chat.shown());
    assert!(!state.path().join("rbee/chat-history").exists());
}

#[tokio::test]
async fn top_shows_the_fleet_and_gives_the_screen_back() {
    let cluster = Cluster::start().await;
    let worker = rbee_tests::fake::FakeWorker::start("worker-1", "some-model").await;
    worker.beat_to(&cluster.url()).await;
    let state = tempfile::tempdir().expect("a temporary folder");
    let mut top = on_terminal(&cluster, state.path(), &["top"]);
    let at = top.until("some-model", 0).await;
    top.keys("?");
    let at = top.until("sorts", at).await;
    top.keys("qq");
    top.until(OLD_SCREEN, at).await;
    assert_eq!(top.ended().await.code(), Some(0), "{}", top.shown());

    let mut top = on_terminal(&cluster, state.path(), &["top"]);
    let at = top.until("some-model", 0).await;
    top.terminate();
    top.until(OLD_SCREEN, at).await;
    assert_eq!(top.ended().await.code(), Some(130), "{}", top.shown());
}

#[tokio::test]
async fn top_says_that_the_queen_is_gone_and_goes_on_when_she_is_back() {
    let mut cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a temporary folder");
    let mut top = on_terminal(&cluster, state.path(), &["top"]);
    let at = top.until("●", 0).await;
    cluster.queen.kill().await;
    let at = top.until("reconnecting", at).await;
    cluster.restart_queen().await;
    top.until("●", at).await;
    top.keys(CTRL_C);
    assert_eq!(top.ended().await.code(), Some(0), "{}", top.shown());
}

#[tokio::test]
async fn programs_get_the_fleet_as_a_line_of_json() {
    let cluster = Cluster::start().await;
    let worker = rbee_tests::fake::FakeWorker::start("worker-1", "some-model").await;
    worker.beat_to(&cluster.url()).await;
    let mut command = Program::Rbee.command();
    command.args(["top", "--once", "--queen-url", &cluster.url()]);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&line["live"], &line["workers"][0]["id"]),
        (&true.into(), &"worker-1".into()),
        "{line:#}"
    );
}
