//! The HTTP client that daemons call each other with.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::redirect::Policy;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;

/// Limit for setting up a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A pooled client without a limit on the whole request: each call sets its own.
///
/// It needs no certificates until a server is called over https, and fails then if the system has none.
pub fn new() -> Result<reqwest::Client, reqwest::Error> {
    trusting(Verifier::new)
}

/// Whether servers can be called over https: the system has certificates to know them by.
pub fn certificates() -> Result<(), NoCertificates> {
    Verifier::new(Arc::new(ring::default_provider()))
        .map(drop)
        .map_err(NoCertificates)
}

/// There is nothing to know an https server by.
#[derive(Debug, thiserror::Error)]
#[error(
    "https needs the system's CA certificates ({0}): install ca-certificates, or name a file of them in SSL_CERT_FILE"
)]
pub struct NoCertificates(rustls::Error);

fn trusting(load: Load) -> Result<reqwest::Client, reqwest::Error> {
    let provider = Arc::new(ring::default_provider());
    let trust = Trust {
        provider: provider.clone(),
        load,
        loaded: OnceLock::new(),
    };
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows the ciphers of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
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

/// Reads the certificates that are trusted.
type Load = fn(Arc<CryptoProvider>) -> Result<Verifier, rustls::Error>;

/// Knows servers by the system's certificates, which the first handshake reads: a fleet that speaks http needs none, as on a
/// small machine or in an empty image, and a command that ends at once does not parse all of them for nothing.
#[derive(Debug)]
struct Trust {
    provider: Arc<CryptoProvider>,
    load: Load,
    /// Only a success is kept, so that certificates which are installed later count.
    loaded: OnceLock<Verifier>,
}

impl Trust {
    fn verifier(&self) -> Result<&Verifier, rustls::Error> {
        if let Some(verifier) = self.loaded.get() {
            return Ok(verifier);
        }
        let missing = |error| rustls::Error::General(NoCertificates(error).to_string());
        let verifier = (self.load)(self.provider.clone()).map_err(missing)?;
        Ok(self.loaded.get_or_init(|| verifier))
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier()?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        // Those of the system's verifier, asked before there is a certificate to verify.
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
