//! The load: prompts that no cache knows, streams that keep a server busy, and the moments at which their tokens come.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use daemon::Secret;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use shared_contract::{ErrorBody, ErrorObject};
use tokio::time::{Instant, timeout};

use crate::answer::stream::{Choice, Chunk, Chunks, Fault};
use crate::api::root_cause;
use crate::render;

/// Longest silence of a server: a model that is loaded for the first request takes its time.
const SILENCE: Duration = Duration::from_secs(600);
/// Most of an unexpected answer that a failure shows, in bytes.
const EXCERPT: usize = 160;
/// Of prompts with the same beginning, every so many-th word from the end on differs.
const OWN_TAIL: usize = 10;
/// Common words: most tokenizers have each of them, with the space before it, as one token.
const WORDS: [&str; 64] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
];

/// A server under load.
#[derive(Debug)]
pub(super) struct Server {
    /// What the report calls it.
    pub(super) name: String,
    /// Base URL, without `/v1`.
    pub(super) base: String,
    /// Its name for the model.
    pub(super) model: String,
    /// Sent as a bearer token.
    pub(super) key: Option<Secret>,
    /// Connections are kept between requests.
    pub(super) http: reqwest::Client,
}

/// What one request asks for.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// The prompt's text.
    pub(super) prompt: String,
    /// Most tokens of the answer.
    pub(super) max_tokens: u32,
    /// A continuation of a text instead of a chat.
    pub(super) raw: bool,
}

/// One answer, as its tokens came.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    /// From sending the request to the first event with text.
    pub(super) ttft: Duration,
    /// Between one event with text and the next.
    pub(super) gaps: Vec<Duration>,
    /// Tokens of the answer.
    pub(super) tokens: u64,
    /// Whether the server said so; else each event with text counts as one.
    pub(super) is_counted: bool,
    /// Tokens of the prompt, where the server says so.
    pub(super) prompt_tokens: Option<u64>,
    /// Of those, what it took from a cache, where it says so.
    pub(super) cached_tokens: Option<u64>,
}

/// Why a request brought no whole answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{text}")]
pub(super) struct Failure {
    text: String,
    /// The server's word for it, where it has one.
    pub(super) code: Option<String>,
}

impl Failure {
    fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { text, code: None }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let text = format!("broke off: {fault}");
        match fault {
            Fault::Refused(ErrorObject { code, .. }) => Self { text, code },
            _ => Self::new(text),
        }
    }
}

/// Texts that begin differently each time, in this run and in every other one.
#[derive(Debug)]
pub(super) struct Prompts {
    seed: u64,
    same_prefix: bool,
}

impl Prompts {
    /// Fresh ones; with `same_prefix` they share all but the last tenth of their words.
    pub(super) fn new(same_prefix: bool) -> Self {
        let seed = RandomState::new().build_hasher().finish();
        Self { seed, same_prefix }
    }

    /// The prompt of this number, of so many words.
    pub(super) fn text(&self, number: u64, words: usize) -> String {
        let shared = if self.same_prefix {
            words - words.div_ceil(OWN_TAIL)
        } else {
            0
        };
        let pick = |position: usize| {
            let line = if position < shared { 0 } else { number + 1 };
            let at = mixed(self.seed ^ mixed(line) ^ mixed((position as u64) << 32));
            WORDS[(at % WORDS.len() as u64) as usize]
        };
        let mut text = String::from("Go on:");
        for position in 0..words {
            text.push(' ');
            text.push_str(pick(position));
        }
        text
    }
}

/// The finalizer of `SplitMix64` (Steele, Lea, Flood 2014): well mixed bits of a number.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// When a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// After so many requests.
    Requests(u32),
    /// No new request after so long; those that run are finished.
    Elapsed(Duration),
}

/// What came of a round.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// From the first request to the end of the last one.
    pub(super) wall: Duration,
    /// Whole answers.
    pub(super) samples: Vec<Sample>,
    /// Requests that brought none.
    pub(super) failures: Vec<Failure>,
}

