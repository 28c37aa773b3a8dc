//! The queen's settings: as they are written, and as they are used.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Parser, value_parser};
use daemon::Secret;
use daemon::config::CommonArgs;
use daemon::origin::Origin;
use shared_contract::timing;

mod supply;

use supply::SupplyArgs;
pub use supply::{Alias, SupplyConfig};

/// How long a lost member is kept, unless the TTL is longer.
const DEFAULT_RETENTION_MS: u64 = 600_000;
/// The SSH configuration that is read unless another file is named.
const USERS_SSH_CONFIG: &str = "~/.ssh/config";

/// The variable by which clients get their key, so near to the queen's own that one is easily set for the other.
const CLIENTS_KEY: &str = "RBEE_API_KEY";

/// The queen: knows every worker of the fleet, and serves the OpenAI API with them.
#[derive(Debug, Clone, Parser)]
#[command(version = daemon::build::describe(&[] as &[&str]))]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Address to listen on; one that other machines can reach needs --token and --api-key
    #[arg(long, env = "RBEE_QUEEN_HOST", value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "RBEE_QUEEN_PORT", default_value_t = 7833)]
    port: u16,
    /// Secret shared by queen, hives and workers: guards heartbeats and the fleet, and is sent to the workers
    #[arg(long, env = "RBEE_TOKEN", hide_env_values = true)]
    token: Option<Secret>,
    /// Listen on any address without a token or API key
    #[arg(long, env = "RBEE_INSECURE", value_parser = BoolishValueParser::new())]
    insecure: bool,
    /// Key that clients of the OpenAI API must present; may be given several times
    #[arg(
        long,
        env = "RBEE_API_KEYS",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "KEY"
    )]
    api_key: Vec<Secret>,
    /// File with further API keys, one a line; lines that start with # are skipped
    #[arg(long, env = "RBEE_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Origin of a web page that may use the models besides the queen's own pages, as https://HOST or, of an app
    /// or an extension, SCHEME://NAME; may be given several times
    #[arg(long, env = "RBEE_ALLOW_ORIGINS", value_delimiter = ',', value_name = "URL")]
    allow_origin: Vec<Origin>,
    /// Pause between two heartbeats that hives and workers are asked to keep
    #[arg(long, env = "RBEE_HEARTBEAT_INTERVAL_MS", value_name = "MS",
          default_value_t = millis(timing::HEARTBEAT_INTERVAL))]
    heartbeat_interval_ms: u64,
    /// A hive or worker that is silent for this long is lost
    #[arg(long, env = "RBEE_HEARTBEAT_TTL_MS", value_name = "MS", default_value_t = millis(timing::HEARTBEAT_TTL))]
    heartbeat_ttl_ms: u64,
    /// Heartbeats that may come in a second; where there are more hives and workers, each beats less often
    #[arg(long, env = "RBEE_MAX_BEATS_PER_S", value_name = "COUNT", default_value_t = 50)]
    max_beats_per_s: u32,
    /// A hive or worker that has been lost for this long is forgotten [default: 600000, or the TTL where that is longer]
    #[arg(long, env = "RBEE_RETENTION_MS", value_name = "MS")]
    retention_ms: Option<u64>,
    /// Address of a hive to ask for its heartbeats, as http://HOST:7835; may be given several times
    #[arg(long, env = "RBEE_HIVES", value_delimiter = ',', value_name = "URL")]
    hive: Vec<String>,
    /// Ask the hosts of an SSH configuration, too; ~/.ssh/config if no other file is named. All are asked whether there is a
    /// hive, without --token; it is sent to those hives only that first prove that they know it
    #[arg(
        long,
        env = "RBEE_HIVES_FROM_SSH",
        value_name = "PATH",
        num_args = 0..=1,
        default_missing_value = USERS_SSH_CONFIG
    )]
    hives_from_ssh: Option<PathBuf>,
    /// Ask the hives that announce themselves on the local network, too
    #[arg(long, env = "RBEE_MDNS", value_parser = BoolishValueParser::new())]
    mdns: bool,
    /// Address that hives are told to send their heartbeats to, as http://HOST:7833
    #[arg(long, env = "RBEE_ADVERTISE_URL", value_name = "URL")]
    advertise_url: Option<String>,
    /// How long a request may wait for a worker that is starting or busy
    #[arg(long, env = "RBEE_QUEUE_TIMEOUT_MS", value_name = "MS", default_value_t = 30_000)]
    queue_timeout_ms: u64,
    /// Requests that may wait for one model; further ones are refused with status 429
    #[arg(long, env = "RBEE_QUEUE_MAX", value_name = "COUNT", default_value_t = 256)]
    queue_max: usize,
    /// How long a worker may take to the first byte of a stream before another one is asked
    #[arg(
        long,
        env = "RBEE_FIRST_BYTE_TIMEOUT_MS",
        value_name = "MS",
        default_value_t = 60_000
    )]
    first_byte_timeout_ms: u64,
    /// How long a worker may take to an answer that is not streamed
    #[arg(long, env = "RBEE_ANSWER_TIMEOUT_MS", value_name = "MS", default_value_t = 600_000)]
    answer_timeout_ms: u64,
    /// How long a request may wait for a model that is being fetched or loaded for it
    #[arg(long, env = "RBEE_LOAD_TIMEOUT_MS", value_name = "MS", default_value_t = 600_000)]
    load_timeout_ms: u64,
    /// How long a worker may be silent within a stream before another one goes on with it
    #[arg(long, env = "RBEE_STALL_TIMEOUT_MS", value_name = "MS", default_value_t = 30_000)]
    stall_timeout_ms: u64,
    /// How long running requests may take to finish after a signal to end
    #[arg(long, env = "RBEE_GRACE_S", value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u64).range(..=86_400))]
    grace_s: u64,
    #[command(flatten)]
    supply: SupplyArgs,
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
    /// Guards heartbeats and the fleet; sent to the workers.
    pub token: Option<Secret>,
    /// Guard the OpenAI endpoints; without any they are open.
    pub api_keys: Vec<Secret>,
    /// Web pages that may call besides the queen's own.
    pub allow_origins: Vec<Origin>,
    /// The pace that senders are asked to keep.
    pub heartbeat_interval: Duration,
    /// Silence after which a member is lost.
    pub heartbeat_ttl: Duration,
    /// Most beats a second that senders are asked for together; beyond, the pace is stretched.
    pub max_beats_per_s: u32,
    /// How long a lost member is kept in sight.
    pub retention: Duration,
    /// Addresses of hives to ask for their heartbeats: scheme, host and port, perhaps a path, without a slash at the end.
    pub hives: Vec<String>,
    /// SSH configuration whose hosts are asked, too.
    pub hives_from_ssh: Option<PathBuf>,
    /// Whether hives that announce themselves on the local network are asked, too.
    pub mdns: bool,
    /// Where hives are told to send their heartbeats, in the same form as the hives' addresses; `None`: where they reach
    /// this queen.
    pub advertise_url: Option<String>,
    /// Longest wait of a request for a worker.
    pub queue_timeout: Duration,
    /// Most requests that wait for one model.
    pub queue_max: usize,
    /// Limit for the first byte of a stream.
    pub first_byte_timeout: Duration,
    /// Limit for the first byte of an answer that is no stream: it comes when the answer is complete.
    pub answer_timeout: Duration,
    /// Longest wait of a request for a model that is being brought up.
    pub load_timeout: Duration,
    /// Limit for the silence of a worker within a stream.
    pub stall_timeout: Duration,
    /// Which models there are, and how workers are brought up for them.
    pub supply: SupplyConfig,
    /// How long running requests may take once the shutdown has begun.
    pub grace: Duration,
    /// Spans of requests go to a collector.
    pub has_traces: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7833),
            token: None,
            api_keys: Vec::new(),
            allow_origins: Vec::new(),
            heartbeat_interval: timing::HEARTBEAT_INTERVAL,
            heartbeat_ttl: timing::HEARTBEAT_TTL,
            max_beats_per_s: 50,
            retention: Duration::from_millis(DEFAULT_RETENTION_MS),
            hives: Vec::new(),
            hives_from_ssh: None,
            mdns: false,
            advertise_url: None,
            queue_timeout: Duration::from_secs(30),
            queue_max: 256,
            first_byte_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(600),
            load_timeout: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(30),
            supply: SupplyConfig::default(),
            grace: Duration::from_secs(30),
            has_traces: false,
        }
    }
}

