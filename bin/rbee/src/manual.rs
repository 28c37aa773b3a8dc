//! `rbee completions` and `rbee man`: what shells and manuals know of the command line, the daemons' settings included.

use std::fs;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, CommandFactory};
use daemon::app::Daemon;
use serde_json::json;

use crate::cli::{Cli, CompletionsArgs, Global, ManArgs};
use crate::render;

/// `rbee completions`.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut whole(), "rbee", &mut script);
    render::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

/// `rbee man`.
pub(crate) fn man(global: &Global, args: &ManArgs) -> anyhow::Result<ExitCode> {
    let folder = &args.folder;
    fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    let mut files = Vec::new();
    for (name, page) in pages()? {
        let file = folder.join(name);
        fs::write(&file, page).with_context(|| format!("write {}", file.display()))?;
        files.push(file);
    }
    if global.json {
        render::json_line(&json!({"files": files}))?;
    } else {
        render::print(&format!("{} pages are in {}", files.len(), folder.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The command line with the settings of the daemons, which they read themselves when they are called.
fn whole() -> Command {
    daemons().into_iter().fold(Cli::command(), |rbee, (word, settings)| {
        rbee.mut_subcommand(word, |described| {
            let about = described.get_about().cloned().unwrap_or_default();
            settings.name(word).about(about).version(None)
        })
    })
}

fn daemons() -> [(&'static str, Command); 3] {
    [
        ("queen", settings::<queen_rbee::Queen>()),
        ("hive", settings::<rbee_hive::Hive>()),
        ("worker", settings::<llm_worker_rbee::Worker>()),
    ]
}

fn settings<D: Daemon>() -> Command {
    D::Args::command()
}

/// A page for `rbee` and one for each of its commands: file name and text.
fn pages() -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut rbee = Cli::command().disable_help_subcommand(true);
    rbee.build();
    let mut pages = vec![page("rbee", rbee.clone())?];
    let daemons = daemons();
    for command in rbee.get_subcommands() {
        let word = command.get_name();
        let daemon = daemons.iter().find(|(name, _)| *name == word);
        let command = daemon.map_or(command, |(_, settings)| settings);
        pages.push(page(&format!("rbee-{word}"), command.clone())?);
    }
    Ok(pages)
}

fn page(name: &str, command: Command) -> anyhow::Result<(String, Vec<u8>)> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.name(name.to_owned()))
        .title(name.to_uppercase())
        .render(&mut text)?;
    Ok((
        format!("{name}.1"),
        with_sections(&String::from_utf8(text)?).into_bytes(),
    ))
}

/// A page whose examples, exit codes and notes stand in the sections where readers of manuals look for them, instead of
/// all in one that is filled like prose.
fn with_sections(page: &str) -> String {
    const SECTION: &str = "\n.SH ";
    let Some((before, rest)) = page.split_once("\n.SH EXTRA\n") else {
        return page.to_owned();
    };
    let (extra, after) = rest.split_at(rest.find(SECTION).unwrap_or(rest.len()));
    let mut text = before.to_owned();
    let mut has_notes = false;
    for block in extra.trim_end().split("\n\n") {
        match block.split_once('\n') {
            Some(("Examples:", lines)) => text.push_str(&format!("\n.SH EXAMPLES\n.nf\n{lines}\n.fi")),
            Some(("Exit codes:", lines)) => text.push_str(&format!("\n.SH \"EXIT STATUS\"\n.nf\n{lines}\n.fi")),
            _ => {
                text.push_str(if has_notes { "\n.PP\n" } else { "\n.SH NOTES\n" });
                text.push_str(block);
                has_notes = true;
            }
        }
    }
    text.push_str(match after {
        "" => "\n",
        after => after,
    });
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use shared_contract::variables;

    use super::*;

    fn script(shell: clap_complete::Shell) -> String {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut whole(), "rbee", &mut script);
        String::from_utf8(script).unwrap()
    }

    #[test]
    fn shells_know_the_commands_their_flags_and_the_settings_of_the_daemons() {
        for shell in [
            clap_complete::Shell::Bash,
            clap_complete::Shell::Zsh,
            clap_complete::Shell::Fish,
        ] {
            let script = script(shell);
            for word in ["serve", "replicas", "hives-from-ssh", "yield-to-owner", "kv-tokens"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    /// Who adds a setting adds its variable to the list, or all programs would call it misspelt.
    #[test]
    fn the_list_of_variables_is_that_of_all_programs() {
        fn read(command: &Command, into: &mut BTreeSet<String>) {
            let names = command.get_arguments().filter_map(clap::Arg::get_env);
            into.extend(names.map(|name| name.to_string_lossy().into_owned()));
            command.get_subcommands().for_each(|command| read(command, into));
        }
        // Those that are no settings: a worker's kernels, who started it, and the Python that fetches models.
        let mut names = BTreeSet::from(["RBEE_CPU_KERNELS", "RBEE_SUPERVISOR", "RBEE_PYTHON"].map(str::to_owned));
        read(&whole(), &mut names);
        assert!(
            names.iter().map(String::as_str).eq(variables::ALL.iter().copied()),
            "{names:#?}"
        );
    }

    #[test]
    fn every_command_has_a_page_and_a_daemons_page_has_its_settings() {
        let pages = pages().unwrap();
        let text = |name: &str| {
            let page = pages.iter().find(|(file, _)| file == name);
            String::from_utf8(page.unwrap_or_else(|| panic!("{name}")).1.clone()).unwrap()
        };
        for command in Cli::command().get_subcommands() {
            text(&format!("rbee-{}.1", command.get_name()));
        }
        assert!(text("rbee.1").contains("rbee\\-serve(1)"), "{}", text("rbee.1"));
        assert!(
            text("rbee-serve.1").contains("rbee serve qwen3\\-4b"),
            "{}",
            text("rbee-serve.1")
        );
        assert!(
            text("rbee.1").contains(".SH EXAMPLES\n.nf\n  rbee up "),
            "{}",
            text("rbee.1")
        );
        assert!(
            text("rbee.1").contains(".SH \"EXIT STATUS\"\n.nf\n  0 ") && text("rbee.1").contains(".fi\n.SH VERSION"),
            "{}",
            text("rbee.1")
        );
        assert!(
            text("rbee-serve.1").contains(".fi\n.SH NOTES\nThe queen keeps"),
            "{}",
            text("rbee-serve.1")
        );
        assert!(
            text("rbee-queen.1").contains("RBEE_HEARTBEAT_TTL_MS"),
            "{}",
            text("rbee-queen.1")
        );
    }
}
