//! `https://HOST/PATH/FILE.gguf[#sha256=HEX]`: a file on a web server.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use super::names::{check_path, slug, stem};
use super::{Fault, MAX_REFERENCE_BYTES, URL_EXAMPLE, fault};
use crate::file::is_sha256;
use crate::http;

/// Checksum that a fragment pins.
const PIN: &str = "sha256=";
/// The only kind of file that stands alone.
const ENDING: &str = ".gguf";

/// `https://HOST/PATH/FILE.gguf[#sha256=HEX]`. Its [`fmt::Display`] has the query of the address, its [`fmt::Debug`] does
/// not.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UrlRef {
    /// Without fragment.
    url: Url,
    file_name: String,
    sha256: Option<String>,
}

/// Checks an address that begins with `http:` or `https:`.
pub(super) fn parse(text: &str) -> Result<UrlRef, Fault> {
    let mut url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => return fault("reference", format!("is no address: {error}"), URL_EXAMPLE),
    };
    if !url.username().is_empty() || url.password().is_some() {
        let why = "has a name or a password before it, which would be written to disk and shown; leave it out";
        return fault("HOST", why, URL_EXAMPLE);
    }
    let sha256 = url.fragment().map(pinned).transpose()?;
    url.set_fragment(None);
    if url.scheme() == "http" && sha256.is_none() && !is_loopback(&url) {
        let why = "`http:` is not protected against changes on the way: use `https:`, an address of this machine \
                   (127.0.0.1), or pin the file by `#sha256=HEX`";
        return fault("scheme", why, URL_EXAMPLE);
    }
    let encoded = url.path().rsplit('/').next().unwrap_or_default();
    let Some(file_name) = decoded(encoded).filter(|name| !name.contains(['/', '\0']) && !has_control(name)) else {
        return fault(
            "FILE",
            format!("`{encoded}` is no name that a file can have"),
            URL_EXAMPLE,
        );
    };
    if !file_name.to_ascii_lowercase().ends_with(ENDING) {
        let why = format!("`{file_name}` does not end in `{ENDING}`: only single GGUF files can be fetched by address");
        return fault("FILE", why, URL_EXAMPLE);
    }
    check_path("FILE", &file_name, URL_EXAMPLE)?;
    let parsed = UrlRef { url, file_name, sha256 };
    if parsed.to_string().len() > MAX_REFERENCE_BYTES {
        let why = format!("is longer than {MAX_REFERENCE_BYTES} bytes when written as an address");
        return fault("reference", why, URL_EXAMPLE);
    }
    Ok(parsed)
}

fn pinned(fragment: &str) -> Result<String, Fault> {
    let sum = fragment.strip_prefix(PIN).map(str::to_ascii_lowercase);
    match sum.filter(|sum| is_sha256(sum)) {
        Some(sum) => Ok(sum),
        None => {
            let why = "is wrong: behind a `#` stands `sha256=` and 64 hexadecimal digits, or there is no `#`";
            fault("sha256", why, URL_EXAMPLE)
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn has_control(name: &str) -> bool {
    name.chars().any(char::is_control)
}

/// A path segment without its `%XX`; `None` where that is no text.
fn decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).ok()?;
                (u8::from_str_radix(digits, 16).ok()?, tail)
            }
            (byte, tail) => (*byte, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// A text that may be a wrong address, without credentials and query.
pub(super) fn without_secrets(text: &str) -> String {
    let Some((scheme, rest)) = text
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
    else {
        return text.to_owned();
    };
    let rest = rest.split('?').next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

impl UrlRef {
    /// The address, without fragment.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// The checksum that the reference pins; 64 lower-case hexadecimal digits.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// Name of the file.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    /// The host's name or address, for people.
    pub(crate) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    pub(crate) fn address(&self) -> &Url {
        &self.url
    }

    pub(super) fn printable(&self) -> String {
        http::printable(&self.url)
    }

    pub(super) fn id_text(&self) -> String {
        slug(stem(&self.file_name))
    }
}

impl fmt::Display for UrlRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str())?;
        match &self.sha256 {
            Some(sum) => write!(f, "#{PIN}{sum}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for UrlRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UrlRef")
            .field("url", &self.printable())
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}