impl TryFrom<Args> for Config {
    type Error = Vec<String>;

    fn try_from(args: Args) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut api_keys = args.api_key;
        if let Some(path) = &args.api_key_file {
            match read_keys(path) {
                Ok(keys) => api_keys.extend(keys),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        let address = SocketAddr::new(args.host, args.port);
        mistakes.extend(daemon::auth::check_bind(address, args.token.is_some(), args.insecure).err());
        if api_keys.is_empty() && !args.insecure {
            let is_key_set = std::env::var_os(CLIENTS_KEY).is_some_and(|key| !key.is_empty());
            mistakes.extend(missing_keys(address, is_key_set));
        }
        let mut url = |flag: &str, text: &str| match base_url(text) {
            Ok(url) => Some(url),
            Err(why) => {
                mistakes.push(format!("{flag} {why}"));
                None
            }
        };
        let mut hives = Vec::new();
        for hive in args.hive.iter().filter_map(|hive| url("--hive", hive)) {
            if !hives.contains(&hive) {
                hives.push(hive);
            }
        }
        let advertise_url = args
            .advertise_url
            .as_deref()
            .and_then(|own| url("--advertise-url", own));
        let hives_from_ssh = args.hives_from_ssh.map(in_home).transpose();
        mistakes.extend(hives_from_ssh.as_ref().err().cloned());
        let positive = [
            ("--heartbeat-interval-ms", args.heartbeat_interval_ms),
            ("--max-beats-per-s", args.max_beats_per_s.into()),
            ("--queue-timeout-ms", args.queue_timeout_ms),
            ("--first-byte-timeout-ms", args.first_byte_timeout_ms),
            ("--answer-timeout-ms", args.answer_timeout_ms),
            ("--load-timeout-ms", args.load_timeout_ms),
            ("--stall-timeout-ms", args.stall_timeout_ms),
        ];
        for (flag, value) in positive {
            if value == 0 {
                mistakes.push(format!("{flag} must be above 0"));
            }
        }
        let retention_ms = args
            .retention_ms
            .unwrap_or(DEFAULT_RETENTION_MS.max(args.heartbeat_ttl_ms));
        if retention_ms < args.heartbeat_ttl_ms {
            mistakes.push(format!(
                "--retention-ms ({retention_ms}) must not be below --heartbeat-ttl-ms ({}), or members are forgotten before \
                 it shows that many fell silent at once",
                args.heartbeat_ttl_ms
            ));
        }
        if args.heartbeat_ttl_ms <= args.heartbeat_interval_ms {
            mistakes.push(format!(
                "--heartbeat-ttl-ms ({}) must be above --heartbeat-interval-ms ({}), or members are lost between two beats",
                args.heartbeat_ttl_ms, args.heartbeat_interval_ms
            ));
        }
        let supply = args.supply.check(args.port).map_err(|more| mistakes.extend(more));
        let (Ok(supply), true) = (supply, mistakes.is_empty()) else {
            return Err(mistakes);
        };
        Ok(Self {
            address,
            token: args.token,
            api_keys,
            allow_origins: args.allow_origin,
            heartbeat_interval: Duration::from_millis(args.heartbeat_interval_ms),
            heartbeat_ttl: Duration::from_millis(args.heartbeat_ttl_ms),
            max_beats_per_s: args.max_beats_per_s,
            retention: Duration::from_millis(retention_ms),
            hives,
            hives_from_ssh: hives_from_ssh.ok().flatten(),
            mdns: args.mdns,
            advertise_url,
            queue_timeout: Duration::from_millis(args.queue_timeout_ms),
            queue_max: args.queue_max,
            first_byte_timeout: Duration::from_millis(args.first_byte_timeout_ms),
            answer_timeout: Duration::from_millis(args.answer_timeout_ms),
            load_timeout: Duration::from_millis(args.load_timeout_ms),
            stall_timeout: Duration::from_millis(args.stall_timeout_ms),
            supply,
            grace: Duration::from_secs(args.grace_s),
            has_traces: args.common.otlp_endpoint.is_some(),
        })
    }
}

/// What is wrong with a queen without keys, whom nobody asked to be open. `is_key_set` tells of the clients' variable.
fn missing_keys(address: SocketAddr, is_key_set: bool) -> Option<String> {
    if is_key_set {
        return Some(format!(
            "{CLIENTS_KEY} is the key that clients send; the queen's keys are RBEE_API_KEYS (one, or several with commas), \
             which is not set: set it, or --insecure to let everybody use the models"
        ));
    }
    (!address.ip().is_loopback()).then(|| {
        format!(
            "{address} can be reached from other machines: set --api-key (or RBEE_API_KEYS, or --api-key-file), or \
             --insecure to let everybody use the models"
        )
    })
}

/// Checks the address of a daemon; answers with it in the form that paths are appended to.
///
/// # Errors
/// Why it is none. A password in it is not repeated.
fn base_url(text: &str) -> Result<String, String> {
    let looks = "it should look like http://HOST:PORT";
    if text.contains('@') {
        return Err(format!("carries a user or password, which nobody reads; {looks}"));
    }
    let uri: http::Uri = text
        .parse()
        .map_err(|error| format!("`{text}` is no URL ({error}); {looks}"))?;
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    if !matches!(uri.scheme_str(), Some("http" | "https")) || !has_host {
        return Err(format!("`{text}` is no address of a daemon; {looks}"));
    }
    if uri.query().is_some() || text.contains('#') {
        return Err(format!("`{text}` must end with its host, port and path; {looks}"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Replaces a leading `~`, which no shell does in a default, a variable or a settings file.
fn in_home(path: PathBuf) -> Result<PathBuf, String> {
    let Ok(rest) = path.strip_prefix("~") else {
        return Ok(path);
    };
    match std::env::home_dir() {
        Some(home) if !home.as_os_str().is_empty() => Ok(home.join(rest)),
        _ => Err("--hives-from-ssh: there is no home folder; name the file, or set HOME".to_owned()),
    }
}

fn read_keys(path: &Path) -> Result<Vec<Secret>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("--api-key-file {}: {error}", path.display()))?;
    let mut keys = Vec::new();
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = line
            .parse()
            .map_err(|error| format!("--api-key-file {} line {}: {error}", path.display(), number + 1))?;
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(format!("--api-key-file {} holds no key", path.display()));
    }
    Ok(keys)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
