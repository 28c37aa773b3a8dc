//! From a file to a model that runs.

use std::num::NonZeroUsize;
use std::path::Path;

use batch_engine::Model;

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::tensor::Candle;
use crate::chat_template::ChatTemplate;
use crate::device::DeviceSpec;
use crate::error::LoadError;
use crate::families::{Family, Gemma3, Llama, Network};
use crate::gguf::Gguf;
use crate::runner::{Limits, Runner};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// KV cache memory that is offered when nobody says how much, in bytes; at least one whole context is.
const DEFAULT_KV_BYTES: usize = 1 << 30;

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: DeviceSpec,
    /// Tokens that one sequence may hold at most; never more than the model was made for. `None`: as many.
    pub max_context: Option<usize>,
    /// Tokens that all KV caches together may hold. `None`: what fits 1 GiB, at least one whole context. Memory is
    /// taken as sequences grow, not before.
    pub kv_tokens: Option<usize>,
    /// Threads of a step on the CPU (a pool of the model's own). `None`: as many as the process may run on.
    pub threads: Option<NonZeroUsize>,
}

impl LoadOptions {
    /// Everything but the device left to the defaults.
    pub fn new(device: DeviceSpec) -> Self {
        Self {
            device,
            max_context: None,
            kv_tokens: None,
            threads: None,
        }
    }
}

/// A model and what belongs to its text side.
pub struct LoadedModel {
    /// For the engine.
    pub model: Box<dyn Model>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How messages become a prompt; `None` where the file has no template: a base model that cannot chat.
    pub chat_template: Option<ChatTemplate>,
    /// Facts about it.
    pub info: ModelInfo,
}

/// Facts about a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Its family.
    pub family: Family,
    /// The name that the file gives it.
    pub name: Option<String>,
    /// Tokens that one sequence may hold, prompt and answer together.
    pub context_length: usize,
    /// Tokens that the model was made for.
    pub trained_context_length: usize,
    /// Logits per token.
    pub vocab_size: usize,
    /// Tokens that all KV caches together may hold.
    pub kv_tokens: usize,
    /// Bytes that one token takes in the KV cache.
    pub kv_bytes_per_token: usize,
    /// Bytes that the weights take on the device.
    pub weight_bytes: usize,
}

/// Loads a GGUF file. Blocking, for as long as it takes to read the file. `progress` gets shares of 1 that rise.
///
/// # Errors
/// The file is unreadable, damaged, or of a kind that is not supported; the device is not there; the options
/// contradict the model.
pub fn load(path: &Path, options: &LoadOptions, progress: &mut dyn FnMut(f32)) -> Result<LoadedModel, LoadError> {
    let device = options.device.open()?;
    let file = File::open(path)?;
    match options.device {
        DeviceSpec::Cpu => file.load_family(Cpu::new(options.threads)?, options, progress),
        DeviceSpec::Cuda(_) | DeviceSpec::Metal(_) => file.load_family(Candle::new(device), options, progress),
    }
}

/// A file whose text side is read.
pub(crate) struct File {
    gguf: Gguf,
    family: Family,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
}

impl File {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let gguf = Gguf::open(path)?;
        let family = Family::of(&gguf)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let chat_template = gguf
            .string("tokenizer.chat_template")
            .map(|source| ChatTemplate::new(source, tokenizer.bos_token(), tokenizer.eos_token()))
            .transpose()?;
        Ok(Self {
            gguf,
            family,
            tokenizer,
            chat_template,
        })
    }

    pub(crate) fn load_family<B: Backend>(
        self,
        backend: B,
        options: &LoadOptions,
        progress: &mut dyn FnMut(f32),
    ) -> Result<LoadedModel, LoadError> {
        match self.family {
            Family::Llama => self.load_network(backend, options, progress, Llama::load),
            Family::Gemma3 => self.load_network(backend, options, progress, Gemma3::load),
        }
    }

    fn load_network<B: Backend, N: Network<B>>(
        self,
        backend: B,
        options: &LoadOptions,
        progress: &mut dyn FnMut(f32),
        load: impl FnOnce(&mut Weights<'_, B>) -> Result<N, LoadError>,
    ) -> Result<LoadedModel, LoadError> {
        let Self {
            gguf,
            family,
            tokenizer,
            chat_template,
        } = self;
        let architecture = family.architecture();
        let trained = gguf.required_count(&format!("{architecture}.context_length"))?;
        let mut weights = Weights::new(&gguf, &backend, progress);
        let network = load(&mut weights)?;
        let weight_bytes = weights.device_bytes();
        gguf.refuse_unused_tensors(architecture)?;
        if tokenizer.vocab_size() > network.vocab_size() {
            let (tokens, rows) = (tokenizer.vocab_size(), network.vocab_size());
            return Err(LoadError::Damaged(format!(
                "it has {tokens} tokens but embeddings for {rows}"
            )));
        }
        let kv_bytes_per_token = network
            .heads()
            .iter()
            .map(|heads| backend.cache_bytes_per_token(heads))
            .sum();
        let limits = limits(options, trained, kv_bytes_per_token)?;
        let info = ModelInfo {
            family,
            name: gguf.string("general.name").map(str::to_owned),
            context_length: limits.context_length,
            trained_context_length: trained,
            vocab_size: network.vocab_size(),
            kv_tokens: limits.kv_tokens,
            kv_bytes_per_token,
            weight_bytes,
        };
        tracing::info!(%family, name = info.name, weight_bytes, context_length = info.context_length, "model loaded");
        let model = Box::new(Runner::new(backend, network, limits, tokenizer.end_tokens()));
        Ok(LoadedModel {
            model,
            tokenizer,
            chat_template,
            info,
        })
    }
}

fn limits(options: &LoadOptions, trained: usize, kv_bytes_per_token: usize) -> Result<Limits, LoadError> {
    let positive = |value: Option<usize>, name: &str| match value {
        Some(0) => Err(LoadError::Options(format!("{name} must be at least 1"))),
        value => Ok(value),
    };
    let wanted = positive(options.max_context, "the context length")?
        .unwrap_or(trained)
        .min(trained);
    let kv_tokens = positive(options.kv_tokens, "the KV cache's size in tokens")?
        .unwrap_or_else(|| wanted.max(DEFAULT_KV_BYTES / kv_bytes_per_token.max(1)));
    Ok(Limits {
        context_length: wanted.min(kv_tokens),
        kv_tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits_of(max_context: Option<usize>, kv_tokens: Option<usize>) -> (usize, usize) {
        let options = LoadOptions {
            max_context,
            kv_tokens,
            ..LoadOptions::new(DeviceSpec::Cpu)
        };
        let limits = limits(&options, 8192, 1 << 20).expect("sensible options");
        (limits.context_length, limits.kv_tokens)
    }

    #[test]
    fn by_default_the_cache_holds_a_whole_context_or_a_gibibyte_whichever_is_more() {
        assert_eq!(limits_of(None, None), (8192, 8192));
        assert_eq!(limits_of(Some(100), None), (100, 1024));
    }

    #[test]
    fn a_context_is_never_longer_than_the_model_s_own_or_than_the_cache() {
        assert_eq!(limits_of(Some(100_000), Some(50_000)), (8192, 50_000));
        assert_eq!(limits_of(None, Some(500)), (500, 500));
    }

    #[test]
    fn sizes_of_zero_are_refused() {
        let options = LoadOptions {
            kv_tokens: Some(0),
            ..LoadOptions::new(DeviceSpec::Cpu)
        };
        assert!(matches!(limits(&options, 10, 10), Err(LoadError::Options(_))));
    }
}
