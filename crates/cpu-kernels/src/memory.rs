//! Memory for weights.

use std::io;

use memmap2::MmapMut;

/// Zeroed anonymous memory, aligned to a page, in huge pages where the system has them: a walk through all weights then
/// hardly misses the TLB.
pub(crate) struct Memory {
    mapping: MmapMut,
    bytes: usize,
}

impl Memory {
    /// # Errors
    /// The system has no memory.
    pub(crate) fn zeroed(bytes: usize) -> io::Result<Self> {
        let mapping = MmapMut::map_anon(bytes.max(1))?;
        // Without huge pages everything still works.
        #[cfg(target_os = "linux")]
        let _unavailable = mapping.advise(memmap2::Advice::HugePage);
        Ok(Self { mapping, bytes })
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.mapping[..self.bytes]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.mapping[..self.bytes]
    }
}
