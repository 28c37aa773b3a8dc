//! queen-rbee.
