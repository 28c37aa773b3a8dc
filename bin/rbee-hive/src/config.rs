//! The hive's settings: as they are written, and as they are used.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Parser, value_parser};
use daemon::Secret;
use daemon::config::CommonArgs;
use daemon::quantity::{Bytes, Span};
use daemon::traces::Collector;
use heartbeat_client::{MAX_QUEENS, QueenUrl};
use hive_contract::DeviceKind;
use shared_contract::HiveId;

/// Program that serves one model; beside the hive's own, or on `PATH`.
const WORKER_PROGRAM: &str = "llm-worker-rbee";

/// The hive: looks after this host's devices, model files and workers, and tells the queens.
#[derive(Debug, Clone, Parser)]
#[command(version = daemon::build::describe(&[] as &[&str]))]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Address to listen on; one that other machines can reach needs --token
    #[arg(long, env = "RBEE_HIVE_HOST", value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "RBEE_HIVE_PORT", default_value_t = 7835)]
    port: u16,
    /// Secret shared by queen, hives and workers: guards this hive, and is sent to the queens and given to the workers
    #[arg(long, env = "RBEE_TOKEN", hide_env_values = true)]
    token: Option<Secret>,
    /// Listen on any address without a token
    #[arg(long, env = "RBEE_INSECURE", value_parser = BoolishValueParser::new())]
    insecure: bool,
    /// Queen to report to, for example http://192.168.1.10:7833; may be given several times
    #[arg(long, env = "RBEE_QUEEN_URL", value_delimiter = ',', value_name = "URL")]
    queen_url: Vec<String>,
    /// Name of this hive; left out: one that is made up once and kept in the state folder
    #[arg(long, env = "RBEE_HIVE_ID", value_name = "ID")]
    hive_id: Option<HiveId>,
    /// Folder for the hive's identity and its workers' logs [default: $XDG_STATE_HOME/rbee/hive or
    /// ~/.local/state/rbee/hive]
    #[arg(long, env = "RBEE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Folder for model files [default: $XDG_CACHE_HOME/rbee/models or ~/.cache/rbee/models]
    #[arg(long, env = "RBEE_MODELS", value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Program that workers are started with, and, given again, its leading arguments [default: llm-worker-rbee beside
    /// this program, else on PATH]
    #[arg(long, env = "RBEE_WORKER_COMMAND", value_name = "WORD", allow_hyphen_values = true)]
    worker_command: Vec<OsString>,
    /// Address on which workers listen [default: that of --host]
    #[arg(long, env = "RBEE_WORKER_HOST", value_name = "IP")]
    worker_host: Option<IpAddr>,
    /// Name or address under which queens reach this host [default: the address that its heartbeats come from]
    #[arg(long, env = "RBEE_ADVERTISE_HOST", value_name = "HOST")]
    advertise_host: Option<String>,
    /// Announce this hive on the local network, so that queens with --mdns find it
    #[arg(long, env = "RBEE_MDNS", value_parser = BoolishValueParser::new())]
    mdns: bool,
    /// How long workers may take to finish their requests when they are stopped
    #[arg(long, env = "RBEE_GRACE_S", value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u64).range(..=86_400))]
    grace_s: u64,
    /// How long a new worker may take until it is ready, the download of its model not counted
    #[arg(long, env = "RBEE_LOAD_TIMEOUT_S", value_name = "SECONDS", default_value_t = 600)]
    load_timeout_s: u64,
    /// NVIDIA's management library, instead of the system's libnvidia-ml.so.1
    #[arg(long, env = "RBEE_NVML_LIBRARY", value_name = "FILE")]
    nvml_library: Option<PathBuf>,
    #[command(flatten)]
    sharing: SharingArgs,
    #[command(flatten)]
    keeping: KeepingArgs,
}

/// How the host is shared between its owner and the workers.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Devices and memory")]
struct SharingArgs {
    /// Devices that workers may use, for example cuda:0,cuda:1 [default: all]
    #[arg(long, env = "RBEE_DEVICES", value_delimiter = ',', value_name = "ID")]
    devices: Vec<String>,
    /// Memory of each GPU that is left to the machine's owner
    #[arg(long, env = "RBEE_RESERVE_VRAM", value_name = "SIZE", default_value = "512MiB")]
    reserve_vram: Bytes,
    /// Main memory that is left to the machine's owner
    #[arg(long, env = "RBEE_RESERVE_RAM", value_name = "SIZE", default_value = "1GiB")]
    reserve_ram: Bytes,
    /// A process that is not a worker and holds this much of a GPU is the machine's owner at work: no new workers there
    #[arg(long, env = "RBEE_OWNER_VRAM", value_name = "SIZE", default_value = "1GiB")]
    owner_vram: Bytes,
    /// Stop the workers of a GPU while its owner is at work, and bring them back afterwards
    #[arg(long, env = "RBEE_YIELD_TO_OWNER", value_parser = BoolishValueParser::new())]
    yield_to_owner: bool,
    /// Main memory that a worker may take before the system ends it; needs --cgroup
    #[arg(long, env = "RBEE_WORKER_MEMORY_MAX", value_name = "SIZE", requires = "cgroup")]
    worker_memory_max: Option<Bytes>,
}

