//! An embedding: its reader, and the pooling of hidden states.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::Pooling;
use crate::shared::Shared;

/// An embedding being made: a future of `hidden_size` values, not normalised, or the reason why it failed. Dropping it
/// cancels: its slot and its KV blocks are free within one step.
pub struct Embedding {
    id: u64,
    result: oneshot::Receiver<Result<Vec<f32>, String>>,
    shared: Arc<Shared>,
}

impl Embedding {
    /// The reader of a new embedding, and where the step loop sends the result.
    pub(crate) fn new(id: u64, shared: Arc<Shared>) -> (Self, oneshot::Sender<Result<Vec<f32>, String>>) {
        let (sender, result) = oneshot::channel();
        (Self { id, result, shared }, sender)
    }
}

impl Future for Embedding {
    type Output = Result<Vec<f32>, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let received = ready!(Pin::new(&mut self.result).poll(cx));
        Poll::Ready(received.unwrap_or_else(|_| Err("the engine gave up the request".into())))
    }
}

impl Drop for Embedding {
    fn drop(&mut self) {
        if !self.result.is_terminated() {
            self.result.close();
            self.shared.abandon(self.id);
        }
    }
}

impl fmt::Debug for Embedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedding")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Makes one vector of a text's hidden states, which come in chunks.
#[derive(Debug)]
pub(crate) struct Pooler {
    pooling: Pooling,
    /// In double precision, so that a long text's mean does not depend on the order of its tokens.
    sums: Vec<f64>,
    tokens: usize,
}

impl Pooler {
    pub(crate) fn new(pooling: Pooling, hidden_size: usize) -> Self {
        Self {
            pooling,
            sums: vec![0.0; hidden_size],
            tokens: 0,
        }
    }

    /// Whether all tokens' hidden states are wanted, not only those of the last chunk.
    pub(crate) fn needs_all(&self) -> bool {
        self.pooling == Pooling::Mean
    }

    /// The next tokens' hidden states.
    pub(crate) fn push(&mut self, rows: &[f32]) {
        let width = self.sums.len().max(1);
        match self.pooling {
            Pooling::Mean => {
                for row in rows.chunks_exact(width) {
                    for (sum, value) in self.sums.iter_mut().zip(row) {
                        *sum += f64::from(*value);
                    }
                    self.tokens += 1;
                }
            }
            Pooling::Last => {
                if let Some(row) = rows.chunks_exact(width).last() {
                    for (sum, value) in self.sums.iter_mut().zip(row) {
                        *sum = f64::from(*value);
                    }
                    self.tokens = 1;
                }
            }
        }
    }

    /// The embedding; an error where a value is not finite, which the model is to blame for.
    pub(crate) fn finish(&self) -> Result<Vec<f32>, String> {
        let tokens = self.tokens.max(1) as f64;
        let values: Vec<f32> = self.sums.iter().map(|sum| (sum / tokens) as f32).collect();
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err("the model's hidden states are not finite numbers".into())
        }
    }
}
