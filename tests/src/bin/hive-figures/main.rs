//! The hive's figures on this machine: how well memory is estimated, what telemetry costs, how fast model files go from
//! host to host, how long a worker takes to start.

mod copying;
mod memory;
mod programs;
mod starting;
mod telemetry;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

const EXAMPLE: &str = "Example, with programs built by
  cargo build --release --bins -p rbee-hive -p queen-rbee -p llm-worker-rbee -p rbee-tests
  cargo build --release -p rbee-tests --example fake_nvml
  target/release/hive-figures

Nothing else should run meanwhile.";

/// Most errors are about programs and files that the user named: a text is enough.
type Result<T> = std::result::Result<T, String>;

/// Measures the hive.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE)]
struct Args {
    /// What to measure; left out: everything
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Runs, of which the median counts
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Seconds over which the telemetry's cost is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Estimated beside real memory of workers
    Memory,
    /// CPU time of a hive with 8 GPUs (pretended) and 16 workers
    Telemetry,
    /// A model file from hive to hive, beside a plain copy
    Copy,
    /// From the request for a worker to its being ready
    Start,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match measure(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(args: &Args) -> Result<()> {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Memory) {
        memory::measure().await?;
    }
    if wanted(Part::Start) {
        starting::measure(args.runs).await?;
    }
    if wanted(Part::Copy) {
        copying::measure(args.runs).await?;
    }
    if wanted(Part::Telemetry) {
        telemetry::measure(args.seconds).await?;
    }
    Ok(())
}

/// The middle of some measurements; of an even number the upper of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
