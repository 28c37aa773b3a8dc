//! What the access log tells of requests to models.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use daemon::access::{self, Line, Slot, millis};
use daemon::access_line;
use http::Method;
use router::{Account, Endpoint, Failure};

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
                tokens = figures.output_tokens,
                code = figures.error_code.as_deref()
            );
        });
    }

    fn is_complete(&self) -> bool {
        self.0.read(|figures| figures.is_complete)
    }

    fn failure(&self) -> Option<access::Failure> {
        match self.0.read(|figures| figures.failure)? {
            Failure::Refused => Some(access::Failure::Refused),
            Failure::Broken => Some(access::Failure::Broken),
        }
    }
}

/// The line of a request that a job makes: written when it is dropped, as if the request had come from whoever ordered the job.
pub(crate) struct JobLine {
    endpoint: Endpoint,
    account: Told,
    id: String,
    peer: SocketAddr,
    began: Instant,
    status: Option<u16>,
    bytes: u64,
}

impl JobLine {
    /// Of a request with this id that begins now.
    pub(crate) fn begin(endpoint: Endpoint, account: Arc<Account>, id: String, peer: SocketAddr) -> Self {
        Self {
            endpoint,
            account: Told(account),
            id,
            peer,
            began: Instant::now(),
            status: None,
            bytes: 0,
        }
    }

    /// It is answered with this status.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// So many bytes more of the answer have come.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

impl Drop for JobLine {
    fn drop(&mut self) {
        let is_complete = access::Account::is_complete(&self.account);
        let failure = access::Account::failure(&self.account);
        let line = Line {
            method: &Method::POST,
            path: self.endpoint.path(),
            status: self.status,
            duration_ms: millis(self.began.elapsed()),
            bytes: self.bytes,
            outcome: access::outcome(is_complete, failure),
            request_id: &self.id,
            peer: self.peer,
        };
        access::Account::write(&self.account, &line);
    }
}
