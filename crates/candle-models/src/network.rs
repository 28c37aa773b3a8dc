//! A network's weights on a backend.

use crate::architecture::{Architecture, LayerShape};
use crate::backend::Backend;
use crate::error::LoadError;
use crate::weights::Weights;
use model_format::ModelFile;

/// All weights.
pub(crate) struct Network<B: Backend> {
    pub(crate) architecture: Architecture,
    /// `[vocab, width]`
    pub(crate) embeddings: B::Matrix,
    /// `[vocab, width]`; `None`: the embeddings serve for it.
    pub(crate) head: Option<B::Matrix>,
    /// The last norm.
    pub(crate) norm: B::Vector,
    pub(crate) layers: Vec<Layer<B>>,
}

/// One layer's weights. Options are there where the architecture says so.
pub(crate) struct Layer<B: Backend> {
    pub(crate) attention_norm: B::Vector,
    /// `[query heads * head dim, width]`
    pub(crate) query: B::Matrix,
    /// `[kv heads * head dim, width]`
    pub(crate) key: B::Matrix,
    /// `[kv heads * head dim, width]`
    pub(crate) value: B::Matrix,
    /// `[width, query heads * head dim]`
    pub(crate) output: B::Matrix,
    /// Of queries, keys and values.
    pub(crate) biases: Option<[B::Vector; 3]>,
    /// One head wide.
    pub(crate) query_norm: Option<B::Vector>,
    /// One head wide.
    pub(crate) key_norm: Option<B::Vector>,
    pub(crate) attention_post_norm: Option<B::Vector>,
    pub(crate) feed_forward_norm: B::Vector,
    /// `[hidden, width]`
    pub(crate) gate: B::Matrix,
    /// `[hidden, width]`
    pub(crate) up: B::Matrix,
    /// `[width, hidden]`
    pub(crate) down: B::Matrix,
    pub(crate) feed_forward_post_norm: Option<B::Vector>,
}

impl<B: Backend> Network<B> {
    /// Reads all tensors. `progress` gets shares of 1 that rise.
    ///
    /// # Errors
    /// Tensors are missing or of another shape; there are tensors that the architecture has no place for.
    pub(crate) fn load(
        file: &ModelFile,
        architecture: Architecture,
        backend: &B,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Loaded<B>, LoadError> {
        let mut weights = Weights::new(file, backend, progress);
        let (vocab, width) = (architecture.vocab, architecture.width);
        let embeddings = weights.matrix("token_embd.weight", vocab, width)?;
        let own_head = file.has_tensor("output.weight");
        let head = own_head
            .then(|| weights.matrix("output.weight", vocab, width))
            .transpose()?;
        let layers = architecture.layers.iter().enumerate();
        let layers = layers.map(|(index, shape)| load_layer(&mut weights, &architecture, shape, index));
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = weights.vector("output_norm.weight", width)?;
        if let Some(name) = file.unused_tensor() {
            return Err(LoadError::Unsupported(format!(
                "this variant of the {} family is not supported: its tensor {name} has no place in the model",
                architecture.family
            )));
        }
        let bytes = weights.device_bytes();
        progress(1.0);
        let network = Self {
            architecture,
            embeddings,
            head,
            norm,
            layers,
        };
        Ok(Loaded { network, bytes })
    }

    /// What gives the logits.
    pub(crate) fn head(&self) -> &B::Matrix {
        self.head.as_ref().unwrap_or(&self.embeddings)
    }
}

/// A network and the bytes that its weights take on the device.
pub(crate) struct Loaded<B: Backend> {
    pub(crate) network: Network<B>,
    pub(crate) bytes: usize,
}

fn load_layer<B: Backend>(
    weights: &mut Weights<'_, B>,
    architecture: &Architecture,
    shape: &LayerShape,
    index: usize,
) -> Result<Layer<B>, LoadError> {
    let (width, hidden) = (architecture.width, architecture.hidden);
    let (query, kv) = (shape.heads.query_width(), shape.heads.kv_width());
    let name = |part: &str| format!("blk.{index}.{part}");
    let [query_matrix, key, value] = if architecture.fused_qkv {
        weights.stacked(&name("attn_qkv.weight"), [query, kv, kv], width)?
    } else {
        [
            weights.matrix(&name("attn_q.weight"), query, width)?,
            weights.matrix(&name("attn_k.weight"), kv, width)?,
            weights.matrix(&name("attn_v.weight"), kv, width)?,
        ]
    };
    let [gate, up] = if architecture.fused_gate_up {
        weights.stacked(&name("ffn_up.weight"), [hidden, hidden], width)?
    } else {
        [
            weights.matrix(&name("ffn_gate.weight"), hidden, width)?,
            weights.matrix(&name("ffn_up.weight"), hidden, width)?,
        ]
    };
    let biases = if architecture.qkv_bias {
        Some([
            weights.vector(&name("attn_q.bias"), query)?,
            weights.vector(&name("attn_k.bias"), kv)?,
            weights.vector(&name("attn_v.bias"), kv)?,
        ])
    } else {
        None
    };
    let dim = shape.heads.dim;
    let mut norm_if = |wanted: bool, part: &str, len: usize| {
        let load = || weights.vector(&name(part), len);
        wanted.then(load).transpose()
    };
    let query_norm = norm_if(architecture.qk_norm, "attn_q_norm.weight", dim)?;
    let key_norm = norm_if(architecture.qk_norm, "attn_k_norm.weight", dim)?;
    let attention_post_norm = norm_if(architecture.post_norms, "post_attention_norm.weight", width)?;
    let feed_forward_post_norm = norm_if(architecture.post_norms, "post_ffw_norm.weight", width)?;
    Ok(Layer {
        attention_norm: weights.vector(&name("attn_norm.weight"), width)?,
        query: query_matrix,
        key,
        value,
        output: weights.matrix(&name("attn_output.weight"), width, query)?,
        biases,
        query_norm,
        key_norm,
        attention_post_norm,
        feed_forward_norm: weights.vector(&name("ffn_norm.weight"), width)?,
        gate,
        up,
        down: weights.matrix(&name("ffn_down.weight"), width, hidden)?,
        feed_forward_post_norm,
    })
}
