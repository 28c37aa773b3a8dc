//! Lanes as an array: what the compiler makes of it on any target.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Simd;

pub(crate) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn prefetch(_at: *const u16) {}

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller vouches for 8 readable elements.
        unsafe { from.cast::<[f32; 8]>().read() }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        // SAFETY: the caller vouches for 8 readable elements.
        let halves = unsafe { from.cast::<[f16; 8]>().read() };
        let mut out = [0.0; 8];
        halves.convert_to_f32_slice(&mut out);
        out
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: the caller vouches for 8 readable elements.
        let halves = unsafe { from.cast::<[u16; 8]>().read() };
        halves.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `mul_add`: without the instruction that is a library call per lane.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
}
