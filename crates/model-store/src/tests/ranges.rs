//! Large files: ranges over several connections, what a crash leaves, and servers that do not play along.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::support::{Fault, Server, TestHub, noise, pull, reference, sha256, span};
use crate::context::Context;
use crate::download::{Downloader, Fetched, Order, Ranges, Source};
use crate::http::Http;
use crate::progress::{Phase, Tracker};
use crate::{ModelStore, Progress, Retry, StoreError};

const MIB: u64 = 1 << 20;

/// A download of `/blob` in ranges of 1 MiB, from 3 MiB on.
struct Bench {
    server: Server,
    folder: tempfile::TempDir,
    source: Source,
    parallel: usize,
}

impl Bench {
    async fn of(content: &[u8], etag: Option<&str>, sha256: Option<String>) -> Self {
        let server = Server::start().await;
        server.file("/blob", content, etag);
        let source = Source {
            what: "blob".to_owned(),
            from: "a test".into(),
            url: format!("{}/blob", server.url).parse().unwrap(),
            bearer: None,
            size: Some(content.len() as u64),
            sha256,
        };
        Self {
            server,
            folder: tempfile::tempdir().unwrap(),
            source,
            parallel: 4,
        }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("blob")
    }

    async fn fetch(&self, report: impl Fn(Progress) + Send + Sync + 'static) -> Result<Fetched, StoreError> {
        self.fetch_until(report, CancellationToken::new()).await
    }

    async fn fetch_until(
        &self,
        report: impl Fn(Progress) + Send + Sync + 'static,
        cancel: CancellationToken,
    ) -> Result<Fetched, StoreError> {
        let retry = Retry {
            attempts: 3,
            first_pause: Duration::from_millis(1),
        };
        let downloader = Downloader {
            http: Http::new(Duration::from_secs(5)),
            retry,
            parallel: NonZeroUsize::new(self.parallel).unwrap(),
            ranges: Ranges {
                above_bytes: 3 * MIB,
                bytes: MIB,
            },
            max_bytes: 1 << 30,
        };
        let report: Arc<dyn Fn(Progress) + Send + Sync> = Arc::new(report);
        let lock = self.folder.path().join("lock");
        let context = Context::acquire(&lock, cancel, Arc::clone(&report)).await?;
        let mut tracker = Tracker::new(report, Phase::Download, [self.source.size]);
        let target = self.target();
        let order = Order {
            source: &self.source,
            target: &target,
            retry,
            room: None,
            index: 0,
        };
        downloader.fetch(&order, &context, &mut tracker).await
    }

    /// Whether the finished file has this content.
    fn has(&self, content: &[u8]) -> bool {
        std::fs::read(self.target()).unwrap() == content
    }

    /// Ranges that were asked for, in the order of their starts.
    fn asked(&self) -> Vec<(u64, Option<u64>)> {
        let seen = self.server.seen().into_iter();
        let mut asked: Vec<_> = seen
            .map(|seen| seen.range.map_or((0, None), |range| span(&range)))
            .collect();
        asked.sort_unstable();
        asked
    }

    /// What the mark on disk says is there.
    fn marked(&self) -> Vec<(u64, u64)> {
        let mark = std::fs::read(self.target().with_extension("mark")).unwrap();
        let mark: serde_json::Value = serde_json::from_slice(&mark).unwrap();
        serde_json::from_value(mark["have"].clone()).unwrap()
    }
}

/// All ranges of 1 MiB of a file of so many.
fn every_mib(count: u64) -> Vec<(u64, Option<u64>)> {
    (0..count).map(|nth| (nth * MIB, Some((nth + 1) * MIB))).collect()
}

#[tokio::test]
async fn a_large_file_comes_in_ranges_and_each_byte_once() {
    let content = noise(10 * MIB as usize, 1);
    let bench = Bench::of(&content, None, Some(sha256(&content))).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&heard);
    let fetched = bench
        .fetch(move |progress| keep.lock().unwrap().push(progress))
        .await
        .unwrap();
    assert_eq!((fetched.size, fetched.sha256), (10 * MIB, sha256(&content)));
    assert!(bench.has(&content));
    assert_eq!(bench.asked(), every_mib(10));
    let heard = heard.lock().unwrap();
    assert!(heard.is_sorted_by_key(|progress| progress.done_bytes));
    assert!(
        heard
            .iter()
            .all(|progress| progress.source.as_deref() == Some("a test"))
    );
}

