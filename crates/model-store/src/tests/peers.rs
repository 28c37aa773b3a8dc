//! Models that other hives of the fleet have.

use axum::http::Method;
use tokio_util::sync::CancellationToken;

use super::support::{COMMIT, Fault, Server, TestHub, files_under, listen, noise, options, reference, sha256};
use crate::{ModelRef, ModelStore, Peer, Phase, StoreError, StoreOptions, StoredModel};

/// Options for a hub that nobody reaches.
fn offline() -> StoreOptions {
    StoreOptions {
        hub_endpoint: "http://127.0.0.1:1".to_owned(),
        ..options()
    }
}

async fn pull_from(store: &ModelStore, reference: &ModelRef, peers: &[Peer]) -> Result<StoredModel, StoreError> {
    let cancel = CancellationToken::new();
    store.pull_from(reference, peers, |_| (), &cancel).await
}

fn manifest_of(model: &StoredModel) -> String {
    let folder = model
        .path
        .ancestors()
        .find(|folder| folder.join("manifest.json").exists());
    std::fs::read_to_string(folder.unwrap().join("manifest.json")).unwrap()
}

#[tokio::test]
async fn a_model_that_a_hive_has_is_copied_from_it_even_where_its_source_cannot_be_reached() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(2_500_000, 1));
    let hive = Server::start().await;
    hive.hive_model(&reference(), &[("m.gguf", &content)], Some(COMMIT));
    let store = ModelStore::open_with(root.path(), offline()).unwrap();
    let (heard, progress) = listen();
    let peer = Peer {
        token: Some("fleet-secret".to_owned()),
        ..hive.peer("box-2")
    };
    assert!(!format!("{peer:?}").contains("secret"));
    let cancel = CancellationToken::new();
    let model = store.pull_from(&reference(), &[peer], progress, &cancel).await.unwrap();

    assert!(std::fs::read(&model.path).unwrap() == content);
    assert_eq!(model.sha256, Some(sha256(&content)));
    assert_eq!(model.revision.as_deref(), Some(COMMIT));
    let seen = hive.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.authorization.as_deref() == Some("Bearer fleet-secret"))
    );
    assert!(manifest_of(&model).contains(&format!("{}/v1/models/org%2Frepo%2Fm/file", hive.url)));
    let heard = heard.lock().unwrap();
    let mut phases: Vec<_> = heard.iter().map(|progress| progress.phase).collect();
    phases.dedup();
    assert_eq!(phases, [Phase::Resolve, Phase::Download, Phase::Verify, Phase::Done]);
    let downloads = heard.iter().filter(|progress| progress.phase == Phase::Download);
    let sources: Vec<_> = downloads.map(|progress| progress.source.as_deref()).collect();
    assert!(
        sources.iter().all(|source| *source == Some("hive box-2")),
        "{sources:?}"
    );
}

#[tokio::test]
async fn a_hive_with_another_file_than_the_hub_promises_is_passed_over() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(5000, 2));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    let (stale, fresh) = (Server::start().await, Server::start().await);
    stale.hive_model(&reference(), &[("m.gguf", &noise(5000, 3))], None);
    fresh.hive_model(&reference(), &[("m.gguf", &content)], None);
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let peers = [stale.peer("stale"), fresh.peer("fresh")];
    let model = pull_from(&store, &reference(), &peers).await.unwrap();
    assert!(std::fs::read(&model.path).unwrap() == content);
    assert_eq!(stale.seen().len(), 1, "no file of it was fetched");
    assert_eq!(fresh.seen().len(), 2);
    assert!(test.cdn.seen().is_empty());
}

#[tokio::test]
async fn a_hive_that_gives_other_bytes_than_it_says_never_makes_a_model() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(5000, 4));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    let hive = Server::start().await;
    hive.hive_model(&reference(), &[("m.gguf", &content)], None);
    hive.fault(Fault::Other(noise(5000, 5)));
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let model = pull_from(&store, &reference(), &[hive.peer("box-2")]).await.unwrap();
    assert!(std::fs::read(&model.path).unwrap() == content);
    assert_eq!(test.cdn.transfers(), [0], "the source gave all of it");

    let alone = ModelStore::open_with(root.path().join("alone"), offline()).unwrap();
    hive.fault(Fault::Other(noise(5000, 5)));
    let error = pull_from(&alone, &reference(), &[hive.peer("box-2")])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(alone.list().await.unwrap().models.is_empty());
}

