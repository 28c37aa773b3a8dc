//! The official OpenAI Python client, unchanged, against a real cluster.

use std::path::{Path, PathBuf};

use rbee_tests::{Cluster, models};
use tokio::process::Command;

/// The client that is tested against; pip fetches it into a virtual environment in the target folder, once.
const CLIENT: &str = "openai==3.54.0";

async fn run(command: &mut Command) {
    let output = command
        .output()
        .await
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{command:?}:\n{}",
        String::from_utf8_lossy(&text)
    );
}

async fn python() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test
        .ancestors()
        .find(|folder| folder.ends_with("target"))
        .expect("the target folder");
    let venv = target.join(CLIENT.replace("==", "-"));
    let python = venv.join("bin/python");
    let done = venv.join("installed");
    if !done.exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).await;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", CLIENT])).await;
        std::fs::write(done, CLIENT).unwrap();
    }
    python
}

/// Takes more than five seconds: two real models are loaded and, the first time, the client is installed.
#[tokio::test]
async fn the_official_python_client_works_unchanged() {
    let python = python().await;
    let cluster = Cluster::start().await;
    let _smollm2 = cluster.worker(models::SMOLLM2).await;
    let _gemma3 = cluster.worker(models::GEMMA3).await;
    cluster.until_ready(models::SMOLLM2, 1).await;
    cluster.until_ready(models::GEMMA3, 1).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/official_client.py");
    run(Command::new(python)
        .arg(script)
        .env("OPENAI_BASE_URL", format!("{}/v1", cluster.url()))
        .env("OPENAI_API_KEY", "none"))
    .await;
}
