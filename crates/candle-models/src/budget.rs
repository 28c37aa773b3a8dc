//! How much memory a model takes, and how many tokens fit: known from the files' headers, before any weight is read.

use cpu_kernels::BLOCK_TOKENS;

use crate::architecture::{Architecture, LayerShape};
use crate::backend::Backend;
use crate::error::LoadError;
use crate::load::LoadOptions;
use crate::runner::Limits;
use model_format::{ModelFile, RowShape};

/// KV cache memory that is offered when nobody says how much, in bytes; at least one whole context is.
const DEFAULT_KV_BYTES: usize = 1 << 30;
/// Blocks that a table can name.
const MAX_BLOCKS: usize = u32::MAX as usize - 1;

/// A model's memory in bytes, and the limits that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) weight_bytes: usize,
    pub(crate) scratch_bytes: usize,
    pub(crate) kv_bytes_per_block: usize,
    pub(crate) limits: Limits,
}

impl Budget {
    /// The longest sequence that the options allow, whatever the memory.
    ///
    /// # Errors
    /// A size is zero.
    pub(crate) fn longest(options: &LoadOptions, trained: usize) -> Result<usize, LoadError> {
        let context = positive(options.max_context, "the context length")?.unwrap_or(trained);
        let kv_tokens = positive(options.kv_tokens, "the KV cache's size in tokens")?;
        let kv_tokens = kv_tokens.map_or(usize::MAX, |n| n.div_ceil(BLOCK_TOKENS).saturating_mul(BLOCK_TOKENS));
        Ok(context.min(trained).min(kv_tokens))
    }

    /// # Errors
    /// The model does not fit the memory limit.
    pub(crate) fn plan<B: Backend>(
        file: &ModelFile,
        architecture: &Architecture,
        backend: &B,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let weights = file.tensors().map(|(_, tensor)| match *tensor.dims {
            [rows, cols] => backend.expected_matrix_bytes(tensor.dtype, rows, cols),
            ref dims => dims.iter().product::<usize>() * size_of::<f32>(),
        });
        let longest = Self::longest(options, architecture.context_length)?;
        Self::fit(
            weights.sum(),
            scratch_bytes(architecture),
            backend.kv_bytes_per_block(&architecture.layers),
            longest,
            options,
        )
    }

    fn fit(
        weight_bytes: usize,
        scratch_bytes: usize,
        kv_bytes_per_block: usize,
        longest: usize,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let per_block = kv_bytes_per_block.max(1);
        let left = options
            .memory_limit
            .map(|limit| limit.saturating_sub(weight_bytes.saturating_add(scratch_bytes)) / per_block);
        let kv_blocks = match options.kv_tokens {
            Some(tokens) => tokens.div_ceil(BLOCK_TOKENS),
            None => {
                let wanted = longest.div_ceil(BLOCK_TOKENS).max(DEFAULT_KV_BYTES / per_block);
                wanted.min(left.unwrap_or(MAX_BLOCKS)).clamp(1, MAX_BLOCKS)
            }
        };
        if kv_blocks > MAX_BLOCKS {
            return Err(LoadError::Options(format!(
                "a KV cache of {kv_blocks} blocks of {BLOCK_TOKENS} tokens is larger than any can be"
            )));
        }
        let budget = Self {
            weight_bytes,
            scratch_bytes,
            kv_bytes_per_block,
            limits: Limits {
                context_length: longest.min(kv_blocks * BLOCK_TOKENS),
                kv_blocks,
            },
        };
        match options.memory_limit.zip(left) {
            Some((limit, left)) if kv_blocks > left => Err(budget.refusal(limit, left * BLOCK_TOKENS)),
            _ => Ok(budget),
        }
    }

    pub(crate) fn kv_tokens(&self) -> usize {
        self.limits.kv_blocks * BLOCK_TOKENS
    }

    pub(crate) fn kv_bytes(&self) -> usize {
        self.limits.kv_blocks.saturating_mul(self.kv_bytes_per_block)
    }

