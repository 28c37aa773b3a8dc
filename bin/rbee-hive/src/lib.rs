//! rbee-hive.
