//! Proof that whoever is at an address knows the fleet's token.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::MAX_ADDRESSES;

/// Rounds of the key's derivation. Proofs are heard by everybody on the network, who may try tokens on them: each try is
/// to cost as much as with a stored password (OWASP's figure for PBKDF2 with SHA-256).
const ROUNDS: u32 = 600_000;
/// The same everywhere: daemons that know nothing of each other must come to the same key.
const SALT: &[u8] = b"rbee announcement on the local network, 1";
/// Bytes of a proof: 128 of the 256 bits, so that many proofs fit into one packet.
const PROOF_LEN: usize = 16;

/// What the proofs of a fleet are made and checked with.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// Derives the key of a fleet from its token. That takes a core for a good part of a second, on purpose, and a thread
    /// of tokio's for what blocks.
    pub async fn derive(token: &str) -> Self {
        let token = token.to_owned();
        let derived = tokio::task::spawn_blocking(move || Self::with_rounds(&token, ROUNDS)).await;
        // It panics with us, or not at all.
        derived.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    pub(crate) fn with_rounds(token: &str, rounds: u32) -> Self {
        Self(pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(token.as_bytes(), SALT, rounds))
    }

    /// Whether one of these proofs is one for the hive `id` at the address. It must be the address that was dialled: a proof
    /// can be overheard, but not shown from another place.
    pub fn proves(&self, proofs: &[String], id: &str, address: SocketAddr) -> bool {
        // An IPv4 address may come in the clothes of an IPv6 one.
        let ip = address.ip().to_canonical();
        let mut believed = proofs.iter().take(MAX_ADDRESSES);
        believed.any(|proof| self.accepts(proof, id, ip, address.port()))
    }

    /// The proof that the hive `id` is at this address, in hexadecimal digits.
    pub(crate) fn prove(&self, id: &str, ip: IpAddr, port: u16) -> String {
        let tag = self.tag(id, ip, port).finalize().into_bytes();
        tag.iter().take(PROOF_LEN).fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Whether `proof` is one for this hive at this address.
    fn accepts(&self, proof: &str, id: &str, ip: IpAddr, port: u16) -> bool {
        decode(proof).is_some_and(|bytes| self.tag(id, ip, port).verify_truncated_left(&bytes).is_ok())
    }

    fn tag(&self, id: &str, ip: IpAddr, port: u16) -> Hmac<Sha256> {
        let mut tag = Hmac::<Sha256>::new_from_slice(&self.0)
            .unwrap_or_else(|error| unreachable!("a key of any length will do: {error}"));
        // Neither an address nor a port holds a bar, so that no two claims read the same.
        tag.update(format!("{ip}|{port}|{id}").as_bytes());
        tag
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([redacted])")
    }
}

fn decode(proof: &str) -> Option<[u8; PROOF_LEN]> {
    if proof.len() != 2 * PROOF_LEN || !proof.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; PROOF_LEN];
    for (byte, digits) in bytes.iter_mut().zip(proof.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(token: &str) -> Key {
        Key::with_rounds(token, 2)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_proof_fits_whoever_has_the_same_token() {
        let proof = key("fleet-token").prove("gpu-box", ip("10.0.0.1"), 7835);
        assert!(key("fleet-token").accepts(&proof, "gpu-box", ip("10.0.0.1"), 7835));
        assert!(!key("other-token").accepts(&proof, "gpu-box", ip("10.0.0.1"), 7835));
    }

    #[test]
    fn a_proof_that_was_overheard_is_worth_nothing_for_another_address_port_or_hive() {
        let key = key("fleet-token");
        let proof = key.prove("gpu-box", ip("10.0.0.1"), 7835);
        assert!(!key.accepts(&proof, "gpu-box", ip("10.0.0.2"), 7835));
        assert!(!key.accepts(&proof, "gpu-box", ip("10.0.0.1"), 7836));
        assert!(!key.accepts(&proof, "gpu-box-2", ip("10.0.0.1"), 7835));
    }

    #[test]
    fn what_is_no_proof_is_refused() {
        let key = key("fleet-token");
        let proof = key.prove("gpu-box", ip("10.0.0.1"), 7835);
        for broken in ["", &proof[2..], &format!("{proof}00"), &"z".repeat(32), &"é".repeat(16)] {
            assert!(!key.accepts(broken, "gpu-box", ip("10.0.0.1"), 7835), "{broken}");
        }
    }

    #[tokio::test]
    async fn the_key_is_the_one_that_other_releases_derive() {
        // PBKDF2-HMAC-SHA256 and HMAC-SHA256 as another implementation has them.
        let proof = Key::derive("fleet-token").await.prove("gpu-box", ip("10.0.0.1"), 7835);
        assert_eq!(proof, "3b91bb2732d30ae51e6d6e634dd3ed4e");
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", key("fleet-token")), "Key([redacted])");
    }
}
