//! Who may call what.

use daemon::Secret;
use queen_rbee::Config;
use serde_json::json;

use crate::support::{Queen, Worker, chat, plain, within, worker_beat};

const TOKEN: &str = "the-fleets-token";
const KEY: &str = "a-clients-key";

fn secret(text: &str) -> Secret {
    text.parse().unwrap()
}

/// What a guarded call answers to each credential: none, a wrong one, the key, the token.
async fn statuses(queen: &Queen, method: reqwest::Method, path: &str) -> [u16; 4] {
    let mut statuses = [0; 4];
    for (status, credential) in statuses
        .iter_mut()
        .zip([None, Some("wrong-one"), Some(KEY), Some(TOKEN)])
    {
        let mut request = queen.http.request(method.clone(), format!("{}{path}", queen.url));
        if let Some(credential) = credential {
            request = request.bearer_auth(credential);
        }
        if method == reqwest::Method::POST {
            request = request.json(&json!({}));
        }
        *status = request.send().await.unwrap().status().as_u16();
    }
    statuses
}

#[tokio::test]
async fn the_token_guards_the_fleet_and_keys_guard_the_models() {
    let queen = Queen::start(Config {
        token: Some(secret(TOKEN)),
        api_keys: vec![secret("another-key"), secret(KEY)],
        ..Config::default()
    })
    .await;
    use reqwest::Method;
    // A body of `{}` is not valid: 400 is the answer to those that may ask.
    assert_eq!(
        statuses(&queen, Method::POST, "/v1/worker-heartbeat").await,
        [401, 401, 401, 400]
    );
    assert_eq!(
        statuses(&queen, Method::POST, "/v1/hive-heartbeat").await,
        [401, 401, 401, 400]
    );
    assert_eq!(statuses(&queen, Method::GET, "/v1/fleet").await, [401, 401, 401, 200]);
    assert_eq!(statuses(&queen, Method::GET, "/v1/workers").await, [401, 401, 401, 200]);
    for (method, path, status) in [
        (Method::GET, "/v1/placement?model=nobody-knows", 404),
        (Method::GET, "/v1/decisions", 200),
        (Method::GET, "/v1/serve", 200),
        (Method::POST, "/v1/serve", 400),
        (Method::DELETE, "/v1/serve?model=nobody-knows", 404),
        (Method::POST, "/v1/hives/a%2Fb%3Fc/drain", 404),
        (Method::DELETE, "/v1/hives/two%20words/drain", 400),
    ] {
        let answers = statuses(&queen, method.clone(), path).await;
        assert_eq!(answers, [401, 401, 401, status], "{method} {path}");
    }
    assert_eq!(
        statuses(&queen, Method::GET, "/v1/heartbeats/stream").await,
        [401, 401, 401, 200]
    );
    assert_eq!(
        statuses(&queen, Method::POST, "/v1/chat/completions").await,
        [401, 401, 400, 400]
    );
    assert_eq!(
        statuses(&queen, Method::POST, "/v1/completions").await,
        [401, 401, 400, 400]
    );
    assert_eq!(
        statuses(&queen, Method::POST, "/v1/embeddings").await,
        [401, 401, 400, 400]
    );
    assert_eq!(statuses(&queen, Method::GET, "/v1/models").await, [401, 401, 200, 200]);
    assert_eq!(
        statuses(&queen, Method::GET, "/v1/models/m").await,
        [401, 401, 404, 404]
    );
    for open in ["/health", "/ready", "/metrics"] {
        assert_eq!(statuses(&queen, Method::GET, open).await, [200; 4]);
    }
}

#[tokio::test]
async fn what_has_no_secret_is_open() {
    let queen = Queen::start(Config {
        token: Some(secret(TOKEN)),
        ..Config::default()
    })
    .await;
    assert_eq!(
        statuses(&queen, reqwest::Method::GET, "/v1/models").await,
        [200; 4],
        "no key is set"
    );
    assert_eq!(
        statuses(&queen, reqwest::Method::GET, "/v1/fleet").await,
        [401, 401, 401, 200]
    );
}

#[tokio::test]
async fn workers_get_the_fleets_token_instead_of_the_clients_key() {
    let queen = Queen::start(Config {
        token: Some(secret(TOKEN)),
        api_keys: vec![secret(KEY)],
        ..Config::default()
    })
    .await;
    let mut worker = Worker::start().await;
    let beat = queen.post("/v1/worker-heartbeat", &worker.beat("w")).bearer_auth(TOKEN);
    assert_eq!(beat.send().await.unwrap().status(), 200);
    let asked = tokio::spawn(queen.post("/v1/chat/completions", &chat()).bearer_auth(KEY).send());
    let reached = worker.next().await;
    assert_eq!(
        reached.head.headers["authorization"],
        format!("Bearer {TOKEN}").as_str()
    );
    reached.answer(plain(200, "{}"));
    assert_eq!(within("an answer", asked).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn an_unguarded_queen_takes_everything() {
    let queen = Queen::start(Config::default()).await;
    queen.worker_beat(&worker_beat("w", 9301)).await;
    assert_eq!(queen.get("/v1/fleet").send().await.unwrap().status(), 200);
}
