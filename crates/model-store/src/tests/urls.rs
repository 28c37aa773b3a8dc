//! `https:` references, here to loopback addresses.

use axum::http::Method;

use super::support::{Fault, Server, files_under, listen, noise, options, pull, sha256};
use crate::{ModelRef, ModelStore, Phase, StoreError, StoreOptions};
use tokio_util::sync::CancellationToken;

fn at(server: &Server, rest: &str) -> ModelRef {
    format!("{}/files/{rest}", server.url).parse().unwrap()
}

#[tokio::test]
async fn a_file_is_pulled_from_its_address_without_the_hubs_token() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(200_000, 1));
    let server = Server::start().await;
    server.file("/files/Tiny.gguf", &content, Some("v1"));
    let options = StoreOptions {
        hub_endpoint: server.url.clone(),
        hub_token: Some("hf_secret".to_owned()),
        ..options()
    };
    let store = ModelStore::open_with(root.path(), options).unwrap();
    let (heard, progress) = listen();
    let reference = at(&server, "Tiny.gguf?signature=secret");
    let cancel = CancellationToken::new();
    let model = store.pull(&reference, progress, &cancel).await.unwrap();
    assert!(std::fs::read(&model.path).unwrap() == content);
    assert_eq!((model.id.as_str(), model.sha256), ("tiny", Some(sha256(&content))));
    assert!(server.seen().iter().all(|seen| seen.authorization.is_none()));
    let heard = heard.lock().unwrap();
    let download = heard.iter().find(|progress| progress.phase == Phase::Download).unwrap();
    assert_eq!(
        (download.total_bytes, download.source.as_deref()),
        (Some(200_000), Some("127.0.0.1"))
    );
}

#[tokio::test]
async fn a_pinned_file_is_verified_and_continued_and_another_never_becomes_a_model() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(300_000, 2));
    let server = Server::start().await;
    server.file("/files/m.gguf", &content, None);
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    let pinned = |sum: &str| at(&server, &format!("m.gguf?signature=secret#sha256={sum}"));
    let error = pull(&store, &pinned(&"0".repeat(64))).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongChecksum { .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    assert_eq!(files_under(root.path()), Vec::<std::path::PathBuf>::new());

    for _ in 0..3 {
        server.fault(Fault::Cut(50_000));
    }
    let right = pinned(&sha256(&content));
    pull(&store, &right).await.unwrap_err();
    let model = pull(&store, &right).await.unwrap();
    assert!(std::fs::read(&model.path).unwrap() == content);
    assert_eq!(server.transfers(), [0, 0, 50_000, 100_000, 150_000]);
}

#[tokio::test]
async fn a_server_that_refuses_to_tell_the_size_is_asked_for_the_file_all_the_same() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(50_000, 3));
    let server = Server::start().await;
    server.file("/files/m.gguf", &content, None);
    server.refuse_head();
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    let model = pull(&store, &at(&server, "m.gguf")).await.unwrap();
    assert!(std::fs::read(&model.path).unwrap() == content);
    let asked: Vec<_> = server.seen().into_iter().map(|seen| seen.method).collect();
    assert_eq!(asked, [Method::HEAD, Method::GET]);
}

#[tokio::test]
async fn a_file_of_unknown_size_keeps_to_the_folders_budget() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(50_000, 4));
    let server = Server::start().await;
    server.file("/files/m.gguf", &content, None);
    server.refuse_head();
    let options = StoreOptions {
        max_bytes: Some(49_999),
        ..options()
    };
    let store = ModelStore::open_with(root.path(), options).unwrap();
    let error = pull(&store, &at(&server, "m.gguf")).await.unwrap_err();
    assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_refused_without_its_query() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    let error = pull(&store, &at(&server, "m.gguf?signature=secret")).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { status: 404, .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_file_for_which_the_disk_has_no_room_is_refused_before_its_first_byte() {
    let root = tempfile::tempdir().unwrap();
    let (hub, pib) = (Server::start().await, 1_usize << 50);
    let path = "/org/repo/resolve/main/m.gguf";
    hub.linked(&[path], None, 1000 * pib, "http://127.0.0.1:1/blob");
    let options = StoreOptions {
        hub_endpoint: hub.url.clone(),
        max_file_bytes: u64::MAX,
        ..options()
    };
    let store = ModelStore::open_with(root.path(), options).unwrap();
    let error = pull(&store, &super::support::reference()).await.unwrap_err();
    let StoreError::NoSpace { needed_bytes, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(needed_bytes, 1000 * pib as u64);
    assert_eq!(hub.seen().len(), 1, "only the size was asked for");
}
