//! The worker from outside: real HTTP, the real engine, a scripted model.

mod answers;
mod life;
mod queens;
mod refusals;
mod support;
