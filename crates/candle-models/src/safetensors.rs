//! A folder as Hugging Face lays it out: weights in safetensors files, described by JSON files. Read into the same names
//! as a GGUF file has, so that the families need not know the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ::safetensors::{Dtype, SafeTensors};
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use memmap2::Mmap;

use crate::error::LoadError;
use crate::file::{FileFormat, ModelFile, Place, TensorEntry, map};
use crate::hf::{self, Fields, Model};
use crate::hf_text;

/// Bytes before a file's header: its length.
const LENGTH_BYTES: usize = 8;

impl ModelFile {
    /// Opens a folder with `config.json`, `tokenizer.json`, and `model.safetensors` or the files that
    /// `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// Files are missing, unreadable or damaged; the model is of a kind that is not supported.
    pub(crate) fn safetensors(folder: &Path) -> Result<Self, LoadError> {
        let hf::Description {
            mut metadata,
            tensors: computed,
            model,
            tied,
        } = hf::describe(folder)?;
        hf_text::describe(folder, &mut metadata)?;
        let mut reader = Reader {
            model,
            tied,
            tensors: BTreeMap::new(),
            mappings: Vec::new(),
        };
        for name in weight_files(folder)? {
            reader.read(folder, &name)?;
        }
        if !tied && !reader.tensors.contains_key("output.weight") {
            return Err(LoadError::Damaged("tensor lm_head.weight is missing".to_owned()));
        }
        for (name, values) in computed {
            reader.tensors.insert(name.to_owned(), vector(&values));
        }
        let Reader { tensors, mappings, .. } = reader;
        Ok(Self::new(FileFormat::Safetensors, metadata, tensors, mappings))
    }
}

/// The names of the files with weights.
fn weight_files(folder: &Path) -> Result<BTreeSet<String>, LoadError> {
    const ONE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    if folder.join(ONE).exists() {
        return Ok(BTreeSet::from([ONE.to_owned()]));
    }
    let Some(index) = Fields::read(folder, INDEX)? else {
        return Err(LoadError::Unreadable {
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
        LoadError::Damaged(format!(
            "{INDEX} names {name}, which is no safetensors file of the folder"
        ))
    })
}

/// Tensors as they come together from the files.
struct Reader {
    model: Model,
    tied: bool,
    tensors: BTreeMap<String, TensorEntry>,
    mappings: Vec<Mmap>,
}

impl Reader {
    fn read(&mut self, folder: &Path, file_name: &str) -> Result<(), LoadError> {
        let memory = map(&folder.join(file_name))?;
        let damaged = |error| LoadError::Damaged(format!("{file_name}: {error}"));
        let (header, metadata) = SafeTensors::read_metadata(&memory).map_err(damaged)?;
        for (name, info) in metadata.tensors() {
            let Some(place) = gguf_name(&name, self.model) else {
                continue;
            };
            if place == "output.weight" && self.tied {
                continue;
            }
            let dtype = match info.dtype {
                Dtype::F32 => GgmlDType::F32,
                Dtype::F16 => GgmlDType::F16,
                Dtype::BF16 => GgmlDType::BF16,
                other => {
                    return Err(LoadError::Unsupported(format!(
                        "tensor {name} is of type {other:?}, which is not supported; F32, F16 and BF16 are"
                    )));
                }
            };
            let start = LENGTH_BYTES + header + info.data_offsets.0;
            let entry = if self.model == Model::Gemma3 && place.ends_with("norm.weight") {
                let data = &memory[start..LENGTH_BYTES + header + info.data_offsets.1];
                plus_one(dtype, data, info.shape.clone())
            } else {
                let mapping = self.mappings.len();
                TensorEntry {
                    dtype,
                    dims: info.shape.clone(),
                    place: Place::Mapped { mapping, start },
                }
            };
            if self.tensors.insert(place, entry).is_some() {
                return Err(LoadError::Damaged(format!("tensor {name} is there twice")));
            }
        }
        self.mappings.push(memory);
        Ok(())
    }
}

/// What GGUF calls a tensor; `None` for one that follows from others. An unknown one keeps its name, by which it will be
/// refused.
fn gguf_name(name: &str, model: Model) -> Option<String> {
    let known = match name {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        _ => return layer_tensor(name, model),
    };
    Some(known.to_owned())
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
fn plus_one(dtype: GgmlDType, data: &[u8], dims: Vec<usize>) -> TensorEntry {
    let values: Vec<f32> = match dtype {
        GgmlDType::F16 => data
            .as_chunks()
            .0
            .iter()
            .map(|x| f16::from_le_bytes(*x).to_f32() + 1.0)
            .collect(),
        GgmlDType::BF16 => data
            .as_chunks()
            .0
            .iter()
            .map(|x| bf16::from_le_bytes(*x).to_f32() + 1.0)
            .collect(),
        _ => data
            .as_chunks()
            .0
            .iter()
            .map(|x| f32::from_le_bytes(*x) + 1.0)
            .collect(),
    };
    TensorEntry {
        dims,
        ..vector(&values)
    }
}

fn vector(values: &[f32]) -> TensorEntry {
    TensorEntry {
        dtype: GgmlDType::F32,
        dims: vec![values.len()],
        place: Place::Computed(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    }
}
