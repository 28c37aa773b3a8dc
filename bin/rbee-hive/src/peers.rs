//! Which other hives have a model: asked of the queens before it is fetched from far away.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use heartbeat_client::QueenUrl;
use hive_contract::{ModelHolder, ModelHolders};
use model_store::{ModelRef, Peer};
use shared_contract::HiveId;

use crate::App;

/// Limit for a queen to answer. Whoever does not know in this time is not waited for: the source is there, too.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The hives that have this model, as the queens know them; this one is left out.
pub(crate) async fn holders(app: &App, reference: &ModelRef) -> Vec<Peer> {
    let queens = app.queens.urls();
    let answers = join_all(queens.iter().map(|queen| ask(app, queen, reference))).await;
    let token = app.config.token.as_ref().map(|token| token.expose().to_owned());
    in_turn(answers.into_iter().flatten(), &app.core.identity.id)
        .into_iter()
        .map(|holder| Peer {
            name: holder.hive_id.to_string(),
            base_url: holder.base_url,
            token: token.clone(),
        })
        .collect()
}

/// A queen that does not answer, or is too old to know, knows none.
async fn ask(app: &App, queen: &QueenUrl, reference: &ModelRef) -> Vec<ModelHolder> {
    let url = format!("{}/v1/model-holders", queen.as_str().trim_end_matches('/'));
    let mut request = app
        .http
        .get(url)
        .query(&[("reference", reference.to_string())])
        .timeout(TIMEOUT);
    if let Some(token) = &app.config.token {
        request = request.bearer_auth(token.expose());
    }
    let answer = async { request.send().await?.error_for_status()?.json::<ModelHolders>().await };
    match answer.await {
        Ok(answer) => answer.holders,
        Err(error) => {
            let error = error.without_url();
            tracing::debug!(%queen, %error, "the queen does not say which hives have the model");
            Vec::new()
        }
    }
}

/// Each hive once, in the order of their ids, beginning after our own: of many that fetch one model at once, not all
/// begin with the same.
fn in_turn(holders: impl IntoIterator<Item = ModelHolder>, own: &HiveId) -> Vec<ModelHolder> {
    let by_id: BTreeMap<HiveId, ModelHolder> = holders
        .into_iter()
        .filter(|holder| holder.hive_id != *own)
        .map(|holder| (holder.hive_id.clone(), holder))
        .collect();
    let (before, mut after): (Vec<_>, Vec<_>) = by_id.into_values().partition(|holder| holder.hive_id < *own);
    after.extend(before);
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hive_is_asked_once_beginning_with_the_one_after_our_own() {
        let holder = |name: &str| ModelHolder {
            hive_id: HiveId::new(name).unwrap(),
            base_url: format!("http://{name}:7835"),
        };
        // Two queens know the same hives.
        let known = ["a", "d", "c", "b", "a", "b", "d"].map(holder);
        let order: Vec<String> = in_turn(known, &HiveId::new("b").unwrap())
            .into_iter()
            .map(|holder| holder.hive_id.to_string())
            .collect();
        assert_eq!(order, ["c", "d", "a"]);
    }
}
