//! What a user sees of the whole system, one sentence a test.

mod answers;
mod bad_input;
mod clients;
mod command_line;
mod contracts;
mod discovery;
mod fleet;
mod gateway;
mod gpu_host;
mod hive;
mod hosts;
mod migration;
mod model_files;
mod on_demand;
mod partitions;
mod readme;
mod security;
mod sharing;
mod structured;
mod succession;
mod tokens;
