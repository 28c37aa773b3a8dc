//! `hf:ORG/REPO`: whole repositories with safetensors weights.

use axum::http::Method;

use super::support::{COMMIT, Fault, TestHub, files_under, listen, noise, pull, sha256};
use crate::{ModelRef, ModelStore, Phase, StoreError, StoreOptions};
use tokio_util::sync::CancellationToken;

const CONFIG: &[u8] = b"{\"model_type\": \"llama\"}";

fn repository() -> ModelRef {
    "hf:org/repo".parse().unwrap()
}

/// A repository with two files of weights, of 1.5 MB and 300 kB.
async fn sharded() -> (TestHub, [Vec<u8>; 2]) {
    let shards = [noise(1_500_000, 1), noise(300_000, 2)];
    let test = TestHub::repository(&[
        (".gitattributes", b"x"),
        ("README.md", b"# Model"),
        ("config.json", CONFIG),
        ("model-00001-of-00002.safetensors", &shards[0]),
        ("model-00002-of-00002.safetensors", &shards[1]),
        ("model.safetensors.index.json", b"{}"),
        ("pytorch_model.bin", b"pickles"),
        ("tokenizer.json", b"{\"model\": {}}"),
        ("tokenizer_config.json", b"{}"),
    ])
    .await;
    (test, shards)
}

#[tokio::test]
async fn a_repository_becomes_a_folder_of_what_makes_up_the_model_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let (test, shards) = sharded().await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    assert_eq!(store.get(&repository()).await.unwrap(), None);
    let (heard, progress) = listen();
    let model = store
        .pull(&repository(), progress, &CancellationToken::new())
        .await
        .unwrap();

    let files = files_under(&model.path);
    let names: Vec<_> = files
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .collect();
    let expected = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    assert_eq!(std::fs::read(&files[0]).unwrap(), CONFIG);
    assert_eq!([1, 2].map(|nth: usize| std::fs::read(&files[nth]).unwrap()), shards);
    let total = files.iter().map(|path| std::fs::metadata(path).unwrap().len()).sum();
    assert_eq!((model.id.as_str(), model.size_bytes), ("org/repo", total));
    let list: String = files
        .iter()
        .zip(expected)
        .map(|(path, name)| format!("{}  {name}\n", sha256(&std::fs::read(path).unwrap())))
        .collect();
    assert_eq!(model.sha256, Some(sha256(list.as_bytes())));
    assert_eq!(store.get(&repository()).await.unwrap(), Some(model.clone()));
    assert_eq!(store.list().await.unwrap().models, [model]);

    let heard = heard.lock().unwrap();
    let mut phases: Vec<_> = heard.iter().map(|progress| progress.phase).collect();
    phases.dedup();
    assert_eq!(phases, [Phase::Resolve, Phase::Download, Phase::Verify, Phase::Done]);
    let downloads = heard.iter().filter(|progress| progress.phase == Phase::Download);
    let downloads: Vec<_> = downloads
        .map(|progress| (progress.done_bytes, progress.total_bytes))
        .collect();
    assert!(downloads.is_sorted() && downloads.iter().all(|&(_, all)| all == Some(total)));
    assert_eq!(downloads.last().unwrap().0, total);
}

#[tokio::test]
async fn all_files_come_from_the_commit_that_the_branch_stood_for() {
    let root = tempfile::tempdir().unwrap();
    let (test, _) = sharded().await;
    pull(
        &ModelStore::open_with(root.path(), test.options()).unwrap(),
        &repository(),
    )
    .await
    .unwrap();
    let seen = test.hub.seen();
    let listing = (&Method::GET, "/api/models/org/repo/revision/main");
    assert_eq!((&seen[0].method, seen[0].path.as_str()), listing);
    let pinned = format!("/org/repo/resolve/{COMMIT}/");
    assert!(seen[1..].iter().all(|seen| seen.path.starts_with(&pinned)), "{seen:?}");
}

