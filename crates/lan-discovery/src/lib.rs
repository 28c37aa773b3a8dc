//! Daemons find each other on the local network, by multicast DNS (RFC 6762, 6763).
//!
//! Owns: the service `_rbee._tcp.local.`, what an announcement says and how it is withdrawn, and the proof that it comes
//! from somebody who knows the fleet's token.
//! Must not know: what is said to a daemon once it is found, who is a member of a fleet, or any setting.
//!
//! Anybody on the network can announce anything, and the token is sent to whoever is asked. So where a fleet has a token,
//! an announcement carries a [proof](Key) for each of its addresses, and only an address whose proof fits is asked. A hive
//! that is found in another way shows the same [`proofs`].

mod announce;
mod browse;
mod proof;

pub use announce::{Announcer, Offer, proofs};
pub use browse::{Announcement, Browser, Sighting};
pub use proof::Key;

/// The service that rbee's daemons announce.
const SERVICE: &str = "_rbee._tcp.local.";
/// TXT keys.
const TXT_ID: &str = "id";
const TXT_VERSION: &str = "version";
const TXT_ROLE: &str = "role";
const TXT_INCARNATION: &str = "incarnation";
/// Followed by a number: which of the addresses a proof is for is only told by its fitting one.
const TXT_PROOF: &str = "proof";
/// The role of those who are announced.
const HIVE: &str = "hive";
/// Addresses of one announcement. What lies beyond is neither announced nor believed.
const MAX_ADDRESSES: usize = 16;

/// Why the local network cannot be used. The text fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Multicast DNS cannot be used at all.
    #[error("start multicast DNS: {0}")]
    Start(mdns_sd::Error),
    /// The service cannot be looked for.
    #[error("look for hives by multicast DNS: {0}")]
    Browse(mdns_sd::Error),
    /// The service cannot be announced.
    #[error("announce this hive by multicast DNS: {0}")]
    Announce(mdns_sd::Error),
    /// This host's addresses cannot be read.
    #[error("list this host's addresses: {0}")]
    Addresses(std::io::Error),
}

#[cfg(test)]
mod tests;
