//! A client for scenarios: status, headers and JSON, or the events of a stream.

use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use reqwest::{Client, Method};
use serde_json::Value;

use crate::PATIENCE;

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body; `null` where it is no JSON.
    pub body: Value,
}

impl Answer {
    /// `error.code`, or an empty text.
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    /// `error.message`, or an empty text.
    pub fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }

    /// Text of the first choice of a chat or text completion.
    pub fn text(&self) -> &str {
        let choice = &self.body["choices"][0];
        choice["message"]["content"]
            .as_str()
            .or(choice["text"].as_str())
            .unwrap_or_else(|| panic!("no text: {self:?}"))
    }
}

/// A client with the scenario's patience.
pub fn client() -> Client {
    daemon::client::new().expect("an HTTP client")
}

/// GET.
pub async fn get(url: impl AsRef<str>) -> Answer {
    send(client().get(url.as_ref())).await
}

/// POST with a JSON body.
pub async fn post(url: impl AsRef<str>, body: &Value) -> Answer {
    send(client().post(url.as_ref()).json(body)).await
}

/// POST with any body that claims to be JSON.
pub async fn post_text(url: impl AsRef<str>, body: impl Into<reqwest::Body>) -> Answer {
    let request = client().request(Method::POST, url.as_ref());
    send(request.header("content-type", "application/json").body(body)).await
}

/// Sends and reads to the end.
pub async fn send(request: reqwest::RequestBuilder) -> Answer {
    try_send(request).await.expect("an answer")
}

/// Sends and reads to the end; an error is one of the transport.
pub async fn try_send(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.timeout(PATIENCE).send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await?;
    Ok(Answer {
        status,
        headers,
        body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
    })
}

/// Asks a daemon for a job and waits for its end; returns its last event.
pub async fn job(daemon_url: &str, operation: &Value) -> Value {
    let answer = post(format!("{daemon_url}/v1/jobs"), operation).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let stream = answer.body["stream_url"].as_str().expect("a stream URL");
    let response = client()
        .get(format!("{daemon_url}{stream}"))
        .send()
        .await
        .expect("a stream");
    let lines: Vec<String> = data_lines(response).collect().await;
    serde_json::from_str(lines.last().expect("events")).expect("a job event")
}

/// Sum of all series of a metric, from a daemon's `/metrics`.
pub async fn metric(daemon_url: &str, name: &str) -> f64 {
    let response = client()
        .get(format!("{daemon_url}/metrics"))
        .send()
        .await
        .expect("metrics");
    let text = response.text().await.expect("text");
    let series: Vec<&str> = text
        .lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name))
        .collect();
    assert!(!series.is_empty(), "no metric {name} in:\n{text}");
    series
        .iter()
        .map(|line| {
            line.rsplit(' ')
                .next()
                .unwrap_or_default()
                .parse::<f64>()
                .expect("a number")
        })
        .sum()
}

/// POST whose answer is a stream: its `data` lines as they come.
pub async fn post_stream<U: AsRef<str>>(url: U, body: &Value) -> impl Stream<Item = String> + Unpin + use<U> {
    let response = client().post(url.as_ref()).json(body).send().await.expect("an answer");
    assert_eq!(response.status(), 200, "{:?}", response.text().await);
    data_lines(response)
}

/// The `data` lines of a stream that has begun.
pub fn data_lines(response: reqwest::Response) -> impl Stream<Item = String> + Unpin {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    response
        .bytes_stream()
        .eventsource()
        .map(|event| event.expect("a whole event").data)
}

/// The chunks of an OpenAI stream, which must end with `[DONE]`.
pub async fn chunks(url: impl AsRef<str>, body: &Value) -> Vec<Value> {
    let lines: Vec<String> = post_stream(url, body).await.collect().await;
    let (done, chunks) = lines.split_last().expect("events");
    assert_eq!(done, "[DONE]");
    chunks
        .iter()
        .map(|line| serde_json::from_str(line).expect("a chunk is JSON"))
        .collect()
}
