//! What the daemons tell of each request: traces to a collector, and lines of a log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use futures_util::StreamExt;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use rbee_tests::chats::{Endless, with};
use rbee_tests::cluster::{chat_body, worker_args};
use rbee_tests::models::SMOLLM2;
use rbee_tests::{Cluster, Process, Program, eventually, http};
use serde_json::{Map, Value, json};

/// A client's trace and its span, as its `traceparent` names them.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
/// Words that no log may have.
const PROMPT: &str = "a-prompt-for-nobody-else";

/// A collector of traces that keeps them.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

/// A span, and the service that sent it.
#[derive(Debug, Clone)]
struct Seen {
    service: String,
    span: Span,
}

impl Collector {
    /// Listens on a port that the system picks.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let router = axum::Router::new()
            .route("/v1/traces", post(Self::take))
            .with_state(collector.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let options = daemon::ServeOptions::default();
        tokio::spawn(async move { daemon::serve::serve(listener, router, &daemon::Shutdown::new(), options).await });
        (collector, url)
    }

    async fn take(State(collector): State<Self>, headers: HeaderMap, body: Bytes) -> StatusCode {
        if headers
            .get("content-type")
            .is_none_or(|mime| mime != "application/x-protobuf")
        {
            return StatusCode::UNSUPPORTED_MEDIA_TYPE;
        }
        let Ok(request) = ExportTraceServiceRequest::decode(body) else {
            return StatusCode::BAD_REQUEST;
        };
        for of_service in request.resource_spans {
            let resource = of_service.resource.unwrap_or_default();
            let service = text(&resource.attributes, "service.name").unwrap_or_default();
            let spans = of_service.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let seen = spans.map(|span| Seen {
                service: service.clone(),
                span,
            });
            collector.0.lock().unwrap().extend(seen);
        }
        StatusCode::OK
    }

    /// The spans of this trace, by service and name.
    fn of(&self, trace: &str) -> HashMap<(String, String), Span> {
        let seen = self.0.lock().unwrap();
        let of_trace = seen.iter().filter(|seen| hex(&seen.span.trace_id) == trace);
        of_trace
            .map(|seen| ((seen.service.clone(), seen.span.name.clone()), seen.span.clone()))
            .collect()
    }

