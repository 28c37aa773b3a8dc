//! Where a member can be reached.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use crate::Error;

/// Longest host name in bytes (RFC 1035, section 2.3.4).
const MAX_NAME_LEN: usize = 253;

/// Host and port of a member, ready to be dialled. Clones are cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Host and port are parts of it.
    base_url: Arc<str>,
    port: u16,
    host: HostPart,
}

/// Where the host stands in the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HostPart {
    start: u16,
    len: u16,
}

const SCHEME: &str = "http://";

impl Address {
    /// The named host, or the address that the beat came from where none is named.
    ///
    /// # Errors
    /// If the named host is neither a host name nor an IP address.
    pub fn resolve(named: Option<&str>, peer: IpAddr, port: u16) -> Result<Self, Error> {
        let host = match named {
            // A queen that listens on both families sees IPv4 peers as `::ffff:a.b.c.d`.
            None => peer.to_canonical().to_string(),
            Some(name) => checked(name)?,
        };
        let (base_url, bracket) = if host.contains(':') {
            (format!("{SCHEME}[{host}]:{port}"), 1)
        } else {
            (format!("{SCHEME}{host}:{port}"), 0)
        };
        Ok(Self {
            base_url: base_url.into(),
            port,
            host: HostPart {
                start: SCHEME.len() as u16 + bracket,
                // At most MAX_NAME_LEN.
                len: host.len() as u16,
            },
        })
    }

    /// Host name or IP address, without brackets.
    pub fn host(&self) -> &str {
        let HostPart { start, len } = self.host;
        &self.base_url[usize::from(start)..usize::from(start + len)]
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://HOST:PORT` without a slash at the end; an IPv6 address stands in brackets.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base_url)
    }
}

/// Only what cannot change the meaning of the URL that it is put into.
fn checked(name: &str) -> Result<String, Error> {
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(name).parse::<Ipv6Addr>() {
        return Ok(address.to_string());
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_name = !name.is_empty() && name.len() <= MAX_NAME_LEN && name.bytes().all(plain);
    if is_name {
        Ok(name.to_owned())
    } else {
        Err(Error::Host(name.chars().take(MAX_NAME_LEN).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(named: Option<&str>, peer: &str) -> Result<String, Error> {
        Ok(Address::resolve(named, peer.parse().unwrap(), 9301)?.to_string())
    }

    #[test]
    fn the_named_host_wins_and_the_peer_stands_in() {
        assert_eq!(url(Some("gpu-box.lan"), "10.0.0.7").unwrap(), "http://gpu-box.lan:9301");
        assert_eq!(
            url(Some("192.168.1.20"), "10.0.0.7").unwrap(),
            "http://192.168.1.20:9301"
        );
        assert_eq!(url(None, "10.0.0.7").unwrap(), "http://10.0.0.7:9301");
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets_once() {
        assert_eq!(url(None, "fd00::7").unwrap(), "http://[fd00::7]:9301");
        assert_eq!(url(Some("::1"), "10.0.0.7").unwrap(), "http://[::1]:9301");
        assert_eq!(url(Some("[::1]"), "10.0.0.7").unwrap(), "http://[::1]:9301");
        let parts = |peer: &str| Address::resolve(None, peer.parse().unwrap(), 9301).unwrap();
        assert_eq!((parts("fd00::7").host(), parts("fd00::7").port()), ("fd00::7", 9301));
        assert_eq!(parts("10.0.0.7").host(), "10.0.0.7");
    }

    #[test]
    fn an_ipv4_peer_of_a_dual_stack_listener_is_dialled_by_ipv4() {
        assert_eq!(url(None, "::ffff:10.0.0.7").unwrap(), "http://10.0.0.7:9301");
    }

    #[test]
    fn a_host_that_would_change_the_url_is_refused() {
        for host in [
            "",
            "a/b",
            "user@host",
            "host:80",
            "host?x",
            "two words",
            "a#b",
            "[::1",
            "ho\nst",
        ] {
            assert_eq!(url(Some(host), "10.0.0.7").unwrap_err(), Error::Host(host.to_owned()));
        }
        assert!(url(Some(&"a".repeat(254)), "10.0.0.7").is_err());
    }
}
