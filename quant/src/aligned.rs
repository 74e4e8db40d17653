//! A zeroed buffer of plain numbers that starts on a cache line and only ever grows.
//!
//! SIMD loads that straddle two cache lines cost a second access, and `Vec<i8>` promises one byte of alignment only.
//! The buffer never shrinks and never runs constructors, so it refuses any type but the few listed here.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

const LINE_BYTES: usize = 64;

/// Types for which all-zero bytes are a value and no destructor runs.
pub(crate) trait Plain: Copy + 'static {}
impl Plain for f32 {}
impl Plain for i8 {}
impl Plain for i16 {}

pub(crate) struct Aligned<T: Plain> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer owns its memory and T is plain numbers; shared access goes through `&self` or raw pointers whose
// users state their own contract.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Aligned<T> {}

impl<T: Plain> Aligned<T> {
    pub fn new() -> Aligned<T> {
        Aligned { start: NonNull::dangling(), len: 0 }
    }

    /// Makes room for `len` values. What was in the buffer is lost when it has to grow.
    pub fn grow(&mut self, len: usize) {
        if len <= self.len {
            return;
        }
        let layout = Self::layout(len);
        // SAFETY: len > 0 and T has a size, so the layout is not empty.
        let raw = unsafe { alloc_zeroed(layout) }.cast::<T>();
        let Some(start) = NonNull::new(raw) else { handle_alloc_error(layout) };
        self.release();
        (self.start, self.len) = (start, len);
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The first value. Writing through it needs the exclusion that the caller's own contract gives.
    pub fn as_ptr(&self) -> *mut T {
        self.start.as_ptr()
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` initialised (zeroed) values start there; `&self` excludes writers that keep their contract.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize - LINE_BYTES);
        match bytes.map(|bytes| Layout::from_size_align(bytes, LINE_BYTES)) {
            Some(Ok(layout)) => layout,
            _ => panic!("a buffer of {len} values does not fit the address space"),
        }
    }

    fn release(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `grow` with this very layout.
            unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) };
        }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<T: Plain> Default for Aligned<T> {
    fn default() -> Aligned<T> {
        Aligned::new()
    }
}
