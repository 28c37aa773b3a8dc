//! Perplexity on a text, as llama-perplexity defines it: windows of 512 tokens without overlap, each beginning with the
//! opening token where the model has one; the second half of each window is judged.

use batch_engine::{Output, StepInput};
use candle_models::LoadedModel;

/// Tokens of a window.
pub const WINDOW: usize = 512;
/// Tokens whose logits are held at a time.
const PIECE: usize = 32;

/// The perplexity of a text, `None` where it is shorter than a window. The model's cache is written over.
///
/// # Panics
/// The tokenizer or the model refuses.
pub fn perplexity(loaded: &mut LoadedModel, text: &str) -> Option<f64> {
    let encode = |text: &str| loaded.tokenizer.encode(text, false, true).expect("tokens");
    let tokens = encode(text);
    // What the tokenizer puts before every text, also before each window.
    let opening = encode("").first().copied();
    let layout = loaded.model.kv_layout();
    let blocks: Vec<u32> = (0..WINDOW.div_ceil(layout.block_tokens) as u32).collect();
    let vocab = loaded.model.vocab_size();
    let (mut sum, mut count) = (0.0, 0_u32);
    let mut rows = Vec::new();
    for window in tokens.chunks_exact(WINDOW) {
        let mut window = window.to_vec();
        if let Some(opening) = opening {
            window[0] = opening;
        }
        for (index, tokens) in window.chunks(PIECE).enumerate() {
            let position = index * PIECE;
            let is_judged = position + PIECE > WINDOW / 2;
            let input = StepInput {
                tokens,
                position,
                blocks: &blocks,
                output: if is_judged { Output::All } else { Output::Nothing },
            };
            loaded.model.step(&[input], &mut rows).expect("a step");
            for (at, logits) in (position..).zip(rows.chunks_exact(vocab)) {
                if let (true, Some(&next)) = (at >= WINDOW / 2, window.get(at + 1)) {
                    sum -= log_probability(logits, next);
                    count += 1;
                }
            }
        }
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

/// Natural logarithm of the probability that the logits give to a token.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - top).exp()).sum();
    f64::from(logits[token as usize] - top) - sum.ln()
}
