//! device-monitor.
