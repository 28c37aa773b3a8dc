//! A folder as Hugging Face lays it out: weights in safetensors files, described by JSON files. Read into the same names
//! as a GGUF file has, so that the families need not know the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};
use half::{bf16, f16};

use crate::FormatError;
use crate::file::{FileFormat, ModelFile, Place, Source, TensorEntry, map, open};
use crate::hf::{self, Fields, Model};
use crate::tensor_type::TensorType;

/// Bytes before a file's header: its length.
const LENGTH_BYTES: usize = 8;
/// Bytes of a header, as many as the format's own library takes.
const MAX_HEADER: usize = 100_000_000;

impl ModelFile {
    /// Opens a folder with `config.json`, `tokenizer.json`, and `model.safetensors` or the files that
    /// `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// Files are missing, unreadable or damaged; the model is of a kind that is not supported.
    pub fn safetensors(folder: &Path) -> Result<Self, FormatError> {
        let hf::Description {
            mut metadata,
            tensors: computed,
            model,
            tied,
        } = hf::describe(folder)?;
        hf::text::describe(folder, &mut metadata)?;
        let mut reader = Reader {
            names: Names { model, tied },
            tensors: BTreeMap::new(),
            sources: Vec::new(),
        };
        for name in weight_files(folder)? {
            reader.read(folder, &name)?;
        }
        if !tied && !reader.tensors.contains_key("output.weight") {
            return Err(FormatError::Damaged("tensor lm_head.weight is missing".to_owned()));
        }
        for (name, values) in computed {
            reader.tensors.insert(name.to_owned(), vector(&values));
        }
        let Reader { tensors, sources, .. } = reader;
        Ok(Self::new(FileFormat::Safetensors, metadata, tensors, sources))
    }
}

/// A file's header.
pub(crate) struct Header {
    /// Bytes before the first tensor.
    bytes: usize,
    metadata: Metadata,
}

impl Header {
    /// Reads it from the beginning of a file of `file_bytes` bytes.
    pub(crate) fn read(name: &str, mut file: impl Read, file_bytes: usize) -> Result<Self, FormatError> {
        let damaged = |what: String| FormatError::Damaged(format!("{name}: {what}"));
        let io = |error: std::io::Error| damaged(error.to_string());
        let mut length = [0; LENGTH_BYTES];
        file.read_exact(&mut length).map_err(io)?;
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        let bytes = length.saturating_add(LENGTH_BYTES);
        if length > MAX_HEADER || bytes > file_bytes {
            return Err(damaged(format!(
                "a header of {length} bytes in a file of {file_bytes}: it may be cut short"
            )));
        }
        let mut header = vec![0; length];
        file.read_exact(&mut header).map_err(io)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
        let end = bytes.saturating_add(metadata.data_len());
        if end != file_bytes {
            return Err(damaged(format!(
                "header and tensors take {end} bytes, the file has {file_bytes}: it may be cut short"
            )));
        }
        Ok(Self { bytes, metadata })
    }

    /// Opens a file of the folder for its header alone.
    pub(crate) fn of_file(folder: &Path, name: &str) -> Result<Self, FormatError> {
        let (file, file_bytes) = open(&folder.join(name))?;
        Self::read(name, file, file_bytes)
    }

    /// Names, types and shapes of all tensors. Types and shapes fit the bytes that they take.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (String, &TensorInfo)> {
        self.metadata.tensors().into_iter()
    }
}

/// The names of the files with weights.
pub(crate) fn weight_files(folder: &Path) -> Result<BTreeSet<String>, FormatError> {
    const ONE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    if folder.join(ONE).exists() {
        return Ok(BTreeSet::from([ONE.to_owned()]));
    }
    let Some(index) = Fields::read(folder, INDEX)? else {
        return Err(FormatError::Unreadable {
            path: folder.join(ONE),
            source: std::io::ErrorKind::NotFound.into(),
        });
    };
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| index.lacks("weight_map"))?;
    // The list comes from elsewhere: it must not lead out of the folder.
    let plain = |name: &&str| name.ends_with(".safetensors") && !name.contains(['/', '\\']);
    let names = map
        .values()
        .map(|name| name.as_str().filter(plain).map(str::to_owned).ok_or(name));
    names.collect::<Result<_, _>>().map_err(|name| {
        FormatError::Damaged(format!(
            "{INDEX} names {name}, which is no safetensors file of the folder"
        ))
    })
}

/// Tensors as they come together from the files.
struct Reader {
    names: Names,
    tensors: BTreeMap<String, TensorEntry>,
    sources: Vec<Source>,
}

