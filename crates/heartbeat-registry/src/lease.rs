//! Claims on members, so that reported load can be corrected by what was sent since the report.

use std::sync::{Arc, atomic::Ordering};

use shared_contract::HeartbeatItem;

use crate::Member;

/// One request that was sent, or is about to be sent, to a member. The claim falls with this value.
#[derive(Debug)]
#[must_use = "the claim falls when the lease is dropped"]
pub struct Lease<T: HeartbeatItem> {
    member: Arc<Member<T>>,
}

impl<T: HeartbeatItem> Lease<T> {
    pub(crate) fn new(member: Arc<Member<T>>) -> Self {
        member.leases.fetch_add(1, Ordering::Relaxed);
        Self { member }
    }

    /// Who was claimed.
    pub fn member(&self) -> &Arc<Member<T>> {
        &self.member
    }
}

impl<T: HeartbeatItem> Drop for Lease<T> {
    fn drop(&mut self) {
        self.member.leases.fetch_sub(1, Ordering::Relaxed);
    }
}
