//! A register of f32 lanes, in the few operations that attention's products need.

use half::f16;

/// A register.
///
/// # Safety
/// All methods require that the processor has the implementation's instruction set, and are inlined into a function
/// that enables it. Loads and stores require `LANES` elements from the pointer on, aligned as the element is.
pub(super) trait Vector: Copy {
    /// Elements of a register.
    const LANES: usize;
    /// Most rows of two registers each that the register file has room for, beside what they are made from.
    const ROWS: usize;
    /// Whether half as many rows may be four registers wide.
    const WIDE: bool;
    /// Whether `mul_add` rounds once.
    const FUSED: bool;

    unsafe fn zero() -> Self;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_half(from: *const f16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self * b + c`.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// Asks for a cache line; where it is does not have to be readable.
    unsafe fn prefetch(at: *const f16);
}

/// Lanes that the compiler makes into what the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Vector for Portable {
    const LANES: usize = 8;
    const ROWS: usize = 4;
    const WIDE: bool = false;
    const FUSED: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for 8 readable elements.
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn load_half(from: *const f16) -> Self {
        // SAFETY: the caller vouches for 8 readable elements; f16 is a transparent u16.
        Self(unsafe { from.cast::<[u16; 8]>().read() }.map(widen))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for 8 writable elements.
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }

    #[inline(always)]
    unsafe fn prefetch(_at: *const f16) {}
}

/// The f32 of an f16's bits, without a branch.
#[inline(always)]
fn widen(half: u16) -> f32 {
    // With the exponent where f32 has it, but biased as f16's: 2^112 too small, also if subnormal.
    const TWO_TO_112: f32 = f32::from_bits((127 + 112) << 23);
    const INFINITE: u32 = 0x7c00 << 13;
    let magnitude = u32::from(half & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * TWO_TO_112).to_bits();
    let bits = if magnitude >= INFINITE {
        magnitude | 0xff << 23
    } else {
        finite
    };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_loadu_si256, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_cvtph_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use half::f16;

    use super::Vector;

    impl Vector for __m256 {
        const LANES: usize = 8;
        const ROWS: usize = 6;
        const WIDE: bool = false;
        const FUSED: bool = true;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller vouches for the instruction set and 8 readable elements.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_half(from: *const f16) -> Self {
            // SAFETY: the caller vouches for the instruction set and 8 readable elements (16 bytes).
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller vouches for the instruction set and 8 writable elements.
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { _mm256_fmadd_ps(self, b, c) }
        }

        #[inline(always)]
        unsafe fn prefetch(at: *const f16) {
            // SAFETY: every x86-64 has the instruction, which faults on no address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }

    impl Vector for __m512 {
        const LANES: usize = 16;
        const ROWS: usize = 12;
        const WIDE: bool = true;
        const FUSED: bool = true;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller vouches for the instruction set and 16 readable elements.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_half(from: *const f16) -> Self {
            // SAFETY: the caller vouches for the instruction set and 16 readable elements (32 bytes).
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller vouches for the instruction set and 16 writable elements.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { _mm512_fmadd_ps(self, b, c) }
        }

        #[inline(always)]
        unsafe fn prefetch(at: *const f16) {
            // SAFETY: every x86-64 has the instruction, which faults on no address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_to_the_same_number_as_f32() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (widen(bits), f16::from_bits(bits).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                "{bits:#06x}: {ours} is not {theirs}"
            );
        }
    }
}