impl Server {
    /// Keeps `streams` requests under way until the end; `ended` is called after each.
    pub(super) async fn round(
        &self,
        streams: usize,
        until: Until,
        mut next: impl FnMut() -> Ask,
        mut ended: impl FnMut(),
    ) -> Round {
        let begin = Instant::now();
        let goes_on = |sent: u32| match until {
            Until::Requests(count) => sent < count,
            Until::Elapsed(limit) => begin.elapsed() < limit,
        };
        let asks = stream::iter(0_u32..)
            .take_while(|sent| std::future::ready(goes_on(*sent)))
            .map(|_| self.ask(next()));
        let mut answers = std::pin::pin!(asks.buffer_unordered(streams));
        let mut round = Round::default();
        while let Some(answer) = answers.next().await {
            ended();
            match answer {
                Ok(sample) => round.samples.push(sample),
                Err(failure) => round.failures.push(failure),
            }
        }
        round.wall = begin.elapsed();
        round
    }

    /// One request, and its answer to the end.
    pub(super) async fn ask(&self, ask: Ask) -> Result<Sample, Failure> {
        let (path, body) = self.request(&ask);
        let mut request = self.http.post(format!("{}{path}", self.base)).json(&body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        let sent = Instant::now();
        let response = in_time(request.send())
            .await?
            .map_err(|error| Failure::new(root_cause(&error)))?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            let body = in_time(response.bytes()).await?.unwrap_or_default();
            return Err(refused(status, &body));
        }
        let mut chunks = Chunks::of(response, |_| Ok(()));
        let mut timeline = Timeline::default();
        while let Some(chunk) = in_time(chunks.next()).await?? {
            timeline.take(chunk, Instant::now());
        }
        timeline.finish(sent)
    }

    fn request(&self, ask: &Ask) -> (&'static str, Value) {
        let mut body = json!({
            "model": self.model, "max_tokens": ask.max_tokens, "temperature": 0,
            "stream": true, "stream_options": {"include_usage": true},
        });
        if ask.raw {
            body["prompt"] = ask.prompt.as_str().into();
            return ("/v1/completions", body);
        }
        body["messages"] = json!([{"role": "user", "content": ask.prompt}]);
        ("/v1/chat/completions", body)
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    timeout(SILENCE, work)
        .await
        .map_err(|_| Failure::new(format!("nothing came for {} s", SILENCE.as_secs())))
}

fn refused(status: u16, body: &[u8]) -> Failure {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => Failure {
            text: format!("{} ({status})", render::clean(&body.error.message)),
            code: body.error.code,
        },
        Err(_) => {
            let text = String::from_utf8_lossy(&body[..body.len().min(EXCERPT)]);
            Failure::new(format!("status {status}: {}", render::clean(text.trim())))
        }
    }
}

/// An answer while it comes.
#[derive(Debug, Default)]
struct Timeline {
    texts: Vec<Instant>,
    usage: Option<Value>,
}

impl Timeline {
    fn take(&mut self, chunk: Chunk, now: Instant) {
        if chunk.choices.iter().any(Choice::has_words) {
            self.texts.push(now);
        }
        self.usage = chunk.usage.or(self.usage.take());
    }

