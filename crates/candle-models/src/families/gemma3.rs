//! Gemma 3: norms before and after each half of a layer, normed queries and keys, GELU gate, scaled embeddings. Most
//! layers see a sliding window and have rotary positions of their own.

use cpu_kernels::Activation;

use super::Family;
use super::description::Description;
use super::rope::plain;
use crate::architecture::{Architecture, LayerShape};
use crate::error::LoadError;
use model_format::ModelFile;

/// Every sixth layer sees everything, unless the file says otherwise.
const WINDOW_PATTERN: usize = 6;
/// Rotary base of the layers with a window, unless the file says otherwise.
const WINDOW_ROPE_BASE: f64 = 10_000.0;
/// Rotary base of the layers that see everything, unless the file says otherwise.
const ROPE_BASE: f64 = 1_000_000.0;
/// Beside those of every family.
const OWN_KEYS: [&str; 3] = [
    "rope.freq_base_swa",
    "final_logit_softcapping",
    "attn_logit_softcapping",
];
/// Layers of the 27B model, which scales its scores by the width per head. GGUF files do not say so.
const LAYERS_OF_27B: usize = 62;

pub(crate) fn describe(file: &ModelFile, longest: usize) -> Result<Architecture, LoadError> {
    let description = Description::new(file, Family::Gemma3, &OWN_KEYS)?
        .with_rope_base(ROPE_BASE)
        .with_window_pattern(WINDOW_PATTERN);
    let decoder = description.decoder(longest)?;
    let mut layers = decoder.layers;
    if layers.len() == LAYERS_OF_27B && description.positive("attention.scale")?.is_none() {
        for LayerShape { heads, .. } in &mut layers {
            heads.scale = ((decoder.width / heads.query) as f32).sqrt().recip();
        }
    }
    // The positions of the layers with a window are turned by another base, and never scaled.
    let mut ropes = decoder.ropes;
    let window_base = description.positive("rope.freq_base_swa")?.unwrap_or(WINDOW_ROPE_BASE);
    let pairs = ropes[0].frequencies.len();
    ropes.push(plain(pairs, window_base));
    for layer in layers.iter_mut().filter(|layer| layer.heads.window.is_some()) {
        layer.rope = ropes.len() - 1;
    }
    Ok(Architecture {
        layers,
        ropes,
        embedding_scale: (decoder.width as f32).sqrt(),
        activation: Activation::GeluTanh,
        qk_norm: true,
        post_norms: true,
        logit_softcap: description.positive("final_logit_softcapping")?.map(|cap| cap as f32),
        attention_softcap: description.positive("attn_logit_softcapping")?.map(|cap| cap as f32),
        ..decoder
    })
}