/// How workers and model files are kept.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Workers and model files")]
struct KeepingArgs {
    /// Stop a worker that had no request for this long; 0: never
    #[arg(long, env = "RBEE_IDLE_UNLOAD", value_name = "DURATION", default_value = "15min")]
    idle_unload: Span,
    /// Leave the workers running when the hive ends; the next hive with this state folder takes them over
    #[arg(long, env = "RBEE_KEEP_WORKERS", value_parser = BoolishValueParser::new())]
    keep_workers: bool,
    /// Folder of a cgroup v2 that was delegated to this user: each worker gets a group of its own in it
    #[arg(long, env = "RBEE_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// TOML file with models that join or replace those of the built-in catalogue
    #[arg(long, env = "RBEE_CATALOGUE", value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Most that the model files may take; those not used for longest make room, never one in use [default: no limit]
    #[arg(long, env = "RBEE_MODEL_CACHE_MAX", value_name = "SIZE")]
    model_cache_max: Option<Bytes>,
}

impl AsRef<CommonArgs> for Args {
    fn as_ref(&self) -> &CommonArgs {
        &self.common
    }
}

/// Valid settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub address: SocketAddr,
    /// Guards all but health and metrics; sent to the queens and given to the workers.
    pub token: Option<Secret>,
    /// Whether the operator wants addresses that others can reach to be served without a token.
    pub insecure: bool,
    /// Queens to report to from the start.
    pub queen_urls: Vec<QueenUrl>,
    /// The hive's name, unless it is the one kept in the state folder.
    pub hive_id: Option<HiveId>,
    /// Folder for the identity, the workers' logs and what they announce. One hive at a time.
    pub state_dir: PathBuf,
    /// Folder for model files; other hives and programs may share it.
    pub models_dir: PathBuf,
    /// Program that serves a model, and its leading arguments; never empty.
    pub worker_command: Vec<OsString>,
    /// Where workers listen.
    pub worker_host: IpAddr,
    /// What queens are told to dial; `None`: the address that the heartbeat comes from.
    pub advertise_host: Option<String>,
    /// Whether this hive is announced on the local network.
    pub mdns: bool,
    /// How long a stopped worker may take.
    pub grace: Duration,
    /// How long a new worker may take until it is ready.
    pub load_timeout: Duration,
    /// Replaces the system's NVML.
    pub nvml_library: Option<PathBuf>,
    /// How the devices are shared with the machine's owner.
    pub sharing: Sharing,
    /// A worker without requests for this long is stopped; `None`: never.
    pub idle_unload: Option<Duration>,
    /// Whether the workers go on when the hive ends.
    pub keep_workers: bool,
    /// A group of this host's second cgroup hierarchy in which the hive may make groups.
    pub cgroup: Option<PathBuf>,
    /// Extends the catalogue of models.
    pub catalogue: Option<PathBuf>,
    /// Most that the model files may take, in bytes.
    pub model_cache_max: Option<u64>,
    /// Where this hive's and its workers' traces go.
    pub otlp_endpoint: Option<Collector>,
}

/// How the devices are shared with the machine's owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sharing {
    /// Ids of the devices that workers may use; empty: all.
    pub devices: Vec<String>,
    /// Bytes of each GPU that are left to the owner.
    pub reserve_vram: u64,
    /// Bytes of main memory that are left to the owner.
    pub reserve_ram: u64,
    /// Bytes of a GPU by which a foreign process is the owner at work.
    pub owner_vram: u64,
    /// Whether workers leave a GPU while its owner is at work.
    pub yield_to_owner: bool,
    /// Most main memory of a worker, in bytes; only where there is a `cgroup`.
    pub worker_memory_max: Option<u64>,
}

impl Sharing {
    /// Whether workers may use this device.
    pub(crate) fn allows(&self, device: &str) -> bool {
        self.devices.is_empty() || self.devices.iter().any(|allowed| allowed == device)
    }

