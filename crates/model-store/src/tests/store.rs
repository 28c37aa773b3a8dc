//! What the folder shows, and pulls that meet each other.

use std::fs::OpenOptions;
use std::sync::Arc;

use super::support::{TestHub, listen, noise, options, pull, reference, sha256};
use crate::{Listing, ModelRef, ModelStore, Phase, StoreError};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn an_unknown_name_is_told_with_the_names_that_there_are() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    let unknown: ModelRef = "gpt-5".parse().unwrap();
    for error in [
        store.resolve(&unknown).unwrap_err(),
        pull(&store, &unknown).await.unwrap_err(),
    ] {
        let said = error.to_string();
        assert!(matches!(error, StoreError::UnknownModel { .. }), "{said}");
        assert!(said.contains("gpt-5") && said.contains("smollm2-135m-instruct") && said.contains("gemma3-270m"));
    }
}

#[tokio::test]
async fn a_catalogue_name_resolves_to_its_pinned_file() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    let model = store.resolve(&"gemma3-270m".parse().unwrap()).unwrap();
    let entry = store.catalogue().get("gemma3-270m").unwrap();
    assert_eq!(
        (model.size_bytes, model.sha256.as_ref()),
        (Some(253_113_024), entry.sha256.as_ref())
    );
    assert_eq!((model.id.as_str(), model.parts.len()), ("gemma3-270m", 4));
}

#[tokio::test]
async fn a_file_of_this_host_is_used_where_it_lies() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open_with(root.path().join("store"), options()).unwrap();
    let path = root.path().join("My Model.gguf");
    let reference: ModelRef = format!("file:{}", path.display()).parse().unwrap();
    assert_eq!(store.get(&reference).await.unwrap(), None);
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(
        matches!(error, StoreError::NotAFile { .. }) && error.to_string().contains("no such file"),
        "{error}"
    );

    std::fs::write(&path, b"1234").unwrap();
    let model = pull(&store, &reference).await.unwrap();
    assert_eq!(
        (model.path.as_path(), model.size_bytes, &model.sha256),
        (path.as_path(), 4, &None)
    );
    assert_eq!(model.id.as_str(), "my-model");
    assert_eq!(store.get(&reference).await.unwrap(), Some(model));
    assert_eq!(store.list().await.unwrap(), Listing::default());

    let folder: ModelRef = format!("file:{}", root.path().display()).parse().unwrap();
    let error = pull(&store, &folder).await.unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
}

#[tokio::test]
async fn a_folder_of_this_host_with_a_config_is_used_where_it_lies() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open_with(root.path().join("store"), options()).unwrap();
    let folder = root.path().join("Qwen3-0.6B");
    std::fs::create_dir(&folder).unwrap();
    let reference: ModelRef = format!("file:{}", folder.display()).parse().unwrap();
    assert_eq!(store.get(&reference).await.unwrap(), None, "it has no config yet");

    for (name, len) in [
        ("config.json", 2),
        ("model-00001-of-00002.safetensors", 40),
        ("model-00002-of-00002.safetensors", 5),
        ("notes.safetensors", 7),
    ] {
        std::fs::write(folder.join(name), noise(len, 1)).unwrap();
    }
    let model = pull(&store, &reference).await.unwrap();
    assert_eq!((model.path.as_path(), model.size_bytes), (folder.as_path(), 45));
    assert_eq!((model.id.as_str(), &model.sha256), ("qwen3-0.6b", &None));
    assert_eq!(store.get(&reference).await.unwrap(), Some(model));
}

#[tokio::test]
async fn two_pulls_of_one_model_at_once_download_it_once() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(2_000_000, 1));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    // Another store on the same folder stands for another process.
    let other = ModelStore::open_with(root.path(), test.options()).unwrap();
    let one = reference();
    let (first, second, third) = tokio::join!(pull(&store, &one), pull(&store, &one), pull(&other, &one));
    let first = first.unwrap();
    assert_eq!(std::fs::read(&first.path).unwrap(), content);
    assert_eq!((second.unwrap(), third.unwrap()), (first.clone(), first));
    assert_eq!(test.cdn.transfers().len(), 1);
}

