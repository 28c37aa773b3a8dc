//! A hive's folder of models: what comes into it, what is told of it, what goes to other hives.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::{Stream, StreamExt, stream};
use hive_contract::{JobState, ModelDetail, ModelHolder};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use shared_contract::HiveId;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{Bed, gguf, http_with, queen, start, start_with, within};

/// A web server with model files.
struct Origin {
    url: String,
    requests: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

/// Serves small models that work, of any name but three: `large.gguf` is more than a connection buffers, `endless.gguf`
/// never comes to its end, and there is no `missing.gguf`.
async fn origin() -> Origin {
    let small = Bytes::from(gguf::bytes());
    let large = Bytes::from(vec![0; LARGE]);
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let answer = move |Path(name): Path<String>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let body = match name.as_str() {
            "large.gguf" => Ok(Body::from(large.clone())),
            "endless.gguf" => Ok(Body::from_stream(begin_only())),
            "missing.gguf" => Err(StatusCode::NOT_FOUND),
            _ => Ok(Body::from(small.clone())),
        };
        async move { body }
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/{name}", get(answer));
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    Origin {
        url,
        requests,
        _server: server,
    }
}

const LARGE: usize = 32 << 20;

/// Some megabytes of a model, whose rest never comes.
fn begin_only() -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    stream::once(async { Ok(Bytes::from(vec![0; 4 << 20])) }).chain(stream::pending())
}

impl Origin {
    fn model(&self, name: &str) -> String {
        format!("{}/{name}.gguf", self.url)
    }
}

async fn pull(bed: &Bed, model: &str) -> Value {
    let end = bed.job(&json!({"operation": "model_pull", "model": model})).await;
    end.result.unwrap_or_else(|| panic!("no model: {:?}", end.error))
}

async fn listed(bed: &Bed) -> Vec<Value> {
    bed.get("/v1/models").await["models"].as_array().unwrap().clone()
}

async fn refusal(bed: &Bed, operation: &Value) -> (u16, String) {
    let answer = bed.post_job(operation).await;
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    (status, body["error"]["message"].as_str().unwrap_or_default().to_owned())
}

