//! heartbeat-registry.
