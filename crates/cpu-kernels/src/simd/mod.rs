//! One register of f32 lanes, in the few operations that the block products need.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Most lanes of any implementation.
pub(crate) const MAX_LANES: usize = 16;

/// A register type. Every method is inlined into a function that enables the instruction set.
///
/// # Safety
/// All methods require that the processor has the implementation's instruction set; loads require that all `LANES`
/// elements from the pointer on are readable (no alignment beyond the element's).
pub(crate) trait Simd {
    /// The register.
    type V: Copy;
    /// Elements per register.
    const LANES: usize;
    /// Whether there are 32 registers rather than 16.
    const WIDE: bool;

    /// Asks for the cache line at an address that need not be mapped, for later.
    unsafe fn prefetch(at: *const u16);
    unsafe fn zero() -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    /// The bits of f16.
    unsafe fn load_f16(from: *const u16) -> Self::V;
    /// The bits of bf16.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of all lanes, in an order that is fixed per implementation.
    unsafe fn sum(v: Self::V) -> f32;
}