#[tokio::test]
async fn a_half_downloaded_repository_is_no_model_and_the_next_pull_goes_on_where_it_ended() {
    let root = tempfile::tempdir().unwrap();
    let (test, shards) = sharded().await;
    let whole = Fault::Cut(shards[0].len());
    for fault in [whole, Fault::Cut(100_000), Fault::Cut(50_000), Fault::Cut(50_000)] {
        test.cdn.fault(fault);
    }
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let error = pull(&store, &repository()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert_eq!(store.get(&repository()).await.unwrap(), None);
    assert_eq!(store.list().await.unwrap().models, []);

    let before = test.cdn.transfers().len();
    let model = pull(&store, &repository()).await.unwrap();
    let second = model.path.join("model-00002-of-00002.safetensors");
    assert_eq!(std::fs::read(second).unwrap(), shards[1]);
    let after = &test.cdn.transfers()[before..];
    assert!(
        after.len() == 1 && after[0] >= 100_000,
        "only the rest of the second file: {after:?}"
    );
    assert!(files_under(&root.path().join(".work")).is_empty());
}

#[tokio::test]
async fn a_file_with_a_wrong_checksum_never_becomes_part_of_a_model() {
    let root = tempfile::tempdir().unwrap();
    let (test, shards) = sharded().await;
    test.cdn.fault(Fault::Other(noise(shards[0].len(), 9)));
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let error = pull(&store, &repository()).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongChecksum { .. }), "{error}");
    assert!(
        error.to_string().contains("model-00001-of-00002.safetensors"),
        "{error}"
    );
    assert_eq!(store.list().await.unwrap().models, []);
    assert!(pull(&store, &repository()).await.is_ok());
}

#[tokio::test]
async fn a_repository_that_lost_a_file_is_not_shown_and_the_next_pull_replaces_it() {
    let root = tempfile::tempdir().unwrap();
    let (test, _) = sharded().await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let model = pull(&store, &repository()).await.unwrap();
    std::fs::remove_file(model.path.join("tokenizer.json")).unwrap();
    assert_eq!(store.get(&repository()).await.unwrap(), None);
    assert_eq!(store.list().await.unwrap().models, []);
    assert_eq!(pull(&store, &repository()).await.unwrap().sha256, model.sha256);
    assert!(model.path.join("tokenizer.json").exists());
}

#[tokio::test]
async fn a_repository_beyond_the_limit_is_refused_before_the_download() {
    let root = tempfile::tempdir().unwrap();
    let (test, _) = sharded().await;
    let options = StoreOptions {
        max_file_bytes: 1_600_000,
        ..test.options()
    };
    let store = ModelStore::open_with(root.path(), options).unwrap();
    let error = pull(&store, &repository()).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::TooLarge {
                limit_bytes: 1_600_000,
                ..
            }
        ),
        "{error}"
    );
    assert!(test.cdn.transfers().is_empty());
}

#[tokio::test]
async fn a_repository_without_safetensors_is_told_with_the_files_that_could_be_meant() {
    let root = tempfile::tempdir().unwrap();
    let test = TestHub::repository(&[("README.md", b"#"), ("m-Q4_0.gguf", b"GGUF")]).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let error = pull(&store, &repository()).await.unwrap_err();
    assert!(matches!(error, StoreError::Hub { .. }), "{error}");
    let said = error.to_string();
    assert!(
        said.starts_with("find hf:org/repo on the hub") && said.contains("m-Q4_0.gguf"),
        "{said}"
    );
}

#[tokio::test]
async fn what_the_hub_refuses_is_explained_and_nonsense_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (test, _) = sharded().await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let path = "/api/models/org/repo/revision/main";
    for (status, remedy) in [(401, "set HF_TOKEN"), (404, "its revision main does not exist")] {
        test.hub.status(path, status);
        let error = pull(&store, &repository()).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Hub { .. }) && error.to_string().contains(remedy),
            "{error}"
        );
    }
    for nonsense in ["<html>", "{\"sha\": \"../main\", \"siblings\": []}"] {
        test.hub.listing(nonsense);
        let error = pull(&store, &repository()).await.unwrap_err().to_string();
        assert!(error.contains("its list of files makes no sense"), "{error}");
    }
}
