//! The queen as her clients, workers and hives meet her: the real daemon in process, on a free port. The workers are tiny
//! servers that answer what the test tells them; nothing of a real worker is in them.

mod auth;
mod dashboard;
mod dialects;
mod fake_hive;
mod fleet;
mod heartbeats;
mod infer;
mod jobs;
mod line;
mod members;
mod origin;
mod reach;
mod relay;
mod stream;
mod supply;
mod support;
mod telemetry;
mod timeline;
mod traffic;
