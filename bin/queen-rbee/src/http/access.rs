//! What the access log tells of requests to models.

use std::sync::Arc;

use axum::extract::Request;
use daemon::access::{self, Line, Slot, millis};
use daemon::access_line;
use router::Account;

/// The account of a request to a model, which its line in the access log will tell.
pub(super) fn account_of(request: &Request) -> Arc<Account> {
    let account = Arc::<Account>::default();
    if let Some(slot) = request.extensions().get::<Slot>() {
        slot.put(Arc::new(Told(Arc::clone(&account))));
    }
    account
}

/// An account, as the access log reads it.
struct Told(Arc<Account>);

impl access::Account for Told {
    fn write(&self, line: &Line<'_>) {
        self.0.read(|figures| {
            access_line!(
                INFO,
                line,
                model = figures.model.as_ref().map(|model| model.as_str()),
                worker = figures.worker().map(|worker| worker.as_str()),
                hive = figures.hive().map(|hive| hive.as_str()),
                ttft_ms = figures.time_to_first_token.map(millis),
                queue_ms = millis(figures.queue),
                attempts = figures.attempts,
                migrations = figures.migrations,
                tokens = figures.output_tokens
            );
        });
    }

    fn is_complete(&self) -> bool {
        self.0.read(|figures| figures.is_complete)
    }

    fn is_broken(&self) -> bool {
        self.0.read(|figures| figures.is_broken)
    }
}
