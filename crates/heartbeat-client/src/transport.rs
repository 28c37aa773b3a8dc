//! How one beat reaches the queen.

use std::{error::Error as _, fmt::Write as _, future::Future};

use reqwest::{
    Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use shared_contract::{ErrorBody, HeartbeatAck};

use crate::{Error, QueenUrl, Token};

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Longest error message that is kept, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// Delivers one encoded beat. Has no limit of its own: the driver sets one.
pub(crate) trait Transport: Send + Sync + 'static {
    fn send(&self, body: Vec<u8>) -> impl Future<Output = Result<HeartbeatAck, Error>> + Send;
}

/// `POST` to one path of one queen.
pub(crate) struct HttpTransport {
    http: reqwest::Client,
    url: Url,
    authorization: Option<HeaderValue>,
}

impl HttpTransport {
    pub(crate) fn new(http: reqwest::Client, queen: &str, path: &str, token: Option<&Token>) -> Result<Self, Error> {
        Ok(Self {
            http,
            url: endpoint(queen, path)?,
            authorization: token.map(bearer).transpose()?,
        })
    }
}

fn bearer(token: &Token) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal())).map_err(|_| Error::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

fn endpoint(queen: &str, path: &str) -> Result<Url, Error> {
    let wrong = |problem: &str| Error::QueenUrl {
        url: without_userinfo(queen),
        problem: problem.to_owned(),
    };
    let base: QueenUrl = queen.parse().map_err(wrong)?;
    Url::parse(&format!("{base}{path}")).map_err(|error| wrong(&error.to_string()))
}

/// Shown without what may be a secret.
fn without_userinfo(url: &str) -> String {
    match Url::parse(url) {
        Ok(parsed) if !parsed.username().is_empty() || parsed.password().is_some() => {
            parsed.host_str().unwrap_or_default().to_owned()
        }
        _ => url.to_owned(),
    }
}

impl Transport for HttpTransport {
    async fn send(&self, body: Vec<u8>) -> Result<HeartbeatAck, Error> {
        let mut request = self
            .http
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let answer = read_bounded(&mut response).await?;
        if status == StatusCode::OK {
            serde_json::from_slice(&answer).map_err(|error| Error::BadAnswer(error.to_string()))
        } else {
            Err(Error::Refused {
                status: status.as_u16(),
                message: refusal(status, &answer),
            })
        }
    }
}

async fn read_bounded(response: &mut Response) -> Result<Vec<u8>, Error> {
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if answer.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(Error::BadAnswer(format!("it is longer than {MAX_ANSWER_BYTES} bytes")));
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(answer)
}

/// What the error body says, else the status in words: a proxy's HTML page is no message.
fn refusal(status: StatusCode, answer: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(answer) {
        Ok(body) => body.error.message.chars().take(MAX_MESSAGE_CHARS).collect(),
        Err(_) => status.canonical_reason().unwrap_or("no reason given").to_owned(),
    }
}

/// The whole chain of causes: reqwest's own text stops at "error sending request".
fn unreachable(error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    Error::Unreachable(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_appended_to_the_queens_url() {
        let joined = |queen| endpoint(queen, "/v1/worker-heartbeat").map(String::from);
        assert_eq!(
            joined("http://queen:7833").unwrap(),
            "http://queen:7833/v1/worker-heartbeat"
        );
        assert_eq!(
            joined("http://[::1]:7833/").unwrap(),
            "http://[::1]:7833/v1/worker-heartbeat"
        );
        assert_eq!(
            joined("https://host/rbee/").unwrap(),
            "https://host/rbee/v1/worker-heartbeat"
        );
    }

    #[test]
    fn a_url_that_is_none_is_refused_by_name() {
        for queen in [
            "queen:7833",
            "",
            "ftp://queen",
            "http://queen?x=1",
            "http://queen#x",
            "not a url",
        ] {
            let error = endpoint(queen, "/x").unwrap_err().to_string();
            assert!(error.contains(&format!("`{queen}`")), "{error}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let error = endpoint("http://me:secret@queen:7833", "/x").unwrap_err().to_string();
        assert!(error.contains("`queen`") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_token_that_no_header_can_carry_is_refused() {
        assert_eq!(bearer(&Token::new("line\nbreak")).unwrap_err(), Error::Token);
        assert!(bearer(&Token::new("abc")).unwrap().is_sensitive());
    }

    #[test]
    fn a_proxys_page_is_not_taken_for_a_message() {
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, b"<html>"), "Bad Gateway");
        let body = br#"{"error": {"message": "no such token", "type": "t", "param": null, "code": null}}"#;
        assert_eq!(refusal(StatusCode::UNAUTHORIZED, body), "no such token");
    }
}
