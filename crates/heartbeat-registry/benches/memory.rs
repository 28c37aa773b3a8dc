//! Bytes that the registry holds for each member, its newest heartbeat included: counted at the allocator, so without what
//! the allocator itself adds.

mod fleet;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

/// The system's allocator, and how much it has given out.
struct Counting {
    live: AtomicUsize,
}

// SAFETY: every call is passed on to the system's allocator as it came; the count touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.live.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract, which is the system's, too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        self.live.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `dealloc`'s contract, and the place came from the system's allocator.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting {
    live: AtomicUsize::new(0),
};

fn live() -> usize {
    ALLOCATOR.live.load(Ordering::Relaxed)
}

fn main() {
    for members in fleet::SIZES {
        let before = live();
        let registry = fleet::registry(members);
        let bytes = live() - before;
        println!("memory/{members:<8} {} bytes a member, {bytes} in all", bytes / members);
        drop(registry);
    }
}
