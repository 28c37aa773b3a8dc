//! llm-worker-rbee.