impl Reader {
    fn read(&mut self, folder: &Path, file_name: &str) -> Result<(), FormatError> {
        let memory = map(&folder.join(file_name))?;
        let header = Header::read(file_name, &memory[..], memory.len())?;
        for (name, info) in header.tensors() {
            let Some(place) = self.names.of(&name) else {
                continue;
            };
            let dtype = tensor_type(info.dtype).ok_or_else(|| {
                FormatError::Unsupported(format!(
                    "tensor {name} is of type {:?}, which is not supported; F32, F16 and BF16 are",
                    info.dtype
                ))
            })?;
            let (start, end) = info.data_offsets;
            let entry = if self.names.model == Model::Gemma3 && place.ends_with("norm.weight") {
                let data = &memory[header.bytes + start..header.bytes + end];
                plus_one(dtype, data, info.shape.clone())
            } else {
                TensorEntry {
                    dtype,
                    dims: info.shape.clone(),
                    place: Place::File {
                        source: self.sources.len(),
                        start: header.bytes + start,
                    },
                }
            };
            if self.tensors.insert(place, entry).is_some() {
                return Err(FormatError::Damaged(format!("tensor {name} is there twice")));
            }
        }
        self.sources.push(Source::Mapped(memory));
        Ok(())
    }
}

/// GGUF's name of a type that weights may have.
pub(crate) fn tensor_type(dtype: Dtype) -> Option<TensorType> {
    match dtype {
        Dtype::F32 => Some(TensorType::F32),
        Dtype::F16 => Some(TensorType::F16),
        Dtype::BF16 => Some(TensorType::Bf16),
        _ => None,
    }
}

/// GGUF's names for the tensors of a repository.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    pub(crate) model: Model,
    /// The embeddings give the logits, too.
    pub(crate) tied: bool,
}

impl Names {
    /// What GGUF calls a tensor; `None` for one that is not needed, since it follows from others. An unknown one keeps its
    /// name, by which it will be refused.
    pub(crate) fn of(self, name: &str) -> Option<String> {
        let known = match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" if self.tied => return None,
            "lm_head.weight" => "output.weight",
            _ => return layer_tensor(name, self.model),
        };
        Some(known.to_owned())
    }
}

fn layer_tensor(name: &str, model: Model) -> Option<String> {
    let numbered = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = numbered.filter(|(layer, _)| layer.parse::<u32>().is_ok()) else {
        return Some(name.to_owned());
    };
    let (module, kind) = part.rsplit_once('.').unwrap_or((part, ""));
    let known = match (module, model) {
        ("self_attn.rotary_emb", _) => return None,
        ("self_attn.q_proj", _) => "attn_q",
        ("self_attn.k_proj", _) => "attn_k",
        ("self_attn.v_proj", _) => "attn_v",
        ("self_attn.qkv_proj", _) => "attn_qkv",
        ("self_attn.o_proj", _) => "attn_output",
        ("self_attn.q_norm", _) => "attn_q_norm",
        ("self_attn.k_norm", _) => "attn_k_norm",
        ("mlp.gate_proj", _) => "ffn_gate",
        // Both halves in one, as GGUF has them under this name.
        ("mlp.up_proj" | "mlp.gate_up_proj", _) => "ffn_up",
        ("mlp.down_proj", _) => "ffn_down",
        ("input_layernorm", _) => "attn_norm",
        ("post_attention_layernorm", Model::Gemma3) => "post_attention_norm",
        ("pre_feedforward_layernorm", Model::Gemma3) => "ffn_norm",
        ("post_feedforward_layernorm", Model::Gemma3) => "post_ffw_norm",
        ("post_attention_layernorm", _) => "ffn_norm",
        _ => return Some(name.to_owned()),
    };
    Some(format!("blk.{layer}.{known}.{kind}"))
}

/// Gemma's norms are stored as what they differ from 1.
fn plus_one(dtype: TensorType, data: &[u8], dims: Vec<usize>) -> TensorEntry {
    let values: Vec<f32> = match dtype {
        TensorType::F16 => each(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
        TensorType::Bf16 => each(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        _ => each(data, f32::from_le_bytes),
    };
    let values: Vec<f32> = values.into_iter().map(|value| value + 1.0).collect();
    TensorEntry {
        dims,
        ..vector(&values)
    }
}

fn vector(values: &[f32]) -> TensorEntry {
    TensorEntry {
        dtype: TensorType::F32,
        dims: vec![values.len()],
        place: Place::Computed(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    }
}

fn each<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| convert(*chunk)).collect()
}
