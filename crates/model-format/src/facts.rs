//! A model's facts, from its header alone.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use crate::file::ModelFile;
use crate::hf::{self, Fields, Model};
use crate::memory::{KvShape, LoadedBytes};
use crate::safetensors::{self, Header, Names};
use crate::tensor_type::TensorType;
use crate::value::{Array, Value};
use crate::{Backend, FormatError, MemoryNeed, gguf};

/// Characters of a name that are kept: a file may claim any.
const NAME_CHARS: usize = 200;
/// Layers of a list of numbers, far beyond any model.
const MAX_LAYERS: usize = 1 << 16;

/// What a model's header says of it, whatever its architecture. Counts that its files do not say are 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Architecture as GGUF files name it, for example `llama`.
    pub family: String,
    /// The name that its files give it.
    pub name: Option<String>,
    /// Weights, counted one by one.
    pub parameters: u64,
    /// Layers.
    pub layers: u32,
    /// Query heads of a layer; of several numbers the largest.
    pub heads: u32,
    /// Key and value heads of a layer; of several numbers the largest.
    pub kv_heads: u32,
    /// Elements of a key.
    pub head_dim: u32,
    /// Tokens that it was made for.
    pub context_length: u32,
    /// Tokens of its vocabulary: rows of its embedding table.
    pub vocab_size: u32,
    /// Elements of a token's row between the layers.
    pub width: u32,
    /// Elements inside of the feed-forward part.
    pub hidden: u32,
    /// The mixture of types that its file names, for example `Q4_K_M`; else the type that holds most of the weights.
    pub quantization: String,
    /// Bytes of the weights as they lie in the files.
    pub weight_bytes: u64,
    /// Bytes of the weights as the CPU's kernels pack them.
    pub cpu_weight_bytes: u64,
    /// Bytes of the weights as they lie in a GPU's memory.
    pub gpu_weight_bytes: u64,
    /// Bytes that one token takes in the KV cache: keys and values of all layers in f16.
    pub kv_bytes_per_token: u64,
    /// The same in the CPU's layout, which pads rows of values.
    pub cpu_kv_bytes_per_token: u64,
    /// Whether it has a chat template.
    pub chat: bool,
}

/// Reads the header of a model: a GGUF file, or a folder with `config.json` and safetensors. Its weights are not read,
/// and nothing is mapped. Blocking: some megabytes are read from the disk.
///
/// # Errors
/// The files are unreadable, damaged, of another format, or one of several parts.
pub fn facts(path: &Path) -> Result<Facts, FormatError> {
    if path.is_dir() {
        of_folder(path)
    } else {
        of_gguf(&gguf::description(path)?)
    }
}

impl Facts {
    /// What the model takes once it is loaded.
    pub fn memory(&self, on: Backend) -> MemoryNeed {
        MemoryNeed::of(self, on)
    }
}

/// Weights as they are counted.
#[derive(Default)]
struct Tally {
    parameters: u64,
    loaded: LoadedBytes,
    /// Bytes in the files.
    bytes: u64,
    /// Elements by the type's name.
    by_type: BTreeMap<String, u64>,
}

impl Tally {
    /// `dtype` is `None` for a type that GGUF files do not have.
    fn add(&mut self, dims: &[usize], dtype: Option<TensorType>, type_name: &str, bytes: u64) {
        let elements = dims
            .iter()
            .fold(1u64, |product, &dim| product.saturating_mul(dim as u64));
        self.parameters = self.parameters.saturating_add(elements);
        self.bytes = self.bytes.saturating_add(bytes);
        self.loaded.add(dims, dtype, bytes);
        match self.by_type.get_mut(type_name) {
            Some(sum) => *sum = sum.saturating_add(elements),
            None => drop(self.by_type.insert(type_name.to_owned(), elements)),
        }
    }

    /// The type of most weights.
    fn quantization(&self) -> Result<String, FormatError> {
        let most = self.by_type.iter().max_by_key(|(_, elements)| **elements);
        let most = most.ok_or_else(|| FormatError::Unsupported("the model has no weights".to_owned()))?;
        Ok(most.0.clone())
    }
}

/// One number for all layers, or one for each.
enum PerLayer {
    All(u32),
    Each(Vec<u32>),
}

