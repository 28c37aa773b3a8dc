//! A program on a terminal: what is typed reaches it as from a keyboard, and all that it shows is kept.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::{PATIENCE, eventually};

/// Control-C as a terminal sends it.
pub const CTRL_C: &str = "\u{3}";
/// Control-D as a terminal sends it.
pub const CTRL_D: &str = "\u{4}";

/// A program with a terminal of 80 columns and 24 lines. Dropping it kills the program.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a command in a session of its own, whose terminal this is.
    pub fn start(command: &Command) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None).expect("a pseudo-terminal");
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a second handle of the terminal"));
        // Only a session's leader gets signals of its terminal's keys, and only between fork and exec can one become that:
        // the tool does it without unsafe code here.
        let inner = command.as_std();
        let mut session = Command::new("setsid");
        session
            .args(["--ctty", "--wait"])
            .arg(inner.get_program())
            .args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let child = session
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .stdin(end(&pair.slave))
            .stdout(end(&pair.slave))
            .stderr(end(&pair.slave))
            .kill_on_drop(true)
            .spawn()
            .expect("setsid runs");
        let keyboard = File::from(pair.master);
        let mut screen = keyboard.try_clone().expect("a second handle of the terminal");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            // Fails when the program has ended and closed its side.
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&bytes[..count]);
            }
        });
        Self { child, keyboard, shown }
    }

    /// Types these keys.
    pub fn keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal is there");
    }

    /// Types a line and Enter.
    pub fn line(&mut self, text: &str) {
        self.keys(&format!("{text}\r"));
    }

    /// Asks the program to end.
    pub fn terminate(&self) {
        let pid = self
            .child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .expect("the program runs");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("the program is there");
    }

    /// All that was shown so far, control sequences included.
    pub fn shown(&self) -> String {
        let bytes = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until this text was shown behind the first `from` bytes; returns where it ends.
    pub async fn until(&self, text: &str, from: usize) -> usize {
        let what = format!("the terminal shows {text:?}");
        let found = eventually(&what, async || {
            let shown = self.shown();
            shown.get(from..)?.find(text).map(|at| from + at + text.len())
        });
        match tokio::time::timeout(PATIENCE / 2, found).await {
            Ok(end) => end,
            Err(_) => panic!("the terminal never showed {text:?}:\n{}", self.shown()),
        }
    }

    /// Waits for the program's end.
    pub async fn ended(&mut self) -> ExitStatus {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => status.expect("status of a child"),
            Err(_) => panic!("the program did not end:\n{}", self.shown()),
        }
    }
}
