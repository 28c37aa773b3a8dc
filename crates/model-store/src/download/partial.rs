//! A file on its way: what of it is there, how far its checksum is, and what of that is known on disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::spans::Spans;
use super::{Fetched, Source, check, discard, with_ending};
use crate::context::Context;
use crate::file::{self, STEP_BYTES};
use crate::{StoreError, space};

/// Bytes that are hashed before anything else is looked at.
const HASH_BYTES: u64 = 16 << 20;
/// How much of that is read at a time: it stays in the processor's cache.
const READ_BYTES: usize = 256 << 10;
/// New bytes that are worth a new mark: about as much is fetched again after a crash.
const MARK_BYTES: u64 = 16 << 20;

/// `TARGET.mark`: what the partial file is a part of, and which bytes of it are on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    sha256: Option<String>,
    #[serde(default)]
    have: Spans,
}

/// A range of the file that one request fetches; without an end, up to where the server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) end: Option<u64>,
}

/// The file with what is known of it. The locks are held for moments; that of the hash by one piece of work at a time.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    mark_path: PathBuf,
    sha256: Option<String>,
    state: Mutex<State>,
    hash: Mutex<Front>,
    /// Wakes those who follow: there are new bytes.
    news: Notify,
}

#[derive(Default)]
struct State {
    have: Spans,
    /// What requests at work fetch.
    taken: Vec<Piece>,
    total: Option<u64>,
    etag: Option<String>,
    /// Whether the file has its full length.
    is_allocated: bool,
    /// Bytes that the mark on disk knows.
    marked: u64,
}

/// The checksum of the first `len` bytes.
#[derive(Default)]
struct Front {
    hasher: Sha256,
    len: u64,
    /// Empty until it is needed.
    buffer: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn strong(etag: Option<&String>) -> Option<&String> {
    etag.filter(|etag| etag.starts_with('"'))
}

impl Partial {
    /// Opens what there is, or begins. Blocks.
    pub(super) fn open(target: &Path, source: &Source) -> Result<Arc<Self>, StoreError> {
        let (path, mark_path) = (with_ending(target, ".part"), with_ending(target, ".mark"));
        let mark = file::read_json::<Mark>(&mark_path)?;
        let mark = mark.filter(|mark| mark.sha256.is_some() && mark.sha256 == source.sha256);
        let is_known = mark.is_some();
        let mut have = mark.map(|mark| mark.have).unwrap_or_default();
        if target.exists() {
            // An earlier pull got as far as the rename; this one proves its checksum again.
            file::rename(target, &path)?;
            have.insert(0, if is_known { u64::MAX } else { 0 });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let fail = |action| {
            let path = &path;
            move |error| StoreError::io(action, path, error)
        };
        let file = options.open(&path).map_err(fail("open"))?;
        let len = file.metadata().map_err(fail("read"))?.len();
        have.truncate(source.size.map_or(len, |size| size.min(len)));
        file.set_len(have.end()).map_err(fail("write"))?;
        let state = State {
            marked: have.sum(),
            have,
            total: source.size,
            ..State::default()
        };
        Ok(Arc::new(Self {
            file,
            path,
            mark_path,
            sha256: source.sha256.clone(),
            state: Mutex::new(state),
            hash: Mutex::default(),
            news: Notify::new(),
        }))
    }

    /// Bytes that are there.
    pub(super) fn done(&self) -> u64 {
        lock(&self.state).have.sum()
    }

    pub(super) fn total(&self) -> Option<u64> {
        lock(&self.state).total
    }

    pub(super) fn is_complete(&self) -> bool {
        let state = lock(&self.state);
        state.total == Some(state.have.front())
    }

    /// Whether bytes of several answers can be known to belong together: by a checksum, or else by an ETag.
    pub(super) fn is_provable(&self) -> bool {
        self.sha256.is_some() || self.condition().is_some()
    }

    /// The ETag on which an answer must depend, where nothing else proves that the file is the same.
    pub(super) fn condition(&self) -> Option<String> {
        let state = lock(&self.state);
        strong(state.etag.as_ref()).filter(|_| self.sha256.is_none()).cloned()
    }

    /// Takes the next missing range, of at most `most` bytes; without a bound, all that follows the front.
    pub(super) fn claim(&self, most: Option<u64>) -> Option<Piece> {
        let mut state = lock(&self.state);
        let piece = match most {
            Some(most) => {
                let mut covered = state.have.clone();
                for piece in &state.taken {
                    covered.insert(piece.start, piece.end.unwrap_or(u64::MAX));
                }
                let (start, end) = covered.gap(state.total?, most)?;
                Piece { start, end: Some(end) }
            }
            None => {
                let start = state.have.front();
                if !state.taken.is_empty() || state.total == Some(start) {
                    return None;
                }
                Piece { start, end: None }
            }
        };
        state.taken.push(piece);
        Some(piece)
    }

    /// Gives a range back; what of it has come stays.
    pub(super) fn release(&self, piece: Piece) {
        lock(&self.state).taken.retain(|taken| *taken != piece);
    }

    /// Hears what an answer says of the file; `false` where it is another file than before.
    pub(super) fn is_same(&self, total: Option<u64>, etag: Option<String>) -> bool {
        let mut state = lock(&self.state);
        let differ = |known: Option<u64>, new: Option<u64>| known.is_some() && new.is_some() && known != new;
        // Servers that share the work can have ETags of their own; where there is a checksum, it decides.
        let changed = self.sha256.is_none() && state.etag.is_some() && etag.is_some() && state.etag != etag;
        if changed || differ(state.total, total) {
            return false;
        }
        state.total = total.or(state.total);
        state.etag = etag.or_else(|| state.etag.take());
        true
    }

    /// The server has ended where nobody knew the size.
    pub(super) fn end_at(&self, total: u64) {
        lock(&self.state).total.get_or_insert(total);
    }

    /// Gives the file its full length once that is known, if the disk has room for it. Blocks.
    pub(super) fn allocate(&self) -> Result<(), StoreError> {
        let total = {
            let state = lock(&self.state);
            match state.total {
                Some(total) if !state.is_allocated => total,
                _ => return Ok(()),
            }
        };
        let fail = |error| StoreError::io("write", &self.path, error);
        let lying = space::of_file(&self.file.metadata().map_err(fail)?);
        space::check(self.path.parent().unwrap_or(&self.path), total, lying)?;
        reserve(&self.file, total).map_err(fail)?;
        lock(&self.state).is_allocated = true;
        Ok(())
    }

    /// Writes bytes to their place. Blocks.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|error| StoreError::io("write", &self.path, error))?;
        lock(&self.state).have.insert(at, at + bytes.len() as u64);
        self.news.notify_waiters();
        Ok(())
    }

