//! The HTTP client that daemons call each other with.

use std::time::Duration;

use reqwest::redirect::Policy;

/// Limit for setting up a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A pooled client without a limit on the whole request: each call sets its own.
///
/// Fails if the system's certificate store cannot be read.
pub fn new() -> Result<reqwest::Client, reqwest::Error> {
    // A second installation is refused, which only says that a provider is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        // Daemons reach each other directly; a proxy for the world must not see their token.
        .no_proxy()
        // No daemon sends another one elsewhere: what does is another server, and would get the token for a third one. Its
        // answer is a refusal to whoever asked.
        .redirect(Policy::none())
        // Shorter than a server keeps an idle connection, so that none is used just as it closes.
        .pool_idle_timeout(Duration::from_secs(15))
        .tcp_nodelay(true)
        .user_agent(concat!("rbee/", env!("CARGO_PKG_VERSION")))
        .build()
}
