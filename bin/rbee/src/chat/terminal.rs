//! The terminal between two lines: what is typed while an answer comes does not mix with it.

use std::io;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// The terminal as it was when the chat began; it is so again when this is dropped.
#[derive(Debug)]
pub(super) struct Terminal {
    normal: Termios,
}

impl Terminal {
    /// Standard input, which must be a terminal.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            normal: tcgetattr(io::stdin())?,
        })
    }

    /// Shows nothing of what is typed for as long as the guard lives; the next line has it.
    pub(super) fn hush(&self) -> Hush<'_> {
        let mut quiet = self.normal.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        // Where it cannot be done, the worst is a letter in the answer.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &quiet);
        Hush(self)
    }

    fn restore(&self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.normal);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// The terminal is quiet.
#[derive(Debug)]
pub(super) struct Hush<'a>(&'a Terminal);

impl Drop for Hush<'_> {
    fn drop(&mut self) {
        self.0.restore();
    }
}