    fn finish(self, sent: Instant) -> Result<Sample, Failure> {
        let Some(first) = self.texts.first() else {
            return Err(Failure::new("the answer has no text"));
        };
        let count = |path: &str| self.usage.as_ref()?.pointer(path)?.as_u64();
        let counted = count("/completion_tokens");
        Ok(Sample {
            ttft: *first - sent,
            gaps: self.texts.windows(2).map(|pair| pair[1] - pair[0]).collect(),
            tokens: counted.unwrap_or(self.texts.len() as u64),
            is_counted: counted.is_some(),
            prompt_tokens: count("/prompt_tokens"),
            cached_tokens: count("/prompt_tokens_details/cached_tokens"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::post;
    use axum::{Json, Router};

    use super::*;
    use crate::api::tests::serve;

    async fn server(router: Router) -> Server {
        Server {
            name: "s".into(),
            base: serve(router).await.to_string(),
            model: "m".into(),
            key: Some("correct-horse".parse().unwrap()),
            http: daemon::client::new().unwrap(),
        }
    }

    fn chat() -> Ask {
        Ask {
            prompt: "hi".into(),
            max_tokens: 4,
            raw: false,
        }
    }

    async fn answered(events: &'static str) -> Result<Sample, Failure> {
        let router = Router::new().route("/v1/chat/completions", post(async move || events));
        server(router).await.ask(chat()).await
    }

    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":5,\
                         \"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n";

    #[tokio::test]
    async fn tokens_are_what_the_server_counted_and_gaps_lie_between_events_with_text() {
        const EVENTS: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"reasoning\":\"b\",\"reasoning_content\":\"b\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"c\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n";
        let whole: &'static str = Box::leak(format!("{EVENTS}{USAGE}").into_boxed_str());
        let sample = answered(whole).await.unwrap();
        assert_eq!((sample.tokens, sample.is_counted, sample.gaps.len()), (5, true, 2));
        assert_eq!((sample.prompt_tokens, sample.cached_tokens), (Some(9), Some(4)));
    }

    #[tokio::test]
    async fn without_usage_events_are_counted_and_the_sample_says_so() {
        let sample = answered("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n").await;
        let sample = sample.unwrap();
        assert_eq!((sample.tokens, sample.is_counted), (1, false));
    }

    #[tokio::test]
    async fn an_answer_without_its_end_or_without_text_or_with_an_error_is_a_failure() {
        let failure = async |events| answered(events).await.unwrap_err().to_string();
        let text = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
        assert_eq!(failure(text).await, "broke off: the stream ended without [DONE]");
        assert_eq!(failure("data: [DONE]\n\n").await, "the answer has no text");
        let error =
            "data: {\"error\":{\"message\":\"gone\",\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n";
        assert_eq!(failure(error).await, "broke off: gone");
        assert!(failure("data: nonsense\n\n").await.contains("in an event"));
    }

    #[tokio::test]
    async fn a_refusal_keeps_the_servers_words_and_code() {
        let body = r#"{"error":{"message":"no template","type":"t","param":null,"code":"no_chat_template"}}"#;
        let router = Router::new().route("/v1/chat/completions", post(async move || (http_status(400), body)));
        let failure = server(router).await.ask(chat()).await.unwrap_err();
        assert_eq!(failure.to_string(), "no template (400)");
        assert_eq!(failure.code.as_deref(), Some("no_chat_template"));
        let failure = server(Router::new()).await.ask(chat()).await.unwrap_err();
        assert_eq!(failure.to_string(), "status 404: ");
    }

    fn http_status(code: u16) -> axum::http::StatusCode {
        axum::http::StatusCode::from_u16(code).unwrap()
    }

    #[tokio::test]
    async fn a_continuation_goes_to_completions_with_the_key() {
        let route = post(async |headers: axum::http::HeaderMap, body: Json<Value>| {
            assert_eq!(headers["authorization"], "Bearer correct-horse");
            assert_eq!((&body["prompt"], &body["max_tokens"]), (&json!("hi"), &json!(4)));
            "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n"
        });
        let server = server(Router::new().route("/v1/completions", route)).await;
        let ask = Ask { raw: true, ..chat() };
        assert_eq!(server.ask(ask).await.unwrap().tokens, 1);
    }

    #[tokio::test]
    async fn so_many_requests_are_under_way_together_and_no_more() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let meet = Arc::new(tokio::sync::Barrier::new(3));
        let route = {
            let most = Arc::clone(&most);
            post(async move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Fewer than three at once would never get past here.
                meet.wait().await;
                now.fetch_sub(1, Ordering::SeqCst);
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n"
            })
        };
        let server = server(Router::new().route("/v1/chat/completions", route)).await;
        let mut ended = 0;
        let round = server.round(3, Until::Requests(9), chat, || ended += 1).await;
        assert_eq!((round.samples.len(), round.failures.len(), ended), (9, 0, 9));
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_round_by_the_clock_begins_nothing_after_its_end() {
        let server = server(Router::new()).await;
        let round = server.round(2, Until::Elapsed(Duration::ZERO), chat, || ()).await;
        assert_eq!((round.samples.len(), round.failures.len()), (0, 0));
    }

    #[test]
    fn prompts_differ_from_their_first_words_on_unless_a_common_beginning_is_wanted() {
        let beginning = |text: &str| text.split(' ').take(10).collect::<Vec<_>>().join(" ");
        let prompts = Prompts::new(false);
        let beginnings: HashSet<_> = (0..100).map(|i| beginning(&prompts.text(i, 50))).collect();
        assert_eq!(beginnings.len(), 100);
        let again = Prompts::new(false);
        assert_ne!(again.text(0, 50), prompts.text(0, 50), "another run");

        let same = Prompts::new(true);
        let (one, other) = (same.text(0, 50), same.text(1, 50));
        assert_ne!(one, other);
        let common = one.split(' ').zip(other.split(' ')).take_while(|(a, b)| a == b).count();
        assert!(common >= 45, "{one}\n{other}");
    }
}
