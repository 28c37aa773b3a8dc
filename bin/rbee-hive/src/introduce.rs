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

/// Which queens a worker process has from its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knows {
    /// Those of this hive's settings: this hive started it.
    OurQueens,
    /// Those of an earlier hive, whose settings may have been others.
    OthersQueens,
}

impl Knows {
    /// Whether a queen is to be told of, whose pull with the number `told` was told and who pulled `pull` times by now.
    fn is_due(self, told: Option<u64>, pull: u64) -> bool {
        match (self, told) {
            (Self::OthersQueens, None) => true,
            (_, told) => told.unwrap_or_default() < pull,
        }
    }
}

/// Tells one worker process, which listens at `base_url`, of each pull by a queen, for as long as that process lives.
pub(crate) async fn introduce(app: &App, base_url: &str, id: &WorkerId, pid: u32, knows: Knows) {
    let mut table = app.core.workers();
    let ended = async {
        // Closed means that the hive ends.
        let _ = table
            .wait_for(|table| table.get(id).is_none_or(|worker| worker.pid != Some(pid)))
            .await;
    };
    tokio::select! {
        () = ended => {}
        () = tell_of_queens(app, base_url, id, knows) => {}
    }
}

/// To a worker that has the queens of the settings from its command line only those that pulled are news.
async fn tell_of_queens(app: &App, base_url: &str, id: &WorkerId, knows: Knows) {
    let mut roll = app.queens.roll();
    let mut told: BTreeMap<QueenUrl, u64> = BTreeMap::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let now = roll.borrow_and_update().clone();
        told.retain(|known, _| now.iter().any(|(url, _)| url == known));
        let due = now
            .into_iter()
            .filter(|(url, pull)| knows.is_due(told.get(url).copied(), *pull));
        let mut is_unheard = false;
        for (url, pull) in due.collect::<Vec<_>>() {
            match tell(app, base_url, &url).await {
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

async fn tell(app: &App, base_url: &str, queen: &QueenUrl) -> Told {
    let mut request = app
        .http
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_hears_of_each_pull_and_one_of_an_earlier_hive_of_every_queen_once() {
        assert!(!Knows::OurQueens.is_due(None, 0), "it is on its command line");
        assert!(Knows::OthersQueens.is_due(None, 0));
        for knows in [Knows::OurQueens, Knows::OthersQueens] {
            assert!(knows.is_due(None, 1) && knows.is_due(Some(1), 2));
            assert!(!knows.is_due(Some(0), 0) && !knows.is_due(Some(1), 1));
        }
    }
}
