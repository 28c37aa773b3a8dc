//! Words of `rbee completions` and `rbee man`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// `rbee completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee completions bash > ~/.local/share/bash-completion/completions/rbee
  rbee completions zsh > ~/.zfunc/_rbee       with fpath+=~/.zfunc in .zshrc
  rbee completions fish > ~/.config/fish/completions/rbee.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// `rbee man`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee man ~/.local/share/man/man1
  man rbee-run")]
pub(crate) struct ManArgs {
    /// Where the pages go; it is made if it is not there
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
}
