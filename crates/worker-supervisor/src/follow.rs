//! Reads a log line by line, from its last lines on, over its rotation and the restarts of its writer.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use futures_util::{Stream, stream};
use shared_contract::WorkerId;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::log::Log;
use crate::{Ending, Error};

/// How much of the end of a file is looked at for its last lines.
const WINDOW_BYTES: u64 = 1024 * 1024;
/// Read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Longest line given; the rest of it is left out.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// Pause between two looks at a log that does not grow.
const PAUSE: Duration = Duration::from_millis(250);

/// Tells when a worker will print no more.
pub(crate) type Ended = watch::Receiver<Option<Ending>>;

/// The last `lines` lines; with `ended` also those that come until then.
pub(crate) fn lines(
    log: Log,
    id: &WorkerId,
    lines: usize,
    ended: Option<Ended>,
) -> Result<impl Stream<Item = String> + Send + 'static + use<>, Error> {
    let file = File::open(log.path()).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoLog {
            id: id.clone(),
            path: log.path().to_owned(),
        },
        _ => Error::Log {
            path: log.path().to_owned(),
            source,
        },
    })?;
    let reader = Reader {
        log,
        file,
        is_copy: false,
        position: 0,
        cutter: Cutter::default(),
        ready: VecDeque::new(),
    };
    let start = Follower {
        reader,
        from_end: Some(lines),
        ended,
        is_done: false,
    };
    Ok(stream::unfold(start, Follower::next))
}

struct Follower {
    reader: Reader,
    /// Last lines to begin with, until that was done.
    from_end: Option<usize>,
    ended: Option<Ended>,
    is_done: bool,
}

