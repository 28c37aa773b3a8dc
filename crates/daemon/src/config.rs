//! Settings: a flag, an `RBEE_*` variable and a TOML key for each, in this order of precedence.
//!
//! A daemon declares its settings once, as `clap` arguments. The key of the TOML file is the flag's name with `_` for
//! `-`; a key that no flag has is an error.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Parser};
use shared_contract::variables;

use crate::logs::LogFormat;
use crate::traces::Collector;

/// The part of their pairs of letters that two names must have in common for one to be taken for the other misspelt.
const ALIKE: f64 = 0.5;

/// Settings that all daemons have.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// TOML file with settings; flags and variables win over it
    #[arg(long, env = "RBEE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the effective settings as TOML and exit
    #[arg(long)]
    pub print_config: bool,
    /// Log level, or a list such as `info,queen_rbee=debug`
    #[arg(long, env = "RBEE_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Form of the log lines
    #[arg(
        long,
        env = "RBEE_LOG_FORMAT",
        value_enum,
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
    /// Write `{"port": N, "pid": N}` to this file once the daemon listens
    #[arg(long, env = "RBEE_ANNOUNCE", value_name = "FILE")]
    pub announce: Option<PathBuf>,
    /// Send traces of requests to this OpenTelemetry collector (OTLP over HTTP), for example http://localhost:4318
    #[arg(long, env = "RBEE_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<Collector>,
}

