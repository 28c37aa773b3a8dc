//! Which web pages may call: a browser sends requests of any page that its user looks at, also to daemons on his own machine
//! and in his own network, where no token may be set.
//!
//! Two marks tell such a request. `Origin` names the page, unless the request is a plain `GET`, of which `Sec-Fetch-Site`
//! tells whether the page is a foreign one (W3C Fetch Metadata; sent to every trustworthy address, which loopback is). A page
//! whose name has been made to lead to this machine (DNS rebinding) looks like the daemon's own by both; what gives it away is
//! the name itself, in `Host`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::uri::Authority;
use http::{Method, StatusCode};
use shared_contract::ErrorKind;

use crate::ApiError;

/// Tells of a request whether the page behind it is the daemon's own.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// How long a browser may remember what a preflight was told: Chromium keeps nothing longer.
const PREFLIGHT_MAX_AGE_S: u32 = 7_200;
/// Letters of a client's header that are repeated to it.
const MAX_SHOWN: usize = 256;

/// Where a page comes from, as browsers say it: `http://HOST` or `https://HOST`, with the port where it is not the usual one.
/// Extensions of browsers and apps that are made of pages have schemes of their own: `chrome-extension://ID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// In lower case.
    scheme: String,
    authority: Name,
}

/// A host and its port, so that two spellings of one are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    /// In lower case; an IPv6 address in brackets.
    host: String,
    /// `None` where none is named and the scheme has none.
    port: Option<u16>,
}

impl Name {
    fn parse(text: &str, default_port: Option<u16>) -> Option<Self> {
        let authority: Authority = text.parse().ok()?;
        if text.contains('@') || authority.host().is_empty() {
            return None;
        }
        let port = match authority.port() {
            Some(port) => Some(port.as_str().parse().ok()?),
            None => default_port,
        };
        Some(Self {
            host: authority.host().to_ascii_lowercase(),
            port,
        })
    }

    /// Whether only this machine's own resolver or nobody's answers for it.
    fn is_local(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok() || bare == "localhost" || bare.ends_with(".localhost")
    }
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            || !scheme.chars().all(is_plain)
            || rest.contains(['/', '?', '#'])
        {
            return None;
        }
        let authority = Name::parse(rest, usual_port(&scheme))?;
        Some(Self { scheme, authority })
    }

    /// Whether a server sends it.
    fn is_served(&self) -> bool {
        usual_port(&self.scheme).is_some()
    }

    /// Whether it is the page of a server that is called by this `Host`.
    fn is_of(&self, host: &str) -> bool {
        self.is_served() && Name::parse(host, usual_port(&self.scheme)).as_ref() == Some(&self.authority)
    }
}

fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.trim_end_matches('/')).ok_or_else(|| {
            format!(
                "`{text}` is no origin of a page; it should look like https://HOST, http://HOST:PORT or, of an app or an \
                 extension, SCHEME://NAME"
            )
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, authority } = self;
        let Name { host, port } = authority;
        match port.filter(|_| *port != usual_port(scheme)) {
            None => write!(f, "{scheme}://{host}"),
            Some(port) => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

/// Keeps foreign pages out. Clones are cheap.
#[derive(Debug, Clone)]
pub struct PageGuard {
    shared: Arc<Shared>,
}

#[derive(Debug, Clone)]
struct Shared {
    allowed: Vec<Origin>,
    /// The flag that allows one.
    setting: Option<&'static str>,
    /// Whether only names of this machine are answered to,
    is_strict: bool,
    /// and which there are besides `localhost` and addresses.
    names: Vec<String>,
}

impl PageGuard {
    /// Lets no page in but the daemon's own. `is_strict` is for a daemon that anybody on this machine may call and nobody from
    /// elsewhere, without a token and on loopback: only there a name that has been made to lead here opens anything.
    pub fn new(is_strict: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                allowed: Vec::new(),
                setting: None,
                is_strict,
                names: Vec::new(),
            }),
        }
    }

    /// Lets these pages in, too, which are set by the flag `setting`.
    pub fn allowing(mut self, allowed: &[Origin], setting: &'static str) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.allowed.extend_from_slice(allowed);
        let served = allowed.iter().filter(|origin| origin.is_served());
        shared.names.extend(served.map(|origin| origin.authority.host.clone()));
        shared.setting = Some(setting);
        self
    }

    /// Answers to this name, too.
    pub fn named(mut self, name: Option<&str>) -> Self {
        let names = &mut Arc::make_mut(&mut self.shared).names;
        names.extend(name.map(str::to_ascii_lowercase));
        self
    }

    /// Whether any page but the daemon's own may call.
    pub fn allows_others(&self) -> bool {
        !self.shared.allowed.is_empty()
    }

    /// Lets a request pass unless a foreign page sent it: what [`require`] does.
    ///
    /// # Errors
    /// Forbidden, with what allows it.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match headers.get(ORIGIN) {
            Some(origin) => self.check_origin(origin, headers)?,
            None => self.check_site(headers)?,
        }
        self.check_host(headers)
    }

    /// Lets a request pass unless its browser names a foreign page: what [`require_page`] does. For routes whose answers a page
    /// could not read otherwise and on which a second look at the headers would be felt, or that go by any name.
    ///
    /// # Errors
    /// Forbidden, with what allows it.
    pub fn check_page(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match headers.get(ORIGIN) {
            None => Ok(()),
            Some(origin) => {
                self.check_origin(origin, headers)?;
                self.check_host(headers)
            }
        }
    }

    /// Lets a request pass that calls the daemon by a name of this machine, or if all names will do. For pages of the daemon
    /// itself, to which others may link.
    ///
    /// # Errors
    /// Forbidden, with the names that will do.
    pub fn check_host(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if !self.shared.is_strict {
            return Ok(());
        }
        let Some(host) = headers.get(HOST) else {
            // No browser leaves it out.
            return Ok(());
        };
        let name = host.to_str().ok().and_then(|host| Name::parse(host, Some(80)));
        let is_ours = name.is_some_and(|name| name.is_local() || self.shared.names.contains(&name.host));
        if is_ours {
            return Ok(());
        }
        let or_allow = self
            .shared
            .setting
            .map(|flag| format!(", or {flag} with the page's address"));
        let message = format!(
            "`{}` is no name of this machine: without a token this daemon answers to localhost and to IP addresses only, as \
             a web page can have its own name lead here; use http://localhost, or set --token{}",
            shown(host),
            or_allow.unwrap_or_default()
        );
        Err(ApiError::new(ErrorKind::Forbidden, message))
    }

    fn check_origin(&self, origin: &HeaderValue, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let page = origin.to_str().ok().and_then(Origin::parse);
        let is_own = page
            .as_ref()
            .is_some_and(|page| host.is_some_and(|host| page.is_of(host)));
        match is_own || page.is_some_and(|page| self.shared.allowed.contains(&page)) {
            true => Ok(()),
            // It stands for any local file and any sandboxed frame of any page, which nobody can tell apart.
            false if origin.as_bytes() == b"null" => Err(ApiError::new(
                ErrorKind::Forbidden,
                "a web page without an address may not use this daemon (`Origin: null`: a local file, or a sandboxed frame); \
                 have a web server send it",
            )),
            false => Err(self.foreign(&format!("of {}", shown(origin)))),
        }
    }

    fn check_site(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes) {
            Some(b"cross-site" | b"same-site") => Err(self.foreign("of another site")),
            _ => Ok(()),
        }
    }

    fn foreign(&self, page: &str) -> ApiError {
        let remedy = match self.shared.setting {
            Some(flag) => format!("name it with {flag} if it is meant to"),
            None => "pages use the queen's endpoints".to_owned(),
        };
        let message = format!("a web page {page} may not use this daemon; {remedy}");
        ApiError::new(ErrorKind::Forbidden, message)
    }

    fn is_allowed(&self, origin: &HeaderValue) -> bool {
        let page = origin.to_str().ok().and_then(Origin::parse);
        page.is_some_and(|page| self.shared.allowed.contains(&page))
    }
}

