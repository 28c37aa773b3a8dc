//! One layer's keys and values, in blocks of tokens that sequences hold in any order.

use std::fmt;
use std::io;
use std::marker::PhantomData;

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::MmapMut;

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = 32;
/// A value row is padded to this many elements with zeros, so that whole registers can be read.
pub(crate) const VALUE_ALIGN: usize = 16;

/// One layer's paged cache, in f16.
///
/// Per block and key-value head: keys `[head_dim][BLOCK_TOKENS]`, then values `[BLOCK_TOKENS][head_dim]` (a row padded
/// to a multiple of 16), so that both products of attention walk through memory in order with tokens, then dimensions in
/// the lanes. All of it is one anonymous mapping: a block takes memory from when it is first written.
pub struct KvCache {
    kv_heads: usize,
    head_dim: usize,
    blocks: usize,
    memory: MmapMut,
}

impl KvCache {
    /// A cache of `blocks` empty blocks.
    ///
    /// # Errors
    /// The system refuses the address space.
    pub fn new(kv_heads: usize, head_dim: usize, blocks: usize) -> io::Result<Self> {
        let bytes = Self::bytes_per_block(kv_heads, head_dim)
            .checked_mul(blocks)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // An empty mapping is an error to the system.
        let memory = MmapMut::map_anon(bytes.max(1))?;
        Ok(Self {
            kv_heads,
            head_dim,
            blocks,
            memory,
        })
    }

    /// Bytes that one block takes.
    pub fn bytes_per_block(kv_heads: usize, head_dim: usize) -> usize {
        kv_heads * Layout::new(head_dim).head_len() * size_of::<f16>()
    }

    /// Key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The cache as several tasks write and read it.
    pub(crate) fn share(&mut self) -> SharedCache<'_> {
        SharedCache {
            // A mapping begins at a page, so it is aligned for its elements.
            start: self.memory.as_mut_ptr().cast(),
            layout: Layout::new(self.head_dim),
            kv_heads: self.kv_heads,
            blocks: self.blocks,
            lifetime: PhantomData,
        }
    }
}

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvCache")
            .field("kv_heads", &self.kv_heads)
            .field("head_dim", &self.head_dim)
            .field("blocks", &self.blocks)
            .finish_non_exhaustive()
    }
}

/// Where things lie within one head of a block, in elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Elements of a head.
    pub(crate) head_dim: usize,
    /// Elements from one token's values to the next one's.
    pub(crate) value_stride: usize,
}

impl Layout {
    fn new(head_dim: usize) -> Self {
        Self {
            head_dim,
            value_stride: head_dim.next_multiple_of(VALUE_ALIGN),
        }
    }

    /// Elements of a head's keys; its values follow.
    fn keys_len(self) -> usize {
        self.head_dim * BLOCK_TOKENS
    }

    fn head_len(self) -> usize {
        self.keys_len() + BLOCK_TOKENS * self.value_stride
    }
}

/// A [`KvCache`] in the hands of several tasks.
#[derive(Clone, Copy)]
pub(crate) struct SharedCache<'a> {
    start: *mut f16,
    pub(crate) layout: Layout,
    kv_heads: usize,
    blocks: usize,
    lifetime: PhantomData<&'a mut KvCache>,
}

// SAFETY: it is a `&mut KvCache`, whose memory is only reached by `write`, whose contract forbids that another task
// touches the same token, and through the pointers of `keys` and `values`, whose reader vouches that nobody writes.
unsafe impl Sync for SharedCache<'_> {}
// SAFETY: as above.
unsafe impl Send for SharedCache<'_> {}