    fn refusal(&self, limit: usize, tokens_left: usize) -> LoadError {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let remedy = match tokens_left {
            0 => "take a smaller model, or one with fewer bits per weight".to_owned(),
            tokens => format!("lower --kv-tokens to {tokens} or less, or take a smaller model"),
        };
        LoadError::Memory(format!(
            "it takes {} MiB of weights, {} MiB for {} tokens in the KV cache and {} MiB to work in, \
             and may take {} MiB; {remedy}",
            mib(self.weight_bytes),
            mib(self.kv_bytes()),
            self.kv_tokens(),
            mib(self.scratch_bytes),
            mib(limit)
        ))
    }
}

fn positive(value: Option<usize>, name: &str) -> Result<Option<usize>, LoadError> {
    match value {
        Some(0) => Err(LoadError::Options(format!("{name} must be at least 1"))),
        value => Ok(value),
    }
}

/// What a large step works in, of the layer that needs most.
fn scratch_bytes(architecture: &Architecture) -> usize {
    let row = |layer: &LayerShape| RowShape {
        width: architecture.width as u64,
        query_width: layer.heads.query_width() as u64,
        kv_width: layer.heads.kv_width() as u64,
        hidden: architecture.hidden as u64,
        vocab: architecture.vocab as u64,
    };
    let bytes = architecture.layers.iter().map(|layer| row(layer).scratch_bytes());
    usize::try_from(bytes.max().unwrap_or(0)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceSpec;

    const MIB: usize = 1 << 20;

    fn options(max_context: Option<usize>, kv_tokens: Option<usize>, memory_limit: Option<usize>) -> LoadOptions {
        LoadOptions {
            max_context,
            kv_tokens,
            memory_limit,
            ..LoadOptions::new(DeviceSpec::Cpu)
        }
    }

    /// A model for 8192 tokens with 100 MiB of weights, 10 MiB to work in and 32 MiB per block: 1 MiB per token.
    fn plan(options: &LoadOptions) -> Result<(usize, usize), LoadError> {
        let longest = Budget::longest(options, 8192)?;
        let budget = Budget::fit(100 * MIB, 10 * MIB, 32 * MIB, longest, options)?;
        Ok((budget.limits.context_length, budget.kv_tokens()))
    }

    #[track_caller]
    fn assert_plan(options: &LoadOptions, context_length: usize, kv_tokens: usize) {
        assert_eq!(plan(options).expect("it fits"), (context_length, kv_tokens));
    }

    #[test]
    fn by_default_the_cache_holds_a_whole_context_or_a_gibibyte_whichever_is_more() {
        assert_plan(&options(None, None, None), 8192, 8192);
        assert_plan(&options(Some(100), None, None), 100, 1024);
    }

    #[test]
    fn a_context_is_never_longer_than_the_model_s_own_or_than_the_cache() {
        assert_plan(&options(Some(100_000), Some(50_016), None), 8192, 50_016);
        assert_plan(&options(None, Some(512), None), 512, 512);
    }

    #[test]
    fn tokens_are_rounded_up_to_whole_blocks() {
        assert_plan(&options(None, Some(1), None), 32, 32);
        assert_plan(&options(Some(20), Some(33), None), 20, 64);
    }

    #[test]
    fn the_default_takes_what_a_memory_limit_leaves() {
        assert_plan(&options(None, None, Some(110 * MIB + 100 * MIB)), 96, 96);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures_and_the_remedy() {
        let error = plan(&options(None, Some(200), Some(200 * MIB))).expect_err("too much");
        assert_eq!(
            error.to_string(),
            "the model does not fit: it takes 100 MiB of weights, 224 MiB for 224 tokens in the KV cache and 10 MiB to \
             work in, and may take 200 MiB; lower --kv-tokens to 64 or less, or take a smaller model"
        );
        let error = plan(&options(None, None, Some(50 * MIB))).expect_err("too much");
        assert!(
            error
                .to_string()
                .ends_with("take a smaller model, or one with fewer bits per weight")
        );
    }

    #[test]
    fn sizes_of_zero_and_beyond_any_cache_are_refused() {
        for (max_context, kv_tokens) in [(Some(0), None), (None, Some(0)), (None, Some(usize::MAX))] {
            let options = options(max_context, kv_tokens, None);
            assert!(matches!(plan(&options), Err(LoadError::Options(_))), "{options:?}");
        }
    }
}
