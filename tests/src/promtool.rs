//! `promtool`, Prometheus' own checker.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The checker.
#[derive(Debug)]
pub struct Promtool(PathBuf);

impl Promtool {
    /// `RBEE_PROMTOOL`, or the one on the `PATH`. Where there is none it says that the check is skipped, and yields `None`.
    ///
    /// # Panics
    ///
    /// If there is none and `CI` is set: there no check may go missing unseen.
    pub fn find() -> Option<Self> {
        let named = std::env::var_os("RBEE_PROMTOOL").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = || {
            std::env::split_paths(&path)
                .map(|folder| folder.join("promtool"))
                .find(|file| Path::is_file(file))
        };
        let found = named.or_else(on_path);
        assert!(
            found.is_some() || std::env::var_os("CI").is_none(),
            "there is no promtool, which CI has fetched"
        );
        if found.is_none() {
            println!("skipped: there is no promtool on the PATH; RBEE_PROMTOOL names another one");
        }
        found.map(Self)
    }

    /// Runs a check with this on its standard input; what it says stands in the error.
    ///
    /// # Errors
    /// It found something, be it a matter of taste.
    pub fn check(&self, args: &[&str], input: &str) -> Result<(), String> {
        let mut child = Command::new(&self.0)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("start {}: {error}", self.0.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // What it does not read it has judged by then.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        if output.status.success() {
            Ok(())
        } else {
            Err(said.join("\n"))
        }
    }
}
