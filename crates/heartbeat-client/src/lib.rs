//! heartbeat-client.
