//! Hives that announce themselves on the local network.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use lan_discovery::{Announcement, Browser, Key, Sighting};
use shared_contract::HiveId;
use tokio_util::task::AbortOnDropHandle;

use super::Discovery;
use super::asker::{LastAsked, Origin, Target};
use super::own_url;

/// Announcements that are followed at one time, and names of others that are told: anybody on the network can make them.
const MAX_ANNOUNCEMENTS: usize = 256;

/// Asks each hive that is announced, for as long as it is. Ends if nothing can be heard.
pub(super) async fn follow(discovery: Arc<Discovery>) {
    let key = discovery.questioner.key().await;
    if let Err(error) = listen(&discovery, key).await {
        tracing::error!(%error, "no hive is found on the local network any more; --hive names them one by one");
    }
}

async fn listen(discovery: &Discovery, key: Option<&Key>) -> Result<(), lan_discovery::Error> {
    let mut browser = Browser::start()?;
    tracing::info!("looking for hives on the local network");
    let mut followed = Followed::new(discovery.timing.again);
    loop {
        let heard = match browser.next().await? {
            Sighting::Found(heard) => heard,
            Sighting::Gone { name } => {
                followed.gone(&name);
                tracing::debug!(name, "a hive is no longer announced on the local network");
                continue;
            }
        };
        let name = heard.name.as_str();
        match target(&heard, key) {
            Ok(target) => {
                let (urls, hive_id) = (target.urls.clone(), heard.id.as_str());
                let start = |asked| AbortOnDropHandle::new(tokio::spawn(discovery.asker(target.clone(), asked)));
                match followed.found(name, (heard.incarnation, target.clone()), start) {
                    Place::New => tracing::info!(name, hive_id, ?urls, "a hive is announced on the local network"),
                    Place::Changed => tracing::debug!(name, hive_id, ?urls, "a hive is announced anew"),
                    Place::Same => {}
                    Place::None { is_first: true } => tracing::warn!(
                        name,
                        limit = MAX_ANNOUNCEMENTS,
                        "more hives are announced on the local network than are followed; --hive names the others"
                    ),
                    Place::None { is_first: false } => {}
                }
            }
            Err(why) if followed.is_first_refusal(name) => tracing::warn!(
                name,
                addresses = ?heard.claimed(),
                why,
                "what is announced on the local network is not asked"
            ),
            Err(_) => {}
        }
    }
}

/// What is asked; or why nothing is.
fn target(heard: &Announcement, key: Option<&Key>) -> Result<Target, &'static str> {
    let addresses = key.map_or_else(|| heard.claimed().to_vec(), |key| heard.proven(key));
    if addresses.is_empty() {
        return Err("it does not prove that it knows this fleet's token: start the hive with the same --token");
    }
    let hive_id = HiveId::new(heard.id.as_str()).map_err(|_| "its id is none that a hive can have")?;
    Ok(Target {
        urls: addresses.into_iter().map(own_url::url).collect(),
        hive_id: Some(hive_id),
        origin: Origin::Network,
    })
}

/// Whom we follow. `T` is what an announcement says, `A` asks the hive until it is dropped.
struct Followed<T, A> {
    entries: HashMap<String, Entry<T, A>>,
    /// Least pause between two questions under one name.
    again: Duration,
    /// Names of announcements that were refused, and told.
    refused: HashSet<String>,
    /// Whether it was told that there is no room.
    told_full: bool,
}

struct Entry<T, A> {
    /// What is announced, and who asks; `None` once it is withdrawn: then the entry keeps the time of the last question, for
    /// as long as it matters.
    live: Option<(T, A)>,
    asked: LastAsked,
}

/// What an announcement is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    New,
    Changed,
    Same,
    /// There is no room for it.
    None {
        /// For the first time since there was.
        is_first: bool,
    },
}

