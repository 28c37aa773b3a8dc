//! Rotary positions: the angle per token of each pair of elements, and how models stretch them for long texts.

use super::description::Description;
use crate::architecture::RopeSpec;
use crate::candle_tensor::CandleTensor;
use crate::error::LoadError;

/// YaRN's bounds, in turns over the original context, unless the file says otherwise.
const YARN_BETA_FAST: f64 = 32.0;
const YARN_BETA_SLOW: f64 = 1.0;

/// Unscaled: `base ^ (-pair / pairs)`.
pub(super) fn plain(pairs: usize, base: f64) -> RopeSpec {
    RopeSpec {
        frequencies: (0..pairs)
            .map(|pair| base.powf(-(pair as f64) / pairs as f64))
            .collect(),
        magnitude: 1.0,
    }
}

/// Scaled as the file says, for sequences of at most `longest` tokens of a model that was made for `context_length`.
///
/// # Errors
/// The scaling is of an unknown type, or its figures make no sense.
pub(super) fn scaled(
    description: &Description<'_>,
    plain: RopeSpec,
    base: f64,
    context_length: usize,
    longest: usize,
) -> Result<RopeSpec, LoadError> {
    let mut frequencies = plain.frequencies;
    let has = |tensor: &str| description.file().has_tensor(tensor);
    if has("rope_freqs.weight") {
        // Llama 3.1 slows each pair down by its own factor.
        divide(description, "rope_freqs.weight", &mut frequencies)?;
    }
    let factor = match description.positive("rope.scaling.factor")? {
        Some(factor) => factor,
        None => description.positive("rope.scale_linear")?.unwrap_or(1.0),
    };
    let original = description.count("rope.scaling.original_context_length")?;
    let original = original.filter(|&n| n > 0).unwrap_or(context_length);
    let stated = description.positive("rope.scaling.attn_factor")?;
    let by_length = has("rope_factors_long.weight") || has("rope_factors_short.weight");
    let magnitude = match description.string("rope.scaling.type") {
        Some("longrope") | None if by_length => {
            longrope(description, &mut frequencies, longest > original)?;
            stated.unwrap_or_else(|| longrope_magnitude(context_length, original))
        }
        Some("none") => stated.unwrap_or(1.0),
        Some("linear") | None => {
            frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
            stated.unwrap_or(1.0)
        }
        Some("yarn") => {
            let fast = description.positive("rope.scaling.yarn_beta_fast")?;
            let slow = description.positive("rope.scaling.yarn_beta_slow")?;
            let yarn = Yarn {
                factor,
                base,
                original: original as f64,
                beta_fast: fast.unwrap_or(YARN_BETA_FAST),
                beta_slow: slow.unwrap_or(YARN_BETA_SLOW),
            };
            yarn.stretch(&mut frequencies);
            yarn.magnitude() * stated.unwrap_or(1.0)
        }
        Some("longrope") => {
            return Err(LoadError::Damaged(
                "tensors rope_factors_long.weight and rope_factors_short.weight are missing".to_owned(),
            ));
        }
        Some(other) => {
            return Err(LoadError::Unsupported(format!(
                "rotary scaling of type {other:?} is not supported; linear, llama3 (rope_freqs.weight), yarn and longrope are"
            )));
        }
    };
    Ok(RopeSpec {
        frequencies,
        magnitude: magnitude as f32,
    })
}

/// LongRoPE slows each pair down by its own factor, by another for texts beyond the original context. The choice is
/// made once for all sequences: keys in the cache are turned already.
///
/// <https://arxiv.org/abs/2402.13753>
fn longrope(description: &Description<'_>, frequencies: &mut [f64], long: bool) -> Result<(), LoadError> {
    let mut other = vec![1.0; frequencies.len()];
    let (short_ones, long_ones) = if long {
        (other.as_mut_slice(), frequencies)
    } else {
        (frequencies, other.as_mut_slice())
    };
    divide(description, "rope_factors_short.weight", short_ones)?;
    divide(description, "rope_factors_long.weight", long_ones)
}

/// `sqrt(1 + ln(stretch) / ln(original))`, where the file does not say it.
fn longrope_magnitude(context_length: usize, original: usize) -> f64 {
    let stretch = context_length as f64 / original as f64;
    if stretch <= 1.0 || original <= 1 {
        return 1.0;
    }
    (1.0 + stretch.ln() / (original as f64).ln()).sqrt()
}

/// YaRN: pairs that turn often within the original context keep their angle, those that turn less than once are slowed
/// down by the whole factor, a ramp lies between.
///
/// <https://arxiv.org/abs/2309.00071>
struct Yarn {
    factor: f64,
    base: f64,
    /// Tokens of the original context.
    original: f64,
    beta_fast: f64,
    beta_slow: f64,
}

impl Yarn {
    fn stretch(&self, frequencies: &mut [f64]) {
        let pairs = frequencies.len() as f64;
        // The pair that makes so many turns over the original context.
        let pair_of = |turns: f64| {
            let log = (self.original / (turns * std::f64::consts::TAU)).ln();
            pairs * log / self.base.ln()
        };
        let low = pair_of(self.beta_fast).floor().max(0.0);
        let high = pair_of(self.beta_slow).ceil().min(2.0 * pairs - 1.0);
        for (pair, frequency) in frequencies.iter_mut().enumerate() {
            let slowed = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            *frequency *= slowed / self.factor + (1.0 - slowed);
        }
    }

    /// Longer texts spread the attention; sharper scores hold it together.
    fn magnitude(&self) -> f64 {
        1.0 + 0.1 * self.factor.max(1.0).ln()
    }
}

/// Divides each value by the tensor's.
fn divide(description: &Description<'_>, tensor: &str, values: &mut [f64]) -> Result<(), LoadError> {
    let factors = description.file().tensor(tensor, &[values.len()])?.to_f32()?;
    if factors.iter().any(|factor| !factor.is_finite() || *factor <= 0.0) {
        return Err(LoadError::Damaged(format!(
            "tensor {tensor} has a factor that is not positive"
        )));
    }
    values
        .iter_mut()
        .zip(factors)
        .for_each(|(value, factor)| *value /= f64::from(factor));
    Ok(())
}
