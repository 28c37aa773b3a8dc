//! The worker's settings: as they are written ([`Args`]) and as they are used ([`Config`]).

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use candle_models::DeviceSpec;
use chrono::Utc;
use clap::builder::BoolishValueParser;
use clap::{Parser, value_parser};
use daemon::Secret;
use daemon::config::CommonArgs;
use heartbeat_client::{MAX_QUEENS, QueenUrl};
use model_store::ModelRef;
use shared_contract::{HiveId, ModelId, WorkerId};

/// Most sequences that a worker decodes together.
const MAX_SLOTS: usize = 256;
/// Longest name of a device.
const MAX_DEVICE_NAME_BYTES: usize = 64;

/// The kinds of devices that this build can use. `--version` names them, and a hive reads them there.
pub fn features() -> Vec<String> {
    let mut devices = vec!["cpu".to_owned()];
    if cfg!(feature = "cuda") {
        // GGUF kernels are compiled for one compute capability, which candle's build takes from this variable.
        let capability = option_env!("CUDA_COMPUTE_CAP").map(|sm| format!(" sm_{sm}"));
        devices.push(format!("cuda{}", capability.unwrap_or_default()));
    }
    if cfg!(feature = "metal") {
        devices.push("metal".to_owned());
    }
    devices
}

/// Serves one model on one device, and tells the queen about it.
#[derive(Debug, Clone, Parser)]
#[command(version = daemon::build::describe(&features()))]
pub struct Args {
    /// Settings that all daemons have.
    #[command(flatten)]
    pub common: CommonArgs,

    /// Model to serve: a name of the catalogue, or `pip:PACKAGE==VERSION/PATH`, `hf:ORG/REPO[@REV][/FILE]`, `file:/PATH`
    #[arg(long, env = "RBEE_MODEL", value_name = "REF")]
    pub model: String,
    /// Name under which clients ask for the model [default: follows from --model]
    #[arg(long, env = "RBEE_MODEL_ID", value_name = "ID")]
    pub model_id: Option<String>,
    /// Device to run on: cpu, cuda:N or metal:N; the last two need a build with that cargo feature
    #[arg(long, env = "RBEE_DEVICE", default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// How heartbeats name the device [default: that of --device]; a hive that lets a worker see one GPU only gives the
    /// name that this GPU has on the host
    #[arg(long, env = "RBEE_DEVICE_NAME", value_name = "NAME")]
    pub device_name: Option<String>,
    /// Folder of the model files [default: $XDG_CACHE_HOME/rbee/models or ~/.cache/rbee/models]
    #[arg(long, env = "RBEE_MODELS", value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
    /// File with a chat template (Jinja) to use instead of the model's own
    #[arg(long, env = "RBEE_CHAT_TEMPLATE", value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Longest prompt plus answer in tokens; cuts what the model can do, never stretches it
    #[arg(long, env = "RBEE_CONTEXT_LENGTH", value_name = "TOKENS")]
    pub context_length: Option<NonZeroUsize>,
    /// Requests that are computed together
    #[arg(long, env = "RBEE_SLOTS", default_value = "4", value_name = "N")]
    pub slots: NonZeroUsize,
    /// Tokens that all requests together may hold in the KV cache [default: what fits in 1 GiB]
    #[arg(long, env = "RBEE_KV_TOKENS", value_name = "TOKENS")]
    pub kv_tokens: Option<NonZeroUsize>,
    /// Requests that may wait for a slot; one more gets status 429
    #[arg(long, env = "RBEE_QUEUE_LIMIT", default_value_t = 64, value_name = "N")]
    pub queue_limit: usize,
    /// CPU threads that compute [default: as many as there are CPUs]
    #[arg(long, env = "RBEE_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// Address to listen on
    #[arg(long, env = "RBEE_HOST", default_value = "127.0.0.1", value_name = "IP")]
    pub host: IpAddr,
    /// Port to listen on; 0: the system picks one, and the heartbeats tell it
    #[arg(long, env = "RBEE_PORT", default_value_t = 0, value_name = "PORT")]
    pub port: u16,
    /// Shared secret of the daemons: guards this worker's endpoints and is sent to the queen
    #[arg(long, env = "RBEE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<Secret>,
    /// Listen on an address that others can reach without a token
    #[arg(long, env = "RBEE_INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,

    /// Queen to report to, for example http://10.0.0.1:7833; may be repeated
    #[arg(
        long = "queen-url",
        env = "RBEE_QUEEN_URL",
        value_delimiter = ',',
        value_name = "URL"
    )]
    pub queen_url: Vec<String>,
    /// Host under which the queen can reach this worker [default: the address its heartbeats come from]
    #[arg(long, env = "RBEE_ADVERTISE_HOST", value_name = "HOST")]
    pub advertise_host: Option<String>,
    /// Hive that started this worker
    #[arg(long, env = "RBEE_HIVE_ID", value_name = "ID")]
    pub hive_id: Option<String>,
    /// Name of this worker [default: a new one at each start]
    #[arg(long, env = "RBEE_WORKER_ID", value_name = "ID")]
    pub worker_id: Option<String>,
    /// Number that grows with every start under the same name, by which queens tell an old process from a new one
    /// [default: the time of the start in milliseconds]
    #[arg(long, env = "RBEE_INCARNATION", value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub incarnation: Option<u64>,
    /// Seconds that running requests may take once the worker is asked to end
    #[arg(long, env = "RBEE_GRACE_S", default_value_t = 30, value_name = "SECONDS", value_parser = value_parser!(u64).range(..=86_400))]
    pub grace_s: u64,
}

