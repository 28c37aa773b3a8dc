//! `rbee run` on the command line.

use std::path::PathBuf;

use clap::Args;

/// `rbee run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee run smollm2-135m-instruct                  a chat; /help shows its words
  rbee run smollm2-135m-instruct \"Why is the sky blue?\"
  rbee run smollm2-135m-instruct --system \"Answer in French.\" \"Good morning!\"
  git diff | rbee run smollm2-135m-instruct --system \"Describe this change.\"
  rbee run smollm2-135m-instruct --file notes.txt \"Sum this up in a sentence.\"
  rbee run gemma3-270m --raw \"Once upon a time\"

Ctrl-C stops the answer; in a chat, Ctrl-D ends the chat. What you type in chats is kept in \
$XDG_STATE_HOME/rbee/chat-history (else ~/.local/state/rbee), for this user only.")]
pub(crate) struct RunArgs {
    /// Model as the fleet names it (`rbee models`)
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// What to ask; left out: standard input if something is piped in, else a chat; `-`: standard input
    pub(crate) prompt: Option<String>,
    /// Ask about the text of this file, which comes before the prompt; `-`: standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Most tokens of an answer [default: what the context holds; with --raw 256]
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; up to 2, higher is more varied
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Choose among the likeliest tokens whose probabilities reach this sum
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Makes a varied answer repeatable
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Instruction that comes before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Continue the prompt as it stands, without a chat: for base models
    #[arg(long)]
    pub(crate) raw: bool,
    /// Neither read nor keep what was typed in chats
    #[arg(long)]
    pub(crate) no_history: bool,
}