    /// Throws everything away; only between rounds. Blocks.
    pub(super) fn restart(&self, source: &Source) -> Result<(), StoreError> {
        self.cut(0)?;
        file::remove_file(&self.mark_path)?;
        *lock(&self.hash) = Front::default();
        *lock(&self.state) = State {
            total: source.size,
            ..State::default()
        };
        Ok(())
    }

    /// Forgets what lies behind the first gap; only between rounds.
    pub(super) fn keep_front(&self) {
        let mut state = lock(&self.state);
        let front = state.have.front();
        state.have.truncate(front);
    }

    /// Lets the checksum follow the front and the mark what has come, until `stop`.
    pub(super) async fn follow(
        self: &Arc<Self>,
        stop: &CancellationToken,
        context: &Context,
    ) -> Result<(), StoreError> {
        // Side by side: a mark waits for the disk, and the checksum must not wait with it.
        let (hashed, marked) = tokio::join!(self.keep_hashing(stop, context), self.keep_marking(stop, context));
        hashed.and(marked)
    }

    async fn keep_hashing(self: &Arc<Self>, stop: &CancellationToken, context: &Context) -> Result<(), StoreError> {
        while !stop.is_cancelled() {
            // Before the look, so that nothing that comes after it is missed.
            let news = self.news.notified();
            let front = lock(&self.state).have.front();
            if front > lock(&self.hash).len {
                let partial = Arc::clone(self);
                let hash = move |context: &Context| partial.hash(front, HASH_BYTES, context);
                context.blocking(hash).await.inspect_err(|_| stop.cancel())?;
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = news => {}
            }
        }
        Ok(())
    }

