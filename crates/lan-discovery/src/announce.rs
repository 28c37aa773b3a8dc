//! The announcing side: tells the network where this host's hive is, for as long as it runs.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mdns_sd::{DaemonEvent, Receiver, ServiceDaemon, ServiceInfo, TxtProperty};
use tokio_util::task::AbortOnDropHandle;

use crate::{Error, HIVE, Key, MAX_ADDRESSES, SERVICE, TXT_ID, TXT_INCARNATION, TXT_PROOF, TXT_ROLE, TXT_VERSION};

/// Longest label of a domain name, in bytes.
const MAX_LABEL: usize = 63;
/// How long the packets of a goodbye may take to leave.
const GOODBYE: Duration = Duration::from_secs(1);

/// What is announced.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The hive's id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Grows with each of its starts, so that a new start is heard as news.
    pub incarnation: u64,
    /// Where it listens. An unspecified address stands for all of this host's, loopback and link-local ones left out.
    pub bound: SocketAddr,
    /// Proves the addresses to those who know the fleet's token; `None` where there is no token.
    pub key: Option<Key>,
}

/// Announces a hive, and follows this host's addresses, until it is dropped.
pub struct Announcer {
    daemon: ServiceDaemon,
    name: String,
    follower: Option<AbortOnDropHandle<()>>,
}

impl Announcer {
    /// Starts to announce. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If multicast DNS cannot be used at all, this host's addresses cannot be read, or the id is too long for a record.
    /// What goes wrong later is logged.
    pub fn start(offer: Offer) -> Result<Self, Error> {
        Self::with(ServiceDaemon::new().map_err(Error::Start)?, offer)
    }

    pub(crate) fn with(daemon: ServiceDaemon, offer: Offer) -> Result<Self, Error> {
        let events = daemon.monitor().map_err(Error::Start)?;
        let addresses = addresses(offer.bound)?;
        let service = describe(&offer, &addresses)?;
        let name = service.get_fullname().to_owned();
        daemon.register(service).map_err(Error::Announce)?;
        let follower = follow(daemon.clone(), events, offer, addresses);
        Ok(Self {
            daemon,
            name,
            follower: Some(AbortOnDropHandle::new(tokio::spawn(follower))),
        })
    }

    /// Tells the network that the hive is gone.
    pub async fn withdraw(&mut self) {
        // First, lest it announces again what is withdrawn here.
        if let Some(follower) = self.follower.take() {
            follower.abort();
            let _ = follower.await;
        }
        withdraw(&self.daemon, &self.name).await;
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        // Refused only if it has ended.
        let _ = self.daemon.shutdown();
    }
}

async fn withdraw(daemon: &ServiceDaemon, name: &str) {
    let Ok(done) = daemon.unregister(name) else {
        return;
    };
    if tokio::time::timeout(GOODBYE, done.recv_async()).await.is_err() {
        tracing::debug!(name, "the goodbye to the local network takes too long");
    }
}

/// Announces anew when this host's addresses change: the proofs go with the addresses.
async fn follow(daemon: ServiceDaemon, events: Receiver<DaemonEvent>, offer: Offer, mut announced: BTreeSet<IpAddr>) {
    let mut last_problem = None;
    while let Ok(event) = events.recv_async().await {
        match event {
            DaemonEvent::IpAdd(_) | DaemonEvent::IpDel(_) => {
                let now = match addresses(offer.bound) {
                    Ok(now) if now != announced => now,
                    Ok(_) => continue,
                    Err(error) => {
                        tracing::warn!(%error, "this host's new addresses are not announced");
                        continue;
                    }
                };
                tracing::info!(addresses = ?now, "this host's addresses changed; announced anew");
                if let Err(error) = announce_anew(&daemon, &offer, &now) {
                    tracing::warn!(%error, "this host's new addresses are not announced");
                }
                announced = now;
            }
            DaemonEvent::NameChange(change) => {
                tracing::info!(from = %change.original, to = %change.new_name, "another host has the announced name");
            }
            DaemonEvent::Error(problem) => crate::browse::tell(&problem, &mut last_problem),
            _ => {}
        }
    }
}

/// Replaces what was announced under the same name.
fn announce_anew(daemon: &ServiceDaemon, offer: &Offer, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
    let mut service = describe(offer, addresses)?;
    // The name is ours already: asked for it, we would be found in our own way.
    service.set_requires_probe(false);
    daemon.register(service).map_err(Error::Announce)
}

/// The addresses under which others reach what listens there; IPv4 first.
fn addresses(bound: SocketAddr) -> Result<BTreeSet<IpAddr>, Error> {
    if !bound.ip().is_unspecified() {
        return Ok([bound.ip()].into());
    }
    let interfaces = if_addrs::get_if_addrs().map_err(Error::Addresses)?;
    let all = interfaces.iter().map(if_addrs::Interface::ip);
    Ok(all
        .filter(|ip| is_reachable(*ip, bound.ip()))
        .take(MAX_ADDRESSES)
        .collect())
}