/// The only file of the only model of a hive, on its disk.
fn only_file(bed: &Bed) -> PathBuf {
    let folders = fs::read_dir(bed.folder.path().join("models")).unwrap();
    let files: Vec<PathBuf> = folders
        .map(|entry| entry.unwrap().path().join("files"))
        .filter(|files| files.is_dir())
        .flat_map(|files| fs::read_dir(files).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.into_iter().next().unwrap()
}

#[tokio::test]
async fn a_model_is_fetched_listed_shown_verified_and_deleted() {
    let origin = origin().await;
    let bed = start().await;
    let reference = origin.model("tiny");
    let pulled = pull(&bed, &reference).await;
    assert_eq!(
        (&pulled["id"], &pulled["reference"]),
        (&json!("tiny"), &json!(reference))
    );
    assert_eq!(pulled["facts"]["family"], "llama", "{pulled}");

    let in_list = listed(&bed).await;
    assert_eq!(in_list.len(), 1);
    assert_eq!(
        (&in_list[0]["id"], &in_list[0]["in_use"]),
        (&json!("tiny"), &json!(false))
    );
    assert!(in_list[0]["last_used"].is_string() && in_list[0].get("problem").is_none());

    // By reference, by id, and over HTTP: the same.
    let shown = bed
        .job(&json!({"operation": "model_get", "model": reference}))
        .await
        .result
        .unwrap();
    let detail: ModelDetail = serde_json::from_value(shown.clone()).unwrap();
    assert_eq!(detail.files.len(), 1);
    assert_eq!(detail.files[0].name, "tiny.gguf");
    assert_eq!(Some(&detail.files[0].sha256), detail.entry.sha256.as_ref());
    assert_eq!(bed.get("/v1/models/tiny").await, shown);
    let verified = bed
        .job(&json!({"operation": "model_get", "model": "tiny", "verify": true}))
        .await;
    assert_eq!(verified.result, Some(shown), "{:?}", verified.error);

    let deleted = bed.job(&json!({"operation": "model_delete", "model": "tiny"})).await;
    assert_eq!(deleted.result.unwrap()["freed_bytes"], detail.entry.size_bytes);
    assert!(listed(&bed).await.is_empty());
    let (status, _) = refusal(&bed, &json!({"operation": "model_get", "model": "tiny"})).await;
    assert_eq!(status, 404);
    bed.end().await;
}

#[tokio::test]
async fn a_file_reference_is_shown_but_neither_verified_nor_deleted() {
    let bed = start().await;
    let reference = bed.model("mine");
    let shown = bed
        .job(&json!({"operation": "model_get", "model": reference}))
        .await
        .result
        .unwrap();
    assert_eq!((&shown["id"], &shown["files"]), (&json!("mine"), &json!([])));
    assert_eq!(shown["facts"]["family"], "llama");

    let verify = json!({"operation": "model_get", "model": reference, "verify": true});
    let (status, message) = refusal(&bed, &verify).await;
    assert!(status == 400 && message.contains("checksum"), "{status} {message}");
    let (status, message) = refusal(&bed, &json!({"operation": "model_delete", "model": reference})).await;
    assert!(status == 400 && message.contains("removes it"), "{status} {message}");
    assert!(PathBuf::from(reference.trim_start_matches("file:")).is_file());
    let missing = json!({"operation": "model_get", "model": "file:/nowhere/x.gguf"});
    assert_eq!(refusal(&bed, &missing).await.0, 404);
    bed.end().await;
}

#[tokio::test]
async fn a_model_that_a_worker_serves_is_not_deleted_and_the_worker_is_named() {
    let origin = origin().await;
    let bed = start().await;
    let reference = origin.model("good");
    let spawned = bed.job(&json!({"operation": "worker_spawn", "model": reference})).await;
    let worker = spawned.result.unwrap_or_else(|| panic!("{:?}", spawned.error))["worker_id"].clone();
    assert_eq!(listed(&bed).await[0]["in_use"], true);
    let delete = json!({"operation": "model_delete", "model": "good"});
    let (status, message) = refusal(&bed, &delete).await;
    assert!(
        status == 409 && message.contains(worker.as_str().unwrap()),
        "{status} {message}"
    );

    bed.job(&json!({"operation": "worker_stop", "worker_id": worker})).await;
    assert_eq!(bed.job(&delete).await.state, JobState::Succeeded);
    assert!(listed(&bed).await.is_empty());
    bed.end().await;
}

#[tokio::test]
async fn a_file_whose_bytes_changed_fails_its_verification_by_name() {
    let origin = origin().await;
    let bed = start().await;
    pull(&bed, &origin.model("tiny")).await;
    let path = only_file(&bed);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let end = bed
        .job(&json!({"operation": "model_get", "model": "tiny", "verify": true}))
        .await;
    let message = end.error.unwrap().message;
    assert!(
        message.starts_with("failed in step `verify`") && message.contains(path.to_str().unwrap()),
        "{message}"
    );
    bed.end().await;
}

#[tokio::test]
async fn a_damaged_model_is_told_with_its_file_and_can_be_deleted() {
    let origin = origin().await;
    let bed = start().await;
    let reference = origin.model("tiny");
    pull(&bed, &reference).await;
    let path = only_file(&bed);
    fs::write(&path, b"GG").unwrap();

    let problem = listed(&bed).await[0]["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains(path.to_str().unwrap()), "{problem}");
    let capabilities = bed.get("/v1/capabilities").await;
    assert_eq!(capabilities["models"][0]["problem"], problem);
    let (status, message) = refusal(&bed, &json!({"operation": "model_get", "model": "tiny"})).await;
    assert!(
        status == 409 && message.contains(path.to_str().unwrap()),
        "{status} {message}"
    );

    let deleted = bed.job(&json!({"operation": "model_delete", "model": reference})).await;
    assert_eq!(deleted.state, JobState::Succeeded, "{:?}", deleted.error);
    assert!(listed(&bed).await.is_empty() && !path.exists());
    bed.end().await;
}

#[tokio::test]
async fn a_model_whose_description_is_lost_is_told_by_its_path_and_can_be_deleted_by_that() {
    let origin = origin().await;
    let bed = start().await;
    pull(&bed, &origin.model("tiny")).await;
    let manifest = only_file(&bed).ancestors().nth(2).unwrap().join("manifest.json");
    fs::write(&manifest, "{").unwrap();
    let models = bed.get("/v1/models").await;
    assert_eq!(models["models"], json!([]));
    let path = &models["unreadable"][0]["path"];
    assert_eq!(path, manifest.to_str().unwrap());
    let deleted = bed.job(&json!({"operation": "model_delete", "model": path})).await;
    assert_eq!(deleted.state, JobState::Succeeded, "{:?}", deleted.error);
    assert_eq!(bed.get("/v1/models").await["unreadable"], json!([]));
    bed.end().await;
}

#[tokio::test]
async fn of_two_models_with_one_id_the_reference_tells_which_is_meant() {
    let origin = origin().await;
    let bed = start().await;
    let (one, other) = (origin.model("tiny"), format!("{}?another", origin.model("tiny")));
    pull(&bed, &one).await;
    pull(&bed, &other).await;
    let ask = async |query: &[(&str, &str)]| {
        let request = bed.request(Method::GET, "/v1/models/tiny").query(query);
        within(request.send()).await.unwrap()
    };
    assert_eq!(ask(&[]).await.status(), 409);
    for reference in [&one, &other] {
        let detail: ModelDetail = ask(&[("reference", reference)]).await.json().await.unwrap();
        assert_eq!(&detail.entry.reference, reference);
    }
    let (status, message) = refusal(&bed, &json!({"operation": "model_delete", "model": "tiny"})).await;
    assert!(status == 409 && message.contains(&one), "{status} {message}");
    bed.end().await;
}

#[tokio::test]
async fn a_model_that_its_source_does_not_have_fails_in_a_named_step() {
    let origin = origin().await;
    let bed = start().await;
    let end = bed
        .job(&json!({"operation": "model_pull", "model": origin.model("missing")}))
        .await;
    let message = end.error.unwrap().message;
    assert!(
        message.starts_with("failed in step `") && message.contains("404"),
        "{message}"
    );
    for operation in ["model_get", "model_delete"] {
        let (status, message) = refusal(&bed, &json!({"operation": operation, "model": "missing"})).await;
        assert!(
            status == 404 && message.contains("missing"),
            "{operation}: {status} {message}"
        );
    }
    bed.end().await;
}

#[tokio::test]
async fn a_cancelled_pull_leaves_no_model() {
    let origin = origin().await;
    let bed = start().await;
    let operation = json!({"operation": "model_pull", "model": origin.model("endless")});
    let job = bed.accepted(&operation).await;
    let mut events = bed.events(&job).await;
    within(async {
        while let Some(event) = events.recv().await {
            if event.progress.is_some_and(|progress| progress.phase == "download") {
                return;
            }
        }
        panic!("nothing arrives");
    })
    .await;
    let path = format!("/v1/jobs/{}", job.job_id);
    within(bed.request(Method::DELETE, &path).send()).await.unwrap();
    let mut last = None;
    while let Some(event) = within(events.recv()).await {
        last = Some(event);
    }
    assert_eq!(last.unwrap().state, JobState::Cancelled);
    assert!(listed(&bed).await.is_empty());
    bed.end().await;
}

#[tokio::test]
async fn a_file_is_sent_whole_or_in_ranges() {
    let origin = origin().await;
    let bed = start().await;
    pull(&bed, &origin.model("tiny")).await;
    let whole = gguf::bytes();
    let path = "/v1/models/tiny/file?name=tiny.gguf";
    let ask = async |headers: &[(&str, &str)]| {
        let request = bed.request(Method::GET, path);
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value));
        within(request.send()).await.unwrap()
    };
    let answer = ask(&[]).await;
    let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["accept-ranges"]),
        (200, &"bytes".parse().unwrap())
    );
    assert_eq!(answer.bytes().await.unwrap(), whole);

    let part = ask(&[("range", "bytes=4-11"), ("if-range", &tag)]).await;
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], format!("bytes 4-11/{}", whole.len()));
    assert_eq!(part.bytes().await.unwrap(), whole[4..12]);

    let of_another = ask(&[("range", "bytes=4-11"), ("if-range", "\"another\"")]).await;
    assert_eq!(of_another.status(), 200, "a range of another file than this one");
    assert_eq!(ask(&[("range", "bytes=99999999-")]).await.status(), 416);
    let head = within(bed.request(Method::HEAD, path).send()).await.unwrap();
    assert_eq!(head.headers()["content-length"], whole.len().to_string());
    bed.end().await;
}

