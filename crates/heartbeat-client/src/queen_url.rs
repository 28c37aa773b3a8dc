//! The address of a queen, as a setting or a message names it.

use std::{fmt, str::FromStr};

use reqwest::Url;

/// Address of a queen, `http://HOST[:PORT][/PREFIX]`, without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueenUrl(String);

impl QueenUrl {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QueenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for QueenUrl {
    /// What is wrong. Does not repeat the text, which may hold a password.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text.trim()).map_err(|_| "not a URL; it should look like http://HOST:7833")?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err("not an address of a queen; it should look like http://HOST:7833");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a queen's address carries no user or password; use --token");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a queen's address ends with its host, port and path");
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queens_address_is_an_http_url_without_anything_behind_its_path() {
        let parse = |text: &str| text.parse::<QueenUrl>().map(|url| url.to_string());
        assert_eq!(parse("http://queen:7833/").as_deref(), Ok("http://queen:7833"));
        assert_eq!(
            parse("https://[::1]:7833/rbee/").as_deref(),
            Ok("https://[::1]:7833/rbee")
        );
        for wrong in [
            "queen:7833",
            "ftp://queen",
            "file:///etc/passwd",
            "http://",
            "http://user:secret@queen",
            "http://queen/?x=1",
            "http://queen#x",
            "not a url",
            "",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
