//! Load for the queen's heartbeat plane: as many workers as wanted beat through the real HTTP endpoint, and what that took is
//! printed, if wished beside a minimal server that does the least that such an endpoint can do (`--floor`).

mod floor;
mod histogram;
mod process;
mod run;
mod senders;

use std::process::ExitCode;

use clap::Parser;

use crate::run::{Figures, Target};

const EXAMPLE: &str = "Example, with programs built by `cargo build --release`:
  queen-rbee --heartbeat-ttl-ms 600000 &
  heartbeat-load --queen-url http://127.0.0.1:7833 --queen-pid $! --floor

Each sender beats once to join; then the queen's call-backs are waited for; then all beat in turn for --seconds. Machines \
differ and are noisy: compare with the floor of the same run, and prefer CPU seconds to beats a second.";

/// Beats to a queen as thousands of workers would, and tells how she bears it.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE)]
struct Args {
    /// The queen
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7833")]
    queen_url: String,
    /// The queen's process on this machine: adds its CPU seconds and memory
    #[arg(long, value_name = "PID")]
    queen_pid: Option<u32>,
    /// Secret of the fleet, if the queen has one
    #[arg(long, env = "RBEE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Workers
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    senders: u32,
    /// Models that they serve, in turn
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    models: u32,
    /// Connections that the senders share, each kept open
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    connections: u16,
    /// Length of the measured part
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Beats a second of all senders together; left out: as many as the queen answers
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Do the same with a minimal server on this machine, and tell the ratio
    #[arg(long)]
    floor: bool,
    /// Be that minimal server
    #[arg(long, hide = true)]
    serve_floor: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.serve_floor {
        floor::serve().await
    } else {
        measure(&args).await
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(args: &Args) -> Result<(), String> {
    let queen = Target {
        name: "queen",
        url: args.queen_url.clone(),
        pid: args.queen_pid,
        calls_back: true,
    };
    let of_queen = run::run(args, &queen).await?;
    println!("{of_queen}");
    if args.floor {
        let floor = floor::Floor::start().await?;
        let of_floor = run::run(args, &floor.target()).await?;
        println!("{of_floor}\n{}", Figures::ratio(&of_queen, &of_floor));
    }
    Ok(())
}
