//! `rbee doctor` on the command line.

use std::path::PathBuf;

use clap::Args;

use super::{BaseUrl, HIVE_PORT, QUEEN_PORT};

/// `rbee doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee doctor
  rbee doctor --queen-url http://control:7833
  rbee doctor --api http://localhost:7833 --model smollm2-135m-instruct
  rbee doctor --api https://llm.example --api-key ... --json

Looks at this machine, and at the fleet if a queen answers. With --api it checks whether a server does \
what OpenAI's clients expect, by fewer than 80 short requests, one after another.

The exit status is 1 if a check fails; warnings and what could not be looked at change nothing.")]
pub(crate) struct DoctorArgs {
    /// Check any OpenAI-compatible server instead; only --api-key is sent there, never the fleet's token
    #[arg(long, value_name = "URL")]
    pub(crate) api: Option<BaseUrl>,
    /// Model to ask there [default: the first that its list names]
    #[arg(long, value_name = "MODEL", requires = "api")]
    pub(crate) model: Option<String>,
    /// Port that a queen would have on this machine
    #[arg(long, value_name = "PORT", default_value_t = QUEEN_PORT, conflicts_with = "api")]
    pub(crate) port: u16,
    /// Port that a hive would have on this machine
    #[arg(long, value_name = "PORT", default_value_t = HIVE_PORT, conflicts_with = "api")]
    pub(crate) hive_port: u16,
    /// Folder of the models [default: $RBEE_MODELS, $XDG_CACHE_HOME/rbee/models or ~/.cache/rbee/models]
    #[arg(long, value_name = "FOLDER", conflicts_with = "api")]
    pub(crate) models_dir: Option<PathBuf>,
    /// Folder for logs and the daemons' state [default: $RBEE_STATE_DIR, $XDG_STATE_HOME/rbee or ~/.local/state/rbee]
    #[arg(long, value_name = "FOLDER", conflicts_with = "api")]
    pub(crate) state_dir: Option<PathBuf>,
}
