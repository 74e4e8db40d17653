//! Counts what is allocated, and refuses what no mutant may ask for, as a limit on the process would.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// More at once than any mutant may hold: the allocation fails, which ends the process.
const REFUSED: usize = 4 << 30;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static START: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) -> bool {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
    live < REFUSED
}

// SAFETY: every call is passed on to the system allocator unchanged, or fails as an allocator may; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the system allocator's.
        if more(layout.size()) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    // Zeroed pages cost nothing until they are touched, but a limit on the process counts them all the same.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the system allocator's.
        if more(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is held now does not count.
pub fn start() {
    let live = LIVE.load(Relaxed);
    START.store(live, Relaxed);
    PEAK.store(live, Relaxed);
}

/// The most bytes held at once since then.
pub fn peak() -> usize {
    PEAK.load(Relaxed).saturating_sub(START.load(Relaxed))
}