#[tokio::test]
async fn what_a_hive_gave_before_it_failed_is_continued_by_the_next_one_and_by_the_source() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(3_000_000, 6));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    let hives = [Server::start().await, Server::start().await];
    for hive in &hives {
        hive.hive_model(&reference(), &[("m.gguf", &content)], None);
        // The detail is no transfer of a file, so only the file's answers break.
        for _ in 0..2 {
            hive.fault(Fault::Cut(100_000));
        }
    }
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let peers = hives.each_ref().map(|hive| hive.peer("a hive"));
    let model = pull_from(&store, &reference(), &peers).await.unwrap();
    assert!(std::fs::read(&model.path).unwrap() == content);
    let starts = |server: &Server| -> Vec<Option<String>> {
        let mut seen = server.seen();
        seen.retain(|seen| seen.method == Method::GET && seen.path.ends_with("/file"));
        seen.into_iter().map(|seen| seen.range).collect()
    };
    let range = |start: u64| Some(format!("bytes={start}-"));
    assert_eq!(starts(&hives[0]), [None, range(100_000)]);
    assert_eq!(starts(&hives[1]), [range(200_000), range(300_000)]);
    assert_eq!(test.cdn.transfers(), [400_000]);
}

#[tokio::test]
async fn a_repository_is_copied_file_by_file_and_only_at_the_commit_that_the_hub_has() {
    let files: [(&str, &[u8]); 3] = [
        ("config.json", b"{\"model_type\": \"llama\"}"),
        ("model.safetensors", &noise(200_000, 7)),
        ("tokenizer.json", b"{}"),
    ];
    let repository: ModelRef = "hf:org/repo".parse().unwrap();
    let test = TestHub::repository(&files).await;
    let (old, new) = (Server::start().await, Server::start().await);
    old.hive_model(&repository, &files, Some(&"f".repeat(40)));
    new.hive_model(&repository, &files, Some(COMMIT));
    for (hub, taken) in [(test.options(), &new), (offline(), &old)] {
        let root = tempfile::tempdir().unwrap();
        let store = ModelStore::open_with(root.path(), hub).unwrap();
        let before = taken.seen().len();
        let peers = [old.peer("old"), new.peer("new")];
        let model = pull_from(&store, &repository, &peers).await.unwrap();
        for (name, content) in files {
            assert!(std::fs::read(model.path.join(name)).unwrap() == content);
        }
        assert_eq!(taken.seen().len() - before, 4, "the detail and three files");
    }
    assert!(test.cdn.seen().is_empty());
}

#[tokio::test]
async fn names_that_a_repository_cannot_have_are_refused() {
    let repository: ModelRef = "hf:org/repo".parse().unwrap();
    let hive = Server::start().await;
    let files: [(&str, &[u8]); 4] = [
        ("../../evil", b"x"),
        ("config.json", b"{}"),
        ("model.safetensors", b"x"),
        ("tokenizer.json", b"{}"),
    ];
    hive.hive_model(&repository, &files, None);
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open_with(root.path(), offline()).unwrap();
    pull_from(&store, &repository, &[hive.peer("box-2")]).await.unwrap_err();
    assert_eq!(hive.seen().len(), 1, "only the detail was asked for");
    assert_eq!(files_under(root.path()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_wheels_finished_file_is_copied_whole_and_python_is_not_asked() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(100_000, 8));
    let wheel: ModelRef = "pip:tiny==1/tiny/m.gguf".parse().unwrap();
    let (hive, nothing) = (Server::start().await, Server::start().await);
    hive.hive_model(&wheel, &[("m.gguf", &content)], None);
    let options = StoreOptions {
        python: "/nonexistent/python".to_owned(),
        ..offline()
    };
    let store = ModelStore::open_with(root.path(), options).unwrap();
    let error = pull_from(&store, &wheel, &[nothing.peer("empty")]).await.unwrap_err();
    assert!(matches!(error, StoreError::Python { .. }), "{error}");
    let peers = [nothing.peer("empty"), hive.peer("box-2")];
    let model = pull_from(&store, &wheel, &peers).await.unwrap();
    assert!(std::fs::read(&model.path).unwrap() == content);
}

#[tokio::test]
async fn a_catalogue_model_is_copied_only_where_it_is_the_pinned_one() {
    let root = tempfile::tempdir().unwrap();
    let name: ModelRef = "smollm2-135m-instruct".parse().unwrap();
    let hive = Server::start().await;
    hive.hive_model(&name, &[("SmolLM2-135M-Instruct.Q4_1.gguf", b"something else")], None);
    let options = StoreOptions {
        python: "/nonexistent/python".to_owned(),
        ..offline()
    };
    let store = ModelStore::open_with(root.path(), options).unwrap();
    let error = pull_from(&store, &name, &[hive.peer("box-2")]).await.unwrap_err();
    assert!(matches!(error, StoreError::Python { .. }), "{error}");
    assert_eq!(hive.seen().len(), 1, "only the detail was asked for");
}

#[tokio::test]
async fn peers_that_are_gone_or_no_address_only_cost_the_attempt() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(1000, 9));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let at = |base_url: &str| Peer {
        name: "gone".to_owned(),
        base_url: base_url.to_owned(),
        token: None,
    };
    let peers = [at("http://127.0.0.1:1"), at("not an address"), at("file:///etc")];
    let model = pull_from(&store, &reference(), &peers).await.unwrap();
    assert!(std::fs::read(&model.path).unwrap() == content);
}
