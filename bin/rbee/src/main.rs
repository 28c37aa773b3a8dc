//! `rbee`: the command people type, and the three daemons under one name.
//!
//! Owns: the command line, what people read, and the processes that `rbee up` starts.
//! Must not know: how a daemon does its work; it only calls them over HTTP, or becomes one.

mod answer;
mod api;
mod bench;
mod chat;
mod cli;
mod control;
mod decisions;
mod doctor;
mod drain;
mod fleet;
mod health;
mod jobs;
mod join;
mod local;
mod logs;
mod manual;
mod models;
mod progress;
mod ps;
mod render;
mod run;
mod serve;
mod top;
mod up;
mod why;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use daemon::Shutdown;

use cli::{Cli, Command, ModelsArgs, PullArgs};

/// Exit status of a command that failed.
const FAILED: u8 = 1;
/// Exit status of a command line that is not valid.
const USAGE: u8 = 2;
/// Exit status when no queen answers.
const NO_QUEEN: u8 = 3;
/// Exit status of an interrupted command, as shells report it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((program, rest)) = daemon_call(&args) {
        return match program {
            "rbee queen" => daemon::app::main::<queen_rbee::Queen>(program, rest),
            "rbee hive" => daemon::app::main::<rbee_hive::Hive>(program, with_own_worker(rest)),
            _ => daemon::app::main::<llm_worker_rbee::Worker>(program, rest),
        };
    }
    for sentence in daemon::config::unread_variables() {
        render::note(&format!("warning: {sentence}"));
    }
    let matches = Cli::command()
        .try_get_matches()
        .unwrap_or_else(|error| daemon::config::without_secret(error, &Cli::command()).exit());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Err(message) = check(&cli, &matches) {
        Cli::command()
            .error(clap::error::ErrorKind::ArgumentConflict, message)
            .exit();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the runtime: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let result = runtime.block_on(command(cli));
    // A blocking read of standard input, or a pull that is being given up, must not hold the exit.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| failed(&error))
}

/// The daemon that the first words name, and its own arguments. `help queen` is the queen's help.
fn daemon_call(args: &[OsString]) -> Option<(&'static str, Vec<OsString>)> {
    let program = |word: &OsString| match word.to_str() {
        Some("queen") => Some("rbee queen"),
        Some("hive") => Some("rbee hive"),
        Some("worker") => Some("rbee worker"),
        _ => None,
    };
    match args {
        [help, word] if help == "help" => Some((program(word)?, vec!["--help".into()])),
        [word, rest @ ..] => Some((program(word)?, rest.to_vec())),
        [] => None,
    }
}

/// Lets the hive start its workers with this same program, so that one file is enough on a machine.
///
/// Nothing that the user says is overridden: neither flag nor variable, nor what a settings file might say.
fn with_own_worker(mut args: Vec<OsString>) -> Vec<OsString> {
    let says = |flag: &str, variable: &str| {
        let flagged = |arg: &OsString| arg.to_str().is_some_and(|arg| arg.split('=').next() == Some(flag));
        std::env::var_os(variable).is_some() || args.iter().any(flagged)
    };
    if says("--worker-command", "RBEE_WORKER_COMMAND") || says("--config", "RBEE_CONFIG") {
        return args;
    }
    if let Ok(program) = std::env::current_exe() {
        args.extend([
            "--worker-command".into(),
            program.into(),
            "--worker-command".into(),
            "worker".into(),
        ]);
    }
    args
}

/// Finds flags that would be ignored.
fn check(cli: &Cli, matches: &clap::ArgMatches) -> Result<(), String> {
    let is_typed = |matches: &clap::ArgMatches, id| {
        // Not each command has it.
        let source = matches.try_contains_id(id).is_ok().then(|| matches.value_source(id));
        source.flatten() == Some(clap::parser::ValueSource::CommandLine)
    };
    let queen_url_given = is_typed(matches, "queen_url");
    let is_given = |id| matches.subcommand().is_some_and(|(_, matches)| is_typed(matches, id));
    match &cli.command {
        Command::Up(_) if queen_url_given => {
            Err("`rbee up` starts its own queen: choose its address with --host and --port".to_owned())
        }
        Command::Join(_) if queen_url_given => {
            Err("the queen's URL stands behind `rbee join`, without a flag".to_owned())
        }
        Command::Pull(PullArgs { local: false, .. }) | Command::Models(ModelsArgs { local: false, .. })
            if is_given("catalogue") =>
        {
            Err("the hives have catalogues of their own: --catalogue is for --local".to_owned())
        }
        // Its variable may stand there for another time.
        Command::Bench(args) if args.beside.is_empty() && is_given("beside_key") => {
            Err("--beside-key is for the servers of --beside, and none is named".to_owned())
        }
        Command::Completions(_) if cli.global.json => {
            Err("`rbee completions` prints a script for a shell, which has no form in JSON".to_owned())
        }
        Command::Queen(_) | Command::Hive(_) | Command::Worker(_) => {
            let word = matches.subcommand_name().unwrap_or_default();
            Err(format!(
                "a daemon takes its own flags: write them after the word, `rbee {word} ...`"
            ))
        }
        _ => Ok(()),
    }
}

