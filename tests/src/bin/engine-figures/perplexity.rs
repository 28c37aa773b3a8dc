//! Perplexity on a text beside llama-perplexity's.

use std::path::Path;

use candle_models::{DeviceSpec, LoadOptions, load};
use rbee_tests::perplexity::{WINDOW, perplexity};

use crate::llama_cpp::LlamaCpp;
use crate::table::Table;
use crate::{Args, Result};

pub(crate) fn compare(args: &Args, path: &Path, peer: Option<&LlamaCpp>, table: &mut Table) -> Result<()> {
    let options = LoadOptions {
        max_context: Some(WINDOW),
        kv_tokens: Some(WINDOW),
        threads: Some(args.threads),
        ..LoadOptions::new(DeviceSpec::Cpu)
    };
    let mut loaded = load(&args.model, &options, &mut |_| {}).map_err(|error| format!("load the model: {error}"))?;
    let text = std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let Some(ours) = perplexity(&mut loaded, &text) else {
        return Err(format!(
            "measure the perplexity: {} has fewer than {WINDOW} tokens",
            path.display()
        ));
    };
    let theirs = peer.map(|peer| peer.perplexity(path, WINDOW)).transpose()?;
    table.less_is_better("perplexity", "per token", &[ours], theirs.as_slice());
    if let Some(theirs) = theirs {
        let percent = 100.0 * (ours / theirs - 1.0);
        table.note(format!(
            "perplexity: ours {ours:.4}, llama.cpp's {theirs:.4}, {percent:+.2} %"
        ));
    }
    Ok(())
}
