use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};
use rustls_platform_verifier::Verifier;

use super::{Load, trusting};

/// What a system without a certificate store says.
const NONE: Load = |_| Err(rustls::Error::General("none".to_owned()));
/// A system that trusts the servers of these tests, and nobody else.
const OURS: Load = |provider| Verifier::new_with_extra_roots([CertificateDer::from(CERTIFICATE)], provider);
/// The certificate of `localhost` that these tests use, valid until 2126, and its key:
///
/// ```sh
/// openssl req -x509 -newkey ed25519 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost \
///     -addext basicConstraints=critical,CA:FALSE -days 36500 -outform DER -out localhost.cert.der -keyout key.pem
/// openssl pkcs8 -topk8 -nocrypt -in key.pem -outform DER -out localhost.key.der
/// ```
const CERTIFICATE: &[u8] = include_bytes!("localhost.cert.der");
const KEY: &[u8] = include_bytes!("localhost.key.der");

#[tokio::test]
async fn a_system_without_certificates_is_no_matter_to_http() {
    let url = serve(|mut stream| answer(&mut stream));
    let response = trusting(NONE).unwrap().get(url).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "hello");
}

#[tokio::test]
async fn https_on_a_system_without_certificates_says_what_to_install() {
    let error = trusting(NONE).unwrap().get(serve_https()).send().await.unwrap_err();
    let mut cause: &dyn Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let said = cause.to_string();
    assert!(
        said.contains("none") && said.contains("install ca-certificates"),
        "{said}"
    );
}

#[tokio::test]
async fn https_servers_are_known_by_the_systems_certificates() {
    let response = trusting(OURS).unwrap().get(serve_https()).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "hello");
}

#[tokio::test]
async fn https_servers_that_the_certificates_do_not_name_are_refused() {
    let url = serve_https().replace("localhost", "127.0.0.1");
    let error = trusting(OURS).unwrap().get(url).send().await.unwrap_err();
    assert!(format!("{error:?}").contains("NotValidForName"), "{error:?}");
}

/// The address of a server that speaks to one client.
fn serve(speak: impl FnOnce(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || speak(listener.accept().unwrap().0));
    format!("http://localhost:{port}")
}

fn serve_https() -> String {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(CERTIFICATE)],
            PrivatePkcs8KeyDer::from(KEY).into(),
        )
        .unwrap();
    let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
    let url = serve(move |mut stream| answer(&mut Stream::new(&mut connection, &mut stream)));
    url.replace("http:", "https:")
}

/// Answers the one request that comes, if one comes.
fn answer(stream: &mut (impl Read + Write)) {
    if stream.read(&mut [0; 4096]).is_ok() {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    }
}
