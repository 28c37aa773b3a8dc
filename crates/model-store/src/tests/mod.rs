//! Scenarios against servers on loopback and a real pip: each test's name is a sentence of the specification.

mod full_disk;
mod holds;
mod hub;
mod interruption;
mod peers;
mod pip;
mod ranges;
mod references;
mod repositories;
mod room;
mod store;
mod stored;
mod support;
mod urls;
mod wheel;
