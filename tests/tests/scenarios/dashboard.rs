//! The queen's pages in a real browser, against a real cluster.
//!
//! What is clicked and looked at stands in `tests/javascript/dashboard.js`. Each takes more than five seconds: a browser is
//! started and, the first time, its driver is installed in the target folder. Screenshots and figures are left for people:
//! `target/tmp/dashboard`, and lines that begin with `figure:`.

use std::path::Path;
use std::time::{Duration, Instant};

use rbee_tests::clients::Clients;
use rbee_tests::fake::FakeWorker;
use rbee_tests::hub::Hub;
use rbee_tests::process::is_alive;
use rbee_tests::{Cluster, Process, Program, browser, models};

/// The operator's token.
const TOKEN: &str = "token-of-the-operator";
/// Longest that a script may take. Only a failing test waits this long.
const LIMIT: Duration = Duration::from_secs(480);
/// Bytes of the model's file that the hub sends before it stalls.
const BEFORE_THE_STALL: usize = 40 << 20;

#[tokio::test]
async fn a_model_is_fetched_loaded_asked_and_removed_by_clicks() {
    let Some(browser) = Browser::new() else { return };
    let path = models::smollm2().await;
    let hub = Hub::start(std::fs::read(path).unwrap(), SMOLLM2_SHA256, BEFORE_THE_STALL).await;
    let cluster = Cluster::with(["--heartbeat-interval-ms", "1000", "--heartbeat-ttl-ms", "10000"]).await;
    let folder = tempfile::tempdir().unwrap();
    let _hive = hive(&cluster, &hub, folder.path()).await;
    let script = browser.run("a model's life", &cluster, &[]);
    script.wants("let the hub go on").await;
    hub.open();
    script.succeeds().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_is_seen_before_its_next_heartbeat_is_due() {
    let Some(browser) = Browser::new() else { return };
    models::smollm2().await;
    // As users have it: a beat every 30 seconds. The page learns of the death long before one is missed.
    let settings: [&str; 0] = [];
    let cluster = Cluster::with(settings).await;
    let _hive = cluster.hive().await;
    browser.run("a killed worker", &cluster, &[]).succeeds().await;
}

#[tokio::test]
async fn a_page_is_right_again_once_the_queen_has_restarted() {
    let Some(browser) = Browser::new() else { return };
    let mut cluster = Cluster::start().await;
    let mut workers = [
        FakeWorker::start("first", "m").await,
        FakeWorker::start("second", "m").await,
    ];
    for worker in &mut workers {
        worker.beat_on(&cluster.url(), Duration::from_millis(500));
    }
    cluster.until_ready("m", 2).await;
    let script = browser.run("a queen's restart", &cluster, &[]);
    script.wants("end the queen").await;
    cluster.queen.kill().await;
    let [first, _second] = workers;
    drop(first);
    script.wants("start the queen").await;
    cluster.restart_queen().await;
    script.succeeds().await;
}

#[tokio::test]
async fn a_fleet_with_a_token_asks_for_it_and_shows_nothing_before() {
    let Some(browser) = Browser::new() else { return };
    let cluster = Cluster::with(["--token", TOKEN, "--api-key", "key-of-a-client"]).await;
    browser
        .run("a token", &cluster, &[("DASHBOARD_TOKEN", TOKEN)])
        .succeeds()
        .await;
}

#[tokio::test]
async fn every_page_works_for_everybody_on_every_screen() {
    let Some(browser) = Browser::new() else { return };
    models::smollm2().await;
    let cluster = Cluster::start().await;
    let _hive = cluster.hive().await;
    browser.run("every page", &cluster, &[]).succeeds().await;
}

#[tokio::test]
async fn an_empty_fleet_says_on_every_page_what_to_do_next() {
    let Some(browser) = Browser::new() else { return };
    let cluster = Cluster::start().await;
    browser.run("an empty fleet", &cluster, &[]).succeeds().await;
}

#[tokio::test]
async fn two_hundred_workers_come_and_work_without_shifting_the_page() {
    let Some(browser) = Browser::new() else { return };
    let cluster = Cluster::with(["--heartbeat-interval-ms", "2000", "--heartbeat-ttl-ms", "20000"]).await;
    let mut workers = Vec::new();
    for number in 0..200 {
        let (name, model) = (format!("worker-{number:03}"), format!("model-{}", number % 12));
        let mut worker = FakeWorker::start(&name, &model).await.with_slots(8);
        worker.beat_on(&cluster.url(), Duration::from_secs(2));
        workers.push(worker);
    }
    cluster
        .until("200 workers are ready", |fleet| {
            let ready = fleet.workers.iter().filter(|worker| worker.ready).count();
            (ready == workers.len()).then_some(())
        })
        .await;
    browser.run("two hundred workers", &cluster, &[]).succeeds().await;
}

/// Checksum of the file of [`models::SMOLLM2`].
const SMOLLM2_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// A hive with its own model files, which come from this hub.
async fn hive(cluster: &Cluster, hub: &Hub, models: &Path) -> Process {
    let mut command = Program::Hive.command();
    command.env("HF_ENDPOINT", hub.url());
    let (url, models) = (cluster.url(), models.display().to_string());
    let args = [
        "--port",
        "0",
        "--hive-id",
        "gpu-box",
        "--queen-url",
        &url,
        "--models-dir",
        &models,
    ];
    Process::daemon_from(command, args).await
}

/// What a script needs: the driver, and the browser itself.
struct Browser {
    clients: Clients,
    chromium: std::path::PathBuf,
}

impl Browser {
    /// `None`: there is no browser here.
    fn new() -> Option<Self> {
        let chromium = browser::chromium()?;
        let clients = Clients::installed(env!("CARGO_TARGET_TMPDIR"));
        Some(Self { clients, chromium })
    }

    /// Starts the checks of this name.
    fn run(&self, checks: &str, cluster: &Cluster, variables: &[(&str, &str)]) -> Script {
        let screenshots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
        let mut command = self.clients.node("dashboard.js");
        command
            .arg(checks)
            .env_clear()
            .env("HOME", env!("CARGO_TARGET_TMPDIR"))
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("DASHBOARD_URL", cluster.url())
            .env("DASHBOARD_CHROMIUM", &self.chromium)
            .env("DASHBOARD_SCREENSHOTS", screenshots)
            .envs(variables.iter().copied());
        Script {
            process: Process::spawn(command.into()),
        }
    }
}

/// Checks that are under way. What only the test can do, they ask for with a line `please: WORDS`.
struct Script {
    process: Process,
}

impl Script {
    /// Waits until it asks for this.
    async fn wants(&self, wish: &str) {
        let line = format!("please: {wish}");
        let end = Instant::now() + LIMIT;
        loop {
            // Looked at first: what it said before it ended counts.
            let goes_on = is_alive(self.process.pid()) && Instant::now() < end;
            let log = self.process.log();
            if log.lines().any(|said| said == line) {
                return;
            }
            assert!(goes_on, "the checks did not ask for `{wish}`:\n{log}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits for its end, and shows its figures.
    async fn succeeds(mut self) {
        let status = self.process.ended_within(LIMIT).await;
        let log = self.process.log();
        assert!(status.success(), "{status}:\n{log}");
        for figure in log.lines().filter(|line| line.starts_with("figure:")) {
            println!("{figure}");
        }
    }
}
