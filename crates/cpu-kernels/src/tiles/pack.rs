//! From stored blocks to tiles, and back to numbers.

use half::f16;

use super::{Layout, TILE_COLS, VECTOR};
use crate::Format;

/// 32 weights of one row: `scales[0] * (value - offset) + minimum`, with the kind's offset; `second` is the minimum, or
/// the scale of the second 16 values.
struct Quants {
    values: [u8; TILE_COLS],
    scale: f16,
    second: f16,
}

/// Fills one strip. `rows` holds 16 rows of raw blocks, or fewer in the last strip of a matrix: the rest become zeros.
pub(crate) fn pack_strip(format: Format, layout: Layout, rows: &[u8], row_bytes: usize, strip: &mut [u8]) {
    for (block, tile) in strip.chunks_exact_mut(layout.bytes()).enumerate() {
        tile.fill(0);
        for (row, raw) in rows.chunks_exact(row_bytes).enumerate() {
            place(layout, tile, row, &quants(format, raw, block));
        }
    }
}

/// Reads one row of a strip as numbers.
pub(crate) fn row_to_f32(layout: Layout, strip: &[u8], row: usize, out: &mut [f32]) {
    for (tile, out) in strip.chunks_exact(layout.bytes()).zip(out.chunks_exact_mut(TILE_COLS)) {
        let half = |at: usize| f16::from_le_bytes([tile[at + 2 * row], tile[at + 2 * row + 1]]).to_f32();
        let scale = half(layout.scales());
        let (second_scale, minimum) = match (layout.half_scales, layout.minimum) {
            (true, _) => (half(layout.second()), 0.0),
            (false, true) => (scale, half(layout.second())),
            (false, false) => (scale, 0.0),
        };
        for (col, out) in out.iter_mut().enumerate() {
            let scale = if col < TILE_COLS / 2 { scale } else { second_scale };
            *out = scale * (i32::from(value(layout, tile, row, col)) - layout.offset) as f32 + minimum;
        }
    }
}

/// One stored value.
fn value(layout: Layout, tile: &[u8], row: usize, col: usize) -> u8 {
    let (vector, byte) = (col / 4, row * 4 + col % 4);
    match layout.planes {
        None => tile[vector * VECTOR + byte],
        Some(planes) => {
            let nibbles = tile[vector / 2 * VECTOR + byte];
            let low = if vector.is_multiple_of(2) {
                nibbles & 15
            } else {
                nibbles >> 4
            };
            (0..planes).fold(low, |value, plane| {
                value | (((tile[(4 + plane) * VECTOR + byte] >> vector) & 1) << (4 + plane))
            })
        }
    }
}

fn place(layout: Layout, tile: &mut [u8], row: usize, quants: &Quants) {
    let (fours, _none) = quants.values.as_chunks::<4>();
    let at = row * 4;
    match layout.planes {
        None => {
            for (vector, four) in fours.iter().enumerate() {
                tile[vector * VECTOR + at..][..4].copy_from_slice(four);
            }
        }
        Some(planes) => {
            let fours: [u32; 8] = std::array::from_fn(|i| u32::from_le_bytes(fours[i]));
            const LOW: u32 = 0x0f0f_0f0f;
            const BIT: u32 = 0x0101_0101;
            for (pair, &[even, odd]) in fours.as_chunks::<2>().0.iter().enumerate() {
                let nibbles = (even & LOW) | ((odd & LOW) << 4);
                tile[pair * VECTOR + at..][..4].copy_from_slice(&nibbles.to_le_bytes());
            }
            for plane in 0..planes {
                let bits = fours.iter().enumerate().fold(0, |bits, (vector, four)| {
                    bits | (((four >> (4 + plane)) & BIT) << vector)
                });
                tile[(4 + plane) * VECTOR + at..][..4].copy_from_slice(&bits.to_le_bytes());
            }
        }
    }
    tile[layout.scales() + 2 * row..][..2].copy_from_slice(&quants.scale.to_le_bytes());
    if layout.minimum || layout.half_scales {
        tile[layout.second() + 2 * row..][..2].copy_from_slice(&quants.second.to_le_bytes());
    }
}