#[tokio::test]
async fn a_pull_waits_for_another_process_and_can_be_cancelled_while_it_waits() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(1000, 2));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let locks = root.path().join(".locks");
    std::fs::create_dir_all(&locks).unwrap();
    let lock = locks.join(crate::folder::folder_name(&reference()));
    let lock = Arc::new(
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(lock)
            .unwrap(),
    );
    lock.lock().unwrap();

    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    let cancel_when_waiting = move |progress: crate::Progress| {
        assert_eq!(progress.phase, Phase::Wait);
        trigger.cancel();
    };
    let error = store
        .pull(&reference(), cancel_when_waiting, &cancel)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");

    let release = move |progress: crate::Progress| {
        if progress.phase == Phase::Wait {
            lock.unlock().unwrap();
        }
    };
    let model = store
        .pull(&reference(), release, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
}

#[tokio::test]
async fn a_dropped_pull_gives_the_lock_back_and_the_next_one_finishes() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(3_000_000, 3));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    test.cdn.fault(super::support::Fault::Hang(2_000_000));
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let (reached, started) = tokio::sync::watch::channel(false);
    let mut started = started;
    let tell = move |progress: crate::Progress| {
        if progress.phase == Phase::Download && progress.done_bytes > 0 {
            reached.send_replace(true);
        }
    };
    let (pulling, cancel) = (store.clone(), CancellationToken::new());
    let task = tokio::spawn(async move { pulling.pull(&reference(), tell, &cancel).await });
    started.wait_for(|reached| *reached).await.unwrap();
    task.abort();
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
}

#[tokio::test]
async fn a_damaged_model_is_not_given_out_and_the_next_pull_replaces_it() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(1000, 4));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let model = pull(&store, &reference()).await.unwrap();
    for damage in ["file", "manifest"] {
        match damage {
            "file" => std::fs::write(&model.path, &content[..999]).unwrap(),
            _ => std::fs::write(
                model.path.parent().unwrap().parent().unwrap().join("manifest.json"),
                "{",
            )
            .unwrap(),
        }
        assert_eq!(store.get(&reference()).await.unwrap(), None, "{damage}");
        let listing = store.list().await.unwrap();
        assert_eq!((listing.models.len(), listing.damaged.len()), (0, 1), "{damage}");
        let again = pull(&store, &reference()).await.unwrap();
        assert_eq!((&again.path, &again.sha256), (&model.path, &model.sha256), "{damage}");
        assert_eq!(std::fs::read(&model.path).unwrap(), content, "{damage}");
    }
}

#[tokio::test]
async fn foreign_files_in_the_folder_are_left_alone_and_not_listed() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("notes.txt"), "mine").unwrap();
    std::fs::create_dir(root.path().join("other")).unwrap();
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    assert_eq!(store.list().await.unwrap(), Listing::default());
    assert_eq!(std::fs::read(root.path().join("notes.txt")).unwrap(), b"mine");
}

#[tokio::test]
async fn the_last_word_of_every_pull_is_done_with_the_whole_size() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(1000, 5));
    let test = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    for _ in ["fetched", "already there"] {
        let (heard, progress) = listen();
        store
            .pull(&reference(), progress, &CancellationToken::new())
            .await
            .unwrap();
        let last = heard.lock().unwrap().last().unwrap().clone();
        assert_eq!(
            (last.phase, last.done_bytes, last.total_bytes),
            (Phase::Done, 1000, Some(1000))
        );
    }
}

#[tokio::test]
async fn pulls_can_be_spawned() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    let unknown: ModelRef = "gpt-5".parse().unwrap();
    assert!(
        is_send(store.pull(&unknown, |_| (), &CancellationToken::new()))
            .await
            .is_err()
    );
}
