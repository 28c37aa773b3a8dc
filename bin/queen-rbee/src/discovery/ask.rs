//! One question to one hive: its capabilities, and with it that it report to this queen.

use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hive_contract::CapabilitiesReply;
use http::StatusCode;
use lan_discovery::Key;
use reqwest::Response;
use serde::Deserialize;
use shared_contract::{ErrorBody, HiveId};
use tokio::sync::{OnceCell, Semaphore};

use super::own_url::{self, OwnUrl};

/// Hives that are asked at one moment; the others wait their turn.
const MAX_AT_ONCE: usize = 64;
/// Addresses of one host that are tried.
const MAX_ADDRESSES: usize = 8;
/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Longest part of a hive's own words that is kept, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// Why a hive was not won. The text fits after the hive's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    #[error("cannot be found: {0}")]
    NoHost(String),
    #[error(
        "cannot reach this queen, who listens on {0} only: start her with --host (0.0.0.0 for all addresses) and --token, \
         or name another way to her with --advertise-url"
    )]
    LoopbackOnly(SocketAddr),
    #[error(
        "could not reach this queen: the way to {hive} starts at {local}, where she does not listen; name her address with \
         --advertise-url"
    )]
    NoOwnAddress { local: IpAddr, hive: IpAddr },
    #[error(
        "cannot be reached: {0}; does rbee-hive run there, on this port and an address that others reach (--host)?"
    )]
    Unreachable(String),
    #[error("did not answer within {0:?}")]
    Silent(Duration),
    #[error("does not accept this queen's token: start both with the same --token")]
    WrongToken,
    #[error("asks for a token: start this queen with the hive's --token")]
    NoToken,
    #[error("refused with status {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("answered, but not as a hive does: {0}")]
    NoHive(String),
    #[error(
        "calls itself the hive {hive} and does not prove at {address} that it knows this queen's token, which so was not \
         sent: start both with the same --token; name the hive with --hive if its host has another address of its own, as \
         behind NAT"
    )]
    Unproven { hive: HiveId, address: SocketAddr },
    #[error("is the hive {found}, and not {expected}")]
    OtherHive { found: HiveId, expected: HiveId },
}

impl AskError {
    /// Whether it may just be that there is no hive.
    pub(super) fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::NoHost(_) | Self::Unreachable(_) | Self::Silent(_) | Self::NoHive(_)
        )
    }
}

/// Asks hives in the name of this queen.
#[derive(Debug)]
pub(super) struct Questioner {
    http: reqwest::Client,
    token: Option<daemon::Secret>,
    /// Derived from the token once somebody must prove that he knows it.
    key: OnceCell<Key>,
    own: OwnUrl,
    limit: Duration,
    turns: Semaphore,
}

impl Questioner {
    pub(super) fn new(http: reqwest::Client, token: Option<daemon::Secret>, own: OwnUrl, limit: Duration) -> Self {
        Self {
            http,
            token,
            key: OnceCell::new(),
            own,
            limit,
            turns: Semaphore::new(MAX_AT_ONCE),
        }
    }

    /// Checks who knows the fleet's token; `None` where there is none.
    pub(super) async fn key(&self) -> Option<&Key> {
        let token = self.token.as_ref()?;
        Some(self.key.get_or_init(|| Key::derive(token.expose())).await)
    }

    /// Asks the hive at this URL, which gets to see the token. `None`: it answered, and does not say who it is.
    pub(super) async fn ask(&self, hive: &str) -> Result<Option<HiveId>, AskError> {
        self.limited(self.ask_now(hive)).await
    }

