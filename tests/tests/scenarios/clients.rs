//! The official clients of the APIs that the queen speaks, unchanged, against a real cluster.
//!
//! What they check stands in `tests/python` and `tests/javascript`, beside the versions that are installed. Each takes
//! more than five seconds: real models are loaded and, the first time, the clients are installed in the target folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rbee_tests::cluster::chat_body;
use rbee_tests::fake::{FakeWorker, Manner};
use rbee_tests::{Cluster, Process, eventually, http, models};

/// The key that the clients present.
const KEY: &str = "key-of-the-clients";
/// A model whose only worker is taken all the time, as the scripts know it.
const BUSY: &str = "busy";
/// Longest that a script may take. Only a failing test waits this long.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test]
async fn the_official_openai_client_for_python_works_unchanged() {
    works(|clients| clients.python("openai_client.py")).await;
}

#[tokio::test]
async fn the_official_openai_client_for_javascript_works_unchanged() {
    works(|clients| clients.node("openai_client.js")).await;
}

#[tokio::test]
async fn the_official_anthropic_client_works_unchanged() {
    works(|clients| clients.python("anthropic_client.py")).await;
}

#[tokio::test]
async fn langchain_with_its_openai_provider_works_unchanged() {
    works(|clients| clients.python("langchain_client.py")).await;
}

#[tokio::test]
async fn the_vercel_ai_sdk_with_its_openai_compatible_provider_works_unchanged() {
    works(|clients| clients.node("vercel_ai_client.js")).await;
}

/// Runs a client's script, in an environment without the user's settings, against a cluster of its own.
async fn works(script: impl FnOnce(&Clients) -> Command) {
    let mut command = script(&Clients::installed());
    let pace = ["--heartbeat-interval-ms", "1000", "--heartbeat-ttl-ms", "10000"];
    let queue = ["--queue-max", "1", "--queue-timeout-ms", "2000"];
    let cluster = Cluster::with(pace.iter().chain(&queue).chain(&["--api-key", KEY])).await;
    // More slots than requests that a script sends at once: none has to wait.
    let _smollm2 = cluster.worker_with(models::SMOLLM2, &["--slots", "8"]).await;
    let _gemma3 = cluster.worker(models::GEMMA3).await;
    let mut busy = FakeWorker::start(BUSY, BUSY).await;
    busy.behave(Manner::Hangs);
    busy.beat_on(&cluster.url(), Duration::from_millis(500));
    for model in [models::SMOLLM2, models::GEMMA3, BUSY] {
        cluster.until_ready(model, 1).await;
    }
    let request = http::client().post(cluster.chat_url()).bearer_auth(KEY);
    let _answered_never = tokio::spawn(request.json(&chat_body(BUSY, "hello")).send());
    eventually("the busy worker is busy", async || (busy.asked() == 1).then_some(())).await;

    command
        .env_clear()
        .env("OPENAI_BASE_URL", format!("{}/v1", cluster.url()))
        .env("OPENAI_API_KEY", KEY)
        .env("ANTHROPIC_BASE_URL", cluster.url())
        .env("ANTHROPIC_API_KEY", KEY)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let mut process = Process::spawn(command.into());
    let status = process.ended_within(LIMIT).await;
    assert!(status.success(), "{status}:\n{}", process.log());
}

/// The clients, installed.
struct Clients {
    venv: PathBuf,
    javascript: PathBuf,
}

impl Clients {
    /// Installs them once for all tests; whoever comes meanwhile waits.
    fn installed() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
        fs::create_dir_all(&folder).expect("a folder in the target folder");
        let lock = File::create(folder.join("lock")).expect("a lock file");
        lock.lock().expect("the lock");
        let clients = Self {
            venv: folder.join("venv"),
            javascript: folder.join("javascript"),
        };
        once(&clients.venv, &source("python/requirements.txt"), |requirements| {
            run(Command::new("python3").args(["-m", "venv"]).arg(&clients.venv));
            let mut pip = clients.tool("pip");
            run(pip.args(["install", "--quiet", "--requirement"]).arg(requirements));
        });
        let packages = source("javascript/package-lock.json");
        once(&clients.javascript, &packages, |lock_file| {
            clients.copy(&lock_file.with_file_name("package.json"));
            clients.copy(lock_file);
            let mut npm = clients.tool("npm");
            npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
            run(npm.current_dir(&clients.javascript));
        });
        // Node looks for packages beside a script, so the scripts lie where the packages are.
        for file in fs::read_dir(source("javascript")).expect("a folder of this package") {
            let file = file.expect("a file of this package").path();
            if file.extension().is_some_and(|end| end == "js") {
                clients.copy(&file);
            }
        }
        clients
    }

    fn python(&self, script: &str) -> Command {
        let mut command = self.tool("python");
        command.arg(source(&format!("python/{script}")));
        command
    }

    fn node(&self, script: &str) -> Command {
        let mut command = self.tool("node");
        command.arg(self.javascript.join(script));
        command
    }

    /// A program of the virtual environment, which finds the others there before all others.
    fn tool(&self, name: &str) -> Command {
        let programs = self.venv.join("bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
        let mut command = Command::new(programs.join(name));
        command.env("PATH", std::env::join_paths(folders).expect("a list of folders"));
        command
    }

    /// Puts a file beside the packages; only if it is not there, since another test may be reading it.
    fn copy(&self, file: &Path) {
        let to = self.javascript.join(file.file_name().expect("a file's name"));
        let text = fs::read(file).expect("a file of this package");
        if !fs::read(&to).is_ok_and(|there| there == text) {
            fs::write(to, text).expect("a copy in the target folder");
        }
    }
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Fills the folder anew, unless that was done already by what is written in `recipe`.
fn once(folder: &Path, recipe: &Path, install: impl FnOnce(&Path)) {
    let (done, text) = (
        folder.join("installed"),
        fs::read(recipe).expect("a file of this package"),
    );
    if fs::read(&done).is_ok_and(|there| there == text) {
        return;
    }
    if folder.exists() {
        fs::remove_dir_all(folder).expect("a folder of the target folder");
    }
    fs::create_dir_all(folder).expect("a folder in the target folder");
    install(recipe);
    fs::write(done, text).expect("a mark in the target folder");
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{command:?}:\n{}",
        String::from_utf8_lossy(&text)
    );
}
