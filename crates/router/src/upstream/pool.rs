//! Connections that wait for their next request.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use heartbeat_registry::Address;

use super::connection::Connection;

/// Shorter than a server keeps an idle connection, so that none is used just as it closes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle connections kept for each worker.
const MAX_IDLE: usize = 128;

/// The idle connections, by whom they lead to.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: Mutex<HashMap<String, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// A connection to this address that can take a request. The newest is taken first, so that those that are not needed
    /// grow old.
    pub(super) fn take(&self, address: &Address) -> Option<Connection> {
        loop {
            // Not under the lock: a look at the connection, and its end.
            let Idle { connection, since } = self.lock().get_mut(address.base_url())?.pop()?;
            if since.elapsed() < IDLE_TIMEOUT && connection.is_usable() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, connection: Connection) {
        let since = Instant::now();
        let mut idle = self.lock();
        let place = match idle.get_mut(connection.address.base_url()) {
            Some(place) => place,
            None => idle.entry(connection.address.base_url().to_owned()).or_default(),
        };
        if place.len() < MAX_IDLE {
            place.push(Idle { connection, since });
        }
    }

    /// Closes those that have waited for too long.
    pub(super) fn prune(&self, now: Instant) {
        let mut old = Vec::new();
        self.lock().retain(|_, place| {
            let kept = place
                .iter()
                .position(|idle| now.saturating_duration_since(idle.since) < IDLE_TIMEOUT);
            old.extend(place.drain(..kept.unwrap_or(place.len())));
            !place.is_empty()
        });
        // Not under the lock.
        drop(old);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
