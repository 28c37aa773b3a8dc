//! AVX2, AVX-VNNI and AVX-512 with VNNI.

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _MM_HINT_T0, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_prefetch, _mm256_abs_epi8,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtph_ps,
    _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8, _mm256_sll_epi16, _mm256_srl_epi16,
    _mm256_srli_epi16, _mm256_storeu_ps, _mm256_xor_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_sll_epi16, _mm512_srl_epi16, _mm512_srli_epi16, _mm512_storeu_ps,
};

use half::f16;

use super::lanes::Lanes;

pub(crate) struct Avx2;
pub(crate) struct AvxVnni;
pub(crate) struct Avx512;

/// What all registers of 8 lanes have in common; the block gives the products.
macro_rules! lanes_of_256_bits {
    ($name:ident { $($products:item)* }) => {
        impl Lanes for $name {
            type Bytes = __m256i;
            type Ints = __m256i;
            type Floats = __m256;

            const LANES: usize = 8;
            const WIDE: bool = false;

            $($products)*

            #[inline(always)]
            unsafe fn prefetch(at: *const u8) {
                // SAFETY: a hint, which never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
            }

            #[inline(always)]
            unsafe fn load(from: *const u8) -> __m256i {
                // SAFETY: the caller vouches for the instruction set and 32 bytes.
                unsafe { _mm256_loadu_si256(from.cast()) }
            }

            #[inline(always)]
            unsafe fn low_nibbles(v: __m256i) -> __m256i {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { _mm256_and_si256(v, _mm256_set1_epi8(15)) }
            }

            #[inline(always)]
            unsafe fn high_nibbles(v: __m256i) -> __m256i {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(v), _mm256_set1_epi8(15)) }
            }

            #[inline(always)]
            unsafe fn with_bit(v: __m256i, plane: __m256i, from: u32, to: u32) -> __m256i {
                // SAFETY: the caller vouches for the instruction set.
                unsafe {
                    let moved = if from < to {
                        _mm256_sll_epi16(plane, _mm_cvtsi32_si128((to - from).cast_signed()))
                    } else {
                        _mm256_srl_epi16(plane, _mm_cvtsi32_si128((from - to).cast_signed()))
                    };
                    _mm256_or_si256(v, _mm256_and_si256(moved, _mm256_set1_epi8(1 << to)))
                }
            }

            #[inline(always)]
            unsafe fn group(from: *const i8) -> __m256i {
                // SAFETY: the caller vouches for the instruction set and 4 bytes.
                unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
            }

            #[inline(always)]
            unsafe fn no_ints() -> __m256i {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { _mm256_setzero_si256() }
            }

            #[inline(always)]
            unsafe fn splat_int(from: *const i32) -> __m256i {
                // SAFETY: the caller vouches for the instruction set and the element.
                unsafe { _mm256_set1_epi32(from.read()) }
            }

            #[inline(always)]
            unsafe fn add_ints(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { _mm256_add_epi32(a, b) }
            }

            #[inline(always)]
            unsafe fn to_floats(v: __m256i) -> __m256 {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { _mm256_cvtepi32_ps(v) }
            }

            #[inline(always)]
            unsafe fn no_floats() -> __m256 {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { _mm256_setzero_ps() }
            }

            #[inline(always)]
            unsafe fn load_floats(from: *const f32) -> __m256 {
                // SAFETY: the caller vouches for the instruction set and 8 elements.
                unsafe { _mm256_loadu_ps(from) }
            }

            #[inline(always)]
            unsafe fn load_halves(from: *const f16) -> __m256 {
                // SAFETY: the caller vouches for the instruction set and 8 elements (16 bytes).
                unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
            }

            #[inline(always)]
            unsafe fn splat_float(from: *const f32) -> __m256 {
                // SAFETY: the caller vouches for the instruction set and the element.
                unsafe { _mm256_set1_ps(from.read()) }
            }

            #[inline(always)]
            unsafe fn add(a: __m256, b: __m256) -> __m256 {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { _mm256_add_ps(a, b) }
            }

            #[inline(always)]
            unsafe fn multiply(a: __m256, b: __m256) -> __m256 {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { _mm256_mul_ps(a, b) }
            }

            #[inline(always)]
            unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { _mm256_fmadd_ps(a, b, c) }
            }

            #[inline(always)]
            unsafe fn store(v: __m256, to: *mut f32) {
                // SAFETY: the caller vouches for the instruction set and 8 elements.
                unsafe { _mm256_storeu_ps(to, v) }
            }
        }
    };
}

