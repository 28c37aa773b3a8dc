//! `rbee bench` on the command line.

use std::num::NonZeroU32;
use std::str::FromStr;

use clap::Args;
use daemon::Secret;
use daemon::quantity::Span;

use super::BaseUrl;

/// `rbee bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rbee bench smollm2-135m-instruct
  rbee bench qwen3-4b --concurrency 1,8,32 --prompt-tokens 512 --max-tokens 256
  rbee bench qwen3-4b --duration 30s --json
  rbee bench qwen3-4b --beside http://localhost:11434=qwen3:4b
  rbee bench smollm2-135m-instruct --same-prefix

Each stream sends its next request when the last one has ended. Every prompt differs from its first \
words on, so that no prefix cache flatters the figures. Beside another server, the two take turns at \
each concurrency. The exit status is 1 if a request failed.")]
pub(crate) struct BenchArgs {
    /// Model as the fleet names it (`rbee models`)
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Streams at once, one round for each number
    #[arg(
        short,
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "1,2,4,8,16"
    )]
    pub(crate) concurrency: Vec<NonZeroU32>,
    /// Requests of a round, at least one a stream [default: twice the streams, at least 4]
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "duration")]
    pub(crate) requests: Option<NonZeroU32>,
    /// How long a round begins new requests, instead of counting them, for example 30s
    #[arg(long, value_name = "DURATION")]
    pub(crate) duration: Option<Span>,
    /// About how many tokens a prompt has; the warm-up finds the number of words for it
    #[arg(long, value_name = "N", default_value = "128")]
    pub(crate) prompt_tokens: NonZeroU32,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value = "128")]
    pub(crate) max_tokens: NonZeroU32,
    /// Give all prompts the same beginning, to see what a prefix cache brings
    #[arg(long)]
    pub(crate) same_prefix: bool,
    /// Continue texts without a chat: for base models
    #[arg(long)]
    pub(crate) raw: bool,
    /// Another OpenAI-compatible server to measure beside, and its name for the model; may be repeated
    #[arg(long, value_name = "URL[=MODEL]")]
    pub(crate) beside: Vec<Beside>,
    /// API key of those servers; the fleet's key and token are not sent there
    #[arg(long, env = "RBEE_BESIDE_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) beside_key: Option<Secret>,
}

/// A server to measure beside the queen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beside {
    /// Where it listens.
    pub(crate) url: BaseUrl,
    /// Its name for the model; `None`: the same.
    pub(crate) model: Option<String>,
}

impl FromStr for Beside {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (url, model) = match text.split_once('=') {
            Some((_, "")) => return Err("a model must follow the `=`".to_owned()),
            Some((url, model)) => (url, Some(model.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            url: url.parse()?,
            model,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_beside_is_a_url_and_perhaps_its_name_for_the_model() {
        let beside = |text: &str| text.parse::<Beside>().map(|it| (it.url.to_string(), it.model));
        assert_eq!(beside("http://b:1/v1").unwrap(), ("http://b:1".to_owned(), None));
        let named = ("http://b:1".to_owned(), Some("org/m:4b".to_owned()));
        assert_eq!(beside("http://b:1/=org/m:4b").unwrap(), named);
        assert!(beside("http://b:1=").is_err());
        assert!(beside("b:1=m").is_err());
    }
}
