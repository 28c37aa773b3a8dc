//! A worker that an operator asks for.

use std::collections::BTreeMap;

use hive_contract::{DeviceInfo, DeviceKind};
use shared_contract::HiveId;

/// What he asks for besides the model. It goes the way of a demand: the same decision, room made, one hive after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Errand {
    /// What hives without the model's file are asked for, where it is not the model's id.
    pub(crate) reference: Option<String>,
    /// The kind of device.
    pub(crate) kind: Option<DeviceKind>,
    /// The device.
    pub(crate) device: Option<String>,
    /// Longest prompt plus answer in tokens.
    pub(crate) context_length: Option<u32>,
    /// Requests that are computed together.
    pub(crate) slots: Option<u32>,
    /// Seconds without a request after which it is stopped.
    pub(crate) keep_alive_s: Option<u64>,
    /// Hives that could not do it, and why.
    pub(crate) failures: BTreeMap<HiveId, String>,
}

impl Errand {
    /// Why it is not for this device; `None` if it may be.
    pub(crate) fn excludes(&self, device: &DeviceInfo) -> Option<String> {
        if let Some(wanted) = self.device.as_ref().filter(|wanted| **wanted != device.id) {
            return Some(format!("device {wanted} is asked for"));
        }
        let wanted = self.kind.filter(|wanted| *wanted != device.kind)?;
        Some(format!("a {wanted} device is asked for"))
    }
}