impl SharedCache<'_> {
    /// The first element of a head of a block.
    ///
    /// # Panics
    /// There is no such block or head.
    fn head(&self, block: u32, kv_head: usize) -> *mut f16 {
        let block = block as usize;
        assert!(
            block < self.blocks && kv_head < self.kv_heads,
            "no block {block} in the cache"
        );
        // SAFETY: the mapping has `blocks * kv_heads` heads of `head_len` elements each.
        unsafe {
            self.start
                .add((block * self.kv_heads + kv_head) * self.layout.head_len())
        }
    }

    /// A block's keys: `head_dim` rows of `BLOCK_TOKENS` elements.
    pub(crate) fn keys(&self, block: u32, kv_head: usize) -> *const f16 {
        self.head(block, kv_head)
    }

    /// A block's values: `BLOCK_TOKENS` rows of `layout.value_stride` elements.
    pub(crate) fn values(&self, block: u32, kv_head: usize) -> *const f16 {
        // SAFETY: the values follow the keys within a head.
        unsafe { self.head(block, kv_head).add(self.layout.keys_len()) }
    }

    /// Writes one head of a token, rounded to f16; what f16 cannot hold becomes its largest number.
    ///
    /// # Safety
    /// While this runs, no other task reads or writes this head of this token.
    ///
    /// # Panics
    /// The token, the block or the head does not exist, or `key` or `value` has not `head_dim` elements.
    pub(crate) unsafe fn write(&self, block: u32, token: usize, kv_head: usize, key: &[f32], value: &[f32]) {
        let Layout { head_dim, value_stride } = self.layout;
        assert!(
            token < BLOCK_TOKENS && key.len() == head_dim && value.len() == head_dim,
            "one token's head"
        );
        let head = self.head(block, kv_head);
        in_halves(key, |first, halves| {
            for (d, &half) in halves.iter().enumerate() {
                // SAFETY: row `first + d < head_dim` and column `token` of the head's keys; the caller vouches that
                // this element is ours.
                unsafe { head.add((first + d) * BLOCK_TOKENS + token).write(half) };
            }
        });
        in_halves(value, |first, halves| {
            // SAFETY: the elements from `first` on of row `token` of the head's values, at most `head_dim` of them; the
            // caller vouches that they are ours, and `halves` lies on the stack.
            unsafe {
                let to = head.add(self.layout.keys_len() + token * value_stride + first);
                to.copy_from_nonoverlapping(halves.as_ptr(), halves.len());
            }
        });
    }
}

/// Calls `use_piece(offset, halves)` on pieces of `x` rounded to f16.
#[inline]
fn in_halves(x: &[f32], mut use_piece: impl FnMut(usize, &[f16])) {
    const PIECE: usize = 64;
    const LARGEST: f32 = 65504.0;
    let mut finite = [0.0f32; PIECE];
    let mut halves = [f16::ZERO; PIECE];
    for (piece, x) in x.chunks(PIECE).enumerate() {
        for (finite, x) in finite.iter_mut().zip(x) {
            *finite = x.clamp(-LARGEST, LARGEST);
        }
        let halves = &mut halves[..x.len()];
        halves.convert_from_f32_slice(&finite[..x.len()]);
        use_piece(piece * PIECE, halves);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lies_transposed_in_its_block_s_keys_and_whole_in_its_values() {
        let (kv_heads, head_dim) = (2, 6);
        let mut cache = KvCache::new(kv_heads, head_dim, 3).expect("memory for a small cache");
        assert_eq!(KvCache::bytes_per_block(kv_heads, head_dim), 2 * (6 * 32 + 32 * 16) * 2);
        let key: Vec<f32> = (0..6).map(|d| d as f32 + 0.5).collect();
        let value: Vec<f32> = (0..6).map(|d| -(d as f32) * 0.25).collect();
        let shared = cache.share();
        // SAFETY: nothing else uses the cache.
        unsafe { shared.write(2, 31, 1, &key, &value) };
        for d in 0..6 {
            // SAFETY: elements of the head's keys and values.
            let (k, v) = unsafe {
                (
                    *shared.keys(2, 1).add(d * BLOCK_TOKENS + 31),
                    *shared.values(2, 1).add(31 * 16 + d),
                )
            };
            assert_eq!((k.to_f32(), v.to_f32()), (key[d], value[d]));
        }
        let written = cache.memory.iter().filter(|&&byte| byte != 0).count();
        assert!(written > 0 && written <= 2 * 12, "nothing else was written");
    }

    #[test]
    fn what_f16_cannot_hold_becomes_its_largest_number() {
        let mut cache = KvCache::new(1, 2, 1).expect("memory for a small cache");
        let shared = cache.share();
        // SAFETY: nothing else uses the cache.
        unsafe { shared.write(0, 0, 0, &[1e9, f32::NEG_INFINITY], &[0.0, 70_000.0]) };
        // SAFETY: elements of the head's keys and values.
        let (a, b, c) = unsafe {
            (
                *shared.keys(0, 0),
                *shared.keys(0, 0).add(BLOCK_TOKENS),
                *shared.values(0, 0).add(1),
            )
        };
        assert_eq!([a, b, c], [f16::MAX, f16::MIN, f16::MAX]);
    }

    #[test]
    fn a_cache_without_blocks_is_possible() {
        assert_eq!(KvCache::new(2, 64, 0).expect("an empty cache").blocks(), 0);
    }
}
