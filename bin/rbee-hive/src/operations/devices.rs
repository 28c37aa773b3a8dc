//! `device_list`: the devices with their load.

use hive_contract::{DeviceInfo, DeviceKind, DeviceLoad, MonitorData};
use serde::Serialize;
use serde_json::{Value, json};

use crate::core::Core;

/// A device and how busy it is.
#[derive(Debug, Serialize)]
struct DeviceEntry {
    #[serde(flatten)]
    device: DeviceInfo,
    /// `null` for one that does not tell.
    load: Option<DeviceLoad>,
}

/// `{"devices": [..]}`, and under `problem` why one that should be there is not.
pub(super) fn list(core: &Core) -> Value {
    let (monitor, _) = core.measure();
    let entries: Vec<DeviceEntry> = core
        .devices()
        .into_iter()
        .map(|device| entry(device, &monitor))
        .collect();
    json!({ "devices": entries, "problem": core.monitor.snapshot().problem() })
}

fn entry(device: DeviceInfo, monitor: &MonitorData) -> DeviceEntry {
    let load = match device.kind {
        DeviceKind::Cpu => Some(main_processor(&device, monitor)),
        _ => monitor.devices.iter().find(|load| load.id == device.id).cloned(),
    };
    DeviceEntry { device, load }
}

/// The CPU's load in the words of a device: its memory is the main memory.
fn main_processor(device: &DeviceInfo, monitor: &MonitorData) -> DeviceLoad {
    DeviceLoad {
        id: device.id.clone(),
        util_percent: Some(monitor.cpu_usage_percent),
        vram_used_mb: Some(monitor.ram_used_mb),
        vram_total_mb: Some(monitor.ram_total_mb),
        vram_free_mb: monitor.ram_free_mb,
        ..DeviceLoad::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str) -> DeviceInfo {
        DeviceInfo {
            id: id.into(),
            kind: id.parse().unwrap(),
            name: String::new(),
            memory_total_mb: 1024,
            memory_reserved_mb: 0,
            uuid: None,
            compute_capability: None,
        }
    }

    #[test]
    fn each_device_has_its_own_load_and_the_cpu_that_of_the_host() {
        let monitor = MonitorData {
            cpu_usage_percent: 12.5,
            ram_used_mb: 300,
            ram_total_mb: 1024,
            ram_free_mb: Some(700),
            devices: vec![DeviceLoad {
                id: "cuda:1".into(),
                vram_used_mb: Some(5),
                ..DeviceLoad::default()
            }],
            ..MonitorData::default()
        };
        let cpu = entry(device("cpu"), &monitor).load.unwrap();
        assert_eq!((cpu.util_percent, cpu.vram_free_mb), (Some(12.5), Some(700)));
        assert_eq!(entry(device("cuda:1"), &monitor).load, Some(monitor.devices[0].clone()));
        assert_eq!(entry(device("cuda:0"), &monitor).load, None);
    }
}
