//! What the tests of products share: raw weights, and their meaning in plain code.

use std::num::NonZeroUsize;

use half::{bf16, f16};

use crate::{Format, Kernels, Level};

/// Kernels of every level that this processor has, with so many threads.
pub(crate) fn kernels(threads: usize) -> impl Iterator<Item = Kernels> {
    let threads = NonZeroUsize::new(threads).expect("at least one thread");
    Level::ALL
        .into_iter()
        .filter(|level| level.is_available())
        .map(move |level| Kernels::new(level, threads).expect("the level is available"))
}

/// Pseudorandom numbers.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// From -1 to 1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// A matrix as a file holds it: any bytes are one, but scales are kept within reason.
pub(crate) fn raw(format: Format, rows: usize, cols: usize, numbers: &mut Numbers) -> Vec<u8> {
    let blocks = rows * cols / format.block_elements();
    let mut raw: Vec<u8> = (0..blocks * format.block_bytes())
        .map(|_| numbers.bits() as u8)
        .collect();
    for block in raw.chunks_exact_mut(format.block_bytes()) {
        let mut half = |at: usize, size: f32| {
            block[at..at + 2].copy_from_slice(&f16::from_f32(numbers.float() * size).to_le_bytes());
        };
        match format {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => half(0, 0.1),
            Format::Q4_1 | Format::Q5_1 => {
                half(0, 0.1);
                half(2, 0.5);
            }
            Format::Q4K | Format::Q5K => {
                half(0, 0.01);
                half(2, 0.01);
            }
            Format::Q6K => half(208, 0.001),
            Format::F16 => half(0, 1.0),
            Format::Bf16 => block.copy_from_slice(&bf16::from_f32(numbers.float()).to_le_bytes()),
            Format::F32 => block.copy_from_slice(&numbers.float().to_le_bytes()),
        }
    }
    raw
}

/// The numbers that raw weights stand for: GGML's `dequantize_row_*`, element by element.
pub(crate) fn meaning(format: Format, raw: &[u8]) -> Vec<f32> {
    let elements = 0..format.block_elements();
    raw.chunks_exact(format.block_bytes())
        .flat_map(|block| elements.clone().map(move |i| element(format, block, i)))
        .collect()
}

fn element(format: Format, b: &[u8], i: usize) -> f32 {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
    let nibble = |at: usize, i: usize| i32::from(if i < 16 { b[at + i] & 15 } else { b[at + i - 16] >> 4 });
    let fifth = |at: usize, i: usize| i32::from((b[at + i / 8] >> (i % 8)) & 1) << 4;
    match format {
        Format::Q4_0 => half(0) * (nibble(2, i) - 8) as f32,
        Format::Q4_1 => half(0) * nibble(4, i) as f32 + half(2),
        Format::Q5_0 => half(0) * ((nibble(6, i) | fifth(2, i)) - 16) as f32,
        Format::Q5_1 => half(0) * (nibble(8, i) | fifth(4, i)) as f32 + half(2),
        Format::Q8_0 => half(0) * f32::from(b[2 + i].cast_signed()),
        Format::Q4K | Format::Q5K => {
            let (sub, factors) = (i / 32, &b[4..16]);
            let (scale, minimum) = match sub {
                0..4 => (factors[sub] & 63, factors[sub + 4] & 63),
                _ => (
                    factors[sub + 4] & 15 | factors[sub - 4] >> 6 << 4,
                    factors[sub + 4] >> 4 | factors[sub] >> 6 << 4,
                ),
            };
            let values = if format == Format::Q4K { 16 } else { 48 };
            let low = b[values + i / 64 * 32 + i % 32] >> (sub % 2 * 4) & 15;
            let high = if format == Format::Q4K {
                0
            } else {
                b[16 + i % 32] >> sub & 1
            };
            half(0) * f32::from(scale) * f32::from(low | high << 4) - half(2) * f32::from(minimum)
        }
        Format::Q6K => {
            let (part, l) = (i / 128, i % 32);
            let quarter = i % 128 / 32;
            let low = b[part * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
            let high = b[128 + part * 32 + l] >> (2 * quarter) & 3;
            let scale = f32::from(b[192 + i / 16].cast_signed());
            half(208) * scale * (i32::from(low | high << 4) - 32) as f32
        }
        Format::F16 => half(0),
        Format::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        Format::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    }
}
