//! `rbee top` on the command line.

use clap::Args;

/// `rbee top`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee top
  rbee top --queen-url http://control:7833
  rbee top --once | jq '.workers[] | {id, tokens_per_second}'
  rbee top --json | jq -c '[.in_flight, .waiting, .tokens_per_second]'

On a terminal: q ends, arrows or j and k scroll, Tab changes between hosts and workers, s sorts the \
workers, ? shows all keys. Elsewhere, or with --json: one JSON object a second, each on its line.")]
pub(crate) struct TopArgs {
    /// Print one JSON object and end
    #[arg(long)]
    pub(crate) once: bool,
}
