//! Words of `rbee join`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::{BaseUrl, HIVE_PORT};

/// `rbee join`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  RBEE_TOKEN=... rbee join http://control:7833
  rbee join http://control:7833 --token ... --devices cuda:0
  rbee join http://127.0.0.1:7833 --port 7836     beside the hive of `rbee up`

It runs a hive, which starts workers here as the fleet needs them. The first Ctrl-C lets them finish what they \
answer and says goodbye, a second one ends all at once. As a service: README, \"Installing and operating\".")]
pub(crate) struct JoinArgs {
    /// Where the queen listens, as `rbee up --share` says
    #[arg(value_name = "URL")]
    pub(crate) url: BaseUrl,
    /// Address on which the hive and its workers listen [default: the one that the queen sees]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<IpAddr>,
    /// Port of the hive; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = HIVE_PORT)]
    pub(crate) port: u16,
    /// Name of this host in the fleet [default: kept from before, or made of the host name]
    #[arg(long, value_name = "NAME")]
    pub(crate) hive_id: Option<String>,
    /// Devices that workers may use, for example cuda:0,cpu [default: all]
    #[arg(long, value_name = "LIST")]
    pub(crate) devices: Option<String>,
    /// Join a fleet that has no token
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Folder for logs and the hive's state [default: $XDG_STATE_HOME/rbee or ~/.local/state/rbee]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state_dir: Option<PathBuf>,
}