fn shown(value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    text.chars().take(MAX_SHOWN).collect()
}

/// Middleware for routes that no foreign page may call: `from_fn_with_state(guard, origin::require)`.
pub async fn require(State(guard): State<PageGuard>, request: Request, next: Next) -> Result<Response, ApiError> {
    guard.check(request.headers())?;
    Ok(next.run(request).await)
}

/// The same for routes that other programs call by any name.
pub async fn require_page(State(guard): State<PageGuard>, request: Request, next: Next) -> Result<Response, ApiError> {
    guard.check_page(request.headers())?;
    Ok(next.run(request).await)
}

/// Middleware for the daemon's own pages, to which others may link: only the daemon's name counts.
pub async fn require_host(State(guard): State<PageGuard>, request: Request, next: Next) -> Result<Response, ApiError> {
    guard.check_host(request.headers())?;
    Ok(next.run(request).await)
}

/// Middleware for routes that allowed pages call from elsewhere: answers their browsers' preflights, before any token is asked
/// for, and lets the pages read the answers (Fetch standard, "CORS protocol"). It goes around the guards.
pub async fn cors(State(guard): State<PageGuard>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(ORIGIN).cloned();
    let Some(origin) = origin.filter(|origin| guard.is_allowed(origin)) else {
        return next.run(request).await;
    };
    let is_preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match is_preflight {
        true => preflight(request.headers()),
        false => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(VARY, HeaderValue::from_static("origin"));
    // All of them: none tells more than the body. The word counts for requests without cookies, which these are.
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
    response
}

fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    // As they are asked for: `*` does not stand for `authorization`.
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(PREFLIGHT_MAX_AGE_S));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn open() -> PageGuard {
        PageGuard::new(false)
    }

    fn from(origin: &'static str, host: &'static str) -> HeaderMap {
        headers(&[("origin", origin), ("host", host)])
    }

    #[test]
    fn a_program_that_is_no_browser_passes_by_any_name() {
        assert!(open().check(&headers(&[("host", "gpu-box:7833")])).is_ok());
        assert!(open().check(&HeaderMap::new()).is_ok());
        assert!(PageGuard::new(true).check(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn a_page_of_the_daemon_itself_passes_however_its_address_is_spelt() {
        for (origin, host) in [
            ("http://localhost:7833", "localhost:7833"),
            ("http://LocalHost:7833", "localhost:7833"),
            ("http://queen.lan", "queen.lan:80"),
            ("https://queen.lan", "queen.lan"),
            ("https://queen.lan", "queen.lan:443"),
            ("http://[::1]:7833", "[::1]:7833"),
        ] {
            assert!(open().check(&from(origin, host)).is_ok(), "{origin} at {host}");
            assert!(open().check_page(&from(origin, host)).is_ok(), "{origin} at {host}");
        }
    }

    #[test]
    fn any_other_page_is_refused_and_told_what_would_allow_it() {
        for (origin, host) in [
            ("http://evil.example", "localhost:7833"),
            ("http://localhost:3000", "localhost:7833"),
            ("https://queen.lan", "queen.lan:80"),
            ("http://127.0.0.1:7833", "localhost:7833"),
            ("file://", "localhost:7833"),
            ("app://localhost:7833", "localhost:7833"),
            ("http://user@localhost:7833", "localhost:7833"),
            ("http://localhost:7833/x", "localhost:7833"),
        ] {
            let guard = open().allowing(&[], "--allow-origin");
            let error = guard.check(&from(origin, host)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Forbidden, "{origin}");
            let text = error.to_string();
            assert!(text.contains(origin) && text.contains("--allow-origin"), "{text}");
            assert!(guard.check_page(&from(origin, host)).is_err(), "{origin}");
        }
        assert!(open().check(&headers(&[("origin", "http://queen.lan")])).is_err());
        let nobody = open().check(&from("null", "localhost:7833")).unwrap_err().to_string();
        assert!(nobody.contains("have a web server send it"), "{nobody}");
    }

    #[test]
    fn a_plain_get_of_a_foreign_page_is_known_by_its_site() {
        for (site, is_admitted) in [
            ("cross-site", false),
            ("same-site", false),
            ("same-origin", true),
            ("none", true),
        ] {
            let sent = headers(&[("sec-fetch-site", site), ("host", "localhost:7833")]);
            assert_eq!(open().check(&sent).is_ok(), is_admitted, "{site}");
        }
    }

    #[test]
    fn where_nothing_else_guards_only_names_of_this_machine_are_answered_to() {
        let strict = PageGuard::new(true).named(Some("Gpu-Box"));
        for host in [
            "localhost",
            "localhost:7833",
            "LOCALHOST:7833",
            "queen.localhost:7833",
            "127.0.0.1:7833",
            "[::1]:7833",
            "192.168.1.20",
            "gpu-box:7835",
        ] {
            assert!(strict.check(&headers(&[("host", host)])).is_ok(), "{host}");
        }
        for host in [
            "evil.example:7833",
            "localhost.evil.example",
            "notlocalhost",
            "user@localhost",
            "",
        ] {
            assert!(strict.check(&headers(&[("host", host)])).is_err(), "{host}");
            assert!(open().check(&headers(&[("host", host)])).is_ok(), "{host}");
        }
        // A name that has been made to lead here: the page looks like the daemon's own.
        let rebound = from("http://evil.example:7833", "evil.example:7833");
        assert!(strict.check(&rebound).is_err());
        assert!(strict.check_page(&rebound).is_err());
    }

    #[test]
    fn an_allowed_page_passes_wherever_it_is_and_so_does_its_name() {
        let allowed: Origin = "https://Chat.Example/".parse().unwrap();
        assert_eq!(allowed.to_string(), "https://chat.example");
        let guard = PageGuard::new(true).allowing(&[allowed], "--allow-origin");
        assert!(guard.check(&from("https://chat.example", "localhost:7833")).is_ok());
        assert!(guard.check(&headers(&[("host", "chat.example")])).is_ok(), "by a proxy");
        assert!(guard.check(&from("http://chat.example", "localhost:7833")).is_err());
        assert!(
            guard
                .check(&from("https://chat.example:8443", "localhost:7833"))
                .is_err()
        );
    }

    #[test]
    fn an_app_that_is_made_of_pages_passes_if_it_is_allowed() {
        let allowed: Origin = "app://obsidian.md".parse().unwrap();
        let guard = PageGuard::new(true).allowing(&[allowed], "--allow-origin");
        assert!(guard.check(&from("app://obsidian.md", "localhost:7833")).is_ok());
        assert!(guard.check(&from("app://other.app", "localhost:7833")).is_err());
        assert!(
            guard.check(&headers(&[("host", "obsidian.md")])).is_err(),
            "no server has its name"
        );
    }

    #[test]
    fn an_origin_is_a_scheme_and_a_host_and_nothing_else() {
        for text in [
            "*",
            "null",
            "file://",
            "chat.example",
            "a b://chat.example",
            "://chat.example",
            "https://chat.example/path",
            "https://",
            "https://a@b",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
        let shown = |text: &str| text.parse::<Origin>().unwrap().to_string();
        assert_eq!(shown("http://localhost:80"), "http://localhost");
        assert_eq!(shown("http://localhost:3000/"), "http://localhost:3000");
        assert_eq!(shown("chrome-extension://abcdef"), "chrome-extension://abcdef");
    }
}
