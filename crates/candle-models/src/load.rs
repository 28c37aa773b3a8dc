//! From files to a model that runs.

use std::num::NonZeroUsize;
use std::path::Path;

use batch_engine::{Model, Pooling};

use crate::architecture::Architecture;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::tensor::Candle;
use crate::budget::Budget;
use crate::candle_tensor::refuse_unknown_types;
use crate::chat_template::ChatTemplate;
use crate::device::DeviceSpec;
use crate::error::LoadError;
use crate::families::Family;
use crate::network::{Loaded, Network};
use crate::runner::Runner;
use crate::tokenizer::Tokenizer;
use model_format::ModelFile;

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: DeviceSpec,
    /// Tokens that one sequence may hold at most; never more than the model was made for. `None`: as many.
    pub max_context: Option<usize>,
    /// Tokens that the KV cache holds, rounded up to whole blocks. `None`: what fits 1 GiB, at least one whole context,
    /// and at most what `memory_limit` leaves.
    pub kv_tokens: Option<usize>,
    /// Threads of a step on the CPU (a pool of the model's own). `None`: as many as the process may run on.
    pub threads: Option<NonZeroUsize>,
    /// Bytes that weights, KV cache and working memory may take together. `None`: no limit.
    pub memory_limit: Option<usize>,
}

impl LoadOptions {
    /// Everything but the device left to the defaults.
    pub fn new(device: DeviceSpec) -> Self {
        Self {
            device,
            max_context: None,
            kv_tokens: None,
            threads: None,
            memory_limit: None,
        }
    }
}

/// A model and what belongs to its text side.
pub struct LoadedModel {
    /// For the engine.
    pub model: Box<dyn Model>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How messages become a prompt; `None` where the files have no template: a base model that cannot chat.
    pub chat_template: Option<ChatTemplate>,
    /// Facts about it.
    pub info: ModelInfo,
}

/// Facts about a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Its family.
    pub family: Family,
    /// The name that its files give it.
    pub name: Option<String>,
    /// Tokens that one sequence may hold, prompt and answer together.
    pub context_length: usize,
    /// Tokens that the model was made for.
    pub trained_context_length: usize,
    /// Logits per token.
    pub vocab_size: usize,
    /// Values of a token's hidden state: the width of an embedding.
    pub hidden_size: usize,
    /// How hidden states become an embedding.
    pub pooling: Pooling,
    /// Tokens that the KV cache holds.
    pub kv_tokens: usize,
    /// Tokens of one block of the KV cache.
    pub kv_block_tokens: usize,
    /// Bytes that one token takes in the KV cache.
    pub kv_bytes_per_token: usize,
    /// Bytes that the whole KV cache takes; on the CPU as it is filled.
    pub kv_bytes: usize,
    /// Bytes that the weights take on the device.
    pub weight_bytes: usize,
    /// Bytes that a large step works in, roughly.
    pub scratch_bytes: usize,
}

/// Loads a model: a GGUF file, or a folder of safetensors with config.json and tokenizer.json. Blocking, for as long as
/// it takes to read the weights. `progress` gets shares of 1 that rise.
///
/// # Errors
/// The files are unreadable, damaged, or of a kind that is not supported; the device is not there; the options
/// contradict the model, or it does not fit the memory limit, which is found before the weights are read.
pub fn load(path: &Path, options: &LoadOptions, progress: &mut dyn FnMut(f32)) -> Result<LoadedModel, LoadError> {
    let device = options.device.open()?;
    let files = Files::open(path)?;
    match options.device {
        DeviceSpec::Cpu => files.load(Cpu::new(options.threads)?, options, progress),
        DeviceSpec::Cuda(_) | DeviceSpec::Metal(_) => files.load(Candle::new(device), options, progress),
    }
}

/// Files whose text side is read.
pub(crate) struct Files {
    file: ModelFile,
    family: Family,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
}

impl Files {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let file = ModelFile::open(path)?;
        refuse_unknown_types(&file)?;
        let family = Family::of(&file)?;
        let tokenizer = Tokenizer::from_file(&file)?;
        let chat_template = file
            .string("tokenizer.chat_template")
            .map(|source| ChatTemplate::new(source, tokenizer.bos_token(), tokenizer.eos_token()))
            .transpose()?;
        Ok(Self {
            file,
            family,
            tokenizer,
            chat_template,
        })
    }

    /// The files are unmapped when this returns: all weights are the backend's own then.
    pub(crate) fn load<B: Backend>(
        self,
        backend: B,
        options: &LoadOptions,
        progress: &mut dyn FnMut(f32),
    ) -> Result<LoadedModel, LoadError> {
        let Self {
            file,
            family,
            tokenizer,
            chat_template,
        } = self;
        let trained = file.required_count(&format!("{family}.context_length"))?;
        let architecture = family.describe(&file, Budget::longest(options, trained)?)?;
        if tokenizer.vocab_size() > architecture.vocab {
            let (tokens, rows) = (tokenizer.vocab_size(), architecture.vocab);
            return Err(LoadError::Damaged(format!(
                "it has {tokens} tokens but embeddings for {rows}"
            )));
        }
        let budget = Budget::plan(&file, &architecture, &backend, options)?;
        let limits = budget.limits;
        let mut info = info(&file, &architecture, &budget)?;
        let Loaded { network, bytes } = Network::load(&file, architecture, &backend, progress)?;
        info.weight_bytes = bytes;
        let cache = backend.new_cache(&network.architecture.layers, limits.kv_blocks)?;
        tracing::debug!(%family, name = info.name, bytes, kv_blocks = limits.kv_blocks, "model loaded");
        Ok(LoadedModel {
            model: Box::new(Runner::new(backend, network, cache, limits, tokenizer.end_tokens())),
            tokenizer,
            chat_template,
            info,
        })
    }
}

/// The facts, with the weights' bytes as they are expected.
fn info(file: &ModelFile, architecture: &Architecture, budget: &Budget) -> Result<ModelInfo, LoadError> {
    Ok(ModelInfo {
        family: architecture.family,
        name: file.string("general.name").map(str::to_owned),
        context_length: budget.limits.context_length,
        trained_context_length: architecture.context_length,
        vocab_size: architecture.vocab,
        hidden_size: architecture.width,
        pooling: pooling(file, architecture.family)?,
        kv_tokens: budget.kv_tokens(),
        kv_block_tokens: cpu_kernels::BLOCK_TOKENS,
        kv_bytes_per_token: budget.kv_bytes_per_block / cpu_kernels::BLOCK_TOKENS,
        kv_bytes: budget.kv_bytes(),
        weight_bytes: budget.weight_bytes,
        scratch_bytes: budget.scratch_bytes,
    })
}

/// GGUF's numbers of pooling types; the mean where the file does not say.
fn pooling(file: &ModelFile, family: Family) -> Result<Pooling, LoadError> {
    let key = format!("{family}.pooling_type");
    match file.value(&key).map(|value| value.as_count()) {
        None | Some(Some(0 | 1)) => Ok(Pooling::Mean),
        Some(Some(3)) => Ok(Pooling::Last),
        Some(_) => Err(LoadError::Unsupported(format!(
            "{key} is not supported; mean (1) and last (3) are"
        ))),
    }
}
