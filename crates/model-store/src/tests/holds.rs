//! Who holds a model, and when it may go.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::stored::{Stored, place};
use super::support::{Fault, TestHub, files_under, noise, options, pull, pull_until, reference, sha256};
use crate::folder::{Folder, folder_name};
use crate::{ModelRef, ModelStore, Phase, StoreError};

fn is_deleted(root: &Path) -> bool {
    files_under(root).is_empty()
}

#[tokio::test]
async fn a_model_that_is_held_is_not_deleted_until_the_last_hold_is_gone() {
    let stored = Stored::new().await;
    assert!(!stored.model.is_held);
    // Another store on the same folder stands for another process.
    let other = ModelStore::open_with(stored.root.path(), options()).unwrap();
    let first = stored.store.hold(&reference()).await.unwrap();
    let second = other.hold(&reference()).await.unwrap();
    for hold in [first, second] {
        let found = stored.store.get(&reference()).await.unwrap().unwrap();
        assert!(found.is_held);
        let error = stored.store.delete(&stored.model).await.unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("stop the workers"), "{error}");
        assert_eq!(fs::read(&stored.model.path).unwrap(), stored.content);
        drop(hold);
    }
    stored.store.delete(&stored.model).await.unwrap();
    assert!(is_deleted(stored.root.path()));
    assert_eq!(stored.store.get(&reference()).await.unwrap(), None);
    stored.store.delete(&stored.model).await.unwrap();
}

#[tokio::test]
async fn a_hold_ends_with_the_process_that_has_it() {
    let stored = Stored::new().await;
    let lock = stored
        .root
        .path()
        .join(".locks")
        .join(format!("{}@use", folder_name(&reference())));
    drop(stored.store.hold(&reference()).await.unwrap());
    let script = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH); \
                  print('held', flush=True); sys.stdin.read()";
    let mut holder = Command::new("python3")
        .args(["-c", script])
        .arg(&lock)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut output = BufReader::new(holder.stdout.take().unwrap());
    output.read_line(&mut said).unwrap();
    assert_eq!(said, "held\n");
    let error = stored.store.delete(&stored.model).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    stored.store.delete(&stored.model).await.unwrap();
}

#[test]
fn however_holds_and_removals_meet_a_model_that_was_seen_under_a_hold_stays() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path().to_path_buf());
    let name = folder_name(&reference());
    let is_there = || folder.model(&name).join("manifest.json").exists();
    let remove = || {
        let pull = folder.locks.claim_pull(&name).unwrap().unwrap();
        let gate = folder.locks.gate().unwrap();
        let claim = gate.claim(&name).unwrap()?;
        folder.remove(&name, gate, pull, claim).unwrap();
        Some(())
    };
    let is_over = AtomicBool::new(false);
    /// Also where the test fails: the scope waits for its threads.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let hold = folder.locks.hold(&name).unwrap();
                    if is_there() {
                        std::thread::yield_now();
                        assert!(is_there(), "it was removed while it was held");
                    }
                    drop(hold);
                    std::thread::yield_now();
                }
            });
        }
        let _ends = Ends(&is_over);
        for _ in 0..100 {
            place(root.path(), "hf:org/repo/m.gguf", b"1234");
            remove();
        }
    });
    place(root.path(), "hf:org/repo/m.gguf", b"1234");
    assert_eq!((remove(), is_there()), (Some(()), false));
}

#[tokio::test]
async fn holding_a_model_is_its_last_use() {
    let stored = Stored::new().await;
    let pulled = stored.model.last_used;
    let ages_ago = SystemTime::now() - Duration::from_secs(1_000_000);
    let manifest = File::options()
        .write(true)
        .open(stored.folder().join("manifest.json"))
        .unwrap();
    manifest.set_modified(ages_ago).unwrap();
    let get = async || stored.store.get(&reference()).await.unwrap().unwrap().last_used;
    assert_eq!(get().await, ages_ago);
    let hold = stored.store.hold(&reference()).await.unwrap();
    let begun = get().await;
    assert!(begun >= pulled);
    drop(hold);
    assert!(get().await >= begun);
}

#[tokio::test]
async fn a_model_can_be_held_before_it_is_there_and_files_of_others_need_no_hold() {
    let root = tempfile::tempdir().unwrap();
    let content = noise(1000, 2);
    let hub = TestHub::with(&content, None, Some(&sha256(&content))).await;
    let store = ModelStore::open_with(root.path().join("store"), hub.options()).unwrap();
    let _hold = store.hold(&reference()).await.unwrap();
    let model = pull(&store, &reference()).await.unwrap();
    assert!(model.is_held);
    assert!(store.delete(&model).await.is_err());

    let path = root.path().join("mine.gguf");
    fs::write(&path, b"1234").unwrap();
    let file: ModelRef = format!("file:{}", path.display()).parse().unwrap();
    let _hold = store.hold(&file).await.unwrap();
    let mine = store.get(&file).await.unwrap().unwrap();
    assert!(!mine.is_held);
    for error in [
        store.delete(&mine).await.unwrap_err(),
        store.files(&mine).await.unwrap_err(),
        store
            .verify(&mine, |_| (), &CancellationToken::new())
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::NotStored { .. }), "{error}");
    }
    assert!(path.exists());
}

#[tokio::test]
async fn deleting_a_model_removes_what_an_interrupted_pull_has_left_of_it() {
    let stored = Stored::new().await;
    fs::remove_dir_all(stored.folder()).unwrap();
    stored.hub.cdn.fault(Fault::Cut(2_000_000));
    pull_until(&stored.store, &reference(), |p| {
        p.phase == Phase::Download && p.done_bytes > 0
    })
    .await
    .unwrap_err();
    assert!(!is_deleted(stored.root.path()));
    stored.store.delete(&stored.model).await.unwrap();
    assert!(is_deleted(stored.root.path()));
}

#[tokio::test]
async fn a_model_that_is_being_pulled_is_not_deleted() {
    let stored = Stored::new().await;
    let lock = File::create(stored.root.path().join(".locks").join(folder_name(&reference()))).unwrap();
    lock.lock().unwrap();
    let error = stored.store.delete(&stored.model).await.unwrap_err();
    assert!(
        matches!(error, StoreError::InUse { .. }) && error.to_string().contains("being pulled"),
        "{error}"
    );
    drop(lock);
    stored.store.delete(&stored.model).await.unwrap();
}

#[tokio::test]
async fn what_a_crash_left_of_a_removal_and_old_parts_that_nobody_continues_go_when_a_store_is_opened() {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, age_days: u64| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "part").unwrap();
        let time = SystemTime::now() - Duration::from_secs(age_days * 24 * 60 * 60);
        for path in [path.as_path(), path.parent().unwrap()] {
            File::open(path).unwrap().set_modified(time).unwrap();
        }
    };
    put(".trash/gone@0.0/files/m.gguf", 0);
    put(".work/old/blob-0.part", 8);
    put(".work/young/blob-0.part", 6);
    put(".work/busy/blob-0.part", 8);
    fs::create_dir_all(root.path().join(".locks")).unwrap();
    let busy = File::create(root.path().join(".locks/busy")).unwrap();
    busy.lock().unwrap();
    ModelStore::open_with(root.path(), options()).unwrap();
    let left = files_under(root.path());
    let left: Vec<_> = left
        .iter()
        .map(|path| path.strip_prefix(root.path()).unwrap())
        .collect();
    assert_eq!(
        left,
        [
            Path::new(".work/busy/blob-0.part"),
            Path::new(".work/young/blob-0.part")
        ]
    );
}
