//! rbee-hive.
fn main() {}
