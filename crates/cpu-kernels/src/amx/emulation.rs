//! Tile registers in plain code.

use super::{MAX_ROW_BYTES, MAX_ROWS, REGISTERS, TileShapes, TileUnit};

type Register = [[u8; MAX_ROW_BYTES]; MAX_ROWS];

/// What the instructions do, by their description in Intel's manual.
pub(crate) struct EmulatedUnit {
    shapes: TileShapes,
    registers: [Register; REGISTERS],
}

impl EmulatedUnit {
    fn rows(&self, register: usize) -> usize {
        usize::from(self.shapes.rows[register])
    }

    fn row_bytes(&self, register: usize) -> usize {
        usize::from(self.shapes.row_bytes[register])
    }
}

impl TileUnit for EmulatedUnit {
    unsafe fn configured(shapes: &TileShapes) -> Self {
        Self {
            shapes: *shapes,
            registers: [[[0; MAX_ROW_BYTES]; MAX_ROWS]; REGISTERS],
        }
    }

    fn zero<const C: usize>(&mut self) {
        self.registers[C] = [[0; MAX_ROW_BYTES]; MAX_ROWS];
    }

    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        self.zero::<T>();
        let row_bytes = self.row_bytes(T);
        let rows = self.rows(T);
        for (row, to) in self.registers[T].iter_mut().enumerate().take(rows) {
            // SAFETY: the caller vouches for the rows in memory; a register's row is no shorter than its shape's.
            unsafe { std::ptr::copy_nonoverlapping(from.add(row * stride), to.as_mut_ptr(), row_bytes) };
        }
    }

    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
        let row_bytes = self.row_bytes(T);
        for (row, from) in self.registers[T].iter().enumerate().take(self.rows(T)) {
            // SAFETY: as for loads.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.add(row * stride), row_bytes) };
        }
    }

    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        let (a, b) = (self.registers[A], self.registers[B]);
        let (fours, cols) = (self.row_bytes(A) / 4, self.row_bytes(C) / 4);
        let rows = self.rows(C);
        for (m, row) in self.registers[C].iter_mut().enumerate().take(rows) {
            for (n, four) in row.as_chunks_mut::<4>().0.iter_mut().enumerate().take(cols) {
                let mut sum = i32::from_le_bytes(*four);
                for k in 0..fours {
                    for i in 0..4 {
                        sum += i32::from(a[m][4 * k + i].cast_signed()) * i32::from(b[k][4 * n + i]);
                    }
                }
                *four = sum.to_le_bytes();
            }
        }
    }
}
