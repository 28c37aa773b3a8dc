//! The instructions of AMX that products need, and whether this process may use them.
//!
//! The standard library has no stable names for them, so they are written as `asm!`. Everything around them is generic
//! over [`TileUnit`], and tested with an emulation of it; a processor is trusted only after it has agreed with the
//! emulation on one product in this very process.

mod emulation;
mod hardware;

pub(crate) use emulation::EmulatedUnit;
pub(crate) use hardware::HardwareUnit;

/// Tile registers.
pub(crate) const REGISTERS: usize = 8;
/// Rows of a register, at most.
pub(crate) const MAX_ROWS: usize = 16;
/// Bytes of a row, at most.
pub(crate) const MAX_ROW_BYTES: usize = 64;

/// The shapes of the tile registers, in the layout that LDTILECFG reads (palette 1).
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TileShapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileShapes {
    /// `(rows, bytes of a row)` of each register.
    ///
    /// # Panics
    /// A shape is larger than a register.
    pub(crate) const fn new(shapes: [(u8, u16); REGISTERS]) -> Self {
        let mut out = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let mut register = 0;
        while register < REGISTERS {
            let (rows, row_bytes) = shapes[register];
            assert!(rows as usize <= MAX_ROWS && row_bytes as usize <= MAX_ROW_BYTES && row_bytes.is_multiple_of(4));
            out.rows[register] = rows;
            out.row_bytes[register] = row_bytes;
            register += 1;
        }
        out
    }
}

/// A thread's tile registers. The instructions by their names in Intel's manual; register numbers are below
/// [`REGISTERS`], `stride` counts bytes between rows.
///
/// # Safety
/// A unit may be configured only where it is there and permitted. Loads and stores touch, for each row of the register,
/// `row_bytes` bytes at `stride` from the row before: those must be valid.
pub(crate) trait TileUnit {
    /// LDTILECFG: gives the registers their shapes, and zeros.
    unsafe fn configured(shapes: &TileShapes) -> Self;
    /// TILEZERO.
    fn zero<const C: usize>(&mut self);
    /// TILELOADD.
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize);
    /// TILESTORED.
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize);
    /// TDPBSUD: adds to each i32 of `C` the products of four signed bytes of `A` with four unsigned bytes of `B`:
    /// `C[m][n] += sum over k, i of A[m][4k + i] * B[k][4n + i]`.
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self);
}

/// Whether the processor has tiles of bytes, the system lets this process use them, and they compute what they should.
pub(crate) fn is_available() -> bool {
    // SAFETY: the unit is there and permitted, as just asked.
    hardware::is_permitted() && unsafe { agrees_with_emulation::<HardwareUnit>() }
}

/// Multiplies one pair of tiles of every shape in use on `U` and on the emulation.
///
/// # Safety
/// `U` is there and permitted.
unsafe fn agrees_with_emulation<U: TileUnit>() -> bool {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = [0u8; 1024];
    for byte in &mut bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    // SAFETY: the caller's promise; the emulation is always there.
    unsafe { product::<U>(&bytes) == product::<EmulatedUnit>(&bytes) }
}

/// 16 x 32 and 16 x 16 signed bytes times 32 x 16 and 16 x 16 unsigned ones.
///
/// # Safety
/// `U` is there and permitted.
unsafe fn product<U: TileUnit>(bytes: &[u8; 1024]) -> [[i32; 16]; 16] {
    let mut out = [[0; 16]; 16];
    let shapes = TileShapes::new([(16, 64), (16, 32), (8, 64), (16, 16), (4, 64), (0, 0), (0, 0), (0, 0)]);
    // SAFETY: the caller's promise; the loads read 16 x 32, 8 x 64, 16 x 16 and 4 x 64 of the 1,024 bytes; the store fills `out`.
    unsafe {
        let mut unit = U::configured(&shapes);
        unit.zero::<0>();
        unit.load::<1>(bytes.as_ptr(), 32);
        unit.load::<2>(bytes.as_ptr().add(512), 64);
        unit.multiply::<0, 1, 2>();
        unit.load::<3>(bytes.as_ptr().add(128), 16);
        unit.load::<4>(bytes.as_ptr().add(768), 64);
        unit.multiply::<0, 3, 4>();
        unit.store::<0>(out.as_mut_ptr().cast(), 64);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulation_multiplies_signed_rows_with_unsigned_columns() {
        let bytes: [u8; 1024] = std::array::from_fn(|i| (i * 37 + i / 16 * 11) as u8);
        let plain = |m: usize, n: usize| -> i32 {
            let long = (0..32).map(|k| (bytes[m * 32 + k] as i8, bytes[512 + k / 4 * 64 + n * 4 + k % 4]));
            let short = (0..16).map(|k| (bytes[128 + m * 16 + k] as i8, bytes[768 + k / 4 * 64 + n * 4 + k % 4]));
            long.chain(short).map(|(a, b)| i32::from(a) * i32::from(b)).sum()
        };
        // SAFETY: the emulation is always there.
        let product = unsafe { product::<EmulatedUnit>(&bytes) };
        for (m, row) in product.iter().enumerate() {
            for (n, &value) in row.iter().enumerate() {
                assert_eq!(value, plain(m, n), "row {m}, column {n}");
            }
        }
    }

    #[test]
    fn a_unit_that_computes_something_else_is_found_out() {
        struct Broken(EmulatedUnit);
        impl TileUnit for Broken {
            unsafe fn configured(shapes: &TileShapes) -> Self {
                // SAFETY: the emulation is always there.
                Self(unsafe { EmulatedUnit::configured(shapes) })
            }
            fn zero<const C: usize>(&mut self) {
                self.0.zero::<C>();
            }
            unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
                // SAFETY: the same contract.
                unsafe { self.0.load::<T>(from, stride) }
            }
            unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
                // SAFETY: the same contract.
                unsafe { self.0.store::<T>(to, stride) }
            }
            fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {}
        }
        // SAFETY: both are emulations, which are always there.
        let agree = unsafe {
            [
                agrees_with_emulation::<EmulatedUnit>(),
                agrees_with_emulation::<Broken>(),
            ]
        };
        assert_eq!(agree, [true, false]);
    }
}
