//! One stream of telemetry, from the request to its break.

use std::fmt;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hive_contract::TelemetryEvent;
use http::StatusCode;
use shared_contract::HiveId;

use super::events::{EventReader, MAX_EVENT_BYTES};
use super::machine::Target;
use crate::State;
use crate::metrics::Counted;
use crate::reach::root_cause;
use crate::telemetry;

/// A hive that tells nothing for this long tells nothing: it should tell every second.
const SILENCE: Duration = Duration::from_secs(5);
/// The end of the silence that begins anew when the first part is over: a queen that was stopped finds all limits passed
/// before she has read what lies there.
const LAST_CALL: Duration = Duration::from_secs(1);

/// Where telemetry comes from.
pub(super) struct Source<'a> {
    pub(super) state: &'a State,
    pub(super) hive: &'a HiveId,
    pub(super) target: &'a Target,
}

/// Why there is no telemetry.
#[derive(Debug)]
pub(super) enum Break {
    /// No connection.
    Unreachable(String),
    /// The connection broke.
    Broke(String),
    /// Nothing came.
    Silent,
    /// The hive ended the stream, as it does when it ends itself.
    Ended,
    /// The hive does not accept the queen's token.
    Unauthorized,
    /// The hive answered something else.
    Refused(StatusCode),
    /// What it told is no telemetry.
    Garbled(String),
    /// Somebody else has its address.
    Other(HiveId),
}

impl Break {
    /// Whether it speaks against the hive's being alive at its address.
    pub(super) fn is_evidence(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Broke(_) | Self::Silent | Self::Other(_)
        )
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(cause) => write!(f, "its telemetry cannot be reached: {cause}"),
            Self::Broke(cause) => write!(f, "its telemetry was cut off: {cause}"),
            Self::Silent => write!(f, "no telemetry for {:.0} s", SILENCE.as_secs_f64()),
            Self::Ended => f.write_str("it ended its telemetry"),
            Self::Unauthorized => f.write_str("it does not accept the queen's token; start both with the same --token"),
            Self::Refused(status) => write!(f, "asked for its telemetry, it answered {status}"),
            Self::Garbled(why) => write!(f, "what it told is no telemetry: {why}"),
            Self::Other(hive) => write!(f, "another hive, {hive}, answers at its address"),
        }
    }
}

impl Source<'_> {
    /// Connects, and takes what is told until it breaks. Tells whether anything was.
    pub(super) async fn follow(&self) -> (bool, Break) {
        let mut had_events = false;
        let why = self.read(&mut had_events).await;
        (had_events, why)
    }

    async fn read(&self, had_events: &mut bool) -> Break {
        let mut response = match limited(self.request().send()).await {
            None => return Break::Silent,
            Some(Err(error)) if error.is_connect() => return Break::Unreachable(root_cause(&error)),
            Some(Err(error)) => return Break::Broke(root_cause(&error)),
            Some(Ok(response)) => response,
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Break::Unauthorized,
            status => return Break::Refused(status),
        }
        let _counted = Counted::one_of(&self.state.metrics.telemetry_subscriptions);
        let mut reader = EventReader::default();
        loop {
            let awaited = Instant::now();
            let event = match limited(next_event(&mut reader, &mut response)).await {
                None => return Break::Silent,
                Some(Err(why)) => return why,
                Some(Ok(event)) => event,
            };
            if let Err(why) = self.take(&event, awaited) {
                return why;
            }
            if !std::mem::replace(had_events, true) {
                tracing::debug!(hive = %self.hive, "telemetry comes");
            }
        }
    }

    fn request(&self) -> reqwest::RequestBuilder {
        let url = format!("{}/v1/heartbeats/stream", self.target.address.base_url());
        let request = self.state.client.get(url);
        match &self.state.config.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    /// Records one event: a fresh answer from the hive itself, to be had since the one before it.
    fn take(&self, data: &[u8], awaited: Instant) -> Result<(), Break> {
        let event: TelemetryEvent = serde_json::from_slice(data).map_err(|error| Break::Garbled(error.to_string()))?;
        if event.hive_id != *self.hive {
            return Err(Break::Other(event.hive_id));
        }
        if !telemetry::is_finite(&event) {
            return Err(Break::Garbled("a number in it is too large".to_owned()));
        }
        let now = Instant::now();
        self.state.telemetry.record(event, now);
        self.state
            .hives
            .mark_reached(self.hive, &self.target.about(awaited), now);
        Ok(())
    }
}

/// The data of the next event.
async fn next_event(reader: &mut EventReader, response: &mut reqwest::Response) -> Result<Vec<u8>, Break> {
    loop {
        match reader.next() {
            Ok(Some(event)) => return Ok(event),
            Ok(None) => {}
            Err(_) => {
                return Err(Break::Garbled(format!(
                    "an event is longer than {MAX_EVENT_BYTES} bytes"
                )));
            }
        }
        let chunk: Option<Bytes> = response
            .chunk()
            .await
            .map_err(|error| Break::Broke(root_cause(&error)))?;
        reader.feed(chunk.ok_or(Break::Ended)?);
    }
}

/// What comes within the limit of silence.
async fn limited<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    match tokio::time::timeout(SILENCE - LAST_CALL, &mut future).await {
        Ok(value) => Some(value),
        Err(_) => tokio::time::timeout(LAST_CALL, future).await.ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_over_after_five_seconds_of_which_the_last_begins_when_it_is_reached() {
        let start = tokio::time::Instant::now();
        assert_eq!(limited(std::future::pending::<()>()).await, None);
        assert_eq!(start.elapsed().as_secs(), SILENCE.as_secs());
        // As after a pause of the queen: the first part is over when she looks again, and what came lies there.
        let late = tokio::time::sleep(SILENCE - LAST_CALL / 2);
        assert_eq!(limited(late).await, Some(()));
    }
}
