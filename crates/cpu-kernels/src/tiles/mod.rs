//! Quantised weights as tiles of 16 rows and 32 columns, and their products with rounded rows.
//!
//! A *strip* is 16 rows: the tiles of its blocks of 32 columns one after the other. Within a tile, 64 bytes hold 4
//! consecutive columns of all 16 rows, row by row: what one instruction multiplies with 4 values of an activation row.
//! Eight such vectors make the tile. Weights of 4 to 6 bits put vectors 2g (low) and 2g + 1 (high nibble) into one;
//! the fifth and sixth bits lie in planes of 64 bytes, whose bit j belongs to vector j. Behind them stand 16 f16
//! scales, and where the format has them, 16 minima or the 16 scales of the second half of the columns.
//!
//! The arithmetic is the same everywhere, which makes results the same bits everywhere: for each block in the order of
//! columns, the integer sum of products, exactly; then `acc = fma(sum, weight scale * row scale, acc)`; then, with
//! minima, `acc = fma(minimum, row scale * sum of the row's integers, acc)`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod kernel;
mod lanes;
mod pack;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use kernel::{Out, Strips, group_rows, kernel, strips_at_once};
pub(crate) use pack::{pack_strip, row_to_f32};

use crate::Format;

/// Rows of a strip.
pub(crate) const STRIP_ROWS: usize = 16;
/// Columns of a tile.
pub(crate) const TILE_COLS: usize = 32;
/// Bytes of one vector: 4 columns of 16 rows.
pub(crate) const VECTOR: usize = 64;
/// Bytes of 16 f16.
const HALVES_BYTES: usize = 2 * STRIP_ROWS;

/// What a kind of tile holds, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bit planes beside the nibbles; `None`: whole bytes.
    pub(crate) planes: Option<usize>,
    /// A stored value minus this is the weight in steps of its scale.
    pub(crate) offset: i32,
    /// Whether each row has a minimum that is added.
    pub(crate) minimum: bool,
    /// Whether the second 16 columns have a scale of their own.
    pub(crate) half_scales: bool,
}

impl Layout {
    const fn with_offset(planes: Option<usize>, offset: i32) -> Self {
        Self {
            planes,
            offset,
            minimum: false,
            half_scales: false,
        }
    }

    const fn with_minimum(planes: usize) -> Self {
        Self {
            planes: Some(planes),
            offset: 0,
            minimum: true,
            half_scales: false,
        }
    }

    /// Where the scales start.
    pub(crate) const fn scales(self) -> usize {
        match self.planes {
            Some(planes) => (4 + planes) * VECTOR,
            None => 8 * VECTOR,
        }
    }

    /// Where the minima or the second scales start.
    pub(crate) const fn second(self) -> usize {
        self.scales() + HALVES_BYTES
    }

    /// Bytes of a tile.
    pub(crate) const fn bytes(self) -> usize {
        if self.minimum || self.half_scales {
            self.second() + HALVES_BYTES
        } else {
            self.second()
        }
    }
}

/// The kinds of tiles, by bits per weight and what turns those into numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TileKind {
    Offset4,
    Minimum4,
    Offset5,
    Minimum5,
    Halves6,
    Offset8,
}

impl TileKind {
    /// The kind that a format is kept as; `None` for formats that are not quantised.
    pub(crate) const fn of(format: Format) -> Option<Self> {
        match format {
            Format::Q4_0 => Some(Self::Offset4),
            Format::Q4_1 | Format::Q4K => Some(Self::Minimum4),
            Format::Q5_0 => Some(Self::Offset5),
            Format::Q5_1 | Format::Q5K => Some(Self::Minimum5),
            Format::Q6K => Some(Self::Halves6),
            Format::Q8_0 => Some(Self::Offset8),
            Format::F16 | Format::Bf16 | Format::F32 => None,
        }
    }

    /// What its tiles hold.
    pub(crate) const fn layout(self) -> Layout {
        match self {
            Self::Offset4 => Layout::with_offset(Some(0), 8),
            Self::Minimum4 => Layout::with_minimum(0),
            Self::Offset5 => Layout::with_offset(Some(1), 16),
            Self::Minimum5 => Layout::with_minimum(1),
            Self::Halves6 => Layout {
                half_scales: true,
                ..Layout::with_offset(Some(2), 32)
            },
            Self::Offset8 => Layout::with_offset(None, 128),
        }
    }
}

/// A kind of tile as a type, for kernels that are compiled once per kind.
pub(crate) trait Tile {
    const LAYOUT: Layout;
}

macro_rules! tile_types {
    ($($name:ident),*) => {
        $(
            pub(crate) struct $name;
            impl Tile for $name {
                const LAYOUT: Layout = TileKind::$name.layout();
            }
        )*
    };
}
tile_types!(Offset4, Minimum4, Offset5, Minimum5, Halves6, Offset8);

/// Evaluates an expression with a type name bound to the type of a kind.
macro_rules! with_tile {
    ($kind:expr, $tile:ident => $body:expr) => {
        $crate::tiles::with_tile!($kind, $tile => $body; Offset4, Minimum4, Offset5, Minimum5, Halves6, Offset8)
    };
    ($kind:expr, $tile:ident => $body:expr; $($name:ident),*) => {
        match $kind {
            $($crate::tiles::TileKind::$name => { type $tile = $crate::tiles::$name; $body })*
        }
    };
}
pub(crate) use with_tile;
