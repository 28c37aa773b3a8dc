//! Addresses of this machine: ports that are free, and how others reach it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{anyhow, bail};

use crate::cli::BaseUrl;

/// Limit for asking whoever holds a port who they are.
const WHO_LIMIT: Duration = Duration::from_secs(1);
/// An address that no network has (RFC 5737): the way to it is the way to everybody else. Nothing is sent there.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// Checks that the port can be had. Port 0 becomes one that is free now.
pub(crate) async fn reserve(
    http: &reqwest::Client,
    host: IpAddr,
    port: u16,
    flag: &str,
) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    match TcpListener::bind(address) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let holder = who(http, &url(address)).await;
            bail!("port {port} is taken by {holder}; choose another with {flag}");
        }
        Err(error) => Err(anyhow!(error).context(format!("listen on {address}; see --host and {flag}"))),
    }
}

/// Asks whoever listens there.
async fn who(http: &reqwest::Client, url: &BaseUrl) -> String {
    let ask = async {
        let response = http.get(format!("{url}/health")).timeout(WHO_LIMIT).send().await.ok()?;
        response.json::<serde_json::Value>().await.ok()
    };
    let health = ask.await.unwrap_or_default();
    if health["queen_id"].is_string() {
        return format!("a queen that is already running at {url} (`rbee ps --queen-url {url}` shows its fleet)");
    }
    match health["hive_id"].as_str() {
        Some(id) => format!("the hive {} that is already running", crate::render::clean(id)),
        None => "another program".to_owned(),
    }
}

/// The address at which this machine reaches a listener of its own.
pub(crate) fn url(address: SocketAddr) -> BaseUrl {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    BaseUrl::of(SocketAddr::new(ip, address.port()))
}

/// The address at which other machines find this one: that of its way to the world, or else of its first network. `None`
/// without a network.
pub(crate) fn own_address() -> Option<IpAddr> {
    address_towards(ELSEWHERE).or_else(|| {
        let interfaces = if_addrs::get_if_addrs().ok()?;
        let mut addresses = interfaces.iter().map(if_addrs::Interface::ip);
        addresses.find(|ip| matches!(ip, IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_link_local()))
    })
}

/// The address of this machine that somebody there would see.
fn address_towards(somebody: SocketAddr) -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing: the system only chooses the way.
    let socket = UdpSocket::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)).ok()?;
    socket.connect(somebody).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;

    use super::*;
    use crate::api::tests::serve;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    async fn reserved(port: u16) -> anyhow::Result<TcpListener> {
        reserve(&daemon::client::new().unwrap(), LOOPBACK, port, "--port").await
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_flag_and_its_holder() {
        let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = stranger.local_addr().unwrap().port();
        // It takes the connection and closes it without a word.
        let silence = async { stranger.accept().await.map(drop) };
        let (error, _) = tokio::join!(reserved(taken), silence);
        assert_eq!(
            error.unwrap_err().to_string(),
            format!("port {taken} is taken by another program; choose another with --port")
        );
    }

    #[tokio::test]
    async fn a_queen_that_already_runs_is_recognised() {
        let url = serve(Router::new().route("/health", get(async || r#"{"queen_id": "q"}"#))).await;
        let port = url.as_str().rsplit(':').next().unwrap().parse().unwrap();
        let error = reserved(port).await.unwrap_err().to_string();
        assert!(
            error.contains("a queen that is already running") && error.contains(url.as_str()),
            "{error}"
        );
    }

    #[test]
    fn a_listener_on_every_address_is_reached_by_the_loopback() {
        assert_eq!(url("0.0.0.0:80".parse().unwrap()).as_str(), "http://127.0.0.1:80");
        assert_eq!(url("[::]:7833".parse().unwrap()).as_str(), "http://[::1]:7833");
        assert_eq!(url("10.0.0.5:7833".parse().unwrap()).as_str(), "http://10.0.0.5:7833");
    }

    #[test]
    fn a_neighbour_on_the_loopback_sees_the_loopback() {
        assert_eq!(address_towards("127.0.0.1:9".parse().unwrap()), Some(LOOPBACK));
    }
}