impl PerLayer {
    fn max(&self) -> u32 {
        match self {
            Self::All(n) => *n,
            Self::Each(list) => list.iter().copied().max().unwrap_or(0),
        }
    }

    fn sum(&self, layers: u32) -> u64 {
        match self {
            Self::All(n) => u64::from(*n) * u64::from(layers),
            Self::Each(list) => list.iter().map(|&n| u64::from(n)).sum(),
        }
    }
}

/// A GGUF file's values behind its architecture's name.
struct Description<'a> {
    file: &'a ModelFile,
    family: &'a str,
}

impl Description<'_> {
    fn per_layer(&self, name: &str) -> Result<Option<PerLayer>, FormatError> {
        let key = format!("{}.{name}", self.family);
        let wrong = || FormatError::Damaged(format!("{key} is neither a count nor a list of counts"));
        match self.file.value(&key) {
            None => Ok(None),
            Some(Value::Array(array)) => {
                let list = (array.len() <= MAX_LAYERS).then(|| self.file.integers(&key)).flatten();
                let list = list.ok_or_else(wrong)?;
                let list = list.into_iter().map(u32::try_from).collect::<Result<_, _>>();
                list.map(|list| Some(PerLayer::Each(list))).map_err(|_| wrong())
            }
            Some(value) => {
                let count = value.as_count().and_then(|count| u32::try_from(count).ok());
                count.map(|n| Some(PerLayer::All(n))).ok_or_else(wrong)
            }
        }
    }

    fn count(&self, name: &str) -> Result<Option<u32>, FormatError> {
        Ok(self.per_layer(name)?.map(|counts| counts.max()))
    }
}

/// What people call a mixture of types, by the number that GGUF files give it: llama.cpp's `llama_ftype`.
fn file_type(number: usize) -> Option<&'static str> {
    Some(match number {
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        _ => return None,
    })
}

fn of_gguf(file: &ModelFile) -> Result<Facts, FormatError> {
    let family = file.string("general.architecture").filter(|name| !name.is_empty());
    let family = family.ok_or_else(|| FormatError::Damaged("its metadata lacks general.architecture".to_owned()))?;
    let says = Description { file, family };
    let mut tally = Tally::default();
    for (_, entry) in file.tensors() {
        let bytes = entry.bytes().unwrap_or(0) as u64;
        tally.add(&entry.dims, Some(entry.dtype), entry.dtype.name(), bytes);
    }
    let layers = says.count("block_count")?.unwrap_or(0);
    let width = says.count("embedding_length")?.unwrap_or(0);
    let heads = says.count("attention.head_count")?.unwrap_or(0);
    let kv_heads = says.per_layer("attention.head_count_kv")?;
    let kv_heads = kv_heads.unwrap_or(PerLayer::All(heads));
    let head_dim = says.count("attention.key_length")?;
    let head_dim = head_dim.unwrap_or_else(|| width.checked_div(heads).unwrap_or(0));
    let kv = KvShape {
        heads: kv_heads.sum(layers),
        key_dim: head_dim,
        value_dim: says.count("attention.value_length")?.unwrap_or(head_dim),
    };
    let vocab = match file.rows_of("token_embd.weight") {
        Ok(rows) => Some(rows),
        Err(_) => file.array("tokenizer.ggml.tokens").map(Array::len),
    };
    let most = tally.quantization()?;
    let mixture = file.count("general.file_type").and_then(file_type);
    Ok(Facts {
        family: short(family),
        name: file.string("general.name").map(short).filter(|name| !name.is_empty()),
        parameters: tally.parameters,
        layers,
        heads,
        kv_heads: kv_heads.max(),
        head_dim,
        context_length: says.count("context_length")?.unwrap_or(0),
        vocab_size: vocab.map_or(0, |rows| u32::try_from(rows).unwrap_or(u32::MAX)),
        width,
        hidden: says.count("feed_forward_length")?.unwrap_or(0),
        quantization: mixture.map_or(most, str::to_owned),
        weight_bytes: tally.bytes,
        cpu_weight_bytes: tally.loaded.cpu,
        gpu_weight_bytes: tally.loaded.gpu,
        kv_bytes_per_token: kv.bytes(Backend::Gpu),
        cpu_kv_bytes_per_token: kv.bytes(Backend::Cpu),
        chat: file.string("tokenizer.chat_template").is_some(),
    })
}

