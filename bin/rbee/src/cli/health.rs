//! `rbee health` on the command line.

use clap::Args;

use super::BaseUrl;

/// `rbee health`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee health
  rbee health http://127.0.0.1:7835
  until rbee health; do sleep 1; done

The exit status is 0 if the daemon answers and is ready, else 1. No token is needed.")]
pub(crate) struct HealthArgs {
    /// Queen, hive or worker [default: the queen of --queen-url]
    #[arg(value_name = "URL")]
    pub(crate) url: Option<BaseUrl>,
}