impl Follower {
    async fn next(mut self) -> Option<(String, Self)> {
        loop {
            if let Some(line) = self.reader.ready.pop_front() {
                return Some((line, self));
            }
            if self.is_done {
                return None;
            }
            // Asked before the look: what was printed before the end is there by then.
            let is_last = self.has_ended();
            let (reader, news) = look(self.reader, self.from_end.take()).await?;
            self.reader = reader;
            // Without following, the first look is the only one: a worker may print faster than somebody reads.
            if news && self.ended.is_some() {
                continue;
            }
            if is_last {
                self.is_done = true;
                self.reader.cutter.finish(&mut self.reader.ready);
            } else if let Some(ended) = &mut self.ended {
                // Whichever comes first, there is something to look for.
                let _ = timeout(PAUSE, ended.wait_for(Option::is_some)).await;
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.ended
            .as_ref()
            .is_none_or(|ended| ended.borrow().is_some() || ended.has_changed().is_err())
    }
}

/// Reads a piece, away from the threads that must not wait for a disk; `false` with it if there was nothing new.
async fn look(mut reader: Reader, from_end: Option<usize>) -> Option<(Reader, bool)> {
    let looked = tokio::task::spawn_blocking(move || {
        let news = match from_end {
            Some(lines) => reader.take_last(lines).map(|()| true),
            None => reader.read_on(),
        };
        (reader, news)
    });
    // It is cancelled only if the runtime ends.
    let (reader, news) = looked.await.ok()?;
    match news {
        Ok(news) => Some((reader, news)),
        Err(error) => {
            tracing::warn!(log = %reader.log.path().display(), %error, "worker log cannot be read on");
            None
        }
    }
}

struct Reader {
    log: Log,
    /// The log, or what came before, until that was read to its end.
    file: File,
    /// It is what was set aside while its writer went on: the log continues it.
    is_copy: bool,
    position: u64,
    cutter: Cutter,
    ready: VecDeque<String>,
}

impl Reader {
    /// Takes the last lines, those that only the file before this one has among them.
    fn take_last(&mut self, lines: usize) -> io::Result<()> {
        let last = last_lines(&mut self.file, lines)?;
        if last.is_whole_file && last.found < lines {
            self.take_from_previous(lines - last.found)?;
        }
        self.cutter.push(&last.text, &mut self.ready);
        self.position = self.file.stream_position()?;
        Ok(())
    }

    fn take_from_previous(&mut self, lines: usize) -> io::Result<()> {
        let mut previous = match File::open(self.log.previous()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        self.cutter
            .push(&last_lines(&mut previous, lines)?.text, &mut self.ready);
        self.cutter.finish(&mut self.ready);
        Ok(())
    }

    /// Reads the next piece; `false` if there is nothing new.
    fn read_on(&mut self) -> io::Result<bool> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let count = self.file.read(&mut chunk)?;
        if count > 0 {
            self.position += count as u64;
            self.cutter.push(&chunk[..count], &mut self.ready);
            return Ok(true);
        }
        let ours = self.file.metadata()?;
        if ours.len() < self.position {
            // Set aside under its writer: what is still to be read was copied.
            return self.turn_to_previous().map(|()| true);
        }
        let current = match fs::metadata(self.log.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            current => current?,
        };
        if (current.dev(), current.ino()) == (ours.dev(), ours.ino()) {
            return Ok(false);
        }
        if !self.is_copy {
            // Another run begins another line.
            self.cutter.finish(&mut self.ready);
        }
        self.open_current()?;
        Ok(true)
    }

    fn turn_to_previous(&mut self) -> io::Result<()> {
        match File::open(self.log.previous()) {
            Ok(mut previous) => {
                // It is shorter if it is the one of a later run.
                let end = previous.metadata()?.len().min(self.position);
                self.position = previous.seek(SeekFrom::Start(end))?;
                self.file = previous;
                self.is_copy = true;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.open_current(),
            Err(error) => Err(error),
        }
    }

    fn open_current(&mut self) -> io::Result<()> {
        self.file = File::open(self.log.path())?;
        self.is_copy = false;
        self.position = 0;
        Ok(())
    }
}

/// The end of a file.
struct LastLines {
    text: Vec<u8>,
    found: usize,
    /// Nothing comes before them in the file.
    is_whole_file: bool,
}

/// The last lines of a file, as far as they lie within its last [`WINDOW_BYTES`]. The file stands behind them then.
fn last_lines(file: &mut File, lines: usize) -> io::Result<LastLines> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(WINDOW_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.take(WINDOW_BYTES).read_to_end(&mut end)?;
    // A line whose beginning is before the window is none.
    let is_begin = |at: usize| if at == 0 { from == 0 } else { end[at - 1] == b'\n' };
    let (mut start, mut found) = (end.len(), 0);
    for at in (0..end.len()).rev().filter(|at| is_begin(*at)) {
        if found == lines {
            break;
        }
        (start, found) = (at, found + 1);
    }
    Ok(LastLines {
        text: end.split_off(start),
        found,
        is_whole_file: from == 0 && start == 0,
    })
}

/// Cuts what is read into lines of bounded length.
#[derive(Debug, Default)]
struct Cutter {
    line: Vec<u8>,
    has_rest: bool,
}

impl Cutter {
    fn push(&mut self, bytes: &[u8], lines: &mut VecDeque<String>) {
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let room = MAX_LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            self.has_rest |= piece.len() > room;
            if pieces.peek().is_some() {
                lines.push_back(self.take());
            }
        }
    }

    /// Takes a line that no end came for.
    fn finish(&mut self, lines: &mut VecDeque<String>) {
        if !self.line.is_empty() {
            lines.push_back(self.take());
        }
    }

    fn take(&mut self) -> String {
        let mut line = String::from_utf8_lossy(&self.line).into_owned();
        if line.ends_with('\r') {
            line.pop();
        }
        if std::mem::take(&mut self.has_rest) {
            line.push_str(" ...");
        }
        self.line.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::pin::pin;

    use futures_util::StreamExt;
    use tempfile::TempDir;

    use super::*;

    fn log() -> (TempDir, Log) {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path(), &id());
        (folder, log)
    }

    fn id() -> WorkerId {
        WorkerId::new("w").unwrap()
    }

    async fn last(log: &Log, count: usize) -> Vec<String> {
        lines(log.clone(), &id(), count, None).unwrap().collect().await
    }

    #[tokio::test]
    async fn the_last_lines_reach_back_into_the_run_before() {
        let (_folder, log) = log();
        write!(log.begin().unwrap(), "a\nb\n").unwrap();
        write!(log.begin().unwrap(), "c\n\nd").unwrap();
        assert_eq!(last(&log, 1).await, ["d"]);
        assert_eq!(last(&log, 3).await, ["c", "", "d"]);
        assert_eq!(last(&log, 4).await, ["b", "c", "", "d"]);
        assert_eq!(last(&log, 9).await, ["a", "b", "c", "", "d"]);
        assert!(last(&log, 0).await.is_empty());
    }

    #[tokio::test]
    async fn the_last_lines_end_even_if_the_writer_does_not() {
        let (_folder, log) = log();
        let mut file = log.begin().unwrap();
        write!(file, "1\n2\n").unwrap();
        let mut stream = pin!(lines(log.clone(), &id(), 9, None).unwrap());
        for line in ["1", "2"] {
            assert_eq!(stream.next().await.unwrap(), line);
            writeln!(file, "one more for each that is read").unwrap();
        }
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test]
    async fn without_a_log_the_error_names_its_file() {
        let (_folder, log) = log();
        let error = lines(log, &id(), 1, None).map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, Error::NoLog { .. }) && error.to_string().contains("w.log"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_long_line_is_cut_and_a_long_log_read_from_its_end_only() {
        let (_folder, log) = log();
        let mut file = log.begin().unwrap();
        let megabytes = "x".repeat(3 * WINDOW_BYTES as usize);
        write!(file, "first\n{megabytes}\nlast\n").unwrap();
        // The long line begins before the window.
        assert_eq!(last(&log, 3).await, ["last"]);
        writeln!(file, "{}", "y".repeat(MAX_LINE_BYTES + 1)).unwrap();
        assert_eq!(last(&log, 1).await, [format!("{} ...", "y".repeat(MAX_LINE_BYTES))]);
    }

    #[tokio::test]
    async fn a_follower_gets_each_line_once_over_rotations_and_restarts_until_the_end() {
        let (_folder, log) = log();
        let (ending, ended) = watch::channel(None);
        let mut file = log.begin().unwrap();
        write!(file, "old\n1\n").unwrap();
        let mut stream = pin!(lines(log.clone(), &id(), 1, Some(ended)).unwrap());
        assert_eq!(stream.next().await.unwrap(), "1");
        // Set aside before it was read, while the writer goes on.
        write!(file, "2\nha").unwrap();
        log.set_aside().unwrap();
        writeln!(file, "lf").unwrap();
        assert_eq!(stream.next().await.unwrap(), "2");
        assert_eq!(stream.next().await.unwrap(), "half");
        // A new run, with something of the old one unread, which did not end its last line.
        write!(file, "3\nabrupt").unwrap();
        write!(log.begin().unwrap(), "4\n5").unwrap();
        assert_eq!(stream.next().await.unwrap(), "3");
        assert_eq!(stream.next().await.unwrap(), "abrupt");
        assert_eq!(stream.next().await.unwrap(), "4");
        ending.send_replace(Some(Ending::Ended));
        assert_eq!(stream.next().await.unwrap(), "5");
        assert_eq!(stream.next().await, None);
    }
}
