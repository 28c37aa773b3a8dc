//! The queen's stream, taken up again whenever it breaks.

use std::time::Duration;

use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use reqwest::Response;
use shared_contract::timing::QUEEN_BEAT_INTERVAL;
use tokio::sync::mpsc::Sender;

use super::state::Event;
use crate::api::{self, Api, root_cause};

const PATH: &str = "/v1/heartbeats/stream";
/// First pause before the stream is asked for again.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// Longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(4);
/// Silence after which the connection counts as broken: the queen tells of herself much more often.
const MAX_SILENCE: Duration = QUEEN_BEAT_INTERVAL.saturating_mul(4);

/// What the feed tells.
#[derive(Debug)]
pub(super) enum Update {
    /// The stream is there again.
    Connected,
    /// An event came.
    Event(Event),
    /// The stream broke, for this reason; it is asked for again.
    Broken(String),
}

/// The first connection, which tells what is wrong with the address or the token.
pub(super) async fn open(queen: &Api) -> Result<Response, api::Error> {
    queen.open(PATH).await
}

/// Tells what comes until nobody listens any more. After a break it goes on behind the last event that came.
pub(super) async fn follow(queen: Api, first: Response, updates: Sender<Update>) {
    let mut last_id = String::new();
    let mut response: Result<Response, api::Error> = Ok(first);
    let mut pause = MIN_PAUSE;
    loop {
        let why = match response {
            Ok(response) => {
                if updates.send(Update::Connected).await.is_err() {
                    return;
                }
                pause = MIN_PAUSE;
                match read(response, &mut last_id, &updates).await {
                    Some(why) => why,
                    None => return,
                }
            }
            Err(error) => error.to_string(),
        };
        if updates.send(Update::Broken(why)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
        response = queen.open(&resumed(&last_id)).await;
    }
}

fn resumed(last_id: &str) -> String {
    match last_id {
        "" => PATH.to_owned(),
        id => format!("{PATH}?last_event_id={}", api::segment(id)),
    }
}

/// Reads to the stream's end and says why it ended; `None` if nobody listens.
async fn read(response: Response, last_id: &mut String, updates: &Sender<Update>) -> Option<String> {
    let bytes = response
        .bytes_stream()
        .map(|item| item.map_err(|error| root_cause(&error)));
    let mut events = std::pin::pin!(bytes.eventsource());
    loop {
        let event = match tokio::time::timeout(MAX_SILENCE, events.next()).await {
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(error))) => return Some(api::stream_fault(error)),
            Ok(None) => return Some("the queen ended the stream".to_owned()),
            Err(_) => return Some(format!("nothing was heard for {} s", MAX_SILENCE.as_secs())),
        };
        let parsed = match Event::parse(&event.event, &event.data) {
            Ok(parsed) => parsed,
            // What was missed would be missing for good: a snapshot puts it right.
            Err(error) => {
                last_id.clear();
                return Some(format!("an event that cannot be read: {error}"));
            }
        };
        if !event.id.is_empty() {
            *last_id = event.id;
        }
        if let Some(event) = parsed {
            updates.send(Update::Event(event)).await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::extract::RawQuery;
    use axum::routing::get;

    use super::*;
    use crate::api::Peer;
    use crate::api::tests::{api, serve};

    #[tokio::test]
    async fn a_broken_stream_is_taken_up_behind_the_last_event() {
        let calls = Arc::new(AtomicUsize::new(0));
        let (tell, mut asked) = tokio::sync::mpsc::channel(4);
        let handler = async move |RawQuery(query): RawQuery| {
            tell.send(query).await.unwrap();
            match calls.fetch_add(1, Ordering::Relaxed) {
                0 => "event: later\nid: queen-1-7\ndata: {}\n\n",
                _ => "event: worker\nid: queen-1-8\ndata: nonsense\n\n",
            }
        };
        let url = serve(Router::new().route(PATH, get(handler))).await;
        let queen = api(Peer::Queen, &url);
        let (sender, mut updates) = tokio::sync::mpsc::channel(4);
        let first = open(&queen).await.unwrap();
        tokio::spawn(follow(queen, first, sender));
        let mut next = async || updates.recv().await.unwrap();
        assert!(matches!(next().await, Update::Connected));
        assert!(matches!(next().await, Update::Broken(why) if why.contains("ended")));
        assert!(matches!(next().await, Update::Connected));
        assert!(matches!(next().await, Update::Broken(why) if why.contains("cannot be read")));
        assert!(matches!(next().await, Update::Connected));
        assert_eq!(asked.recv().await.unwrap(), None);
        assert_eq!(asked.recv().await.unwrap().as_deref(), Some("last_event_id=queen-1-7"));
        assert_eq!(
            asked.recv().await.unwrap(),
            None,
            "after what could not be read, all is asked for"
        );
    }
}
