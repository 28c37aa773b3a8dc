//! Downloads that are cut, silent, cancelled or changed in the middle.

use std::time::Duration;

use super::support::{Fault, TestHub, files_under, listen, noise, pull, pull_until, reference, sha256};
use crate::folder::folder_name;
use crate::{ModelStore, Phase, StoreError, StoreOptions};
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was_cut() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(3 * MIB, 1));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    test.cdn.fault(Fault::Cut(MIB));
    test.cdn.fault(Fault::Cut(MIB / 2));
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
    let starts = test.cdn.transfers();
    assert!(
        starts.len() == 3 && starts[1] > 0 && starts[2] > starts[1],
        "{starts:?}"
    );
}

#[tokio::test]
async fn failures_in_a_row_end_the_pull_and_what_came_is_kept_for_the_next() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(MIB, 2));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    for _ in 0..3 {
        test.cdn.fault(Fault::Cut(64 << 10));
    }
    let error = pull(
        &ModelStore::open_with(root.path(), test.options()).unwrap(),
        &reference(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    // Another store stands for another process.
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    assert_eq!(store.list().await.unwrap().models, []);
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
    let starts = test.cdn.transfers();
    assert!(
        starts.len() == 4 && starts.is_sorted() && starts[3] > starts[1],
        "{starts:?}"
    );
}

#[tokio::test]
async fn a_cancelled_pull_shows_no_model_and_the_next_one_continues() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(3 * MIB, 3));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    test.cdn.fault(Fault::Hang(2 * MIB));
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let stop = |progress: &crate::Progress| progress.phase == Phase::Download && progress.done_bytes >= MIB as u64;
    let error = pull_until(&store, &reference(), stop).await.unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    assert_eq!(store.get(&reference()).await.unwrap(), None);
    assert_eq!(store.list().await.unwrap().models, []);
    assert!(
        files_under(root.path())
            .iter()
            .all(|path| path.file_name().unwrap() != "m.gguf")
    );

    let (heard, progress) = listen();
    let model = store
        .pull(&reference(), progress, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
    let start = test.cdn.transfers().pop().unwrap();
    assert!(start >= MIB as u64, "{start}");
    let first = heard
        .lock()
        .unwrap()
        .iter()
        .find(|progress| progress.phase == Phase::Download)
        .unwrap()
        .clone();
    assert_eq!(first.done_bytes, start, "progress begins with what was kept");
}

#[tokio::test]
async fn a_silent_server_is_left_and_asked_again() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(200_000, 4));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    test.cdn.fault(Fault::Hang(100_000));
    let options = StoreOptions {
        read_timeout: Duration::from_secs(1),
        ..test.options()
    };
    let model = pull(&ModelStore::open_with(root.path(), options).unwrap(), &reference())
        .await
        .unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
    assert!(test.cdn.transfers().len() >= 2, "{:?}", test.cdn.transfers());
}

#[tokio::test]
async fn a_server_that_ignores_the_range_gives_the_whole_anew() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(300_000, 5));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    test.cdn.fault(Fault::Cut(100_000));
    test.cdn.fault(Fault::IgnoreRange);
    let model = pull(
        &ModelStore::open_with(root.path(), test.options()).unwrap(),
        &reference(),
    )
    .await
    .unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
    let starts = test.cdn.transfers();
    assert!(starts.len() == 3 && starts[1] > 0 && starts[2] == 0, "{starts:?}");
}

