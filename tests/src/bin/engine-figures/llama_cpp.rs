//! llama.cpp's programs on the same file.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::direct::Work;
use crate::server::{self, Server};
use crate::{Args, Result};

/// Context of one of the server's slots: prompt, answer and some room.
const SLOT_TOKENS: u32 = 1_024;

/// Where the programs are, and what they are given.
pub(crate) struct LlamaCpp {
    folder: PathBuf,
    model: PathBuf,
    threads: String,
}

impl LlamaCpp {
    pub(crate) fn new(folder: &Path, args: &Args) -> Self {
        Self {
            folder: folder.to_owned(),
            model: args.model.clone(),
            threads: args.threads.to_string(),
        }
    }

    /// One run of llama-bench.
    pub(crate) fn tokens_per_second(&self, work: Work) -> Result<f64> {
        let mut command = self.command("llama-bench");
        command.args(["-r", "1", "-o", "json"]);
        command.args([
            "-p",
            &work.prefill.to_string(),
            "-n",
            &work.decode.to_string(),
            "-d",
            &work.depth.to_string(),
        ]);
        let (output, _log) = run(command, "llama-bench")?;
        let parsed: Value =
            serde_json::from_str(&output).map_err(|error| format!("read llama-bench's JSON: {error}"))?;
        parsed[0]["avg_ts"]
            .as_f64()
            .ok_or_else(|| format!("find avg_ts in what llama-bench says: {output}"))
    }

    /// llama-server with so many slots.
    pub(crate) async fn server(&self, slots: u32) -> Result<Server> {
        let port = server::free_port()?;
        let mut command = tokio::process::Command::from(self.command("llama-server"));
        command
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--no-webui"])
            .args(["-np", &slots.to_string(), "-c", &(slots * SLOT_TOKENS).to_string()])
            .args(["-tb", &self.threads]);
        let mut server = Server::start_process("llama-server", command, port, "figures").await?;
        server.whole_length = serde_json::json!({"ignore_eos": true});
        Ok(server)
    }

    /// llama-perplexity's figure for a text, in windows of so many tokens.
    pub(crate) fn perplexity(&self, text: &Path, window: usize) -> Result<f64> {
        let mut command = self.command("llama-perplexity");
        command.arg("-f").arg(text).args(["-c", &window.to_string()]);
        let (_windows, log) = run(command, "llama-perplexity")?;
        let figure = log
            .split("PPL = ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        figure.ok_or_else(|| format!("find PPL in what llama-perplexity says: {log}"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.join(program));
        command.arg("-m").arg(&self.model).args(["-t", &self.threads]);
        command
    }
}

/// Runs a program to its end; what it says, and its log.
fn run(mut command: Command, name: &str) -> Result<(String, String)> {
    let output = command.output().map_err(|error| format!("start {name}: {error}"))?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("run {name}: {}\n{log}", output.status));
    }
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), log))
}