/// Block `block` of 32 columns of a stored row.
fn quants(format: Format, row: &[u8], block: usize) -> Quants {
    let per_stored = format.block_elements() / TILE_COLS;
    let stored = &row[block / per_stored * format.block_bytes()..][..format.block_bytes()];
    let part = block % per_stored;
    match format {
        Format::Q4_0 => with_nibbles(stored, 0, &stored[2..]),
        Format::Q4_1 => with_nibbles(stored, 2, &stored[4..]),
        Format::Q5_0 => with_fifth_bits(with_nibbles(stored, 0, &stored[6..]), &stored[2..6]),
        Format::Q5_1 => with_fifth_bits(with_nibbles(stored, 2, &stored[8..]), &stored[4..8]),
        Format::Q8_0 => Quants {
            // Signed to unsigned: 128 more.
            values: std::array::from_fn(|i| stored[2 + i] ^ 0x80),
            scale: half(stored, 0),
            second: f16::ZERO,
        },
        Format::Q4K => k_quants(stored, part, &stored[16..], None),
        Format::Q5K => k_quants(stored, part, &stored[48..], Some(&stored[16..48])),
        Format::Q6K => q6_k(stored, part),
        Format::F16 | Format::Bf16 | Format::F32 => unreachable!("only quantised formats are kept as tiles"),
    }
}

fn half(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// 16 bytes whose low nibbles are the first 16 values, the high ones the others.
fn with_nibbles(stored: &[u8], second: usize, nibbles: &[u8]) -> Quants {
    Quants {
        values: std::array::from_fn(|i| if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 }),
        scale: half(stored, 0),
        second: half(stored, second),
    }
}

/// Bit i of 4 bytes is the fifth of value i.
fn with_fifth_bits(mut quants: Quants, bits: &[u8]) -> Quants {
    let bits = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
    for (i, value) in quants.values.iter_mut().enumerate() {
        *value |= (((bits >> i) & 1) << 4) as u8;
    }
    quants
}

/// Part `part` of 8 of a `Q4_K` or `Q5_K` block: f16 scale and minimum, 12 bytes of 6-bit factors of both, and values
/// by 64, of which the low nibbles are the first half. `fifth` holds the fifth bits, bit `part` of byte i for value i.
fn k_quants(stored: &[u8], part: usize, nibbles: &[u8], fifth: Option<&[u8]>) -> Quants {
    let factors = &stored[4..16];
    let (scale, minimum) = if part < 4 {
        (factors[part] & 63, factors[part + 4] & 63)
    } else {
        let low = factors[part + 4];
        (
            (low & 15) | ((factors[part - 4] >> 6) << 4),
            (low >> 4) | ((factors[part] >> 6) << 4),
        )
    };
    let nibbles = &nibbles[part / 2 * 32..][..32];
    let mut values: [u8; 32] = std::array::from_fn(|i| (nibbles[i] >> (part % 2 * 4)) & 15);
    if let Some(fifth) = fifth {
        for (value, fifth) in values.iter_mut().zip(fifth) {
            *value |= ((fifth >> part) & 1) << 4;
        }
    }
    Quants {
        values,
        scale: f16::from_f32(half(stored, 0).to_f32() * f32::from(scale)),
        second: f16::from_f32(-half(stored, 2).to_f32() * f32::from(minimum)),
    }
}

/// Part `part` of 8 of a `Q6_K` block: for each 128 values 64 bytes of low nibbles and 32 bytes of upper bit pairs,
/// in which value `32 * q + i` has nibble `q / 2` of byte `32 * (q % 2) + i` and bit pair `q` of byte i; then a signed
/// factor for each 16 values, and the f16 scale.
fn q6_k(stored: &[u8], part: usize) -> Quants {
    let (half_block, quarter) = (part / 4, part % 4);
    let low = &stored[half_block * 64 + quarter % 2 * 32..][..32];
    let high = &stored[128 + half_block * 32..][..32];
    let factor = |i: usize| f32::from(stored[192 + part * 2 + i].cast_signed());
    let scale = half(stored, 208).to_f32();
    Quants {
        values: std::array::from_fn(|i| ((low[i] >> (quarter / 2 * 4)) & 15) | (((high[i] >> (quarter * 2)) & 3) << 4)),
        scale: f16::from_f32(scale * factor(0)),
        second: f16::from_f32(scale * factor(1)),
    }
}