lanes_of_256_bits!(Avx2 {
    const SIGNED_BYTES: bool = true;

    #[inline(always)]
    unsafe fn dot_pair(sum: __m256i, weights: [__m256i; 2], x: [__m256i; 2]) -> __m256i {
        // Four products of weights below 64 add up to less than 2^15.
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let first = _mm256_maddubs_epi16(weights[0], x[0]);
            let second = _mm256_maddubs_epi16(weights[1], x[1]);
            let four = _mm256_madd_epi16(_mm256_add_epi16(first, second), _mm256_set1_epi16(1));
            _mm256_add_epi32(sum, four)
        }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let pairs = _mm256_maddubs_epi16(weights, x);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // Two products of unsigned bytes would leave 16 bits. Those of a signed byte's amount, up to 128, and of the
        // activation with that byte's sign do not.
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let signed = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
            Self::dot(sum, _mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
        }
    }
});

lanes_of_256_bits!(AvxVnni {
    const SIGNED_BYTES: bool = false;

    #[inline(always)]
    unsafe fn dot_pair(sum: __m256i, weights: [__m256i; 2], x: [__m256i; 2]) -> __m256i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { Self::dot(Self::dot(sum, weights[0], x[0]), weights[1], x[1]) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm256_dpbusd_avx_epi32(sum, weights, x) }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { Self::dot(sum, weights, x) }
    }
});

impl Lanes for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    const LANES: usize = 16;
    const WIDE: bool = true;
    const SIGNED_BYTES: bool = false;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint, which never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: the caller vouches for the instruction set and 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn low_nibbles(v: __m512i) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high_nibbles(v: __m512i) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(v), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn with_bit(v: __m512i, plane: __m512i, from: u32, to: u32) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let moved = if from < to {
                _mm512_sll_epi16(plane, _mm_cvtsi32_si128((to - from).cast_signed()))
            } else {
                _mm512_srl_epi16(plane, _mm_cvtsi32_si128((from - to).cast_signed()))
            };
            _mm512_or_si512(v, _mm512_and_si512(moved, _mm512_set1_epi8(1 << to)))
        }
    }

    #[inline(always)]
    unsafe fn group(from: *const i8) -> __m512i {
        // SAFETY: the caller vouches for the instruction set and 4 bytes.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn dot_pair(sum: __m512i, weights: [__m512i; 2], x: [__m512i; 2]) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { Self::dot(Self::dot(sum, weights[0], x[0]), weights[1], x[1]) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_dpbusd_epi32(sum, weights, x) }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { Self::dot(sum, weights, x) }
    }

    #[inline(always)]
    unsafe fn no_ints() -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn splat_int(from: *const i32) -> __m512i {
        // SAFETY: the caller vouches for the instruction set and the element.
        unsafe { _mm512_set1_epi32(from.read()) }
    }

    #[inline(always)]
    unsafe fn add_ints(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn to_floats(v: __m512i) -> __m512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    #[inline(always)]
    unsafe fn no_floats() -> __m512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load_floats(from: *const f32) -> __m512 {
        // SAFETY: the caller vouches for the instruction set and 16 elements.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const f16) -> __m512 {
        // SAFETY: the caller vouches for the instruction set and 16 elements (32 bytes).
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn splat_float(from: *const f32) -> __m512 {
        // SAFETY: the caller vouches for the instruction set and the element.
        unsafe { _mm512_set1_ps(from.read()) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn store(v: __m512, to: *mut f32) {
        // SAFETY: the caller vouches for the instruction set and 16 elements.
        unsafe { _mm512_storeu_ps(to, v) }
    }
}