#[tokio::test]
async fn only_files_of_stored_models_are_sent() {
    let origin = origin().await;
    let bed = start().await;
    pull(&bed, &origin.model("tiny")).await;
    let mine = bed.model("mine");
    let cases = [
        ("/v1/models/huge".to_owned(), "tiny"),
        ("/v1/models/huge/file?name=huge.gguf".to_owned(), "tiny"),
        ("/v1/models/tiny/file?name=../manifest.json".to_owned(), "tiny.gguf"),
        ("/v1/models/tiny/file?name=manifest.json".to_owned(), "tiny.gguf"),
        (format!("/v1/models/mine?reference={mine}"), ""),
        (format!("/v1/models/mine/file?name=mine.gguf&reference={mine}"), ""),
        (format!("/v1/models/other?reference={}", origin.model("tiny")), "other"),
    ];
    for (path, word) in cases {
        let answer = within(bed.request(Method::GET, &path).send()).await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
        let body: Value = answer.json().await.unwrap();
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{path}: {message}");
    }
    bed.end().await;
}

#[tokio::test]
async fn what_is_sent_at_once_is_bounded_and_is_not_deleted_meanwhile() {
    let origin = origin().await;
    let bed = start().await;
    pull(&bed, &origin.model("large")).await;
    let ask = async || {
        within(bed.request(Method::GET, "/v1/models/large/file").send())
            .await
            .unwrap()
    };
    let mut sending: Vec<Response> = Vec::new();
    let refused = loop {
        let answer = ask().await;
        if answer.status() != 200 {
            break answer;
        }
        sending.push(answer);
        assert!(sending.len() <= 100, "there is no bound");
    };
    assert_eq!((refused.status().as_u16(), sending.len()), (503, 8));
    assert!(refused.headers().contains_key("retry-after"));
    let delete = json!({"operation": "model_delete", "model": "large"});
    let (status, message) = refusal(&bed, &delete).await;
    assert!(status == 409 && message.contains("in use"), "{status} {message}");

    sending.clear();
    within(async {
        while bed.post_job(&delete).await.status() != 202 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    bed.end().await;
}

/// Two hives of one fleet, of which the first has a model, and a queen who knows that.
async fn fleet(token: Option<&str>) -> (Bed, Bed, crate::support::Queen) {
    let queen = queen().await;
    let with = |config: &mut rbee_hive::Config, id: &str| {
        config.token = token.map(|token| token.parse().unwrap());
        config.hive_id = Some(HiveId::new(id).unwrap());
        config.queen_urls = vec![queen.url.parse().unwrap()];
    };
    let mut first = start_with(|config| with(config, "first")).await;
    let mut second = start_with(|config| with(config, "second")).await;
    if let Some(token) = token {
        first.http = http_with(token);
        second.http = http_with(token);
    }
    let holder = |id: &str, bed: &Bed| ModelHolder {
        hive_id: HiveId::new(id).unwrap(),
        base_url: bed.base.clone(),
    };
    // As long as a queen has heard nothing newer, she can name the one that asks, too.
    *queen.holders.lock().unwrap() = vec![holder("first", &first), holder("second", &second)];
    (first, second, queen)
}

#[tokio::test]
async fn a_model_that_another_hive_has_is_copied_from_there() {
    for token in [None, Some("a-long-secret")] {
        let origin = origin().await;
        let (first, second, queen) = fleet(token).await;
        let reference = origin.model("tiny");
        let there = pull(&first, &reference).await;
        let requests = origin.requests.load(Ordering::Relaxed);
        let stranger = daemon::client::new()
            .unwrap()
            .get(format!("{}/v1/models/tiny/file", first.base));
        let status = within(stranger.send()).await.unwrap().status();
        assert_eq!(status, if token.is_some() { 401 } else { 200 });

        let job = second
            .accepted(&json!({"operation": "model_pull", "model": reference}))
            .await;
        let mut events = second.events(&job).await;
        let mut sources = BTreeMap::new();
        let mut last = None;
        while let Some(event) = within(events.recv()).await {
            if let Some(progress) = &event.progress {
                sources.insert(progress.phase.clone(), progress.source.clone());
            }
            last = Some(event);
        }
        let last = last.unwrap();
        let here = last.result.unwrap_or_else(|| panic!("{:?}", last.error));
        assert_eq!((&here["sha256"], &here["facts"]), (&there["sha256"], &there["facts"]));
        assert_eq!(sources["download"].as_deref(), Some("hive first"), "{sources:?}");
        assert_eq!(queen.asked.lock().unwrap().last(), Some(&reference));
        assert_eq!(fs::read(only_file(&second)).unwrap(), gguf::bytes());
        assert!(
            origin.requests.load(Ordering::Relaxed) <= requests + 1,
            "the source is asked for a checksum at most"
        );
        // What is here needs nobody.
        let asked = queen.asked.lock().unwrap().len();
        pull(&second, &reference).await;
        assert_eq!(queen.asked.lock().unwrap().len(), asked);
        first.end().await;
        second.end().await;
    }
}

#[tokio::test]
async fn where_no_other_hive_can_give_a_model_it_comes_from_its_source() {
    let origin = origin().await;
    let (first, second, queen) = fleet(None).await;
    queen.holders.lock().unwrap().push(ModelHolder {
        hive_id: HiveId::new("third").unwrap(),
        base_url: "http://127.0.0.1:1".into(),
    });
    // The first one was said to have it and does not, the third is gone.
    let here = pull(&second, &origin.model("tiny")).await;
    assert_eq!(here["size_bytes"], gguf::bytes().len());
    first.end().await;
    second.end().await;
}