#[tokio::test]
async fn a_file_that_changes_in_the_middle_is_never_mixed() {
    for fault in [None, Some(Fault::IgnoreIfRange)] {
        let (root, old, new) = (tempfile::tempdir().unwrap(), noise(3 * MIB, 6), noise(3 * MIB, 7));
        // The hub knows no checksum, so only the ETag can tell.
        let test = TestHub::with(&old, Some("old"), None).await;
        test.cdn.fault(Fault::Cut(2 * MIB));
        if let Some(fault) = fault {
            test.cdn.fault(fault);
        }
        let store = ModelStore::open_with(root.path(), test.options()).unwrap();
        let (cdn, changed) = (test.cdn.clone(), new.clone());
        let change = move |progress: crate::Progress| {
            if progress.phase == Phase::Download && progress.done_bytes >= MIB as u64 {
                cdn.file("/blob", &changed, Some("new"));
            }
        };
        let model = store
            .pull(&reference(), change, &CancellationToken::new())
            .await
            .unwrap();
        assert_eq!(std::fs::read(model.path).unwrap(), new);
        assert!(test.cdn.transfers()[1] >= MIB as u64, "{:?}", test.cdn.transfers());
    }
}

#[tokio::test]
async fn without_checksum_and_etag_nothing_is_continued() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(300_000, 8));
    let test = TestHub::with(&content, None, None).await;
    test.cdn.fault(Fault::Cut(100_000));
    let model = pull(
        &ModelStore::open_with(root.path(), test.options()).unwrap(),
        &reference(),
    )
    .await
    .unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
    assert_eq!(test.cdn.transfers(), [0, 0]);
}

#[tokio::test]
async fn leftovers_that_cannot_be_understood_are_thrown_away() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(300_000, 9));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    for _ in 0..3 {
        test.cdn.fault(Fault::Cut(10_000));
    }
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    pull(&store, &reference()).await.unwrap_err();
    let mark = files_under(root.path())
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "mark"))
        .unwrap();
    std::fs::write(mark, "{\"sha2").unwrap();
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
    assert_eq!(test.cdn.transfers(), [0, 10_000, 20_000, 0]);
}

#[tokio::test]
async fn a_damaged_leftover_is_found_by_the_checksum_and_the_next_pull_is_clean() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(300_000, 10));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    for _ in 0..3 {
        test.cdn.fault(Fault::Cut(10_000));
    }
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    pull(&store, &reference()).await.unwrap_err();
    let part = files_under(root.path())
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "part"))
        .unwrap();
    std::fs::write(&part, noise(30_000, 11)).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongChecksum { .. }), "{error}");
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
}

#[tokio::test]
async fn a_model_that_only_lacked_its_name_when_the_process_died_gets_it_without_asking_anybody() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(300_000, 13));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let model = pull(&store, &reference()).await.unwrap();
    let name = folder_name(&reference());
    let work = root.path().join(".work").join(&name);
    let asked = || test.hub.seen().len() + test.cdn.seen().len();
    let before = asked();
    for is_whole in [true, false] {
        std::fs::create_dir_all(&work).unwrap();
        std::fs::rename(root.path().join(&name), work.join("ready")).unwrap();
        if !is_whole {
            std::fs::remove_file(work.join("ready/files/m.gguf")).unwrap();
        }
        assert_eq!(store.get(&reference()).await.unwrap(), None);
        let again = pull(&store, &reference()).await.unwrap();
        assert_eq!((&again.path, &again.sha256), (&model.path, &model.sha256));
        assert_eq!(std::fs::read(again.path).unwrap(), content);
        assert!(!work.exists());
        assert_eq!(asked() == before, is_whole);
    }
}

#[tokio::test]
async fn a_download_that_was_complete_when_the_process_died_is_not_fetched_again() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(300_000, 12));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    for _ in 0..3 {
        test.cdn.fault(Fault::Cut(10_000));
    }
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    pull(&store, &reference()).await.unwrap_err();
    // What a crash leaves between the rename and the publication.
    let part = files_under(root.path())
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "part"))
        .unwrap();
    std::fs::remove_file(&part).unwrap();
    std::fs::write(part.with_extension(""), &content).unwrap();
    let before = test.cdn.transfers().len();
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(model.path).unwrap(), content);
    assert_eq!(test.cdn.transfers().len(), before);
}
