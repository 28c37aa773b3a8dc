//! model-store.
