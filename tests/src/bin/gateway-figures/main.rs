//! The gateway's figures on this machine, beside those of nginx and of a relay on bare sockets in the same run: requests,
//! CPU time, added latency, streams, memory, and what faults of workers cost clients.
//!
//! The workers are pretended: they answer at once, so that what is measured is the gateway. Every process but the load is
//! one of its own. Machines differ and are noisy: gateways take turns, the median of the rounds counts, and what should be
//! quoted is CPU time and the ratio to the first row.

mod backend;
mod beats;
mod faults;
mod load;
mod nginx;
mod peers;
mod process;
mod relay;
mod requests;
mod stage;
mod starting;
mod streams;
mod table;
mod wire;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::backend::Backends;
use crate::peers::Queen;

const EXAMPLE: &str = "Example, with programs built by `cargo build --release -p queen-rbee -p rbee-tests --bins`:
  gateway-figures --queen target/release/queen-rbee
  gateway-figures --queen before=old/queen-rbee --queen after=target/release/queen-rbee --only requests,streams

Nothing else should run meanwhile. nginx takes part if it is installed.";

/// The model that the pretended workers serve.
const MODEL: &str = "figures/model";

/// Most errors are about programs and files that the user named: a text is enough.
type Result<T> = std::result::Result<T, String>;

/// Measures the queen as a gateway.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    part: Option<Helper>,
    /// A queen's program, with a name for the tables if there are several: NAME=PROGRAM; left out: the one beside this
    /// program
    #[arg(long, value_name = "PROGRAM")]
    queen: Vec<Queen>,
    /// What to measure; left out: everything
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Rounds, of which the median counts
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of load on each gateway in each round
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// 64 clients that ask without a pause; 2 workers
    Requests,
    /// The same with each gateway on one CPU
    Pinned,
    /// The same with 1,000 workers
    Fleet,
    /// 200 requests a second, whole answers and streams
    Latency,
    /// 64 and 1,000 streams
    Streams,
    /// Memory of 1,000 streams that are held open
    Held,
    /// Time to start, and memory of a queen who does nothing
    Start,
    /// What clients notice of workers that hang, stop, end, are slow, or are asked for nonsense
    Faults,
}

/// What a process of a run does.
#[derive(Debug, Subcommand)]
enum Helper {
    /// Be workers
    #[command(hide = true)]
    Backends(Backends),
    /// Be the relay, for the backends at these ports
    #[command(hide = true)]
    Relay { ports: Vec<u16> },
    /// Become this program, on one CPU
    #[command(hide = true)]
    Pinned {
        cpu: usize,
        #[arg(last = true)]
        words: Vec<OsString>,
    },
}

/// One thread: the load leaves the others to what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.part {
        Some(Helper::Backends(options)) => backend::serve(options).await,
        Some(Helper::Relay { ports }) => relay::serve(&ports).await,
        Some(Helper::Pinned { cpu, words }) => peers::become_pinned(cpu, &words),
        None => measure(args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(args: Args) -> Result<()> {
    let queens = if args.queen.is_empty() {
        vec![beside()?]
    } else {
        args.queen
    };
    let run = Run {
        queens,
        rounds: args.rounds,
        time: Duration::from_secs(args.seconds),
    };
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Start) {
        starting::measure(&run).await?;
    }
    if wanted(Part::Requests) {
        requests::closed(&run, 2, None).await?;
    }
    if wanted(Part::Pinned) {
        requests::closed(&run, 2, Some(0)).await?;
    }
    if wanted(Part::Fleet) {
        requests::closed(&run, 1_000, None).await?;
    }
    if wanted(Part::Latency) {
        requests::paced(&run).await?;
    }
    if wanted(Part::Streams) {
        streams::tokens(&run).await?;
    }
    if wanted(Part::Held) {
        streams::held(&run).await?;
    }
    if wanted(Part::Faults) {
        faults::measure(&run).await?;
    }
    Ok(())
}

/// What all parts are told.
#[derive(Debug)]
struct Run {
    queens: Vec<Queen>,
    rounds: u32,
    /// Of load on each gateway in each round.
    time: Duration,
}

fn beside() -> Result<Queen> {
    let here = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    here.with_file_name("queen-rbee").display().to_string().parse()
}
