//! Lanes as arrays: what the compiler makes of them on any target. Plain loops, since closures over arrays of this
//! length are called instead of inlined.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::lanes::Lanes;

const LANES: usize = 8;

pub(crate) struct Portable;

impl Lanes for Portable {
    type Bytes = [u8; 4 * LANES];
    type Ints = [i32; LANES];
    type Floats = [f32; LANES];

    const LANES: usize = LANES;
    const WIDE: bool = false;
    const SIGNED_BYTES: bool = false;

    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Bytes {
        // SAFETY: the caller vouches for the bytes.
        unsafe { from.cast::<Self::Bytes>().read() }
    }

    #[inline(always)]
    unsafe fn low_nibbles(v: Self::Bytes) -> Self::Bytes {
        let mut out = v;
        for byte in &mut out {
            *byte &= 15;
        }
        out
    }

    #[inline(always)]
    unsafe fn high_nibbles(v: Self::Bytes) -> Self::Bytes {
        let mut out = v;
        for byte in &mut out {
            *byte >>= 4;
        }
        out
    }

    #[inline(always)]
    unsafe fn with_bit(v: Self::Bytes, plane: Self::Bytes, from: u32, to: u32) -> Self::Bytes {
        let mut out = v;
        for (byte, plane) in out.iter_mut().zip(plane) {
            *byte |= ((plane >> from) & 1) << to;
        }
        out
    }

    #[inline(always)]
    unsafe fn group(from: *const i8) -> Self::Bytes {
        // SAFETY: the caller vouches for 4 elements.
        let four = unsafe { from.cast::<[u8; 4]>().read() };
        let mut out = [0; 4 * LANES];
        for (out, &byte) in out.iter_mut().zip(four.iter().cycle()) {
            *out = byte;
        }
        out
    }

    #[inline(always)]
    unsafe fn dot_pair(sum: Self::Ints, weights: [Self::Bytes; 2], x: [Self::Bytes; 2]) -> Self::Ints {
        // SAFETY: this instruction set is always there.
        unsafe { Self::dot(Self::dot(sum, weights[0], x[0]), weights[1], x[1]) }
    }

    #[inline(always)]
    unsafe fn dot(sum: Self::Ints, weights: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        let mut out = sum;
        let (weights, x) = (weights.as_chunks::<4>().0, x.as_chunks::<4>().0);
        for ((out, weights), x) in out.iter_mut().zip(weights).zip(x) {
            for (&weight, &x) in weights.iter().zip(x) {
                *out += i32::from(weight) * i32::from(x.cast_signed());
            }
        }
        out
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: Self::Ints, weights: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        // SAFETY: this instruction set is always there.
        unsafe { Self::dot(sum, weights, x) }
    }

    #[inline(always)]
    unsafe fn no_ints() -> Self::Ints {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn splat_int(from: *const i32) -> Self::Ints {
        // SAFETY: the caller vouches for the element.
        [unsafe { from.read() }; LANES]
    }

    #[inline(always)]
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        let mut out = a;
        for (out, b) in out.iter_mut().zip(b) {
            *out += b;
        }
        out
    }

    #[inline(always)]
    unsafe fn to_floats(v: Self::Ints) -> Self::Floats {
        let mut out = [0.0; LANES];
        for (out, value) in out.iter_mut().zip(v) {
            *out = value as f32;
        }
        out
    }

    #[inline(always)]
    unsafe fn no_floats() -> Self::Floats {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn load_floats(from: *const f32) -> Self::Floats {
        // SAFETY: the caller vouches for the elements.
        unsafe { from.cast::<Self::Floats>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const f16) -> Self::Floats {
        // SAFETY: the caller vouches for the elements.
        let halves = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        let mut out = [0.0; LANES];
        halves.convert_to_f32_slice(&mut out);
        out
    }

    #[inline(always)]
    unsafe fn splat_float(from: *const f32) -> Self::Floats {
        // SAFETY: the caller vouches for the element.
        [unsafe { from.read() }; LANES]
    }

    #[inline(always)]
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        let mut out = a;
        for (out, b) in out.iter_mut().zip(b) {
            *out += b;
        }
        out
    }

    #[inline(always)]
    unsafe fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        let mut out = a;
        for (out, b) in out.iter_mut().zip(b) {
            *out *= b;
        }
        out
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // Not `mul_add`: without the instruction that is a library call per lane.
        let mut out = c;
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out += a * b;
        }
        out
    }

    #[inline(always)]
    unsafe fn store(v: Self::Floats, to: *mut f32) {
        // SAFETY: the caller vouches for the elements.
        unsafe { to.cast::<Self::Floats>().write_unaligned(v) }
    }
}