/// Why there are no settings. `clap`'s own errors include `--help` and `--version`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// From the command line or the environment.
    #[error(transparent)]
    Args(#[from] clap::Error),
    /// From the file.
    #[error("settings file {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    /// Prints the error, or the help that was asked for, and ends the process as `clap` would.
    pub fn exit(&self) -> ! {
        match self {
            Self::Args(error) => error.exit(),
            Self::File { .. } => {
                eprintln!("error: {self}");
                std::process::exit(2)
            }
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Loaded<A> {
    /// Run with these settings.
    Run(A),
    /// `--print-config`: print this and exit.
    Print(String),
}

/// Reads the settings of `program` from `args` (without the program's name), the environment and the file.
pub fn load<A: Parser>(program: &str, args: impl IntoIterator<Item = OsString>) -> Result<Loaded<A>, ConfigError> {
    let args: Vec<OsString> = std::iter::once(OsString::from(program)).chain(args).collect();
    let command = A::command().name(program.to_owned()).bin_name(program.to_owned());
    // Required settings may stand in the file, so the first look must not insist on them.
    let first = command.clone().ignore_errors(true).try_get_matches_from(&args)?;
    let command = match first.try_get_one::<PathBuf>("config").ok().flatten() {
        Some(path) => with_file(command, path)?,
        None => command,
    };
    let matches = command
        .clone()
        .try_get_matches_from(&args)
        .map_err(|error| without_secret(error, &command))?;
    if matches.try_get_one::<bool>("print_config").ok().flatten() == Some(&true) {
        return Ok(Loaded::Print(print(&command, &matches)));
    }
    Ok(Loaded::Run(A::from_arg_matches(&matches)?))
}

/// A sentence about each variable of the environment that begins like those of rbee and that none of its programs reads.
/// Most are misspelt, and what they were to set is missing.
pub fn unread_variables() -> Vec<String> {
    unread(std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()))
}

fn unread(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut strays: Vec<_> = names
        .filter(|name| name.starts_with(variables::PREFIX) && !variables::ALL.contains(&name.as_str()))
        .collect();
    strays.sort();
    let sentence = |stray: &String| {
        let own = variables::PREFIX.len();
        let alike = |known: &&str| strsim::sorensen_dice(&stray[own..], &known[own..]);
        let nearest = variables::ALL.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
        let guess = nearest
            .filter(|known| alike(known) >= ALIKE)
            .map_or_else(String::new, |known| format!("; did you mean {known}?"));
        format!("the variable {stray} has no effect, as no program of rbee reads it{guess}")
    };
    strays.iter().map(sentence).collect()
}

/// Takes the value out of an error about a secret, which is a setting whose variable is hidden in the help.
pub fn without_secret(error: clap::Error, command: &Command) -> clap::Error {
    let Some(ContextValue::String(setting)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = setting
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .trim_start_matches('-');
    let is_secret = |arg: &Arg| arg.is_hide_env_values_set() && arg.get_long() == Some(flag);
    if !command.get_arguments().any(is_secret) {
        return error;
    }
    let reason = std::error::Error::source(&error).map_or_else(String::new, |reason| format!(": {reason}"));
    command
        .clone()
        .error(error.kind(), format!("invalid value for --{flag}{reason}"))
}

/// Makes the file's values the defaults of their flags.
fn with_file(mut command: Command, path: &Path) -> Result<Command, ConfigError> {
    let fail = |reason: String| ConfigError::File {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| fail(error.to_string()))?;
    let mut problems = Vec::new();
    for (key, value) in table {
        if !command
            .get_arguments()
            .any(|arg| arg.get_id() == key.as_str() && is_setting(arg))
        {
            let known: Vec<_> = command
                .get_arguments()
                .filter(|arg| is_setting(arg))
                .map(|arg| arg.get_id().as_str())
                .collect();
            problems.push(format!("unknown key `{key}`; known keys are {}", known.join(", ")));
            continue;
        }
        match texts(&value) {
            Some(values) => {
                command = command.mut_arg(&key, |arg| arg.required(false).default_values(values));
            }
            None => problems.push(format!(
                "key `{key}`: only texts, numbers, booleans and lists of them are taken"
            )),
        }
    }
    if problems.is_empty() {
        Ok(command)
    } else {
        Err(fail(problems.join("; ")))
    }
}

fn is_setting(arg: &Arg) -> bool {
    !matches!(arg.get_id().as_str(), "help" | "version" | "config" | "print_config")
}

fn texts(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::Array(values) => values.iter().map(text).collect(),
        value => Some(vec![text(value)?]),
    }
}

fn text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

fn print(command: &Command, matches: &ArgMatches) -> String {
    let mut lines = String::new();
    for arg in command.get_arguments().filter(|arg| is_setting(arg)) {
        let id = arg.get_id().as_str();
        let Some(values) = matches.get_raw(id) else { continue };
        let mut values: Vec<toml::Value> = values
            .map(|value| {
                // A setting whose variable is hidden in the help is a secret.
                if arg.is_hide_env_values_set() {
                    return toml::Value::String("[redacted]".into());
                }
                typed(&value.to_string_lossy())
            })
            .collect();
        let value = match arg.get_action() {
            ArgAction::Append => toml::Value::Array(values),
            _ => values.remove(0),
        };
        lines.push_str(&format!("{id} = {value}\n"));
    }
    lines
}

fn typed(text: &str) -> toml::Value {
    match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) => toml::Value::Integer(number),
        (_, Ok(flag)) => toml::Value::Boolean(flag),
        _ => toml::Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[derive(Debug, Parser)]
    struct Example {
        #[command(flatten)]
        common: CommonArgs,
        #[arg(long, default_value_t = 1)]
        port: u16,
        #[arg(long)]
        name: String,
        #[arg(long)]
        hive: Vec<String>,
        #[arg(long)]
        insecure: bool,
        #[arg(long, env = "RBEE_TEST_NEVER_SET", hide_env_values = true)]
        token: Option<String>,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn load_with(file: &tempfile::NamedTempFile, args: &[&str]) -> Result<Loaded<Example>, ConfigError> {
        let config = [OsString::from("--config"), file.path().into()];
        load("example", config.into_iter().chain(args.iter().map(OsString::from)))
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = file("port = 2\nname = \"from file\"\nhive = [\"a\", \"b\"]\ninsecure = true\n");
        let Loaded::Run(example) = load_with(&file, &["--name", "from flag"]).unwrap() else {
            panic!("asked to run")
        };
        assert_eq!((example.port, example.name.as_str()), (2, "from flag"));
        assert_eq!(example.hive, ["a", "b"]);
        assert!(example.insecure);
        assert_eq!(example.common.log, "info");
    }

    #[test]
    fn every_unknown_key_is_named_with_those_there_are() {
        let error = load_with(&file("prot = 2\nnmae = \"x\"\n"), &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`prot`") && error.contains("`nmae`") && error.contains("port"),
            "{error}"
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused() {
        let error = load_with(&file("port = \"many\"\nname = \"x\"\n"), &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains("many") && error.contains("--port"), "{error}");
    }

    #[test]
    fn a_variable_that_no_program_reads_is_named_with_the_one_that_was_meant() {
        let names = [
            "RBEE_TOKN",
            "RBEE_TOKEN",
            "RBEE_HIVE_PORT",
            "RBEE_MODELS_DIR",
            "RBEE_QUEEN_TOKEN",
            "RBEE_ZZZ",
            "PATH",
            "XRBEE_TOKN",
        ];
        let guess = |stray: &str, guess: &str| {
            format!("the variable {stray} has no effect, as no program of rbee reads it{guess}")
        };
        assert_eq!(
            unread(names.into_iter().map(str::to_owned)),
            [
                guess("RBEE_MODELS_DIR", "; did you mean RBEE_MODELS?"),
                guess("RBEE_QUEEN_TOKEN", "; did you mean RBEE_TOKEN?"),
                guess("RBEE_TOKN", "; did you mean RBEE_TOKEN?"),
                guess("RBEE_ZZZ", ""),
            ]
        );
    }

    #[test]
    fn a_secret_that_is_refused_is_not_shown() {
        #[derive(Debug, Parser)]
        struct Guarded {
            #[arg(long, env = "RBEE_TEST_NEVER_SET", hide_env_values = true)]
            token: Option<crate::Secret>,
        }
        let error = load::<Guarded>("guarded", ["--token", "two words"].map(OsString::from))
            .unwrap_err()
            .to_string();
        assert!(error.contains("--token") && error.contains("printable"), "{error}");
        assert!(!error.contains("two words"), "{error}");
        let shown = Guarded::try_parse_from(["guarded", "--token", "long-enough-token"]).unwrap();
        assert_eq!(shown.token.unwrap().expose(), "long-enough-token");
    }

    #[test]
    fn the_printed_settings_are_a_file_without_secrets() {
        let file = file("name = \"x\"\ntoken = \"very-secret\"\n");
        let Loaded::Print(text) = load_with(&file, &["--print-config", "--hive", "a"]).unwrap() else {
            panic!("asked to print")
        };
        assert!(!text.contains("very-secret"), "{text}");
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["hive"].as_array().unwrap().len(), 1);
        assert_eq!(table["port"].as_integer(), Some(1));
    }
}