async fn command(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    let shutdown = Shutdown::new();
    // The others hold nothing that would have to be put in order.
    if matches!(
        command,
        Command::Up(_)
            | Command::Join(_)
            | Command::Top(_)
            | Command::Pull(_)
            | Command::Rm(_)
            | Command::Spawn(_)
            | Command::Stop(_)
            | Command::Logs(_)
            | Command::Bench(_)
    ) {
        shutdown.listen(true)?;
    }
    match command {
        Command::Up(args) => up::up(global, args, &shutdown).await,
        Command::Join(args) => join::join(global, args, &shutdown).await,
        Command::Run(args) => run::run(&global, args, &shutdown).await,
        Command::Ps => ps::ps(&global).await,
        Command::Top(args) => top::top(&global, &args, &shutdown).await,
        Command::Models(args) => models::models(&global, args).await,
        Command::Pull(args) => control::pull(&global, args, &shutdown).await,
        Command::Rm(args) => control::rm(&global, args, &shutdown).await,
        Command::Spawn(args) => control::spawn(&global, args, &shutdown).await,
        Command::Stop(args) => control::stop(&global, args, &shutdown).await,
        Command::Logs(args) => logs::logs(&global, args, &shutdown).await,
        Command::Why(args) => why::why(&global, &args).await,
        Command::Decisions(args) => decisions::decisions(&global, &args).await,
        Command::Serve(args) => serve::serve(&global, args).await,
        Command::Drain(args) => drain::drain(&global, &args).await,
        Command::Bench(args) => bench::bench(&global, &args, &shutdown).await,
        Command::Doctor(args) => doctor::doctor(&global, &args).await,
        Command::Health(args) => health::health(&global, &args).await,
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&global, &args),
        Command::Queen(_) | Command::Hive(_) | Command::Worker(_) => {
            anyhow::bail!("start a daemon: its word must come first")
        }
    }
}

/// Shows the error and finds its exit status.
fn failed(error: &anyhow::Error) -> ExitCode {
    let closed_pipe = error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
    if closed_pipe {
        // The reader, `head` for example, has what it wanted.
        return ExitCode::SUCCESS;
    }
    render::note(&format!("error: {error:#}"));
    match error.downcast_ref::<api::Error>() {
        Some(error) if error.is_queen_missing() => ExitCode::from(NO_QUEEN),
        _ if error.is::<NoQueen>() => ExitCode::from(NO_QUEEN),
        _ if error.is::<Usage>() => ExitCode::from(USAGE),
        _ => ExitCode::from(FAILED),
    }
}

/// A mistake on the command line that only a closer look could find.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// No queen answers, and what to do about it is not what other commands would say.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoQueen(String);

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_daemon_gets_its_arguments_as_they_are() {
        let (program, rest) = daemon_call(&words("queen --port 1 --json")).unwrap();
        assert_eq!((program, rest), ("rbee queen", words("--port 1 --json")));
        let (program, rest) = daemon_call(&words("help hive")).unwrap();
        assert_eq!((program, rest), ("rbee hive", words("--help")));
        assert!(daemon_call(&words("--json queen")).is_none());
        assert!(daemon_call(&words("help")).is_none());
        assert!(daemon_call(&words("ps")).is_none());
    }

    #[test]
    fn a_hive_starts_this_program_as_its_worker_unless_told_otherwise() {
        let args = with_own_worker(words("--port 1"));
        assert_eq!(args.len(), 6);
        assert_eq!(
            (args[2].to_str(), args[5].to_str()),
            (Some("--worker-command"), Some("worker"))
        );
        for given in ["--worker-command other", "--worker-command=other", "--config hive.toml"] {
            assert_eq!(with_own_worker(words(given)), words(given));
        }
    }

    fn checked(text: &str) -> Result<(), String> {
        let matches = Cli::command().get_matches_from(words(text));
        check(&Cli::from_arg_matches(&matches).unwrap(), &matches)
    }

    #[test]
    fn a_flag_that_would_be_ignored_is_refused() {
        assert!(checked("rbee up --queen-url http://q:1").is_err());
        assert!(checked("rbee --queen-url http://q:1 up").is_err());
        assert!(checked("rbee --json queen --port 1").is_err());
        assert!(checked("rbee bench m --beside-key battery-staple").is_err());
        assert!(checked("rbee bench m --beside http://b:1 --beside-key battery-staple").is_ok());
        assert!(checked("rbee pull m --catalogue mine.toml").is_err());
        assert!(checked("rbee pull m --local --catalogue mine.toml").is_ok());
        assert!(checked("rbee up").is_ok());
    }
}
