//! Where hives are told to send their heartbeats.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use http::Uri;

use super::ask::AskError;

/// What this queen's own address depends on.
#[derive(Debug, Clone)]
pub(super) struct OwnUrl {
    /// `--advertise-url`.
    pub(super) advertised: Option<String>,
    /// Where she listens.
    pub(super) bound: SocketAddr,
}

impl OwnUrl {
    /// Whether hives on other machines can be told an address at all.
    pub(super) fn is_for_this_host_only(&self) -> bool {
        self.advertised.is_none() && self.bound.ip().is_loopback()
    }

    /// The address under which the hive at this URL reaches her.
    pub(super) async fn towards(&self, hive: &str) -> Result<String, AskError> {
        if let Some(fixed) = self.fixed() {
            return Ok(fixed);
        }
        let mut why = no_address();
        for address in resolve(hive).await? {
            match self.from(address.ip(), || route(address)) {
                Ok(url) => return Ok(url),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// The address that does not depend on who asks.
    fn fixed(&self) -> Option<String> {
        let ip = self.bound.ip();
        let is_one = !ip.is_unspecified() && !ip.is_loopback();
        self.advertised.clone().or_else(|| is_one.then(|| url(self.bound)))
    }

    /// The rule for one address of a hive. `route` tells which of this host's addresses packets to it come from.
    fn from(&self, hive: IpAddr, route: impl FnOnce() -> io::Result<IpAddr>) -> Result<String, AskError> {
        let local = route().map_err(|error| AskError::NoHost(format!("there is no way to {hive}: {error}")))?;
        if self.bound.ip().is_loopback() {
            // Packets to one of this host's own addresses come from that address.
            let is_here = hive.is_loopback() || hive == local;
            return is_here
                .then(|| url(self.bound))
                .ok_or(AskError::LoopbackOnly(self.bound));
        }
        let is_served = local.is_ipv4() || self.bound.is_ipv6();
        let is_on_one_link = matches!(local, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if !is_served || is_on_one_link {
            return Err(AskError::NoOwnAddress { local, hive });
        }
        Ok(url(SocketAddr::new(local, self.bound.port())))
    }
}

/// The addresses behind a URL.
pub(super) async fn resolve(url: &str) -> Result<Vec<SocketAddr>, AskError> {
    let uri: Uri = url.parse().map_err(|_| AskError::NoHost("it is no URL".to_owned()))?;
    // Brackets belong to a URL, not to an address.
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    let found = tokio::net::lookup_host((host, port)).await;
    Ok(found.map_err(|error| AskError::NoHost(error.to_string()))?.collect())
}

/// What is wrong with a name that stands for nothing.
pub(super) fn no_address() -> AskError {
    AskError::NoHost("it has no address".to_owned())
}

/// The URL of a daemon at an address.
pub(super) fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// Which of this host's addresses packets to `to` come from. Sends nothing.
fn route(to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(advertised: Option<&str>, bound: &str) -> OwnUrl {
        OwnUrl {
            advertised: advertised.map(str::to_owned),
            bound: bound.parse().unwrap(),
        }
    }

    /// What the hive at `hive` is told if packets to it come from `local`.
    fn told(own: &OwnUrl, hive: &str, local: &str) -> Result<String, AskError> {
        own.from(hive.parse().unwrap(), || Ok(local.parse().unwrap()))
    }

    #[test]
    fn what_the_operator_advertises_is_told_to_all() {
        let own = own(Some("https://queen.example"), "127.0.0.1:7833");
        assert_eq!(own.fixed().as_deref(), Some("https://queen.example"));
        assert!(!own.is_for_this_host_only());
    }

    #[test]
    fn a_queen_on_one_address_tells_that_one() {
        assert_eq!(
            own(None, "10.0.0.5:7833").fixed().as_deref(),
            Some("http://10.0.0.5:7833")
        );
        assert_eq!(
            own(None, "[fd00::5]:7833").fixed().as_deref(),
            Some("http://[fd00::5]:7833")
        );
        assert_eq!(own(None, "0.0.0.0:7833").fixed(), None);
        assert_eq!(own(None, "127.0.0.1:7833").fixed(), None);
    }

    #[test]
    fn a_queen_on_all_addresses_tells_the_one_that_faces_the_hive() {
        let v4 = own(None, "0.0.0.0:7833");
        assert_eq!(told(&v4, "10.0.0.7", "10.0.0.5").unwrap(), "http://10.0.0.5:7833");
        assert_eq!(told(&v4, "127.0.0.1", "127.0.0.1").unwrap(), "http://127.0.0.1:7833");
        let v6 = own(None, "[::]:7833");
        assert_eq!(told(&v6, "fd00::7", "fd00::5").unwrap(), "http://[fd00::5]:7833");
        assert_eq!(told(&v6, "10.0.0.7", "10.0.0.5").unwrap(), "http://10.0.0.5:7833");
    }

    #[test]
    fn an_address_that_she_does_not_serve_is_not_told() {
        let v4 = own(None, "0.0.0.0:7833");
        assert!(matches!(
            told(&v4, "fd00::7", "fd00::5"),
            Err(AskError::NoOwnAddress { .. })
        ));
        let v6 = own(None, "[::]:7833");
        assert!(matches!(
            told(&v6, "fe80::7", "fe80::5"),
            Err(AskError::NoOwnAddress { .. })
        ));
    }

    #[test]
    fn a_queen_on_loopback_is_for_hives_of_her_own_host() {
        let own = own(None, "127.0.0.1:7833");
        assert!(own.is_for_this_host_only());
        assert_eq!(told(&own, "127.0.0.1", "127.0.0.1").unwrap(), "http://127.0.0.1:7833");
        assert_eq!(told(&own, "10.0.0.5", "10.0.0.5").unwrap(), "http://127.0.0.1:7833");
        let error = told(&own, "10.0.0.7", "10.0.0.5").unwrap_err();
        assert_eq!(error, AskError::LoopbackOnly(own.bound));
        assert!(error.to_string().contains("--host"), "{error}");
    }

    #[tokio::test]
    async fn the_system_knows_the_way_to_a_hive() {
        let own = own(None, "0.0.0.0:7833");
        assert_eq!(
            own.towards("http://127.0.0.1:7835").await.unwrap(),
            "http://127.0.0.1:7833"
        );
    }
}
