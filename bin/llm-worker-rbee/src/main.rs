//! llm-worker-rbee.
fn main() {}