#[tokio::test]
async fn an_etag_is_enough_within_one_pull_and_every_range_depends_on_it() {
    let (old, new) = (noise(6 * MIB as usize, 2), noise(6 * MIB as usize, 3));
    let mut bench = Bench::of(&old, Some("old"), None).await;
    bench.parallel = 2;
    let server = bench.server.clone();
    let changed = new.clone();
    let change = move |progress: Progress| {
        if progress.done_bytes >= 3 * MIB {
            server.file("/blob", &changed, Some("new"));
        }
    };
    bench.fetch(change).await.unwrap();
    assert!(bench.has(&new), "never a mixture");
    assert!(bench.asked().len() > 6, "{:?}", bench.asked());
}

#[tokio::test]
async fn without_checksum_and_etag_a_large_file_comes_in_one_piece() {
    let content = noise(5 * MIB as usize, 4);
    let bench = Bench::of(&content, None, None).await;
    bench.fetch(|_| ()).await.unwrap();
    assert!(bench.has(&content));
    assert_eq!(bench.asked()[0], (0, None));
}

#[tokio::test]
async fn a_server_that_stops_giving_ranges_is_taken_as_it_is() {
    let content = noise(8 * MIB as usize, 5);
    let bench = Bench::of(&content, Some("v1"), Some(sha256(&content))).await;
    let server = bench.server.clone();
    let stop = move |progress: Progress| {
        if progress.done_bytes >= 2 * MIB {
            server.without_ranges();
        }
    };
    bench.fetch(stop).await.unwrap();
    assert!(bench.has(&content));
    assert_eq!(bench.asked()[0], (0, None), "in the end the whole was asked for");
}

#[tokio::test]
async fn a_server_that_sends_more_than_a_range_is_asked_for_all_that_is_missing_at_once() {
    let content = noise(5 * MIB as usize, 13);
    let bench = Bench::of(&content, Some("v1"), Some(sha256(&content))).await;
    bench.server.fault(Fault::Longer);
    bench.fetch(|_| ()).await.unwrap();
    assert!(bench.has(&content));
    assert!(
        bench.asked().iter().any(|(_, end)| end.is_none()),
        "{:?}",
        bench.asked()
    );
}

#[tokio::test]
async fn broken_connections_cost_only_what_was_on_its_way() {
    let content = noise(8 * MIB as usize, 6);
    let bench = Bench::of(&content, Some("v1"), Some(sha256(&content))).await;
    for fault in [
        Fault::Cut(300_000),
        Fault::Status(503),
        Fault::Cut(700_000),
        Fault::Status(500),
    ] {
        bench.server.fault(fault);
    }
    bench.fetch(|_| ()).await.unwrap();
    assert!(bench.has(&content));
    let asked = bench.asked();
    assert!(
        asked
            .iter()
            .all(|(start, end)| end.is_some_and(|end| end - start <= MIB))
    );
    assert!(asked.len() <= 8 + 4, "a refusal is no reason to begin anew: {asked:?}");
}

#[tokio::test]
async fn a_cancelled_download_goes_on_with_the_missing_ranges_only_and_verifies_the_whole() {
    let content = noise(8 * MIB as usize, 7);
    let bench = Bench::of(&content, Some("v1"), Some(sha256(&content))).await;
    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    let stop = move |progress: Progress| {
        if progress.done_bytes >= 3 * MIB {
            trigger.cancel();
        }
    };
    let error = bench.fetch_until(stop, cancel).await.err().unwrap();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    let kept = bench.marked();
    assert!(kept.iter().map(|(start, end)| end - start).sum::<u64>() >= 3 * MIB);

    let before = bench.server.seen().len();
    let first = Mutex::new(None);
    let first = Arc::new(first);
    let hear = Arc::clone(&first);
    let fetched = bench.fetch(move |progress| {
        hear.lock().unwrap().get_or_insert(progress.done_bytes);
    });
    assert_eq!(fetched.await.unwrap().sha256, sha256(&content));
    assert_eq!(
        *first.lock().unwrap(),
        Some(kept.iter().map(|(start, end)| end - start).sum())
    );
    for seen in &bench.server.seen()[before..] {
        let (start, end) = span(seen.range.as_ref().unwrap());
        let overlaps = |&(from, to): &(u64, u64)| start < to && from < end.unwrap();
        assert!(!kept.iter().any(overlaps), "{start} was there: {kept:?}");
    }
}

