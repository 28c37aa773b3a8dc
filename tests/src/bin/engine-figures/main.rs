//! The engine's figures beside those of its peers, in one run on one machine: llama.cpp's programs on the same file (if
//! `--llama-cpp` says where they are), candle-transformers as it comes, and what memory allows.
//!
//! Machines differ and are noisy, so everything is run in turn (ours, theirs, ours, theirs ...) and what counts is the
//! ratio of the medians.

mod bandwidth;
mod candle;
mod chats;
mod direct;
mod llama_cpp;
mod perplexity;
mod server;
mod table;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::direct::Direct;
use crate::llama_cpp::LlamaCpp;
use crate::server::Server;
use crate::table::{Table, median};

const EXAMPLE: &str = "Example, with programs built by `cargo build --release -p llm-worker-rbee -p rbee-tests`:
  engine-figures --model SmolLM2-135M-Instruct.Q4_1.gguf --llama-cpp llama.cpp/build/bin

Nothing else should run meanwhile. Without --llama-cpp only our own figures are printed.";

/// Most errors are about programs and files that the user named: a text is enough.
type Result<T> = std::result::Result<T, String>;

/// Measures the engine beside its peers.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE)]
struct Args {
    /// GGUF file
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Folder with llama-bench, llama-server and llama-perplexity
    #[arg(long, value_name = "FOLDER")]
    llama_cpp: Option<PathBuf>,
    /// Our worker; left out: the one beside this program
    #[arg(long, value_name = "PROGRAM")]
    worker: Option<PathBuf>,
    /// Threads of either side
    #[arg(long, value_name = "COUNT", default_value = "2")]
    threads: NonZeroUsize,
    /// Runs of each side, in turn
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// What to measure; left out: everything that the model can do
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure candle-transformers, too (slow)
    #[arg(long)]
    candle: bool,
    /// Text for the perplexity
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Prefill and decode in the program itself
    Direct,
    /// Chats over HTTP
    Chats,
    /// Time to the first token over HTTP
    Ttft,
    /// Start of the server, and its memory
    Start,
    /// Perplexity on a text
    Perplexity,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match measure(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let peer = args.llama_cpp.as_deref().map(|folder| LlamaCpp::new(folder, args));
    let mut table = Table::new(peer.is_some());
    if wanted(Part::Start) {
        start(args, peer.as_ref(), &mut table)?;
    }
    if wanted(Part::Direct) {
        direct(args, peer.as_ref(), &mut table)?;
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| format!("start a runtime: {error}"))?;
    if wanted(Part::Chats) || wanted(Part::Ttft) {
        runtime.block_on(over_http(args, peer.as_ref(), &mut table))?;
    }
    if wanted(Part::Perplexity) {
        match &args.text {
            Some(text) => perplexity::compare(args, text, peer.as_ref(), &mut table)?,
            None if args.only.is_empty() => eprintln!("perplexity left out: it needs --text FILE"),
            None => return Err("measure the perplexity: it needs --text FILE".to_owned()),
        }
    }
    table.print();
    Ok(())
}

/// Prefill and decode without a server: what the model itself does.
fn direct(args: &Args, peer: Option<&LlamaCpp>, table: &mut Table) -> Result<()> {
    let mut ours = Direct::load(args)?;
    for (name, work) in direct::WORKS {
        let (mut our_runs, mut their_runs) = (Vec::new(), Vec::new());
        for _ in 0..args.runs {
            our_runs.push(ours.tokens_per_second(work)?);
            if let Some(peer) = peer {
                their_runs.push(peer.tokens_per_second(work)?);
            }
        }
        table.more_is_better(name, "tokens/s", &our_runs, &their_runs);
        if work == direct::DECODE {
            let bytes = ours.weight_bytes() as f64 * median(&our_runs);
            let floors: Result<Vec<f64>> = (0..args.runs)
                .map(|_| bandwidth::bytes_per_second(args.threads))
                .collect();
            let floors = floors?;
            table.note(format!(
                "decode reads {:.1} GB/s of weights; a bare read by {} threads: {:.1} GB/s ({:.0} %)",
                bytes / 1e9,
                args.threads,
                median(&floors) / 1e9,
                100.0 * bytes / median(&floors)
            ));
        }
    }
    for sequences in [8, 16] {
        let runs: Result<Vec<f64>> = (0..args.runs).map(|_| ours.batched_decode(sequences)).collect();
        table.more_is_better(
            &format!("decode, {sequences} sequences in a step"),
            "tokens/s",
            &runs?,
            &[],
        );
    }
    if args.candle {
        drop(ours);
        candle::compare(args, table)?;
    }
    Ok(())
}

fn start(args: &Args, peer: Option<&LlamaCpp>, table: &mut Table) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| format!("start a runtime: {error}"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.runs {
        ours.push(runtime.block_on(Server::start_ours(args, 8))?.start());
        if let Some(peer) = peer {
            theirs.push(runtime.block_on(peer.server(8))?.start());
        }
    }
    let column = |starts: &[server::Start], of: fn(&server::Start) -> f64| starts.iter().map(of).collect::<Vec<_>>();
    let seconds = |start: &server::Start| start.ready_after.as_secs_f64();
    let mebibytes = |start: &server::Start| start.rss_bytes as f64 / f64::from(1 << 20);
    table.less_is_better(
        "start to ready",
        "s",
        &column(&ours, seconds),
        &column(&theirs, seconds),
    );
    table.less_is_better(
        "memory (RSS) when ready",
        "MiB",
        &column(&ours, mebibytes),
        &column(&theirs, mebibytes),
    );
    Ok(())
}

async fn over_http(args: &Args, peer: Option<&LlamaCpp>, table: &mut Table) -> Result<()> {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let Some(prompts) = chats::Prompts::new(args)? else {
        table.note("no chats: this model has no chat template".to_owned());
        return Ok(());
    };
    let ours = Server::start_ours(args, 16).await?;
    let theirs = match peer {
        Some(peer) => Some(peer.server(16).await?),
        None => None,
    };
    let servers: Vec<&Server> = std::iter::once(&ours).chain(&theirs).collect();
    if wanted(Part::Chats) {
        for streams in [1, 8, 16] {
            let runs = chats::in_turn(&servers, args.runs, |server, run| {
                prompts.total_pace(server, streams, run)
            })
            .await?;
            let name = format!("{streams} chats over HTTP, 256 + 128 tokens, all tokens generated");
            table.more_is_better(&name, "tokens/s", &runs[0], runs.get(1).map_or(&[], Vec::as_slice));
        }
    }
    if wanted(Part::Ttft) {
        let runs = chats::in_turn(&servers, args.runs, |server, run| {
            prompts.ttft_beside_others(server, 7, run)
        })
        .await?;
        let name = "TTFT p50, 256 tokens while 7 others decode";
        table.less_is_better(name, "ms", &runs[0], runs.get(1).map_or(&[], Vec::as_slice));
        let runs = chats::in_turn(&servers, args.runs, |server, run| {
            prompts.ttft_of_seen_prefix(server, run)
        })
        .await?;
        let name = "TTFT p50, a seen prefix of 256 tokens + 8";
        table.less_is_better(name, "ms", &runs[0], runs.get(1).map_or(&[], Vec::as_slice));
    }
    Ok(())
}
