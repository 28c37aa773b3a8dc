//! worker-supervisor.