impl<T: PartialEq, A> Followed<T, A> {
    fn new(again: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            again,
            refused: HashSet::new(),
            told_full: false,
        }
    }

    /// Takes what is announced under a name; `start` begins to ask, in place of who did so before.
    fn found(&mut self, name: &str, news: T, start: impl FnOnce(LastAsked) -> A) -> Place {
        if !self.entries.contains_key(name) && !self.has_room() {
            let is_first = !std::mem::replace(&mut self.told_full, true);
            return Place::None { is_first };
        }
        let entry = self.entries.entry(name.to_owned()).or_insert_with(|| Entry {
            live: None,
            asked: LastAsked::default(),
        });
        let place = match &entry.live {
            None => Place::New,
            Some((before, _)) if *before == news => return Place::Same,
            Some(_) => Place::Changed,
        };
        // The one before ends first, so that the time of its last question stands.
        entry.live = None;
        entry.live = Some((news, start(entry.asked.clone())));
        place
    }

    /// What was announced under a name is withdrawn.
    fn gone(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.live = None;
        }
    }

    /// Whether there is a place; forgets those that are gone and may be asked again.
    fn has_room(&mut self) -> bool {
        if self.entries.len() >= MAX_ANNOUNCEMENTS {
            let again = self.again;
            self.entries
                .retain(|_, entry| entry.live.is_some() || !entry.asked.left_of(again).is_zero());
        }
        let has_room = self.entries.len() < MAX_ANNOUNCEMENTS;
        self.told_full &= !has_room;
        has_room
    }

    /// Whether nothing under this name was refused before. Beyond the limit, none is told.
    fn is_first_refusal(&mut self, name: &str) -> bool {
        self.refused.len() < MAX_ANNOUNCEMENTS && self.refused.insert(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGAIN: Duration = Duration::from_secs(30);

    /// Announces something, and answers with its place and how long its asker must wait.
    fn announce(followed: &mut Followed<u32, LastAsked>, name: &str, news: u32) -> (Place, Duration) {
        let mut pause = Duration::MAX;
        let place = followed.found(name, news, |asked| {
            pause = asked.left_of(AGAIN);
            asked
        });
        (place, pause)
    }

    /// The asker of this name asks.
    fn ask(followed: &Followed<u32, LastAsked>, name: &str) {
        followed.entries[name].live.as_ref().unwrap().1.note();
    }

    #[tokio::test(start_paused = true)]
    async fn however_often_an_announcement_changes_or_comes_and_goes_a_name_is_asked_once_in_a_while() {
        let mut followed = Followed::new(AGAIN);
        assert_eq!(announce(&mut followed, "a", 0), (Place::New, Duration::ZERO));
        assert_eq!(announce(&mut followed, "a", 0).0, Place::Same);
        assert_eq!(
            announce(&mut followed, "a", 1),
            (Place::Changed, Duration::ZERO),
            "not asked yet"
        );
        ask(&followed, "a");
        tokio::time::advance(Duration::from_secs(10)).await;
        let left = Duration::from_secs(20);
        assert_eq!(announce(&mut followed, "a", 2), (Place::Changed, left));
        assert_eq!(
            announce(&mut followed, "a", 3),
            (Place::Changed, left),
            "no change defers it"
        );
        followed.gone("a");
        assert_eq!(announce(&mut followed, "a", 3), (Place::New, left));
        tokio::time::advance(left).await;
        assert_eq!(announce(&mut followed, "a", 4), (Place::Changed, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limit_none_is_followed_until_one_is_gone_and_that_is_told_once() {
        let mut followed = Followed::new(AGAIN);
        for number in 0..MAX_ANNOUNCEMENTS {
            assert_eq!(announce(&mut followed, &number.to_string(), 0).0, Place::New);
        }
        assert_eq!(announce(&mut followed, "a", 0).0, Place::None { is_first: true });
        assert_eq!(announce(&mut followed, "b", 0).0, Place::None { is_first: false });
        assert_eq!(
            announce(&mut followed, "7", 1).0,
            Place::Changed,
            "those there are go on"
        );
        ask(&followed, "7");
        followed.gone("7");
        assert_eq!(
            announce(&mut followed, "a", 0).0,
            Place::None { is_first: false },
            "names that change get nobody asked more often"
        );
        tokio::time::advance(AGAIN).await;
        assert_eq!(announce(&mut followed, "a", 0).0, Place::New);
        assert_eq!(announce(&mut followed, "b", 0).0, Place::None { is_first: true });
    }

    #[test]
    fn what_is_refused_is_told_once_for_each_name_and_takes_no_place() {
        let mut followed = Followed::<u32, LastAsked>::new(AGAIN);
        assert!(followed.is_first_refusal("a"));
        assert!(!followed.is_first_refusal("a"));
        let told = (0..2 * MAX_ANNOUNCEMENTS).filter(|number| followed.is_first_refusal(&number.to_string()));
        assert_eq!(told.count(), MAX_ANNOUNCEMENTS - 1);
        assert!(followed.entries.is_empty());
    }
}
