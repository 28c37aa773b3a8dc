//! A step like the one before it asks for no memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use cpu_kernels::{AttentionScratch, AttentionShape, Kernels, KvCache, Qkv, RmsNorm, RopeStyle, RopeTable, Span};

/// The system's allocator, which counts.
struct Counting {
    requests: AtomicUsize,
}

// SAFETY: everything is passed on to the system's allocator as it comes.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.requests.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting {
    requests: AtomicUsize::new(0),
};

#[test]
fn attention_and_sums_allocate_nothing_once_a_step_of_their_size_has_run() {
    let (rows, heads, kv_heads, dim) = (96, 6, 2, 32);
    let threads = NonZeroUsize::MIN.saturating_add(1);
    let kernels = Kernels::from_env(threads).expect("kernels");
    let mut cache = KvCache::new(kv_heads, dim, 64).expect("memory for a cache");
    let blocks: Vec<u32> = (0..64).collect();
    let (mut scratch, mut rope) = (AttentionScratch::default(), RopeTable::new());
    let weights = vec![1.0; heads * dim];
    let shape = AttentionShape {
        heads,
        kv_heads,
        head_dim: dim,
        scale: 0.2,
        window: None,
        softcap: Some(30.0),
        query_norm: None,
        key_norm: None,
        style: RopeStyle::Halves,
    };
    let (mut q, v) = (vec![0.5; rows * heads * dim], vec![0.5; rows * kv_heads * dim]);
    let (mut k, mut out) = (v.clone(), q.clone());
    let positions: Vec<usize> = (1900..1900 + rows).collect();
    let mut step = || {
        rope.fill(&positions, &[0.5; 16], 1.0);
        for (rows, position) in [(rows, 1900), (1, 1999)] {
            let span = Span {
                first: 0,
                rows,
                position,
                blocks: &blocks,
            };
            let qkv = Qkv {
                q: &mut q,
                k: &mut k,
                v: &v,
            };
            kernels.attend(&shape, &rope, qkv, &mut cache, &[span], &mut scratch, &mut out);
        }
        let norm = RmsNorm {
            weights: &weights,
            epsilon: 1e-5,
        };
        kernels.add(&mut q, &out);
        kernels.add_normed(&mut q, &out, heads * dim, norm);
        kernels.softcap(&mut q, 4.0);
    };
    step();
    // The counter sees the test's own threads, too, of which one may be late; what allocates in a step does so in each.
    let requests = (0..4).map(|_| {
        let before = ALLOCATOR.requests.load(Ordering::Relaxed);
        step();
        ALLOCATOR.requests.load(Ordering::Relaxed) - before
    });
    assert_eq!(requests.min(), Some(0));
}
