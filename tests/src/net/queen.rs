//! A queen on a host of her own, and what a scenario wants to know of her.

use std::ffi::OsString;
use std::time::Duration;

use queen_rbee::fleet::{FleetView, HiveView, WorkerView};
use tokio::time::{Instant, sleep};

use super::{Host, Lan};
use crate::http::{self, Answer};
use crate::{PATIENCE, Process, Program, cluster};

/// Pause between two questions: the finest step of a measured time.
const LOOK: Duration = Duration::from_millis(20);

/// The queen. She is asked from her own host, so that she is heard with her cable cut, too.
#[derive(Debug)]
pub struct Queen {
    /// Her process.
    pub process: Process,
    /// Where she is.
    pub host: Host,
    args: Vec<OsString>,
    token: Option<String>,
}

impl Queen {
    /// A queen with these settings on a new host.
    pub async fn start(lan: &Lan, args: &[&str]) -> Self {
        let host = lan.host().await;
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        let token = args.iter().skip_while(|arg| *arg != "--token").nth(1);
        let token = token.map(|token| token.to_string_lossy().into_owned());
        let port = ["--port".into(), "0".into()];
        let process = host.daemon(Program::Queen, args.iter().cloned().chain(port)).await;
        Self {
            process,
            host,
            args,
            token,
        }
    }

    /// Starts her again where she was.
    pub async fn restart(&mut self) {
        let port = self.process.address.port().to_string();
        let args = self.args.iter().cloned().chain(["--port".into(), port.into()]);
        self.process = self.host.daemon(Program::Queen, args).await;
    }

    /// Her URL.
    pub fn url(&self) -> String {
        self.process.url()
    }

    /// What she says of her fleet.
    pub async fn fleet(&self) -> FleetView {
        let mut request = http::client().get(format!("{}/v1/fleet", self.url()));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = self.host.run(http::send(request)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_value(answer.body).expect("a fleet view")
    }

    /// Waits until the fleet is as `wanted` finds it; yields that and how long it took.
    pub async fn until<T>(&self, what: &str, wanted: impl Fn(&FleetView) -> Option<T>) -> (T, Duration) {
        let start = Instant::now();
        loop {
            let fleet = self.fleet().await;
            if let Some(found) = wanted(&fleet) {
                return (found, start.elapsed());
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited {PATIENCE:?} in vain until {what}; the fleet: {fleet:#?}"
            );
            sleep(LOOK).await;
        }
    }

    /// Looks at the fleet again and again for this long.
    pub async fn watch(&self, time: Duration, look: impl Fn(&FleetView)) {
        let start = Instant::now();
        while start.elapsed() < time {
            look(&self.fleet().await);
            sleep(LOOK).await;
        }
    }

    /// A short greedy chat, asked for on her own host.
    pub async fn chat(&self, model: &str) -> Answer {
        let url = format!("{}/v1/chat/completions", self.url());
        self.host.post(url, cluster::chat_body(model, "Hello")).await
    }
}

/// A hive of a fleet.
pub fn hive<'a>(fleet: &'a FleetView, id: &str) -> Option<&'a HiveView> {
    fleet.hives.iter().find(|hive| hive.id.as_str() == id)
}

/// A worker of a fleet.
pub fn worker<'a>(fleet: &'a FleetView, id: &str) -> Option<&'a WorkerView> {
    fleet.workers.iter().find(|worker| worker.id.as_str() == id)
}
