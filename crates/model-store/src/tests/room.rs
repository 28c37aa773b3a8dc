//! The budget of the models' folder.

use std::fs;
use std::time::{Duration, SystemTime};

use super::support::{Fault, TestHub, noise, pull, sha256};
use crate::folder::folder_name;
use crate::room::Room;
use crate::{ModelRef, ModelStore, StoreError, StoreOptions};

/// A hub with three models of 1 MB each, and the store of its models, which may hold `max_bytes`.
async fn store(root: &std::path::Path, max_bytes: u64) -> (TestHub, ModelStore) {
    let contents = [1, 2, 3].map(|seed| noise(1_000_000, seed));
    let hub = TestHub::with(&contents[0], None, Some(&sha256(&contents[0]))).await;
    for (nth, content) in contents.iter().enumerate() {
        let path = format!("/files/{nth}");
        let names = [
            format!("/org/repo/resolve/main/{nth}.gguf"),
            format!("/org/repo/resolve/{}/{nth}.gguf", super::support::COMMIT),
        ];
        let names = [names[0].as_str(), names[1].as_str()];
        let location = format!("{}{path}", hub.cdn.url);
        hub.hub.linked(&names, Some(&sha256(content)), content.len(), &location);
        hub.cdn.file(&path, content, Some("v1"));
    }
    let options = StoreOptions {
        max_bytes: Some(max_bytes),
        ..hub.options()
    };
    let store = ModelStore::open_with(root, options).unwrap();
    (hub, store)
}

fn model(nth: usize) -> ModelRef {
    format!("hf:org/repo/{nth}.gguf").parse().unwrap()
}

async fn stored(store: &ModelStore) -> Vec<ModelRef> {
    let models = store.list().await.unwrap().models;
    models.into_iter().map(|model| model.reference).collect()
}

/// Lets the model seem to have been used last so many hours ago.
fn age(root: &std::path::Path, nth: usize, hours: u64) {
    let time = SystemTime::now() - Duration::from_secs(hours * 3600);
    let manifest = root.join(folder_name(&model(nth))).join("manifest.json");
    let lock = root.join(".locks").join(format!("{}@use", folder_name(&model(nth))));
    for path in [manifest, lock] {
        if let Ok(file) = fs::File::open(path) {
            file.set_modified(time).unwrap();
        }
    }
}

#[tokio::test]
async fn the_model_that_was_used_least_recently_makes_room() {
    let root = tempfile::tempdir().unwrap();
    let (_hub, store) = store(root.path(), 2_500_000).await;
    for nth in [0, 1] {
        pull(&store, &model(nth)).await.unwrap();
    }
    age(root.path(), 0, 2);
    age(root.path(), 1, 3);
    pull(&store, &model(2)).await.unwrap();
    assert_eq!(stored(&store).await, [model(0), model(2)]);
    assert_eq!(fs::read_dir(root.path().join(".trash")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_model_in_use_is_never_removed_however_long_ago_its_use_began() {
    let root = tempfile::tempdir().unwrap();
    let (hub, store) = store(root.path(), 2_500_000).await;
    for nth in [0, 1] {
        pull(&store, &model(nth)).await.unwrap();
    }
    let holds = [
        store.hold(&model(0)).await.unwrap(),
        store.hold(&model(1)).await.unwrap(),
    ];
    age(root.path(), 0, 9);
    let before = hub.cdn.seen().len();
    let error = pull(&store, &model(2)).await.unwrap_err();
    let StoreError::NoRoom {
        needed_bytes: 1_000_000,
        max_bytes: 2_500_000,
        held_bytes: 2_000_000,
    } = error
    else {
        panic!("{error}");
    };
    assert!(error.to_string().contains("--model-cache-max"), "{error}");
    assert_eq!(hub.cdn.seen().len(), before, "nothing was downloaded");
    assert_eq!(stored(&store).await, [model(0), model(1)], "nothing was removed");

    let [held, free] = holds;
    drop(free);
    pull(&store, &model(2)).await.unwrap();
    assert_eq!(stored(&store).await, [model(0), model(2)]);
    drop(held);
}

#[tokio::test]
async fn a_model_larger_than_the_budget_is_refused_and_takes_nothing_away() {
    let root = tempfile::tempdir().unwrap();
    let (_hub, roomy) = store(root.path(), 2_500_000).await;
    pull(&roomy, &model(0)).await.unwrap();
    let (_hub, store) = store(root.path(), 999_999).await;
    let error = pull(&store, &model(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::NoRoom { held_bytes: 0, .. }), "{error}");
    assert_eq!(stored(&store).await, [model(0)]);
}

#[tokio::test]
async fn what_an_interrupted_pull_has_left_counts_and_makes_room_like_a_model() {
    let root = tempfile::tempdir().unwrap();
    let (hub, store) = store(root.path(), 1_200_000).await;
    for _ in 0..3 {
        hub.cdn.fault(Fault::Cut(200_000));
    }
    let _ = pull(&store, &model(0)).await.unwrap_err();
    let left = root.path().join(".work").join(folder_name(&model(0)));
    assert!(left.exists());
    pull(&store, &model(1)).await.unwrap();
    assert!(!left.exists());
    assert_eq!(stored(&store).await, [model(1)]);
}

#[tokio::test]
async fn two_pulls_at_once_never_take_the_same_room() {
    let root = tempfile::tempdir().unwrap();
    let (_hub, store) = store(root.path(), 1_500_000).await;
    let (folder, name) = (store.folder().clone(), folder_name(&model(0)));
    // A pull of another process that knows its size, and of which no byte has come.
    let at_work = folder.locks.claim_pull(&name).unwrap();
    let room = Room {
        folder,
        name,
        max_bytes: Some(1_500_000),
    };
    room.make(1_000_000).unwrap();
    let error = pull(&store, &model(1)).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::NoRoom {
                held_bytes: 1_000_000,
                ..
            }
        ),
        "{error}"
    );
    drop(at_work);
    pull(&store, &model(1)).await.unwrap();
}
