//! A running process: a child, or one that an earlier supervisor started.

use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::timeout;

use crate::Exit;
use crate::pidfd::Pidfd;

/// A process that is watched.
#[derive(Debug)]
pub(crate) enum Process {
    Child(Child),
    Adopted(Pidfd),
}

impl Process {
    /// Its number; `None` once it has been waited for.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Child(child) => child.id(),
            Self::Adopted(process) => Some(process.pid()),
        }
    }

    /// Ends when the process has ended. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> Exit {
        match self {
            Self::Child(child) => child.wait().await.map_or(Exit::Unknown, Exit::from),
            Self::Adopted(process) => process.ended().await,
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self {
            // Until it has been waited for, the number belongs to it, even if it has ended.
            Self::Child(child) => match child.id().and_then(|pid| i32::try_from(pid).ok()) {
                Some(pid) => Ok(kill(Pid::from_raw(pid), signal)?),
                None => Ok(()),
            },
            Self::Adopted(process) => process.signal(signal),
        }
    }
}

/// Asks a process to end, and kills it after the grace period. Ends when it is gone.
pub(crate) async fn end(process: Pidfd, grace: Duration) {
    // One that has ended in the meantime takes no signal, which is as well.
    let _ = process.signal(Signal::SIGTERM);
    if timeout(grace, process.ended()).await.is_err() {
        tracing::warn!(
            pid = process.pid(),
            ?grace,
            "process does not end when asked, killing it"
        );
        let _ = process.signal(Signal::SIGKILL);
        process.ended().await;
    }
}