    /// Bytes of a device of this kind that are left to the owner.
    pub(crate) fn reserve(&self, kind: DeviceKind) -> u64 {
        match kind {
            DeviceKind::Cpu => self.reserve_ram,
            _ => self.reserve_vram,
        }
    }
}

impl From<SharingArgs> for Sharing {
    fn from(args: SharingArgs) -> Self {
        Self {
            devices: args.devices,
            reserve_vram: args.reserve_vram.bytes(),
            reserve_ram: args.reserve_ram.bytes(),
            owner_vram: args.owner_vram.bytes(),
            yield_to_owner: args.yield_to_owner,
            worker_memory_max: args.worker_memory_max.map(Bytes::bytes),
        }
    }
}

impl TryFrom<Args> for Config {
    type Error = Vec<String>;

    fn try_from(args: Args) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let address = SocketAddr::new(args.host, args.port);
        let worker_host = args.worker_host.unwrap_or(args.host);
        let has_token = args.token.is_some();
        mistakes.extend(daemon::auth::check_bind(address, has_token, args.insecure).err());
        if args.worker_host.is_some() {
            let workers = daemon::auth::check_bind(SocketAddr::new(worker_host, 0), has_token, args.insecure);
            mistakes.extend(workers.err().map(|mistake| format!("--worker-host: {mistake}")));
        }
        if args.mdns && address.ip().is_loopback() {
            mistakes.push(format!(
                "--mdns: nobody on the local network can reach {address}: set --host, for example to 0.0.0.0"
            ));
        }
        let mut queen_urls = Vec::new();
        for url in &args.queen_url {
            match url.parse::<QueenUrl>() {
                Ok(url) if queen_urls.contains(&url) => {}
                Ok(url) => queen_urls.push(url),
                Err(why) => mistakes.push(format!("--queen-url {url}: {why}")),
            }
        }
        if queen_urls.len() > MAX_QUEENS {
            mistakes.push(format!("--queen-url: at most {MAX_QUEENS} queens"));
        }
        if let Some(host) = &args.advertise_host
            && !is_host(host)
        {
            mistakes.push(format!("--advertise-host: `{host}` is no host name or address"));
        }
        for device in &args.sharing.devices {
            if let Err(why) = device.parse::<DeviceKind>() {
                mistakes.push(format!("--devices: {why}"));
            }
        }
        if args.sharing.owner_vram.bytes() == 0 {
            mistakes.push("--owner-vram: every process would be the owner at work: take at least 1MiB".to_owned());
        }
        let state_dir = args.state_dir.or_else(default_state_dir);
        if state_dir.is_none() {
            mistakes.push("choose a folder for the hive's state: set --state-dir, or HOME".to_owned());
        }
        let models_dir = match args.models_dir {
            Some(dir) => Some(dir),
            None => model_store::default_root()
                .map_err(|error| mistakes.push(format!("{error}; or set --models-dir")))
                .ok(),
        };
        let mut worker_command = args.worker_command;
        if worker_command.is_empty() {
            worker_command.push(default_worker_program());
        }
        match (state_dir, models_dir) {
            (Some(state_dir), Some(models_dir)) if mistakes.is_empty() => Ok(Self {
                address,
                token: args.token,
                insecure: args.insecure,
                queen_urls,
                hive_id: args.hive_id,
                state_dir,
                models_dir,
                worker_command,
                worker_host,
                advertise_host: args.advertise_host,
                mdns: args.mdns,
                grace: Duration::from_secs(args.grace_s),
                load_timeout: Duration::from_secs(args.load_timeout_s),
                nvml_library: args.nvml_library,
                sharing: args.sharing.into(),
                idle_unload: Some(args.keeping.idle_unload.duration()).filter(|limit| !limit.is_zero()),
                keep_workers: args.keeping.keep_workers,
                cgroup: args.keeping.cgroup,
                catalogue: args.keeping.catalogue,
                model_cache_max: args.keeping.model_cache_max.map(Bytes::bytes),
                otlp_endpoint: args.common.otlp_endpoint,
            }),
            _ => Err(mistakes),
        }
    }
}

/// A name or address that can stand in a URL, without port.
fn is_host(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
        || (!host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)))
}

fn default_state_dir() -> Option<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    folder("XDG_STATE_HOME")
        .or_else(|| Some(folder("HOME")?.join(".local/state")))
        .map(|state| state.join("rbee/hive"))
}

