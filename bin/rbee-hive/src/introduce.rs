//! Tells workers that run already of queens that found their hive later, so that each queen has the whole fleet.

use std::collections::BTreeMap;
use std::time::Duration;

use heartbeat_client::QueenUrl;
use reqwest::StatusCode;
use shared_contract::WorkerId;
use tokio::time::sleep;
use worker_contract::QueenNotice;

use crate::App;

/// Limit for a worker to take a notice.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a notice that did not arrive is sent again; it doubles from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How a notice ended.
enum Told {
    Heard,
    /// The worker does not want it, and would not the next time.
    Refused(String),
    /// It did not arrive, or the worker could not take it now.
    Unheard(String),
}

/// Tells one worker process, which listens at `base_url`, of each pull by a queen, for as long as that process lives.
pub(crate) async fn introduce(app: &App, http: &reqwest::Client, base_url: &str, id: &WorkerId, pid: u32) {
    let mut table = app.core.workers();
    let ended = async {
        // Closed means that the hive ends.
        let _ = table
            .wait_for(|table| table.get(id).is_none_or(|worker| worker.pid != Some(pid)))
            .await;
    };
    tokio::select! {
        () = ended => {}
        () = tell_of_queens(app, http, base_url, id) => {}
    }
}

/// A worker has the queens of the settings from its command line; only those that pulled are news to it.
async fn tell_of_queens(app: &App, http: &reqwest::Client, base_url: &str, id: &WorkerId) {
    let mut roll = app.queens.roll();
    let mut told: BTreeMap<QueenUrl, u64> = BTreeMap::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let now = roll.borrow_and_update().clone();
        told.retain(|known, _| now.iter().any(|(url, _)| url == known));
        let due = now
            .into_iter()
            .filter(|(url, pull)| told.get(url).copied().unwrap_or_default() < *pull);
        let mut is_unheard = false;
        for (url, pull) in due.collect::<Vec<_>>() {
            match tell(app, http, base_url, &url).await {
                Told::Heard => tracing::debug!(worker_id = %id, queen = %url, "worker told of a queen"),
                Told::Refused(why) => {
                    tracing::warn!(worker_id = %id, queen = %url, why, "the worker does not report to a queen of its hive");
                }
                Told::Unheard(why) => {
                    tracing::debug!(worker_id = %id, queen = %url, why, "the worker was not told of a queen, trying again");
                    is_unheard = true;
                    continue;
                }
            }
            told.insert(url, pull);
        }
        if is_unheard {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        } else {
            pause = FIRST_PAUSE;
            if roll.changed().await.is_err() {
                return;
            }
        }
    }
}

async fn tell(app: &App, http: &reqwest::Client, base_url: &str, queen: &QueenUrl) -> Told {
    let mut request = http
        .post(format!("{base_url}/v1/queens"))
        .timeout(TIMEOUT)
        .json(&QueenNotice {
            queen_url: queen.to_string(),
        });
    if let Some(token) = &app.config.token {
        request = request.bearer_auth(token.expose());
    }
    match request.send().await {
        Err(error) => Told::Unheard(error.without_url().to_string()),
        Ok(answer) => match answer.status() {
            StatusCode::OK => Told::Heard,
            status if status.is_server_error() => Told::Unheard(format!("it answered {status}")),
            status => Told::Refused(format!("it answered {status}")),
        },
    }
}
