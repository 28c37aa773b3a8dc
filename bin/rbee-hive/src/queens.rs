//! The queens that this hive reports to: those of the settings, and those that asked for its capabilities.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use heartbeat_client::{ClientState, HeartbeatClient, HeartbeatHandle, Options, Source, Token};
use hive_contract::HiveHeartbeat;

/// Queens that a hive reports to at once.
pub(crate) const LIMIT: usize = 8;

/// Address of a queen, `http://HOST[:PORT][/PREFIX]`, without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueenUrl(String);

impl QueenUrl {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QueenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for QueenUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = reqwest::Url::parse(text).map_err(|_| "not a URL; it should look like http://HOST:7833")?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err("not an address of a queen; it should look like http://HOST:7833");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a queen's address carries no user or password; use --token");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a queen's address ends with its host, port and path");
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

/// Why a queen is not reported to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueenError {
    #[error("this hive reports to {LIMIT} queens already, and all of them answer")]
    TooMany,
    #[error(transparent)]
    Client(#[from] heartbeat_client::Error),
}

/// One heartbeat client for each queen.
pub(crate) struct Queens {
    http: reqwest::Client,
    token: Option<Token>,
    incarnation: u64,
    clients: Mutex<Vec<Client>>,
}

struct Client {
    url: QueenUrl,
    handle: HeartbeatHandle,
    /// Named in the settings, so never given up for another.
    pinned: bool,
}

impl Queens {
    pub(crate) fn new(http: reqwest::Client, token: Option<Token>, incarnation: u64) -> Self {
        Self {
            http,
            token,
            incarnation,
            clients: Mutex::default(),
        }
    }

    /// Reports to a queen of the settings.
    pub(crate) fn add(&self, url: QueenUrl, source: Arc<dyn Source<HiveHeartbeat>>) -> Result<(), QueenError> {
        let handle = self.client(&url, source)?;
        self.lock().push(Client {
            url,
            handle,
            pinned: true,
        });
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
        if let Some(client) = clients.iter().find(|client| client.url == url) {
            client.handle.discovered_by_pull();
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
        });
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

    fn lock(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queens_address_is_an_http_url_without_anything_behind_its_path() {
        let parse = |text: &str| text.parse::<QueenUrl>().map(|url| url.to_string());
        assert_eq!(parse("http://queen:7833/").as_deref(), Ok("http://queen:7833"));
        assert_eq!(
            parse("https://[::1]:7833/rbee/").as_deref(),
            Ok("https://[::1]:7833/rbee")
        );
        for wrong in [
            "queen:7833",
            "ftp://queen",
            "file:///etc/passwd",
            "http://",
            "http://user:secret@queen",
            "http://queen/?x=1",
            "",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