impl AsRef<CommonArgs> for Args {
    fn as_ref(&self) -> &CommonArgs {
        &self.common
    }
}

/// Valid settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 lets the system pick.
    pub address: SocketAddr,
    /// Guards the endpoints and is sent to the queens.
    pub token: Option<Secret>,
    /// Queens to report to.
    pub queen_urls: Vec<QueenUrl>,
    /// Host that the heartbeats name; `None`: the address that they come from.
    pub advertise_host: Option<String>,
    /// The hive that started this worker.
    pub hive_id: Option<HiveId>,
    /// This worker's name.
    pub worker_id: WorkerId,
    /// Grows with every start under this name.
    pub incarnation: u64,
    /// What to serve.
    pub model: ModelRef,
    /// Name under which clients ask for it.
    pub model_id: ModelId,
    /// What to run it on; this build supports it.
    pub device: DeviceSpec,
    /// How heartbeats name that device.
    pub device_name: String,
    /// Where the model files are.
    pub models_dir: PathBuf,
    /// The operator's own chat template: its text.
    pub chat_template: Option<String>,
    /// Cap of prompt plus answer in tokens.
    pub context_length: Option<usize>,
    /// Requests that are computed together.
    pub slots: NonZeroUsize,
    /// Budget of the KV cache in tokens.
    pub kv_tokens: Option<usize>,
    /// Requests that may wait for a slot.
    pub queue_limit: usize,
    /// CPU threads that compute.
    pub threads: Option<NonZeroUsize>,
    /// How long running requests may take once the worker is asked to end.
    pub grace: Duration,
}

impl TryFrom<Args> for Config {
    type Error = Vec<String>;

    fn try_from(args: Args) -> Result<Self, Vec<String>> {
        let mut mistakes = Mistakes::default();
        let address = SocketAddr::new(args.host, args.port);
        mistakes.keep(
            "--host",
            daemon::auth::check_bind(address, args.token.is_some(), args.insecure),
        );
        if args.slots.get() > MAX_SLOTS {
            mistakes.add("--slots", format_args!("at most {MAX_SLOTS}, got {}", args.slots));
        }
        let queen_urls = queen_urls(&args.queen_url, &mut mistakes);
        let model = mistakes.keep("--model", args.model.parse::<ModelRef>());
        let model_id = match args.model_id {
            Some(id) => mistakes.keep("--model-id", ModelId::new(id)),
            None => model.as_ref().map(ModelRef::model_id),
        };
        let device = mistakes.keep("--device", args.device.parse::<DeviceSpec>());
        let device = device.filter(|device| mistakes.keep("--device", device.check_build()).is_some());
        let device_name = args.device_name.unwrap_or_else(|| args.device.clone());
        let sensible = !device_name.is_empty() && device_name.len() <= MAX_DEVICE_NAME_BYTES;
        if !sensible || !device_name.chars().all(|c| c.is_ascii_graphic()) {
            let limit = format_args!("1 to {MAX_DEVICE_NAME_BYTES} visible ASCII characters");
            mistakes.add("--device-name", limit);
        }
        let models_dir = match args.models_dir {
            Some(dir) => Some(dir),
            None => mistakes.keep("--models-dir", model_store::default_root()),
        };
        let chat_template = args.chat_template.and_then(|file| {
            let text = std::fs::read_to_string(&file);
            mistakes.keep(
                "--chat-template",
                text.map_err(|error| format!("read {}: {error}", file.display())),
            )
        });
        let hive_id = args.hive_id.and_then(|id| mistakes.keep("--hive-id", HiveId::new(id)));
        let worker_id = mistakes.keep(
            "--worker-id",
            WorkerId::new(args.worker_id.unwrap_or_else(new_worker_id)),
        );

        match (model, model_id, device, models_dir, worker_id) {
            (Some(model), Some(model_id), Some(device), Some(models_dir), Some(worker_id)) if mistakes.0.is_empty() => {
                Ok(Self {
                    address,
                    token: args.token,
                    queen_urls,
                    advertise_host: args.advertise_host,
                    hive_id,
                    worker_id,
                    incarnation: args.incarnation.unwrap_or_else(now_ms),
                    model,
                    model_id,
                    device,
                    device_name,
                    models_dir,
                    chat_template,
                    context_length: args.context_length.map(NonZeroUsize::get),
                    slots: args.slots,
                    kv_tokens: args.kv_tokens.map(NonZeroUsize::get),
                    queue_limit: args.queue_limit,
                    threads: args.threads,
                    grace: Duration::from_secs(args.grace_s),
                })
            }
            _ => Err(mistakes.0),
        }
    }
}

