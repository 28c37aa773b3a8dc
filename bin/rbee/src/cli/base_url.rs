//! Addresses of daemons as people write them.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Where a daemon listens: `http(s)://HOST[:PORT][/PREFIX]`, without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseUrl(String);

impl BaseUrl {
    /// This machine's loopback.
    pub(crate) fn local(port: u16) -> Self {
        Self(format!("http://127.0.0.1:{port}"))
    }

    /// A listener at this address.
    pub(crate) fn of(address: SocketAddr) -> Self {
        Self(format!("http://{address}"))
    }

    /// As it is written.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    /// Takes the base URL of OpenAI clients (with `/v1` at its end), too.
    fn from_str(text: &str) -> Result<Self, String> {
        let url = reqwest::Url::parse(text).map_err(|error| format!("{error}; write it as http://HOST:PORT"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("write it as http://HOST:PORT".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err("only http://HOST:PORT and a path are taken".to_owned());
        }
        let text = url.as_str().trim_end_matches('/');
        let text = text.strip_suffix("/v1").unwrap_or(text);
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_taken_with_or_without_its_tail() {
        for text in [
            "http://q:7833",
            "http://q:7833/",
            "http://q:7833/v1",
            "http://q:7833/v1/",
        ] {
            assert_eq!(text.parse::<BaseUrl>().unwrap().as_str(), "http://q:7833");
        }
        assert_eq!("https://q/rbee/".parse::<BaseUrl>().unwrap().as_str(), "https://q/rbee");
        for text in [
            "q:7833",
            "127.0.0.1:7833",
            "ftp://q",
            "http://user:pw@q",
            "http://q?x=1",
            "",
        ] {
            assert!(text.parse::<BaseUrl>().is_err(), "{text}");
        }
    }
}
