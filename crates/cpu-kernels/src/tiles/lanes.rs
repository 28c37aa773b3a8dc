//! One register's worth of a tile's rows, in the few operations that products need.

use half::f16;

/// An instruction set's registers: `LANES` rows of a strip at once. Every method is inlined into a function that
/// enables the instruction set.
///
/// # Safety
/// All methods require that the processor has the implementation's instruction set; loads and stores require that what
/// they name is valid from the pointer on (no alignment is needed).
pub(crate) trait Lanes {
    /// 4 bytes per lane.
    type Bytes: Copy;
    /// An i32 per lane.
    type Ints: Copy;
    /// An f32 per lane.
    type Floats: Copy;

    /// Rows at once: 8 or 16.
    const LANES: usize;
    /// Whether 8 vectors of weights and an accumulator for each of a dozen rows fit into the registers.
    const WIDE: bool;
    /// Whether bytes with an offset of 128 are turned into signed ones first, so that there is no offset to subtract.
    const SIGNED_BYTES: bool;

    /// Asks for the cache line at an address that need not be mapped.
    unsafe fn prefetch(at: *const u8);
    /// `4 * LANES` bytes.
    unsafe fn load(from: *const u8) -> Self::Bytes;
    /// The lower four bits of each byte.
    unsafe fn low_nibbles(v: Self::Bytes) -> Self::Bytes;
    /// The upper four bits of each byte.
    unsafe fn high_nibbles(v: Self::Bytes) -> Self::Bytes;
    /// `v` with bit `from` of each byte of `plane` put in as bit `to`, which is clear in `v`; both are below 8.
    unsafe fn with_bit(v: Self::Bytes, plane: Self::Bytes, from: u32, to: u32) -> Self::Bytes;
    /// The 4 activations from the pointer on, in every lane.
    unsafe fn group(from: *const i8) -> Self::Bytes;
    /// Adds to each lane the 4 products of unsigned weights and signed activations. Weights are below 64 in the whole
    /// tile.
    unsafe fn dot_pair(sum: Self::Ints, weights: [Self::Bytes; 2], x: [Self::Bytes; 2]) -> Self::Ints;
    /// The same for one vector.
    unsafe fn dot(sum: Self::Ints, weights: Self::Bytes, x: Self::Bytes) -> Self::Ints;
    /// The same for weights of 8 bits, with the offset of 128 subtracted from them if `SIGNED_BYTES`.
    unsafe fn dot_bytes(sum: Self::Ints, weights: Self::Bytes, x: Self::Bytes) -> Self::Ints;

    /// Zeros.
    unsafe fn no_ints() -> Self::Ints;
    /// One number in every lane.
    unsafe fn splat_int(from: *const i32) -> Self::Ints;
    /// Lane by lane.
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Lane by lane; exact below 2^24.
    unsafe fn to_floats(v: Self::Ints) -> Self::Floats;

    /// Zeros.
    unsafe fn no_floats() -> Self::Floats;
    /// `LANES` floats.
    unsafe fn load_floats(from: *const f32) -> Self::Floats;
    /// `LANES` halves.
    unsafe fn load_halves(from: *const f16) -> Self::Floats;
    /// One number in every lane.
    unsafe fn splat_float(from: *const f32) -> Self::Floats;
    /// Lane by lane.
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Lane by lane.
    unsafe fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once where the instruction set can.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Writes `LANES` floats.
    unsafe fn store(v: Self::Floats, to: *mut f32);
}
