//! The queens that this hive reports to: those of the settings, and those that asked for its capabilities.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use heartbeat_client::{ClientState, HeartbeatClient, HeartbeatHandle, Options, QueenUrl, Source, Token, remedy};
use hive_contract::HiveHeartbeat;
use shared_contract::DropReason;
use tokio::sync::watch;

/// Queens that a hive reports to at once.
pub(crate) const LIMIT: usize = 8;

/// Why a queen is not reported to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueenError {
    #[error("this hive reports to {LIMIT} queens already, and all of them answer")]
    TooMany,
    #[error(transparent)]
    Client(#[from] heartbeat_client::Error),
}

/// The queens, and how often each of them has pulled.
pub(crate) type Roll = Vec<(QueenUrl, u64)>;

/// One heartbeat client for each queen.
pub(crate) struct Queens {
    http: reqwest::Client,
    token: Option<Token>,
    incarnation: u64,
    clients: Mutex<Vec<Client>>,
    roll: watch::Sender<Roll>,
}

struct Client {
    url: QueenUrl,
    handle: HeartbeatHandle,
    /// Named in the settings, so never given up for another.
    pinned: bool,
    /// How often she asked for the capabilities.
    pulls: u64,
}

impl Queens {
    pub(crate) fn new(http: reqwest::Client, token: Option<Token>, incarnation: u64) -> Self {
        Self {
            http,
            token,
            incarnation,
            clients: Mutex::default(),
            roll: watch::Sender::default(),
        }
    }

    /// Reports to a queen of the settings.
    pub(crate) fn add(&self, url: QueenUrl, source: Arc<dyn Source<HiveHeartbeat>>) -> Result<(), QueenError> {
        let handle = self.client(&url, source)?;
        let mut clients = self.lock();
        clients.push(Client {
            url,
            handle,
            pinned: true,
            pulls: 0,
        });
        self.publish(&clients);
        Ok(())
    }

    /// Reports to a queen that asked for the capabilities. Where there is no room, the first that does not answer and is
    /// not of the settings is given up for it.
    pub(crate) fn pulled_by(
        &self,
        url: QueenUrl,
        source: impl FnOnce() -> Arc<dyn Source<HiveHeartbeat>>,
    ) -> Result<(), QueenError> {
        let mut clients = self.lock();
        if let Some(client) = clients.iter_mut().find(|client| client.url == url) {
            client.handle.discovered_by_pull();
            client.pulls += 1;
            self.publish(&clients);
            return Ok(());
        }
        if clients.len() >= LIMIT {
            let silent = clients
                .iter()
                .position(|client| !client.pinned && client.handle.state() != ClientState::Heartbeating)
                .ok_or(QueenError::TooMany)?;
            let given_up = clients.remove(silent);
            tracing::info!(queen = %given_up.url, "a queen that does not answer is given up for another");
        }
        let handle = self.client(&url, source())?;
        handle.discovered_by_pull();
        tracing::info!(queen = %url, "found by a queen");
        clients.push(Client {
            url,
            handle,
            pinned: false,
            pulls: 1,
        });
        self.publish(&clients);
        Ok(())
    }

    /// Something changed: tells all queens at once.
    pub(crate) fn beat_now(&self) {
        for client in self.lock().iter() {
            client.handle.beat_now();
        }
    }

    /// Where they are.
    pub(crate) fn urls(&self) -> Vec<QueenUrl> {
        self.lock().iter().map(|client| client.url.clone()).collect()
    }

    /// The queens; the receiver wakes at every pull by one.
    pub(crate) fn roll(&self) -> watch::Receiver<Roll> {
        self.roll.subscribe()
    }

    /// Why a queen takes what this hive says for no news of it, for each that does.
    pub(crate) fn drops(&self) -> Vec<DropReason> {
        self.lock()
            .iter()
            .filter_map(|client| client.handle.last_drop())
            .collect()
    }

    /// What is wrong between this hive and its queens, and what to do; `None` if they take what it says.
    pub(crate) fn problem(&self) -> Option<String> {
        let reason = *self.drops().first()?;
        Some(format!("a queen drops the heartbeats: {reason}; {}", remedy(reason)))
    }

    /// How many of them answer, of how many.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let clients = self.lock();
        let answering = clients
            .iter()
            .filter(|client| client.handle.state() == ClientState::Heartbeating)
            .count();
        (answering, clients.len())
    }

    /// Says goodbye to all; ends within the limit of one goodbye.
    pub(crate) async fn goodbye(&self) {
        let clients = std::mem::take(&mut *self.lock());
        let goodbyes = clients.iter().map(|client| client.handle.goodbye());
        futures_util::future::join_all(goodbyes).await;
    }

    fn client(&self, url: &QueenUrl, source: Arc<dyn Source<HiveHeartbeat>>) -> Result<HeartbeatHandle, QueenError> {
        let options = Options {
            token: self.token.clone(),
            ..Options::new(url.as_str(), self.incarnation)
        };
        Ok(HeartbeatClient::new(options, self.http.clone(), source)?.start())
    }

    fn publish(&self, clients: &[Client]) {
        let roll = clients
            .iter()
            .map(|client| (client.url.clone(), client.pulls))
            .collect();
        self.roll.send_replace(roll);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
