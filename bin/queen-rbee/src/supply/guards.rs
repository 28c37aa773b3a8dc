//! What stands in the books for as long as somebody is at it, however that ends.

use std::time::Instant;

use shared_contract::WorkerId;

use super::Service;

/// A load in the books, for as long as this lives.
pub(super) struct Entry {
    service: Service,
    id: u64,
    /// Whether its worker is there.
    pub(super) is_there: bool,
}

impl Entry {
    /// It is in the books already.
    pub(super) fn new(service: &Service, id: u64) -> Self {
        Self {
            service: service.clone(),
            id,
            is_there: false,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.service.books().end(self.id, self.is_there, Instant::now());
        self.service.shared.wake.notify_one();
    }
}

/// Workers that are being ended, for as long as this lives.
pub(super) struct Leaving {
    service: Service,
    workers: Vec<WorkerId>,
}

impl Leaving {
    /// They are in the books already.
    pub(super) fn new(service: &Service, workers: Vec<WorkerId>) -> Self {
        Self {
            service: service.clone(),
            workers,
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut books = self.service.books();
        for worker in &self.workers {
            books.leaving.remove(worker);
        }
    }
}
