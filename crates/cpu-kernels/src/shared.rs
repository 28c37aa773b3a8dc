//! An output that several tasks fill at once, each its own elements.

use std::marker::PhantomData;

/// A mutable slice handed to several tasks.
pub(crate) struct SharedOut<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose only access is `window`, whose contract forbids two tasks the same elements.
unsafe impl<T: Send> Sync for SharedOut<'_, T> {}
// SAFETY: as a `&mut [T]`.
unsafe impl<T: Send> Send for SharedOut<'_, T> {}

impl<'a, T> SharedOut<'a, T> {
    pub(crate) fn new(out: &'a mut [T]) -> Self {
        Self {
            start: out.as_mut_ptr(),
            len: out.len(),
            lifetime: PhantomData,
        }
    }

    /// A pointer to the element at `offset`, from which the caller may reach the elements up to `offset + len`.
    ///
    /// # Safety
    /// While the pointer is used, no other task reads or writes the elements that the caller touches through it.
    ///
    /// # Panics
    /// The window leaves the slice.
    pub(crate) unsafe fn window(&self, offset: usize, len: usize) -> *mut T {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "window outside of the output"
        );
        // SAFETY: `offset` is within the slice, checked above.
        unsafe { self.start.add(offset) }
    }
}
