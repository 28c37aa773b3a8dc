//! How fast memory can be read: the floor under decoding, which reads all weights for each token.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

/// More than any cache holds.
const BYTES_PER_THREAD: usize = 128 << 20;
/// Places that each thread reads from at a time; one alone does not keep memory busy.
const STREAMS: usize = 8;

/// Bytes per second that threads read together.
pub(crate) fn bytes_per_second(threads: NonZeroUsize) -> f64 {
    let buffers: Vec<Vec<u64>> = (0..threads.get()).map(|_| vec![1; BYTES_PER_THREAD / 8]).collect();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for buffer in &buffers {
            scope.spawn(move || black_box(sum(buffer)));
        }
    });
    (threads.get() * BYTES_PER_THREAD) as f64 / begin.elapsed().as_secs_f64()
}

/// Reads everything once, from several places in turn.
fn sum(buffer: &[u64]) -> u64 {
    let mut streams: Vec<_> = buffer
        .chunks(buffer.len() / STREAMS)
        .map(|part| part.chunks_exact(64))
        .collect();
    let mut total = 0_u64;
    loop {
        let mut ended = true;
        for stream in &mut streams {
            if let Some(piece) = stream.next() {
                total = total.wrapping_add(piece.iter().fold(0, |sum: u64, &word| sum.wrapping_add(word)));
                ended = false;
            }
        }
        if ended {
            return total;
        }
    }
}
