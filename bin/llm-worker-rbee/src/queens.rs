//! The queens that this worker reports to: those of its settings, and those that its hive tells it of later.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use heartbeat_client::{ClientState, HeartbeatClient, HeartbeatHandle, Options, QueenUrl, Token, remedy};
use shared_contract::DropReason;

use crate::config::Config;
use crate::heartbeat::{self, Beats};
use crate::state::State;

/// Queens that a worker reports to at once.
pub(crate) const LIMIT: usize = 8;

/// Why a queen is not reported to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueenError {
    #[error("this worker reports to {LIMIT} queens already, and none of them can be given up")]
    TooMany,
    #[error("this worker has said goodbye to its queens")]
    Ended,
    #[error(transparent)]
    Client(#[from] heartbeat_client::Error),
}

/// One heartbeat client for each queen.
pub(crate) struct Queens {
    http: reqwest::Client,
    token: Option<Token>,
    incarnation: u64,
    /// A hive's worker has all its queens from the hive, which knows better which of them to keep.
    has_hive: bool,
    state: Arc<State>,
    /// Whether a beat told of requests since the last one that told of none.
    told_work: Arc<AtomicBool>,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    list: Vec<Client>,
    /// The last beats are being sent.
    has_ended: bool,
}

struct Client {
    url: QueenUrl,
    handle: HeartbeatHandle,
    /// Named by the operator, so never given up for another.
    pinned: bool,
}

impl Queens {
    /// Starts to beat to the queens of the settings, and beats at once whenever the status changes.
    pub(crate) fn start(
        config: &Config,
        http: reqwest::Client,
        state: &Arc<State>,
    ) -> Result<Arc<Self>, heartbeat_client::Error> {
        let queens = Arc::new(Self {
            http,
            token: config.token.as_ref().map(|token| Token::new(token.expose())),
            incarnation: config.incarnation,
            has_hive: config.hive_id.is_some(),
            state: Arc::clone(state),
            told_work: Arc::default(),
            clients: Mutex::default(),
        });
        for url in &config.queen_urls {
            let client = queens.client(url.clone(), !queens.has_hive)?;
            queens.lock().list.push(client);
        }
        tokio::spawn(heartbeat::beat_on_change(
            Arc::clone(state),
            Arc::clone(&queens),
            Arc::clone(&queens.told_work),
        ));
        Ok(queens)
    }

    /// Reports to this queen as well, from now on, and returns all that are reported to. One that is known already gets a
    /// beat at once: somebody has seen her. Where there is no room, the first that does not answer and was not named by
    /// the operator is given up for her.
    pub(crate) fn add(&self, url: QueenUrl) -> Result<Vec<QueenUrl>, QueenError> {
        let mut clients = self.lock();
        if clients.has_ended {
            return Err(QueenError::Ended);
        }
        if let Some(known) = clients.list.iter().find(|client| client.url == url) {
            known.handle.beat_now();
            return Ok(urls(&clients.list));
        }
        if clients.list.len() >= LIMIT {
            let silent = clients
                .list
                .iter()
                .position(|client| !client.pinned && client.handle.state() != ClientState::Heartbeating)
                .ok_or(QueenError::TooMany)?;
            let given_up = clients.list.remove(silent);
            tracing::info!(queen = %given_up.url, "a queen that does not answer is given up for another");
        }
        tracing::info!(queen = %url, "told of a queen");
        let client = self.client(url, false)?;
        clients.list.push(client);
        Ok(urls(&clients.list))
    }

    /// Something changed: tells all queens at once.
    pub(crate) fn beat_now(&self) {
        for client in &self.lock().list {
            client.handle.beat_now();
        }
    }

    /// What is wrong between this worker and its queens, and what to do; `None` if they take what it says.
    pub(crate) fn problem(&self) -> Option<String> {
        let reason: DropReason = self.lock().list.iter().find_map(|client| client.handle.last_drop())?;
        Some(format!("a queen drops the heartbeats: {reason}; {}", remedy(reason)))
    }

    /// Sends each queen the last beat, which says stopped or failed, and takes no new queens.
    pub(crate) async fn goodbye(&self) {
        let list = {
            let mut clients = self.lock();
            clients.has_ended = true;
            std::mem::take(&mut clients.list)
        };
        join_all(list.iter().map(|client| client.handle.goodbye())).await;
    }

    fn client(&self, url: QueenUrl, pinned: bool) -> Result<Client, heartbeat_client::Error> {
        let options = Options {
            token: self.token.clone(),
            ..Options::new(url.as_str(), self.incarnation)
        };
        let source = Arc::new(Beats::new(Arc::clone(&self.state), Arc::clone(&self.told_work)));
        let handle = HeartbeatClient::new(options, self.http.clone(), source)?.start();
        Ok(Client { url, handle, pinned })
    }

    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn urls(clients: &[Client]) -> Vec<QueenUrl> {
    clients.iter().map(|client| client.url.clone()).collect()
}