/// All that is wrong with the settings.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, flag: &str, what: impl std::fmt::Display) {
        self.0.push(format!("{flag}: {what}"));
    }

    fn keep<T, E: std::fmt::Display>(&mut self, flag: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(flag, error)).ok()
    }
}

/// Each queen once.
fn queen_urls(texts: &[String], mistakes: &mut Mistakes) -> Vec<QueenUrl> {
    let mut urls = Vec::new();
    for text in texts {
        let url = mistakes.keep("--queen-url", text.parse().map_err(|why| format!("`{text}`: {why}")));
        urls.extend(url.filter(|url| !urls.contains(url)));
    }
    if urls.len() > MAX_QUEENS {
        mistakes.add("--queen-url", format_args!("at most {MAX_QUEENS} queens"));
    }
    urls
}

/// Of a process that its supervisor gives no number, the wall clock tells one start from the next.
fn now_ms() -> u64 {
    u64::try_from(Utc::now().timestamp_millis()).unwrap_or_default().max(1)
}

fn new_worker_id() -> String {
    format!("worker-{}", &uuid::Uuid::new_v4().simple().to_string()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configure(args: &[&str]) -> Result<Config, Vec<String>> {
        let args = ["worker", "--model", "smollm2-135m-instruct", "--models-dir", "/models"]
            .iter()
            .chain(args);
        Args::try_parse_from(args).unwrap().try_into()
    }

    fn mistakes(args: &[&str]) -> String {
        configure(args).unwrap_err().join("\n")
    }

    #[test]
    fn the_model_alone_is_enough() {
        let config = configure(&[]).unwrap();
        assert_eq!(config.model_id.as_str(), "smollm2-135m-instruct");
        assert_eq!(config.device, DeviceSpec::Cpu);
        assert_eq!(config.address, "127.0.0.1:0".parse().unwrap());
        assert!(config.worker_id.as_str().starts_with("worker-"));
        assert_ne!(
            config.worker_id,
            configure(&[]).unwrap().worker_id,
            "a new name at each start"
        );
    }

    #[test]
    fn all_mistakes_are_shown_at_once() {
        let mistakes = mistakes(&[
            "--model-id",
            "two words",
            "--device",
            "abacus",
            "--host",
            "0.0.0.0",
            "--queen-url",
            "queen",
            "--slots",
            "1000",
            "--chat-template",
            "/does/not/exist",
            "--hive-id",
            "",
        ]);
        for flag in [
            "--model-id",
            "--device",
            "--host",
            "--queen-url",
            "--slots",
            "--chat-template",
            "--hive-id",
        ] {
            assert!(mistakes.contains(flag), "{flag} is not in:\n{mistakes}");
        }
    }

    #[test]
    fn a_device_may_have_another_name_in_the_fleet() {
        assert_eq!(configure(&[]).unwrap().device_name, "cpu");
        assert_eq!(configure(&["--device-name", "cuda:3"]).unwrap().device_name, "cuda:3");
        for wrong in ["", "two words"] {
            assert!(mistakes(&["--device-name", wrong]).contains("--device-name"), "{wrong}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn the_version_names_the_devices_of_the_build() {
        let error = Args::try_parse_from(["worker", "--version"]).unwrap_err().to_string();
        assert!(error.trim_end().ends_with(", features: cpu)"), "{error}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_the_build_lacks_is_refused_with_the_name_of_the_feature() {
        let mistakes = mistakes(&["--device", "cuda:0"]);
        assert!(mistakes.contains("--device") && mistakes.contains("cuda"), "{mistakes}");
        assert!(mistakes.contains("feature"), "{mistakes}");
    }

    #[test]
    fn another_address_needs_a_token() {
        assert!(configure(&["--host", "0.0.0.0", "--token", "long-enough"]).is_ok());
        assert!(configure(&["--host", "0.0.0.0", "--insecure"]).is_ok());
    }

    #[test]
    fn several_queens_may_be_named() {
        let config = configure(&["--queen-url", "http://a:1,http://b:2", "--queen-url", "http://a:1/"]).unwrap();
        let urls: Vec<_> = config.queen_urls.iter().map(QueenUrl::as_str).collect();
        assert_eq!(urls, ["http://a:1", "http://b:2"], "each once");
        let many: Vec<_> = (1..=9).map(|port| format!("http://a:{port}")).collect();
        assert!(mistakes(&["--queen-url", &many.join(",")]).contains("at most 8"));
    }

    #[test]
    fn the_incarnation_is_the_one_given_and_else_the_time_of_the_start() {
        assert_eq!(configure(&["--incarnation", "7"]).unwrap().incarnation, 7);
        let before = now_ms();
        assert!(configure(&[]).unwrap().incarnation >= before);
        let zero = ["worker", "--model", "smollm2-135m-instruct", "--incarnation", "0"];
        assert!(Args::try_parse_from(zero).is_err(), "0 is a sender without one");
    }
}