fn default_worker_program() -> OsString {
    std::env::current_exe()
        .ok()
        .map(|hive| hive.with_file_name(WORKER_PROGRAM))
        .filter(|program| program.is_file())
        .map_or_else(|| WORKER_PROGRAM.into(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configure(args: &[&str]) -> Result<Config, Vec<String>> {
        let folders = ["rbee-hive", "--state-dir", "/state", "--models-dir", "/models"];
        Config::try_from(Args::try_parse_from(folders.iter().chain(args)).unwrap())
    }

    #[test]
    fn without_any_flag_the_hive_and_its_workers_stay_on_loopback() {
        let config = configure(&[]).unwrap();
        assert_eq!(config.address.to_string(), "127.0.0.1:7835");
        assert!(config.worker_host.is_loopback());
        assert_eq!(config.worker_command.len(), 1);
    }

    #[test]
    fn the_worker_command_is_a_program_with_its_leading_arguments() {
        let config = configure(&["--worker-command", "rbee", "--worker-command", "worker"]).unwrap();
        assert_eq!(config.worker_command, ["rbee", "worker"]);
    }

    #[test]
    fn workers_listen_where_the_hive_does_unless_told_otherwise() {
        let token = ["--token", "a-long-secret"];
        let config = configure(&[&["--host", "0.0.0.0"], &token[..]].concat()).unwrap();
        assert_eq!(config.worker_host.to_string(), "0.0.0.0");
        let config = configure(&[&["--worker-host", "10.0.0.1"], &token[..]].concat()).unwrap();
        assert_eq!(config.worker_host.to_string(), "10.0.0.1");
    }

    #[test]
    fn all_mistakes_are_listed_at_once() {
        let mistakes = configure(&[
            "--host",
            "0.0.0.0",
            "--worker-host",
            "10.0.0.1",
            "--queen-url",
            "ftp://queen",
            "--advertise-host",
            "http://me",
        ])
        .unwrap_err();
        assert_eq!(mistakes.len(), 4, "{mistakes:?}");
        for word in ["--token", "--worker-host", "ftp://queen", "--advertise-host"] {
            assert!(
                mistakes.iter().any(|mistake| mistake.contains(word)),
                "{word}: {mistakes:?}"
            );
        }
    }

    #[test]
    fn a_hive_that_only_its_own_host_can_reach_is_not_announced() {
        let mistakes = configure(&["--mdns"]).unwrap_err();
        assert!(mistakes[0].contains("--host"), "{mistakes:?}");
        assert!(
            configure(&["--mdns", "--host", "10.0.0.1", "--token", "a-long-secret"])
                .unwrap()
                .mdns
        );
        assert!(!configure(&[]).unwrap().mdns);
    }

    #[test]
    fn the_owner_is_left_some_memory_and_workers_end_when_idle_unless_told_otherwise() {
        let config = configure(&[]).unwrap();
        assert_eq!(config.sharing.reserve(DeviceKind::Cuda), 512 << 20);
        assert_eq!(config.sharing.reserve(DeviceKind::Cpu), 1 << 30);
        assert_eq!(config.sharing.owner_vram, 1 << 30);
        assert!(!config.sharing.yield_to_owner && !config.keep_workers);
        assert_eq!(config.idle_unload, Some(Duration::from_secs(900)));
        assert_eq!(configure(&["--idle-unload", "0"]).unwrap().idle_unload, None);
    }

    #[test]
    fn only_the_devices_that_are_named_are_used_and_all_where_none_is() {
        let some = configure(&["--devices", "cuda:0,cuda:2"]).unwrap().sharing;
        assert!(some.allows("cuda:2") && !some.allows("cuda:1") && !some.allows("cpu"));
        assert!(configure(&[]).unwrap().sharing.allows("cuda:1"));
        let mistakes = configure(&["--devices", "gpu0", "--owner-vram", "0"]).unwrap_err();
        assert!(
            mistakes[0].contains("gpu0") && mistakes[1].contains("--owner-vram"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn a_limit_of_memory_needs_a_group_to_put_workers_in() {
        let args = ["rbee-hive", "--worker-memory-max", "8GiB"];
        let error = Args::try_parse_from(args).unwrap_err().to_string();
        assert!(error.contains("--cgroup"), "{error}");
        let config = configure(&["--worker-memory-max", "8GiB", "--cgroup", "/sys/fs/cgroup/rbee"]).unwrap();
        assert_eq!(config.sharing.worker_memory_max, Some(8 << 30));
    }

    #[test]
    fn a_queen_named_twice_is_one_queen() {
        let config = configure(&["--queen-url", "http://queen:7833/", "--queen-url", "http://queen:7833"]).unwrap();
        assert_eq!(config.queen_urls.len(), 1);
    }
}
