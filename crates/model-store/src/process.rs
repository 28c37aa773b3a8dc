//! A helper program, followed by what it says on its standard error, that does not outlive its owner.
//!
//! The program gets a process group of its own, which is ended as one: a `python3` on the path can be a script of a version
//! manager that runs the real one as its child. Nobody ends the group where this whole process is killed.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

/// How much of what the program says is kept, in bytes.
const MAX_SAID: usize = 64 << 10;
/// How long standard error may stay open after the end: somebody outside the group can hold it, too.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A program at work. Dropping it kills the whole group.
pub(crate) struct Process {
    child: Child,
    /// `None` once the program was waited for: from then on, its number can be somebody else's.
    group: Option<Pid>,
    /// `None` once it is closed.
    stderr: Option<ChildStderr>,
    said: Vec<u8>,
}

/// What a program does.
pub(crate) enum Event {
    /// It said something.
    Said,
    /// It ended by itself.
    Ended(ExitStatus),
}

impl Process {
    /// Starts the program, without any input.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            group: id.map(Pid::from_raw),
            stderr: child.stderr.take(),
            said: Vec::new(),
            child,
        })
    }

    /// Waits for the next thing that it does. Nothing is lost when this future is dropped.
    pub(crate) async fn event(&mut self) -> io::Result<Event> {
        tokio::select! {
            biased;
            status = self.child.wait() => {
                let status = status?;
                self.group = None;
                Ok(Event::Ended(status))
            }
            true = listen(&mut self.stderr, &mut self.said) => Ok(Event::Said),
        }
    }

    /// The end of what a program has said that ended by itself.
    pub(crate) async fn last_words(mut self) -> String {
        self.until_closed().await;
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Ends the group and waits until it is gone.
    pub(crate) async fn kill(mut self) {
        self.kill_group();
        // The last member that ends closes it.
        self.until_closed().await;
        if self.child.wait().await.is_ok() {
            self.group = None;
        }
    }

    async fn until_closed(&mut self) {
        let rest = async { while listen(&mut self.stderr, &mut self.said).await {} };
        if timeout(LAST_WORDS, rest).await.is_err() {
            tracing::debug!("a program's standard error outlives it");
        }
    }

    fn kill_group(&self) {
        if let Some(group) = self.group {
            // It fails only where nobody is left.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
    }
}

/// Reads what a program says; false once it has closed its standard error.
async fn listen(stderr: &mut Option<ChildStderr>, said: &mut Vec<u8>) -> bool {
    let Some(pipe) = stderr else { return false };
    let mut buffer = [0; 4096];
    match pipe.read(&mut buffer).await {
        Ok(n) if n > 0 => {
            said.extend_from_slice(&buffer[..n]);
            said.drain(..said.len().saturating_sub(MAX_SAID));
            true
        }
        _ => {
            *stderr = None;
            false
        }
    }
}
