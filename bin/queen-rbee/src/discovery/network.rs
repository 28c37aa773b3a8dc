//! Hives that announce themselves on the local network.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use lan_discovery::{Announcement, Browser, Key, Sighting};
use shared_contract::HiveId;
use tokio_util::task::AbortOnDropHandle;

use super::Discovery;
use super::asker::{Origin, Target};

/// Announcements that are followed at one time: anybody on the network can make them.
const MAX_ANNOUNCEMENTS: usize = 256;

/// Asks each hive that is announced, for as long as it is. Ends if nothing can be heard.
pub(super) async fn follow(discovery: Arc<Discovery>) {
    let key = match &discovery.state.config.token {
        Some(token) => Some(Key::derive(token.expose()).await),
        None => None,
    };
    if let Err(error) = listen(&discovery, key.as_ref()).await {
        tracing::error!(%error, "no hive is found on the local network any more; --hive names them one by one");
    }
}

async fn listen(discovery: &Arc<Discovery>, key: Option<&Key>) -> Result<(), lan_discovery::Error> {
    let mut browser = Browser::start()?;
    tracing::info!("looking for hives on the local network");
    let mut followed: HashMap<String, (Announcement, Option<AbortOnDropHandle<()>>)> = HashMap::new();
    loop {
        match browser.next().await? {
            Sighting::Gone { name } => {
                if followed.remove(&name).is_some() {
                    tracing::info!(name, "a hive is no longer announced on the local network");
                }
            }
            Sighting::Found(heard) => {
                let known = followed.get(&heard.name);
                let is_known = known.is_some_and(|(before, _)| *before == heard);
                if is_known || (known.is_none() && followed.len() >= MAX_ANNOUNCEMENTS) {
                    continue;
                }
                let asker = target(&heard, key).map(|target| {
                    tracing::info!(hive_id = heard.id, urls = ?target.urls, "a hive is announced on the local network");
                    AbortOnDropHandle::new(tokio::spawn(discovery.asker(target)))
                });
                followed.insert(heard.name.clone(), (heard, asker));
            }
        }
    }
}

/// What is asked; `None`, with a word, where the fleet's token would go to somebody who may not know it.
fn target(heard: &Announcement, key: Option<&Key>) -> Option<Target> {
    let addresses = key.map_or_else(|| heard.claimed().to_vec(), |key| heard.proven(key));
    let hive_id = HiveId::new(heard.id.as_str()).ok();
    if addresses.is_empty() || hive_id.is_none() {
        tracing::warn!(
            name = heard.name,
            addresses = ?heard.claimed(),
            "what is announced on the local network is not asked: it does not show that it knows this fleet's token; \
             start the hive with the same --token"
        );
        return None;
    }
    let url = |address: &SocketAddr| format!("http://{address}");
    Some(Target {
        urls: addresses.iter().map(url).collect(),
        hive_id,
        origin: Origin::Network,
    })
}