    /// Asks at a URL that may be anybody's, if there is a hive by what it shows to everybody. Where there is a token, it must
    /// show, too, that it knows it, at the very address that is asked then.
    pub(super) async fn ask_stranger(&self, place: &str) -> Result<Option<HiveId>, AskError> {
        let Some(key) = self.key().await else {
            self.limited(self.look_at(place)).await?;
            return self.ask(place).await;
        };
        let addresses = self.limited(own_url::resolve(place)).await?;
        let mut why = own_url::no_address();
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            let url = own_url::url(address);
            match self.limited(self.look_at(&url)).await {
                Ok(Health { hive_id, proofs }) if key.proves(&proofs, hive_id.as_str(), address) => {
                    return self.ask(&url).await;
                }
                Ok(Health { hive_id: hive, .. }) => why = AskError::Unproven { hive, address },
                // Says less than a hive at another of its addresses.
                Err(_) if matches!(why, AskError::Unproven { .. }) => {}
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Awaits a turn, and then an answer within the limit.
    async fn limited<T>(&self, answer: impl Future<Output = Result<T, AskError>>) -> Result<T, AskError> {
        let _turn = self.turns.acquire().await;
        let answer = tokio::time::timeout(self.limit, answer).await;
        answer.unwrap_or(Err(AskError::Silent(self.limit)))
    }

    /// What a hive at this URL shows to everybody. The token is not sent.
    async fn look_at(&self, hive: &str) -> Result<Health, AskError> {
        let response = self.http.get(format!("{hive}/health")).send().await;
        let response = response.map_err(unreachable)?;
        let status = response.status();
        let body = read(response).await?;
        if status != StatusCode::OK {
            return Err(refusal(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| AskError::NoHive(error.to_string()))
    }

    async fn ask_now(&self, hive: &str) -> Result<Option<HiveId>, AskError> {
        let own = self.own.towards(hive).await?;
        let mut request = self
            .http
            .get(format!("{hive}/v1/capabilities"))
            .query(&[("queen_url", own)]);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let body = read(response).await?;
        match status {
            StatusCode::OK => serde_json::from_slice::<CapabilitiesReply>(&body)
                .map(|reply| reply.hive_id)
                .map_err(|error| AskError::NoHive(error.to_string())),
            StatusCode::UNAUTHORIZED if self.token.is_some() => Err(AskError::WrongToken),
            StatusCode::UNAUTHORIZED => Err(AskError::NoToken),
            status => Err(refusal(status, &body)),
        }
    }
}

/// The part of a hive's `GET /health` by which it is known.
#[derive(Debug, Deserialize)]
struct Health {
    hive_id: HiveId,
    /// That it knows the fleet's token; none if it has no token, or is older than that.
    #[serde(default)]
    proofs: Vec<String>,
}

async fn read(mut response: Response) -> Result<Vec<u8>, AskError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(AskError::NoHive(format!("more than {MAX_ANSWER_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A hive says why; what says nothing in a hive's way is another server.
fn refusal(status: StatusCode, body: &[u8]) -> AskError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => AskError::Refused {
            status: status.as_u16(),
            message: body.error.message.chars().take(MAX_MESSAGE_CHARS).collect(),
        },
        Err(_) => AskError::NoHive(format!("status {status}")),
    }
}

/// The last of the causes says what happened; those before it, which parts of the client were at work.
fn unreachable(error: reqwest::Error) -> AskError {
    let error = error.without_url();
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        last = inner.to_string();
        cause = inner.source();
    }
    AskError::Unreachable(last)
}

#[cfg(test)]
mod tests {
    use super::super::support::{Answer, FakeHive, closed_port, questioner};
    use super::*;

    async fn ask(answer: Answer, token: Option<&str>) -> Result<Option<HiveId>, AskError> {
        let hive = FakeHive::start(answer).await;
        questioner(token).ask(&hive.url).await
    }

    #[tokio::test]
    async fn a_hive_is_asked_with_this_queens_address_and_token_and_says_who_it_is() {
        let mut hive = FakeHive::start(Answer::Hive("gpu-box")).await;
        let answer = questioner(Some("fleet-token")).ask(&hive.url).await;
        assert_eq!(answer, Ok(Some(HiveId::new("gpu-box").unwrap())));
        let question = hive.asked().await;
        assert_eq!(question.path, "/v1/capabilities");
        assert_eq!(question.queen_url, "http://127.0.0.1:7833");
        assert_eq!(question.authorization.as_deref(), Some("Bearer fleet-token"));
    }

    /// Paths that a hive was asked for, each with whether the token was sent.
    fn asked(hive: &mut FakeHive) -> Vec<(String, bool)> {
        let questions = std::iter::from_fn(|| hive.has_been_asked_for());
        questions
            .map(|question| (question.path, question.authorization.is_some()))
            .collect()
    }

    fn looks(count: usize) -> Vec<(String, bool)> {
        vec![("/health".to_owned(), false); count]
    }

    #[tokio::test]
    async fn a_stranger_that_proves_that_it_knows_the_token_gets_it() {
        let mut hive = FakeHive::proving("gpu-box", "fleet-token").await;
        let answer = questioner(Some("fleet-token")).ask_stranger(&hive.url).await;
        assert_eq!(answer, Ok(Some(HiveId::new("gpu-box").unwrap())));
        let asked = asked(&mut hive);
        assert_eq!(asked, [looks(1), vec![("/v1/capabilities".to_owned(), true)]].concat());
    }

    #[tokio::test]
    async fn a_stranger_gets_no_token_by_a_name_another_token_or_an_overheard_proof() {
        let overheard = FakeHive::proving("gpu-box", "fleet-token").await.proofs;
        let strangers = [
            FakeHive::start(Answer::Hive("gpu-box")).await,
            FakeHive::proving("gpu-box", "other-token").await,
            FakeHive::showing("gpu-box", overheard).await,
        ];
        let questioner = questioner(Some("fleet-token"));
        for mut stranger in strangers {
            let error = questioner.ask_stranger(&stranger.url).await.unwrap_err();
            assert!(matches!(error, AskError::Unproven { .. }), "{error}");
            assert!(error.to_string().contains("--hive if"), "{error}");
            assert_eq!(asked(&mut stranger), looks(1));
        }
    }

    #[tokio::test]
    async fn what_is_no_hive_is_not_asked_and_a_redirection_leads_nowhere() {
        let mut hive = FakeHive::proving("gpu-box", "fleet-token").await;
        for token in [None, Some("fleet-token")] {
            let mut other = FakeHive::start(Answer::Body(200, r#"{"status": "ok"}"#)).await;
            let error = questioner(token).ask_stranger(&other.url).await.unwrap_err();
            assert!(error.is_absence(), "{error}");
            assert_eq!(asked(&mut other), looks(1));
            let mut elsewhere = FakeHive::redirecting(&hive.url).await;
            let error = questioner(token).ask_stranger(&elsewhere.url).await.unwrap_err();
            assert!(error.is_absence(), "{error}");
            assert_eq!(asked(&mut elsewhere), looks(1));
        }
        assert_eq!(asked(&mut hive), []);
    }

    #[tokio::test]
    async fn without_a_token_there_is_nothing_to_prove() {
        let hive = FakeHive::start(Answer::Hive("gpu-box")).await;
        let answer = questioner(None).ask_stranger(&hive.url).await;
        assert_eq!(answer, Ok(Some(HiveId::new("gpu-box").unwrap())));
    }

    #[tokio::test]
    async fn a_hive_that_does_not_say_who_it_is_counts_as_asked() {
        let answer = ask(
            Answer::Body(200, r#"{"devices": [], "models": [], "engines": []}"#),
            None,
        )
        .await;
        assert_eq!(answer, Ok(None));
    }

    #[tokio::test]
    async fn a_refused_token_is_told_with_the_remedy() {
        let refused = Answer::Body(401, "{}");
        let error = ask(refused, Some("other-token")).await.unwrap_err();
        assert_eq!(error, AskError::WrongToken);
        assert!(
            error.to_string().contains("same --token") && !error.is_absence(),
            "{error}"
        );
        assert_eq!(ask(refused, None).await, Err(AskError::NoToken));
    }

    #[tokio::test]
    async fn a_hives_own_words_are_passed_on_and_another_servers_page_is_not() {
        let body = r#"{"error": {"message": "this hive reports to 8 queens already", "type": "t", "param": null, "code": null}}"#;
        let error = ask(Answer::Body(409, body), None).await.unwrap_err();
        assert!(error.to_string().contains("8 queens") && !error.is_absence(), "{error}");
        let error = ask(Answer::Body(404, "<html>"), None).await.unwrap_err();
        assert!(
            error.to_string().ends_with("status 404 Not Found") && error.is_absence(),
            "{error}"
        );
        let error = ask(Answer::Body(200, "<html>"), None).await.unwrap_err();
        assert!(matches!(error, AskError::NoHive(_)) && error.is_absence(), "{error}");
    }

    #[tokio::test]
    async fn where_nobody_listens_that_is_told_and_nothing_of_the_client() {
        let error = questioner(None)
            .ask(&format!("http://127.0.0.1:{}", closed_port()))
            .await;
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("cannot be reached: Connection refused"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hive_that_does_not_answer_is_given_up_after_ten_seconds() {
        let hive = FakeHive::start(Answer::Never).await;
        let began = tokio::time::Instant::now();
        let error = questioner(None).ask(&hive.url).await.unwrap_err();
        assert_eq!(error, AskError::Silent(Duration::from_secs(10)));
        assert_eq!(began.elapsed(), Duration::from_secs(10));
    }
}
