//! Who may call: bearer tokens, compared in constant time and never shown.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName};
use shared_contract::ErrorKind;
use subtle::{Choice, ConstantTimeEq};

use crate::ApiError;

/// A token or key. Shown as `[redacted]` wherever it might be printed.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl FromStr for Secret {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() < 8 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a token needs at least 8 printable ASCII characters, without spaces");
        }
        Ok(Self(text.into()))
    }
}

/// Lets a request pass if it carries one of the secrets as `Authorization: Bearer`. Without secrets, all pass.
#[derive(Clone, Debug)]
pub struct Guard {
    secrets: Arc<[Secret]>,
    setting: &'static str,
}

impl Guard {
    /// Guards with these secrets; `setting` names the flag that sets them, for the error message.
    pub fn new(secrets: impl IntoIterator<Item = Secret>, setting: &'static str) -> Self {
        Self {
            secrets: secrets.into_iter().collect(),
            setting,
        }
    }

    /// Whether everybody may pass.
    pub fn is_open(&self) -> bool {
        self.secrets.is_empty()
    }

    fn admits(&self, presented: Option<&str>) -> bool {
        if self.is_open() {
            return true;
        }
        let presented = presented.unwrap_or_default().as_bytes();
        // All are compared, so that the time tells nothing about which one came close.
        let mut admitted = Choice::from(0);
        for secret in self.secrets.iter() {
            admitted |= secret.0.as_bytes().ct_eq(presented);
        }
        admitted.into()
    }

    /// Lets a request with these headers pass, or says what is missing: what [`require`] does, for routes on which a layer
    /// would be felt.
    ///
    /// # Errors
    /// Unauthorized.
    pub fn check_bearer(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        self.check(bearer(headers))
    }

    fn check(&self, presented: Option<&str>) -> Result<(), ApiError> {
        if self.admits(presented) {
            return Ok(());
        }
        let message = match presented {
            None => format!(
                "this endpoint needs `Authorization: Bearer ...` with the value set by {}",
                self.setting
            ),
            Some(_) => format!("the presented token is none of those set by {}", self.setting),
        };
        Err(ApiError::new(ErrorKind::Unauthorized, message))
    }
}

/// Header that some clients send a key with, in place of a bearer token.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Middleware for routes that a [`Guard`] protects: `from_fn_with_state(guard, auth::require)`.
pub async fn require(State(guard): State<Guard>, request: Request, next: Next) -> Result<Response, ApiError> {
    guard.check_bearer(request.headers())?;
    Ok(next.run(request).await)
}

/// The same for routes whose clients may send the secret as `x-api-key`; a bearer token goes before it.
pub async fn require_key(State(guard): State<Guard>, request: Request, next: Next) -> Result<Response, ApiError> {
    let headers = request.headers();
    let key = || headers.get(API_KEY)?.to_str().ok();
    guard.check(bearer(headers).or_else(key))?;
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Refuses an address that others can reach unless a token guards it or the operator insists.
pub fn check_bind(address: SocketAddr, has_token: bool, insecure: bool) -> Result<(), String> {
    if address.ip().is_loopback() || has_token || insecure {
        return Ok(());
    }
    Err(format!(
        "{address} can be reached from other machines: set --token (or RBEE_TOKEN), or --insecure to serve without one"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(secrets: &[&str]) -> Guard {
        Guard::new(secrets.iter().map(|s| s.parse().unwrap()), "--token")
    }

    #[test]
    fn without_secrets_everybody_passes() {
        assert!(guard(&[]).admits(None));
    }

    #[test]
    fn any_of_the_secrets_passes_and_nothing_else() {
        let guard = guard(&["first-secret", "second-secret"]);
        assert!(guard.admits(Some("first-secret")));
        assert!(guard.admits(Some("second-secret")));
        assert!(!guard.admits(Some("first-secre")));
        assert!(!guard.admits(Some("")));
        assert!(!guard.admits(None));
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret: Secret = "correct-horse".parse().unwrap();
        assert_eq!(format!("{secret:?}"), "[redacted]");
        assert!("short".parse::<Secret>().is_err());
    }

    #[test]
    fn only_loopback_is_open_without_a_token() {
        let loopback = "127.0.0.1:1".parse().unwrap();
        let everywhere = "0.0.0.0:1".parse().unwrap();
        assert!(check_bind(loopback, false, false).is_ok());
        assert!(check_bind(everywhere, false, false).is_err());
        assert!(check_bind(everywhere, true, false).is_ok());
        assert!(check_bind(everywhere, false, true).is_ok());
    }
}