#[tokio::test]
async fn a_damaged_piece_of_what_was_kept_is_found_by_the_checksum() {
    let content = noise(5 * MIB as usize, 8);
    let bench = Bench::of(&content, Some("v1"), Some(sha256(&content))).await;
    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    let stop = move |progress: Progress| {
        if progress.done_bytes >= 2 * MIB {
            trigger.cancel();
        }
    };
    bench.fetch_until(stop, cancel).await.err().unwrap();
    let part = bench.target().with_extension("part");
    let (mut bytes, start) = (std::fs::read(&part).unwrap(), bench.marked()[0].0 as usize);
    bytes[start] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let error = bench.fetch(|_| ()).await.err().unwrap();
    assert!(matches!(error, StoreError::WrongChecksum { .. }), "{error}");
    bench.fetch(|_| ()).await.unwrap();
    assert!(bench.has(&content));
}

#[tokio::test]
async fn an_address_to_which_the_source_redirects_is_asked_again_only_as_long_as_it_answers() {
    let content = noise(6 * MIB as usize, 9);
    let mut bench = Bench::of(&content, Some("v1"), Some(sha256(&content))).await;
    bench.parallel = 2;
    let front = Server::start().await;
    front.linked(
        &["/file"],
        None,
        content.len(),
        &format!("{}/blob?signature=1", bench.server.url),
    );
    bench.source.url = format!("{}/file", front.url).parse().unwrap();
    // The third transfer meets an expired signature.
    for fault in [Fault::None, Fault::None, Fault::Status(403)] {
        bench.server.fault(fault);
    }
    bench.fetch(|_| ()).await.unwrap();
    assert!(bench.has(&content));
    let redirected = front.seen().len();
    assert!(
        (2..=4).contains(&redirected),
        "{redirected} of 7 requests went by way of the source"
    );
}

#[tokio::test]
async fn a_model_above_the_threshold_is_pulled_over_four_connections() {
    let (root, mut content) = (tempfile::tempdir().unwrap(), noise(MIB as usize, 10).repeat(66));
    content.extend(noise(1000, 11));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(model.sha256, Some(sha256(&content)));
    let mut starts = test.cdn.transfers();
    starts.sort_unstable();
    assert_eq!(starts, [0, 16 * MIB, 32 * MIB, 48 * MIB, 64 * MIB]);
}

const ROOT: &str = "MODEL_STORE_TEST_ROOT";
const HUB: &str = "MODEL_STORE_TEST_HUB";

/// What the process runs that is killed.
#[tokio::test]
#[ignore = "another test runs it as a process of its own"]
async fn pull_in_a_process_of_its_own() {
    let variable = |name| std::env::var(name).unwrap();
    let options = crate::StoreOptions {
        hub_endpoint: variable(HUB),
        ..super::support::options()
    };
    let store = ModelStore::open_with(variable(ROOT), options).unwrap();
    let model = pull(&store, &reference()).await;
    panic!("it was to be killed: {model:?}");
}

fn marks_under(root: &Path) -> Vec<PathBuf> {
    let mut files = super::support::files_under(&root.join(".work"));
    files.retain(|path| path.extension().is_some_and(|ending| ending == "mark"));
    files
}

#[tokio::test]
async fn after_kill_9_the_next_pull_fetches_only_what_the_mark_does_not_have() {
    let (root, content) = (tempfile::tempdir().unwrap(), noise(MIB as usize, 12).repeat(70));
    let test = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
    // Half of each of the first four ranges comes, then nothing more.
    for _ in 0..4 {
        test.cdn.fault(Fault::Hang(8 << 20));
    }
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "tests::ranges::pull_in_a_process_of_its_own"])
        .env(ROOT, root.path())
        .env(HUB, &test.hub.url)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let is_marked = || {
        let mark = marks_under(root.path()).pop()?;
        let mark: serde_json::Value = serde_json::from_slice(&std::fs::read(mark).ok()?).ok()?;
        let have: Vec<(u64, u64)> = serde_json::from_value(mark["have"].clone()).ok()?;
        Some(have)
    };
    while is_marked().is_none() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.start_kill().unwrap();
    child.wait().await.unwrap();
    let have = is_marked().unwrap();

    let before = test.cdn.seen().len();
    let store = ModelStore::open_with(root.path(), test.options()).unwrap();
    let model = pull(&store, &reference()).await.unwrap();
    assert_eq!(model.sha256, Some(sha256(&content)));
    let ranges = test.cdn.seen().split_off(before);
    let fetched: Vec<_> = ranges.iter().map(|seen| span(seen.range.as_ref().unwrap())).collect();
    let bytes: u64 = fetched.iter().map(|(start, end)| end.unwrap() - start).sum();
    let kept: u64 = have.iter().map(|(start, end)| end - start).sum();
    assert_eq!(bytes + kept, 70 * MIB, "{have:?} was there, {fetched:?} was fetched");
}