/// Whether others may reach `ip` of a host where a socket is bound to `all`, the unspecified address.
fn is_reachable(ip: IpAddr, all: IpAddr) -> bool {
    let is_served = ip.is_ipv4() || all.is_ipv6();
    is_served && is_one_hosts(ip)
}

/// Whether an address is that of one host, the same for all who are on its network. Of the others, loopback leads whoever
/// dials it to himself, and link-local IPv6 cannot be dialled without naming the interface.
pub(crate) fn is_one_hosts(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !is_link_local && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

/// The proofs that a hive shows to whoever asks it, without a word of multicast DNS: those that its announcement would
/// carry, one for each of its addresses.
///
/// # Errors
/// If this host's addresses cannot be read.
pub fn proofs(key: &Key, id: &str, bound: SocketAddr) -> Result<Vec<String>, Error> {
    let addresses = addresses(bound)?;
    Ok(addresses.iter().map(|ip| key.prove(id, *ip, bound.port())).collect())
}

fn describe(offer: &Offer, addresses: &BTreeSet<IpAddr>) -> Result<ServiceInfo, Error> {
    let mut texts = vec![
        TxtProperty::from(&(TXT_ID, &offer.id)),
        TxtProperty::from(&(TXT_VERSION, &offer.version)),
        TxtProperty::from(&(TXT_ROLE, HIVE)),
        TxtProperty::from(&(TXT_INCARNATION, offer.incarnation)),
    ];
    if let Some(key) = &offer.key {
        let proofs = addresses.iter().map(|ip| key.prove(&offer.id, *ip, offer.bound.port()));
        texts.extend(
            proofs
                .enumerate()
                .map(|(n, proof)| TxtProperty::from(&(format!("{TXT_PROOF}{n}"), proof))),
        );
    }
    let label = label(&offer.id);
    let host = format!("rbee-{label}.local.");
    let addresses: Vec<IpAddr> = addresses.iter().copied().collect();
    ServiceInfo::new(SERVICE, &label, &host, &addresses[..], offer.bound.port(), texts).map_err(Error::Announce)
}

/// A name that fits into a domain name, with room for a prefix. Ids that come to the same name are told apart by the
/// protocol, which renames the later one.
fn label(id: &str) -> String {
    let room = MAX_LABEL - "rbee-".len();
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let label: String = id.chars().take(room).map(plain).collect();
    match label.trim_matches('-') {
        "" => HIVE.to_owned(),
        label => label.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hive_that_listens_on_one_address_announces_that_one() {
        let bound = "10.1.2.3:7835".parse().unwrap();
        assert_eq!(addresses(bound).unwrap(), ["10.1.2.3".parse().unwrap()].into());
    }

    #[test]
    fn a_hive_that_listens_everywhere_announces_what_others_can_dial() {
        let v4: IpAddr = "0.0.0.0".parse().unwrap();
        let v6: IpAddr = "::".parse().unwrap();
        let reachable = |ip: &str, all| is_reachable(ip.parse().unwrap(), all);
        assert!(reachable("192.168.1.5", v4) && reachable("192.168.1.5", v6));
        assert!(reachable("fd00::5", v6) && !reachable("fd00::5", v4));
        for ip in [
            "127.0.0.1",
            "::1",
            "fe80::1",
            "169.254.7.7",
            "::",
            "224.0.0.251",
            "ff02::fb",
        ] {
            assert!(!reachable(ip, v6), "{ip}");
        }
    }

    #[test]
    fn a_hive_shows_a_proof_for_the_address_that_it_listens_on() {
        let key = Key::with_rounds("fleet-token", 2);
        let bound: SocketAddr = "127.0.0.1:7835".parse().unwrap();
        let shown = proofs(&key, "gpu-box", bound).unwrap();
        assert!(key.proves(&shown, "gpu-box", bound));
        assert!(!key.proves(&shown, "gpu-box", "127.0.0.2:7835".parse().unwrap()));
        assert!(!key.proves(&[], "gpu-box", bound));
    }

    #[test]
    fn any_id_becomes_a_label() {
        assert_eq!(label("gpu-box"), "gpu-box");
        assert_eq!(label("Gpu.Box/2"), "gpu-box-2");
        assert_eq!(label("../"), "hive");
        assert_eq!(label(&"é".repeat(100)), "hive");
        assert_eq!(label(&"x".repeat(100)).len(), MAX_LABEL - 5);
    }

    #[test]
    fn an_id_that_no_record_can_hold_is_refused_and_not_cut() {
        let offer = Offer {
            id: "x".repeat(256),
            version: "1".to_owned(),
            incarnation: 1,
            bound: "10.1.2.3:7835".parse().unwrap(),
            key: None,
        };
        assert!(matches!(describe(&offer, &BTreeSet::new()), Err(Error::Announce(_))));
    }
}