fn of_folder(folder: &Path) -> Result<Facts, FormatError> {
    let config = Fields::required(folder, "config.json")?;
    // Models that see images have the numbers of their language side apart.
    let text = config.object("text_config")?;
    let text = text.as_ref().unwrap_or(&config);
    let model = Model::of(&config).ok();
    let names = match model {
        Some(model) => Some(Names {
            model,
            tied: hf::is_tied(&config, model)?,
        }),
        None => None,
    };
    let (tally, vocab) = weigh(folder, names)?;
    let count = |keys: &[&str]| keys.iter().find_map(|key| count(text, key));
    let layers = count(&["num_hidden_layers", "n_layer", "n_layers"]).unwrap_or(0);
    let width = count(&["hidden_size", "n_embd", "d_model"]).unwrap_or(0);
    let heads = count(&["num_attention_heads", "n_head", "n_heads"]).unwrap_or(0);
    let kv_heads = count(&["num_key_value_heads"]).unwrap_or(heads);
    let head_dim = count(&["head_dim"]).unwrap_or_else(|| width.checked_div(heads).unwrap_or(0));
    let kv = KvShape {
        heads: u64::from(kv_heads) * u64::from(layers),
        key_dim: head_dim,
        value_dim: head_dim,
    };
    Ok(Facts {
        family: family(&config, model)?,
        name: name(&config),
        parameters: tally.parameters,
        layers,
        heads,
        kv_heads,
        head_dim,
        context_length: count(&["max_position_embeddings", "n_positions", "max_seq_len"]).unwrap_or(0),
        vocab_size: vocab.or_else(|| count(&["vocab_size"])).unwrap_or(0),
        width,
        hidden: count(&["intermediate_size", "n_inner", "ffn_dim"]).unwrap_or(0),
        quantization: tally.quantization()?,
        weight_bytes: tally.bytes,
        cpu_weight_bytes: tally.loaded.cpu,
        gpu_weight_bytes: tally.loaded.gpu,
        kv_bytes_per_token: kv.bytes(Backend::Gpu),
        cpu_kv_bytes_per_token: kv.bytes(Backend::Cpu),
        chat: hf::text::chat_template(folder)?.is_some(),
    })
}

/// The weights of a folder, and the rows of its embedding table. Where the names are known, tensors that the engine has no
/// need of do not count.
fn weigh(folder: &Path, names: Option<Names>) -> Result<(Tally, Option<u32>), FormatError> {
    let (mut tally, mut vocab) = (Tally::default(), None);
    for file in safetensors::weight_files(folder)? {
        let header = Header::of_file(folder, &file)?;
        for (name, info) in header.tensors() {
            let known = match names {
                Some(names) => names.of(&name),
                None => Some(name),
            };
            let Some(name) = known else {
                continue;
            };
            if let ("token_embd.weight", &[rows, _]) = (name.as_str(), info.shape.as_slice()) {
                vocab = u32::try_from(rows).ok();
            }
            let (start, end) = info.data_offsets;
            let dtype = safetensors::tensor_type(info.dtype);
            tally.add(&info.shape, dtype, &format!("{:?}", info.dtype), (end - start) as u64);
        }
    }
    Ok((tally, vocab))
}

/// What GGUF calls the architecture, or what its own files do.
fn family(config: &Fields, model: Option<Model>) -> Result<String, FormatError> {
    if let Some(model) = model {
        return Ok(model.architecture().to_owned());
    }
    let class = || config.get("architectures")?.as_array()?.first()?.as_str();
    let name = config.get("model_type").and_then(Json::as_str).or_else(class);
    name.map(short).ok_or_else(|| config.lacks("model_type"))
}

fn name(config: &Fields) -> Option<String> {
    let name = config.get("_name_or_path")?.as_str()?.rsplit('/').next()?;
    Some(short(name)).filter(|name| !name.is_empty())
}

fn count(config: &Fields, key: &str) -> Option<u32> {
    u32::try_from(config.get(key)?.as_u64()?).ok()
}

fn short(name: &str) -> String {
    name.chars().take(NAME_CHARS).collect()
}

#[cfg(test)]
mod tests;
