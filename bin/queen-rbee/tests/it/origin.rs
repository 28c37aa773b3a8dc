//! Web pages: the queen's own may call, others only where an operator allows it.

use http::header::HeaderMap;
use queen_rbee::Config;
use serde_json::json;

use crate::support::{Queen, Worker, chat, plain, within};

const PAGE: &str = "https://chat.example";

async fn allowing() -> Queen {
    let config = Config {
        allow_origins: vec![PAGE.parse().unwrap()],
        api_keys: vec!["a-key-of-clients".parse().unwrap()],
        ..Config::default()
    };
    Queen::start(config).await
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_foreign_page_can_use_neither_the_fleet_nor_its_models_and_the_queens_own_can() {
    let queen = Queen::start(Config::default()).await;
    for (page, status) in [("http://evil.example", 403), (queen.url.as_str(), 200)] {
        for path in ["/v1/fleet", "/v1/models", "/v1/timeline", "/v1/jobs"] {
            let response = queen.get(path).header("origin", page).send().await.unwrap();
            assert_eq!(response.status(), status, "{page} {path}");
        }
        let ask = queen.post("/v1/chat/completions", &chat()).header("origin", page);
        let is_forbidden = ask.send().await.unwrap().status() == 403;
        assert_eq!(is_forbidden, status == 403, "{page}");
        let health = queen.get("/health").header("origin", page).send().await.unwrap();
        assert_eq!(health.status(), 200, "{page}");
    }
    let image = queen.get("/v1/fleet").header("sec-fetch-site", "cross-site");
    assert_eq!(image.send().await.unwrap().status(), 403);
    let messages = queen.post("/v1/messages", &json!({})).header("origin", "null");
    assert_eq!(messages.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn without_a_token_the_fleet_answers_to_names_of_this_machine_only() {
    let queen = Queen::start(Config::default()).await;
    let by = async |name: &str, path: &str| queen.get(path).header("host", name).send().await.unwrap().status();
    assert_eq!(by("localhost:1", "/v1/fleet").await, 200);
    assert_eq!(by("evil.example:1", "/v1/fleet").await, 403);
    // Programs may use another name; a page that has made its own lead here is known by its origin.
    assert_eq!(by("queen.internal", "/v1/models").await, 200);
    let rebound = queen.get("/v1/models").header("host", "evil.example");
    assert_eq!(
        rebound
            .header("origin", "http://evil.example")
            .send()
            .await
            .unwrap()
            .status(),
        403
    );

    let config = Config {
        token: Some("a-token-of-the-fleet".parse().unwrap()),
        ..Config::default()
    };
    let guarded = Queen::start(config).await;
    let request = guarded
        .get("/v1/fleet")
        .header("host", "queen.lan")
        .bearer_auth("a-token-of-the-fleet");
    assert_eq!(request.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_queen_answers_to_the_name_that_she_tells_others() {
    let config = Config {
        advertise_url: Some("http://Gpu-Box.lan:7833".to_owned()),
        ..Config::default()
    };
    let queen = Queen::start(config).await;
    for (name, status) in [("gpu-box.lan:7833", 200), ("evil.example:7833", 403)] {
        let fleet = queen.get("/v1/fleet").header("host", name);
        assert_eq!(fleet.send().await.unwrap().status(), status, "{name}");
        let page = queen.get("/").header("host", name);
        assert_eq!(page.send().await.unwrap().status(), status, "{name}");
        for probe in ["/health", "/ready", "/metrics"] {
            let probe = queen.get(probe).header("host", name);
            assert_eq!(probe.send().await.unwrap().status(), 200, "{name}");
        }
    }
}

#[tokio::test]
async fn an_allowed_page_may_use_the_models_and_its_browser_is_told_so() {
    let queen = allowing().await;
    let preflight = |page: &str, path: &str| {
        queen
            .http
            .request(http::Method::OPTIONS, format!("{}{path}", queen.url))
            .header("origin", page)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization, content-type")
    };
    for path in ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/models"] {
        let response = preflight(PAGE, path).send().await.unwrap();
        assert_eq!(response.status(), 204, "{path}");
        assert_eq!(
            header(response.headers(), "access-control-allow-origin"),
            PAGE,
            "{path}"
        );
        let allowed = header(response.headers(), "access-control-allow-headers");
        assert_eq!(allowed, "authorization, content-type", "{path}");
        let foreign = preflight("http://evil.example", path).send().await.unwrap();
        assert!(foreign.status().is_client_error(), "{path}");
        assert_eq!(header(foreign.headers(), "access-control-allow-origin"), "", "{path}");
    }
    // The fleet is no business of pages elsewhere.
    let fleet = preflight(PAGE, "/v1/fleet").send().await.unwrap();
    assert_eq!(header(fleet.headers(), "access-control-allow-origin"), "");

    let refused = queen.post("/v1/chat/completions", &chat()).header("origin", PAGE);
    let refused = refused.send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(
        header(refused.headers(), "access-control-allow-origin"),
        PAGE,
        "or it could not be read"
    );

    let mut worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    let request = queen
        .post("/v1/chat/completions", &chat())
        .bearer_auth("a-key-of-clients")
        .header("origin", PAGE)
        .header("sec-fetch-site", "cross-site");
    let answer = tokio::spawn(async move { request.send().await.unwrap() });
    let reached = worker.next().await;
    assert!(!reached.head.headers.contains_key("origin"), "that is settled by now");
    assert!(!reached.head.headers.contains_key("sec-fetch-site"));
    reached.answer(plain(200, "{}"));
    let answer = within("an answer", answer).await.unwrap();
    assert_eq!(header(answer.headers(), "access-control-allow-origin"), PAGE);
    assert_eq!(header(answer.headers(), "vary"), "origin");
}