    async fn keep_marking(self: &Arc<Self>, stop: &CancellationToken, context: &Context) -> Result<(), StoreError> {
        while self.sha256.is_some() && !stop.is_cancelled() {
            let news = self.news.notified();
            let unmarked = {
                let state = lock(&self.state);
                state.have.sum().saturating_sub(state.marked)
            };
            if unmarked >= MARK_BYTES {
                let partial = Arc::clone(self);
                let mark = context.blocking(move |_| partial.mark()).await;
                mark.inspect_err(|_| stop.cancel())?;
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = news => {}
            }
        }
        Ok(())
    }

    fn hash(&self, front: u64, most: u64, context: &Context) -> Result<(), StoreError> {
        let Front { hasher, len, buffer } = &mut *lock(&self.hash);
        buffer.resize(READ_BYTES, 0);
        let end = front.min(len.saturating_add(most));
        while *len < end {
            context.check()?;
            let n = (end - *len).min(READ_BYTES as u64) as usize;
            let read = self.file.read_exact_at(&mut buffer[..n], *len);
            read.map_err(|error| StoreError::io("read", &self.path, error))?;
            hasher.update(&buffer[..n]);
            *len += n as u64;
        }
        Ok(())
    }

    /// Puts on disk what has come, then says so there. Blocks.
    fn mark(&self) -> Result<(), StoreError> {
        let mark = {
            let state = lock(&self.state);
            Mark {
                sha256: self.sha256.clone(),
                have: state.have.clone(),
            }
        };
        let synced = self.file.sync_data();
        synced.map_err(|error| StoreError::io("write", &self.path, error))?;
        file::write_json(&self.mark_path, &mark)?;
        lock(&self.state).marked = mark.have.sum();
        Ok(())
    }

    /// Leaves everything in order for another round or another pull: the mark is true, and no space is taken in advance.
    /// Blocks.
    pub(super) fn settle(&self) -> Result<(), StoreError> {
        let end = {
            let mut state = lock(&self.state);
            state.is_allocated = false;
            state.have.end()
        };
        self.cut(end)?;
        if self.sha256.is_none() {
            return Ok(());
        }
        let full = match self.mark() {
            Err(full @ StoreError::DiskFull { .. }) => full,
            marked => return marked,
        };
        // The last bytes give their place to the mark, without which all of them would be lost.
        let end = end.saturating_sub(STEP_BYTES as u64);
        lock(&self.state).have.truncate(end);
        self.cut(end)?;
        self.mark()?;
        Err(full)
    }

    fn cut(&self, len: u64) -> Result<(), StoreError> {
        let cut = self.file.set_len(len);
        cut.map_err(|error| StoreError::io("write", &self.path, error))
    }

    /// Compares with what was announced and gives the file its name. Blocks.
    pub(super) fn finish(&self, target: &Path, source: &Source, context: &Context) -> Result<Fetched, StoreError> {
        let size = lock(&self.state).have.front();
        self.hash(size, u64::MAX, context)?;
        let found = file::hex(&lock(&self.hash).hasher.clone().finalize());
        check(&source.what, (source.size, source.sha256.as_ref()), (size, &found)).or_else(|error| {
            discard(target)?;
            Err(error)
        })?;
        let fail = |error| StoreError::io("write", &self.path, error);
        self.file
            .set_len(size)
            .and_then(|()| self.file.sync_all())
            .map_err(fail)?;
        if self.sha256.is_some() {
            // A crash before the model is published leaves the file to the next pull.
            self.mark()?;
        }
        file::rename(&self.path, target)?;
        Ok(Fetched { size, sha256: found })
    }
}

/// Makes the file this long, with blocks of its own where the file system can do that without writing them.
fn reserve(file: &File, len: u64) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::errno::Errno;
        use nix::fcntl::{FallocateFlags, fallocate};

        let signed = i64::try_from(len).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        // Not every file system can; then the blocks come with the bytes.
        if let Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG | Errno::EIO)) =
            fallocate(file, FallocateFlags::empty(), 0, signed.max(1))
        {
            return Err(error.into());
        }
    }
    file.set_len(len)
}