    /// The same, once the trace has so many spans.
    async fn trace(&self, trace: &str, spans: usize) -> HashMap<(String, String), Span> {
        eventually(&format!("the trace has {spans} spans"), async || {
            let there = self.of(trace);
            (there.len() >= spans).then_some(there)
        })
        .await
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Any> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match &found.value {
        Some(AnyValue { value }) => value.as_ref(),
        None => None,
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match attribute(attributes, key)? {
        Any::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match attribute(attributes, key)? {
        Any::IntValue(number) => Some(*number),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traceparent(trace: &str) -> String {
    format!("00-{trace}-{SPAN}-01")
}

/// A queen that sends traces, and a worker that does.
async fn traced(collector: &str) -> (Cluster, Process) {
    let cluster = Cluster::with(["--heartbeat-interval-ms", "1000", "--otlp-endpoint", collector]).await;
    let worker = cluster.worker_with(SMOLLM2, &["--otlp-endpoint", collector]).await;
    cluster.until_ready(SMOLLM2, 1).await;
    (cluster, worker)
}

/// A streamed chat, read to its end; how many tokens it took.
async fn stream(cluster: &Cluster, headers: &[(&str, &str)]) -> i64 {
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let mut request = http::client()
        .post(cluster.chat_url())
        .json(&with(chat_body(SMOLLM2, PROMPT), &more));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let lines: Vec<String> = http::data_lines(response).collect().await;
    let usage = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tokens = usage
        .filter_map(|chunk| chunk["usage"]["completion_tokens"].as_i64())
        .next_back();
    tokens.expect("a usage")
}

#[tokio::test]
async fn one_trace_leads_from_the_client_through_the_queen_to_what_the_worker_computes() {
    let (collector, url) = Collector::start().await;
    let (cluster, _worker) = traced(&url).await;
    let tokens = stream(&cluster, &[("traceparent", &traceparent(TRACE))]).await;

    let spans = collector.trace(TRACE, 6).await;
    let span = |service: &str, name: &str| {
        let key = (service.to_owned(), name.to_owned());
        spans
            .get(&key)
            .unwrap_or_else(|| panic!("no {key:?} in {:?}", spans.keys()))
    };
    let route = "POST /v1/chat/completions";
    let asked = span("queen-rbee", route);
    let attempt = span("queen-rbee", "attempt");
    let answered = span("llm-worker-rbee", route);
    let stages = ["queue", "prefill", "decode"].map(|name| span("llm-worker-rbee", name));

    assert_eq!(hex(&asked.parent_span_id), SPAN);
    assert_eq!(attempt.parent_span_id, asked.span_id);
    assert_eq!(answered.parent_span_id, attempt.span_id);
    assert!(stages.iter().all(|stage| stage.parent_span_id == answered.span_id));
    let kinds = [asked, attempt, answered].map(Span::kind);
    assert_eq!(kinds, [SpanKind::Server, SpanKind::Client, SpanKind::Server]);
    // Both daemons go by the clock of one machine.
    assert!(asked.start_time_unix_nano <= attempt.start_time_unix_nano);
    assert!(attempt.start_time_unix_nano <= answered.start_time_unix_nano);
    for pair in stages.windows(2) {
        assert!(pair[0].end_time_unix_nano <= pair[1].start_time_unix_nano, "{pair:?}");
    }
    assert!(
        stages
            .iter()
            .all(|stage| stage.end_time_unix_nano >= stage.start_time_unix_nano)
    );
    assert!(
        asked.end_time_unix_nano >= stages[1].end_time_unix_nano,
        "a span lasts as long as its stream"
    );

    for span in [asked, answered] {
        assert_eq!(text(&span.attributes, "http.request.method").as_deref(), Some("POST"));
        assert_eq!(
            text(&span.attributes, "http.route").as_deref(),
            Some("/v1/chat/completions")
        );
        assert_eq!(number(&span.attributes, "http.response.status_code"), Some(200));
        assert_eq!(text(&span.attributes, "gen_ai.request.model").as_deref(), Some(SMOLLM2));
        assert_eq!(number(&span.attributes, "gen_ai.usage.output_tokens"), Some(tokens));
    }
    assert_eq!(
        number(&stages[2].attributes, "gen_ai.usage.output_tokens"),
        Some(tokens)
    );
    assert_eq!(text(&attempt.attributes, "rbee.outcome").as_deref(), Some("answered"));
    assert!(text(&attempt.attributes, "rbee.worker.id").is_some());
    assert!(!format!("{spans:?}").contains(PROMPT));
    let all = collector.0.lock().unwrap();
    assert!(
        all.iter().all(|seen| !seen.span.name.contains("heartbeat")),
        "a trace of each beat helps nobody"
    );
}

#[tokio::test]
async fn the_last_traces_are_sent_before_a_daemon_ends() {
    let (collector, url) = Collector::start().await;
    let key = ("queen-rbee".to_owned(), "GET /v1/models/{*id}".to_owned());
    // She waits two seconds for the collector, which is this test, on a machine that is busy with others.
    eventually("a queen that ended has sent her last traces", async || {
        let mut queen = Process::daemon(Program::Queen, ["--port", "0", "--otlp-endpoint", &url]).await;
        let request = http::client().get(format!("{}/v1/models/none", queen.url()));
        let request = request.header("traceparent", traceparent(TRACE));
        assert_eq!(request.send().await.unwrap().status(), 404);
        assert!(queen.stop().await.success());
        collector.of(TRACE).contains_key(&key).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_no_answer_and_the_log_says_so_once() {
    let queen = Process::daemon(Program::Queen, ["--port", "0", "--otlp-endpoint", "http://127.0.0.1:9"]).await;
    for _ in 0..3 {
        assert_eq!(http::get(format!("{}/v1/fleet", queen.url())).await.status, 200);
    }
    let complaint = "traces are being dropped";
    eventually("the log says that traces are dropped", async || {
        queen.log().contains(complaint).then_some(())
    })
    .await;
    assert_eq!(queen.log().matches(complaint).count(), 1);
}

/// The lines of a log in JSON.
fn json_lines(process: &Process) -> Vec<Map<String, Value>> {
    let log = process.log();
    // The last line may be half written.
    let (whole, _) = log.rsplit_once('\n').unwrap_or_default();
    let objects = whole
        .lines()
        .map(|line| serde_json::from_str::<Map<String, Value>>(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    objects.collect()
}

fn access_lines(process: &Process) -> Vec<Map<String, Value>> {
    let lines = json_lines(process).into_iter();
    lines.filter(|line| line["target"] == "access").collect()
}

/// The line of the request with this id, once it is there.
async fn line_of(process: &Process, id: &str) -> Map<String, Value> {
    eventually(&format!("there is a line of {id}"), async || {
        let mut of_request = access_lines(process)
            .into_iter()
            .filter(|line| line["request_id"] == id);
        let line = of_request.next()?;
        assert!(of_request.next().is_none(), "two lines of {id}");
        Some(line)
    })
    .await
}

#[tokio::test]
async fn each_request_leaves_one_line_when_its_answer_has_ended() {
    let cluster = Cluster::with(["--heartbeat-interval-ms", "1000", "--log-format", "json"]).await;
    let worker = cluster.worker_with(SMOLLM2, &["--log-format", "json"]).await;
    cluster.until_ready(SMOLLM2, 1).await;
    let queen = &cluster.queen;

    let tokens = stream(&cluster, &[("x-request-id", "whole")]).await;
    let line = line_of(queen, "whole").await;
    for (name, value) in [
        ("level", json!("INFO")),
        ("method", json!("POST")),
        ("path", json!("/v1/chat/completions")),
        ("status", json!(200)),
        ("outcome", json!("complete")),
        ("model", json!(SMOLLM2)),
        ("attempts", json!(1)),
        ("migrations", json!(0)),
        ("tokens", json!(tokens)),
    ] {
        assert_eq!(line[name], value, "{name} in {line:?}");
    }
    for name in ["duration_ms", "ttft_ms", "queue_ms", "bytes"] {
        assert!(line[name].is_number(), "{name} in {line:?}");
    }
    assert!(line["ttft_ms"].as_f64() <= line["duration_ms"].as_f64(), "{line:?}");
    assert!(line["worker"].is_string() && line["peer"].is_string(), "{line:?}");
    // The id goes along, so that the lines of one request are found in all logs.
    let workers_line = line_of(&worker, "whole").await;
    assert_eq!(workers_line["tokens"], json!(tokens), "{workers_line:?}");
    assert_eq!(workers_line["worker"], line["worker"]);

    drop(Endless::begin(&cluster.chat_url(), PROMPT).await);
    let line = eventually("there is a line of the client that left", async || {
        let mut lines = access_lines(queen).into_iter();
        lines.find(|line| line["outcome"] == "aborted")
    })
    .await;
    assert_eq!(
        (&line["path"], &line["status"]),
        (&json!("/v1/chat/completions"), &json!(200)),
        "{line:?}"
    );

    let secret = "a-secret-of-the-query";
    let request = http::client().get(format!("{}/v1/nothing?key={secret}", cluster.url()));
    request.header("x-request-id", "unknown").send().await.unwrap();
    let line = line_of(queen, "unknown").await;
    assert_eq!(
        (&line["status"], &line["path"]),
        (&json!(404), &json!("/v1/nothing")),
        "{line:?}"
    );

    http::get(format!("{}/health", cluster.url())).await;
    let quiet = ["/health", "/ready", "/metrics", "/v1/worker-heartbeat"];
    let lines = access_lines(queen);
    assert!(
        lines.iter().all(|line| !quiet.iter().any(|path| line["path"] == *path)),
        "{lines:?}"
    );
    for process in [queen, &worker] {
        let log = process.log();
        assert!(!log.contains(PROMPT) && !log.contains(secret), "{log}");
    }
}

/// Takes more than five seconds: it has to wait for longer than a busy machine keeps the queen from saying that it waits.
#[tokio::test]
async fn a_stream_that_waited_in_vain_leaves_a_line_that_says_so() {
    let settings = [
        "--heartbeat-interval-ms",
        "1000",
        "--log-format",
        "json",
        "--queue-timeout-ms",
        "8000",
    ];
    let cluster = Cluster::with(settings).await;
    let _worker = cluster.worker_with(SMOLLM2, &["--slots", "1"]).await;
    cluster.until_ready(SMOLLM2, 1).await;
    let _taken = Endless::begin(&cluster.chat_url(), PROMPT).await;
    let refused = with(chat_body(SMOLLM2, "Hello"), &json!({"stream": true}));
    let request = http::client().post(cluster.chat_url()).json(&refused);
    let response = request.header("x-request-id", "in-vain").send().await.unwrap();
    assert_eq!(response.status(), 200, "that it waits is said before");
    assert!(response.text().await.unwrap().contains("no_capacity"));
    let line = line_of(&cluster.queen, "in-vain").await;
    for (name, value) in [
        ("status", json!(200)),
        ("outcome", json!("refused")),
        ("code", json!("no_capacity")),
        ("attempts", json!(0)),
    ] {
        assert_eq!(line[name], value, "{name} in {line:?}");
    }
    let metrics = http::client().get(format!("{}/metrics", cluster.url()));
    let metrics = metrics.send().await.unwrap().text().await.unwrap();
    let counted = format!("rbee_requests_total{{model=\"{SMOLLM2}\",status=\"503\"}} 1");
    assert!(metrics.lines().any(|line| line == counted), "{metrics}");
}

#[tokio::test]
async fn logs_in_json_are_flat_objects_one_a_line() {
    let cluster = Cluster::with(["--log-format", "json", "--log", "debug,hyper=info"]).await;
    let json = ["--log-format", "json", "--log", "debug,hyper=info"];
    let hive = ["--port", "0", "--queen-url", &cluster.url()];
    let hive = Process::daemon(Program::Hive, hive.into_iter().chain(json)).await;
    let args = worker_args(SMOLLM2, &cluster.url()).into_iter();
    let worker = Process::daemon(Program::Worker, args.chain(json.map(str::to_owned))).await;
    cluster.until_ready(SMOLLM2, 1).await;
    stream(&cluster, &[("x-request-id", "debugged")]).await;
    http::get(format!("{}/v1/capabilities", hive.url())).await;
    line_of(&worker, "debugged").await;
    for process in [&cluster.queen, &hive, &worker] {
        let lines = json_lines(process);
        for line in &lines {
            assert!(
                line.values().all(|value| !value.is_object() && !value.is_array()),
                "{line:?}"
            );
            for name in ["timestamp", "level", "target", "message"] {
                assert!(line[name].is_string(), "{name} in {line:?}");
            }
        }
        assert!(!lines.is_empty());
    }
    // What is said in the course of a request has its id, under the same name as in the access log.
    let lines = json_lines(&worker);
    let said = lines
        .iter()
        .find(|line| line["message"] == "sequence starts" && line.get("request_id") == Some(&json!("debugged")));
    assert!(said.is_some(), "{lines:?}");
}

#[tokio::test]
async fn every_program_says_what_it_was_built_of() {
    for (program, name) in [
        (Program::Queen, "queen-rbee"),
        (Program::Hive, "rbee-hive"),
        (Program::Worker, "llm-worker-rbee"),
        (Program::Rbee, "rbee"),
    ] {
        let output = program.command().arg("--version").output().await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let version = daemon::build::describe(&[] as &[&str]);
        let expected = format!("{name} {}", version.trim_end_matches(')'));
        assert!(said.starts_with(&expected) && said.trim_end().ends_with(')'), "{said}");
    }
}
