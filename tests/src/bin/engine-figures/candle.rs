//! candle-transformers as it comes: the same file, one sequence.

use std::fs::File;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_gemma3, quantized_llama};

use crate::table::Table;
use crate::{Args, Result};

/// Tokens of the prompt.
const PREFILL: usize = 512;
/// Tokens decoded.
const DECODE: usize = 16;

enum Network {
    Llama(quantized_llama::ModelWeights),
    Gemma3(quantized_gemma3::ModelWeights),
}

impl Network {
    fn forward(&mut self, tokens: &[u32], position: usize) -> candle_core::Result<Tensor> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        match self {
            Self::Llama(network) => network.forward(&input, position),
            Self::Gemma3(network) => network.forward(&input, position),
        }
    }
}

/// Prefill and decode by candle-transformers.
pub(crate) fn compare(args: &Args, table: &mut Table) -> Result<()> {
    let mut network = load(args)?;
    let tokens: Vec<u32> = (0..PREFILL as u32).map(|index| 300 + index * 37 % 20_000).collect();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..args.runs.min(3) {
        let failed = |error| format!("run candle-transformers: {error}");
        let begin = Instant::now();
        network.forward(&tokens, 0).map_err(failed)?;
        prefill.push(PREFILL as f64 / begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        for index in 0..DECODE {
            network
                .forward(&[300 + index as u32], PREFILL + index)
                .map_err(failed)?;
        }
        decode.push(DECODE as f64 / begin.elapsed().as_secs_f64());
    }
    let middle = crate::table::median;
    table.note(format!(
        "candle-transformers, the same file: prefill {:.0} tokens/s, decode {:.1} tokens/s behind {PREFILL} tokens",
        middle(&prefill),
        middle(&decode)
    ));
    Ok(())
}

fn load(args: &Args) -> Result<Network> {
    let failed = |error: candle_core::Error| format!("load the model by candle-transformers: {error}");
    let mut file = File::open(&args.model).map_err(|error| format!("open the model: {error}"))?;
    let content = Content::read(&mut file).map_err(failed)?;
    let architecture = content
        .metadata
        .get("general.architecture")
        .and_then(|value| value.to_string().ok().cloned());
    match architecture.as_deref() {
        Some("llama") => {
            let network = quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu);
            network.map(Network::Llama).map_err(failed)
        }
        Some("gemma3") => {
            let network = quantized_gemma3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu);
            network.map(Network::Gemma3).map_err(failed)
        }
        other => Err(format!(
            "compare with candle-transformers: no comparison for the architecture {other:?}"
        )),
    }
}
