//! `hf:` references against a server that speaks the hub's protocol.

use axum::http::Method;

use super::support::{COMMIT, Fault, TestHub, listen, noise, options, pull, reference, sha256};
use crate::{ModelStore, Phase, StoreError, StoreOptions};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_file_of_the_hub_is_pulled_at_the_commit_that_its_branch_stood_for() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(2_500_000, 1));
    let sum = sha256(&content);
    let test = TestHub::with(&content, Some("v1"), Some(&sum)).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    assert_eq!(store.get(&reference()).await.unwrap(), None);

    let (heard, progress) = listen();
    let model = store
        .pull(&reference(), progress, &CancellationToken::new())
        .await
        .unwrap();

    assert_eq!(std::fs::read(&model.path).unwrap(), content);
    assert_eq!(
        (model.size_bytes, model.sha256.as_deref()),
        (2_500_000, Some(sum.as_str()))
    );
    assert_eq!(
        (model.id.as_str(), model.path.file_name().unwrap().to_str()),
        ("org/repo/m", Some("m.gguf"))
    );
    assert_eq!(store.get(&reference()).await.unwrap(), Some(model.clone()));
    assert_eq!(store.list().await.unwrap().models, [model]);
    let asked: Vec<_> = test
        .hub
        .seen()
        .into_iter()
        .map(|seen| (seen.method, seen.path))
        .collect();
    let pinned = format!("/org/repo/resolve/{COMMIT}/m.gguf");
    assert_eq!(
        asked,
        [
            (Method::HEAD, "/org/repo/resolve/main/m.gguf".to_owned()),
            (Method::GET, pinned)
        ]
    );
    let heard = heard.lock().unwrap();
    let mut phases: Vec<_> = heard.iter().map(|progress| progress.phase).collect();
    phases.dedup();
    assert_eq!(phases, [Phase::Resolve, Phase::Download, Phase::Verify, Phase::Done]);
    let downloads: Vec<_> = heard
        .iter()
        .filter(|progress| progress.phase == Phase::Download)
        .collect();
    assert!(downloads.iter().all(|progress| progress.total_bytes == Some(2_500_000)));
    assert!(downloads.is_sorted_by_key(|progress| progress.done_bytes));
    assert_eq!(downloads.last().unwrap().done_bytes, 2_500_000);
}

#[tokio::test]
async fn a_model_that_is_there_is_given_without_asking_anybody() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(1000, 2));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let first = pull(
        &ModelStore::open_with(root.path(), test.options()).unwrap(),
        &reference(),
    )
    .await
    .unwrap();
    let unreachable = StoreOptions {
        hub_endpoint: "http://127.0.0.1:1".to_owned(),
        ..options()
    };
    let store = ModelStore::open_with(root.path(), unreachable).unwrap();
    assert_eq!(pull(&store, &reference()).await.unwrap(), first);
}

#[tokio::test]
async fn the_token_is_shown_to_the_hub_but_not_to_the_host_that_it_redirects_to() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(1000, 3));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let options = StoreOptions {
        hub_token: Some("hf_secret".to_owned()),
        ..test.options()
    };
    pull(&ModelStore::open_with(root.path(), options).unwrap(), &reference())
        .await
        .unwrap();
    let hub = test.hub.seen();
    assert!(
        hub.len() == 2
            && hub
                .iter()
                .all(|seen| seen.authorization.as_deref() == Some("Bearer hf_secret"))
    );
    let cdn = test.cdn.seen();
    assert!(cdn.len() == 1 && cdn[0].authorization.is_none(), "{cdn:?}");
}

#[tokio::test]
async fn a_wrong_checksum_never_becomes_a_model() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(5000, 4));
    let (announced, found) = (sha256(b"something else"), sha256(&content));
    let test = TestHub::with(&content, Some("v1"), Some(&announced)).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongChecksum { .. }), "{error}");
    assert!(
        error.to_string().contains(&announced) && error.to_string().contains(&found),
        "{error}"
    );
    assert_eq!(store.get(&reference()).await.unwrap(), None);
    assert_eq!(
        super::support::files_under(root.path()),
        Vec::<std::path::PathBuf>::new()
    );

    let good = noise(5000, 5);
    test.cdn.file("/blob", &good, Some("v2"));
    test.hub.linked(
        &[
            "/org/repo/resolve/main/m.gguf",
            &format!("/org/repo/resolve/{COMMIT}/m.gguf"),
        ],
        Some(&sha256(&good)),
        good.len(),
        &format!("{}/blob", test.cdn.url),
    );
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), good);
    assert_eq!(test.cdn.transfers(), [0, 0], "the bad bytes are not continued");
}

#[tokio::test]
async fn a_size_other_than_the_announced_one_is_refused_before_the_download() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(5000, 6));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    test.cdn.file("/blob", &content[..4000], None);
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::WrongSize {
                expected: 5000,
                found: 4000,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_beyond_the_limit_is_refused() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(5000, 7));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let store = ModelStore::open_with(
        root.path(),
        StoreOptions {
            max_file_bytes: 4999,
            ..test.options()
        },
    )
    .unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(
        matches!(error, StoreError::TooLarge { limit_bytes: 4999, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn what_the_hub_refuses_is_explained_with_a_remedy() {
    let root = tempfile::tempdir().unwrap();
    let test = TestHub::with(b"x", None, None).await;
    let said = async |status, token: Option<&str>| {
        test.hub.status("/org/repo/resolve/main/m.gguf", status);
        let options = StoreOptions {
            hub_token: token.map(str::to_owned),
            ..test.options()
        };
        let store = ModelStore::open_with(root.path(), options).unwrap();
        let error = pull(&store, &reference()).await.unwrap_err();
        assert!(matches!(error, StoreError::Hub { .. }), "{error}");
        error.to_string()
    };
    assert!(said(401, None).await.contains("set HF_TOKEN"));
    assert!(said(403, None).await.contains("set HF_TOKEN"));
    assert!(said(403, Some("hf_x")).await.contains("accept its terms"));
    let missing = said(404, None).await;
    assert!(
        missing.contains("org/repo") && missing.contains("main") && missing.contains("m.gguf"),
        "{missing}"
    );
}

#[tokio::test]
async fn an_overloaded_server_is_asked_again_and_one_that_stays_so_is_named_without_its_signature() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(1000, 8));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    for status in [503, 429, 500] {
        test.cdn.fault(Fault::Status(status));
    }
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { status: 500, .. }), "{error}");
    assert!(!error.to_string().contains("signature"), "{error}");
    test.cdn.fault(Fault::Status(503));
    assert!(pull(&store, &reference()).await.is_ok());
}

#[tokio::test]
async fn a_hub_that_cannot_be_reached_is_named_with_the_cause() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        hub_endpoint: "http://127.0.0.1:1".to_owned(),
        ..options()
    };
    let store = ModelStore::open_with(root.path(), options).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err().to_string();
    assert!(
        error.contains("127.0.0.1:1") && error.to_lowercase().contains("refused"),
        "{error}"
    );
}
