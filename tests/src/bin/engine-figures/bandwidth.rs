//! How fast memory can be read: the floor under decoding, which reads all weights for each token.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

use memmap2::MmapMut;

/// More than any cache holds.
const BYTES_PER_THREAD: usize = 128 << 20;

/// Bytes per second that threads read together, from memory in large pages where the system has them.
pub(crate) fn bytes_per_second(threads: NonZeroUsize) -> Result<f64, String> {
    let buffers: Result<Vec<MmapMut>, String> = (0..threads.get()).map(|_| buffer()).collect();
    let buffers = buffers?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for buffer in &buffers {
            scope.spawn(move || black_box(sum(buffer)));
        }
    });
    Ok((threads.get() * BYTES_PER_THREAD) as f64 / begin.elapsed().as_secs_f64())
}

/// Memory that has been written to.
fn buffer() -> Result<MmapMut, String> {
    let mut buffer = MmapMut::map_anon(BYTES_PER_THREAD).map_err(|error| format!("get memory: {error}"))?;
    #[cfg(target_os = "linux")]
    let _unavailable = buffer.advise(memmap2::Advice::HugePage);
    buffer.fill(1);
    Ok(buffer)
}

/// Reads everything once, in the lanes that the compiler makes vector registers of.
fn sum(buffer: &[u8]) -> u64 {
    let mut lanes = [0_u64; 32];
    for piece in buffer.as_chunks::<256>().0 {
        for (lane, word) in lanes.iter_mut().zip(piece.as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    lanes.into_iter().fold(0, u64::wrapping_add)
}
