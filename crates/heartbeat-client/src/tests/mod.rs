mod client;
mod http;
mod machine;
mod probe;
mod queens;
