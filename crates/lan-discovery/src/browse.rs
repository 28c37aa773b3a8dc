//! The looking side: hears which hives come and go.

use std::net::{IpAddr, SocketAddr};

use mdns_sd::{DaemonEvent, Receiver, ResolvedService, ServiceDaemon, ServiceEvent};
use tokio_util::task::AbortOnDropHandle;

use crate::announce::is_one_hosts;
use crate::{Error, HIVE, Key, MAX_ADDRESSES, SERVICE, TXT_ID, TXT_INCARNATION, TXT_PROOF, TXT_ROLE, TXT_VERSION};

/// What is heard of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sighting {
    /// A hive announces itself, or says something new.
    Found(Announcement),
    /// An announcement was withdrawn, or has run out.
    Gone {
        /// Its [`Announcement::name`].
        name: String,
    },
}

/// What somebody on the network says of a hive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Distinguishes the announcements that are there at one time.
    pub name: String,
    /// The hive's id, as is claimed.
    pub id: String,
    /// Its version, as is claimed; empty if it says none.
    pub version: String,
    /// Which of its starts this is, as is claimed; 0 if it does not say.
    pub incarnation: u64,
    addresses: Vec<SocketAddr>,
    proofs: Vec<String>,
}

impl Announcement {
    /// Where the hive is said to be, IPv4 first. Whoever has a token to lose asks [`Self::proven`].
    pub fn claimed(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Those of the addresses that somebody who knows the fleet's token has announced.
    pub fn proven(&self, key: &Key) -> Vec<SocketAddr> {
        let is_proven = |address: &&SocketAddr| key.proves(&self.proofs, &self.id, **address);
        self.addresses.iter().filter(is_proven).copied().collect()
    }

    /// `None` for what is no hive at an address that is believed.
    fn read(service: &ResolvedService, believes: fn(IpAddr) -> bool) -> Option<Self> {
        if service.get_property_val_str(TXT_ROLE) != Some(HIVE) {
            return None;
        }
        let id = service.get_property_val_str(TXT_ID).filter(|id| !id.is_empty())?;
        let mut addresses: Vec<_> = service
            .get_addresses()
            .iter()
            .map(|ip| ip.to_ip_addr().to_canonical())
            .filter(|ip| believes(*ip))
            .map(|ip| SocketAddr::new(ip, service.get_port()))
            .collect();
        addresses.sort_unstable();
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() {
            return None;
        }
        let proof = |n| service.get_property_val_str(&format!("{TXT_PROOF}{n}"));
        let incarnation = service.get_property_val_str(TXT_INCARNATION);
        Some(Self {
            name: service.get_fullname().to_owned(),
            id: id.to_owned(),
            version: service.get_property_val_str(TXT_VERSION).unwrap_or_default().to_owned(),
            incarnation: incarnation.and_then(|number| number.parse().ok()).unwrap_or_default(),
            addresses,
            proofs: (0..MAX_ADDRESSES).map_while(proof).map(str::to_owned).collect(),
        })
    }
}

/// Looks for hives until it is dropped.
pub struct Browser {
    daemon: ServiceDaemon,
    events: Receiver<ServiceEvent>,
    /// Which addresses are taken from an announcement.
    believes: fn(IpAddr) -> bool,
    _problems: AbortOnDropHandle<()>,
}

impl Browser {
    /// Starts to look. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If multicast DNS cannot be used at all. What goes wrong later is logged.
    pub fn start() -> Result<Self, Error> {
        // Anybody can announce anything, this host itself and everybody at once included.
        Self::with(ServiceDaemon::new().map_err(Error::Start)?, is_one_hosts)
    }

    pub(crate) fn with(daemon: ServiceDaemon, believes: fn(IpAddr) -> bool) -> Result<Self, Error> {
        let problems = daemon.monitor().map_err(Error::Start)?;
        let events = daemon.browse(SERVICE).map_err(Error::Browse)?;
        Ok(Self {
            daemon,
            events,
            believes,
            _problems: AbortOnDropHandle::new(tokio::spawn(tell_problems(problems))),
        })
    }

    /// The next thing heard. What is there already when the looking begins is heard, too.
    ///
    /// # Errors
    /// If nothing will be heard any more.
    pub async fn next(&mut self) -> Result<Sighting, Error> {
        loop {
            match self.events.recv_async().await {
                Ok(ServiceEvent::ServiceResolved(service)) => match Announcement::read(&service, self.believes) {
                    Some(announcement) => return Ok(Sighting::Found(announcement)),
                    None => tracing::debug!(name = service.get_fullname(), "an announcement of something else"),
                },
                Ok(ServiceEvent::ServiceRemoved(_, name)) => return Ok(Sighting::Gone { name }),
                Ok(_) => {}
                // Ended because we fell behind: whatever is there is told again.
                Err(_) => self.events = self.daemon.browse(SERVICE).map_err(Error::Browse)?,
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Refused only if it has ended.
        let _ = self.daemon.shutdown();
    }
}

async fn tell_problems(events: Receiver<DaemonEvent>) {
    let mut last = None;
    while let Ok(event) = events.recv_async().await {
        if let DaemonEvent::Error(problem) = event {
            tell(&problem, &mut last);
        }
    }
}

/// Logs a problem, unless it is the same again.
pub(crate) fn tell(problem: &mdns_sd::Error, last: &mut Option<mdns_sd::Error>) {
    if last.as_ref() != Some(problem) {
        tracing::warn!(%problem, "multicast DNS does not work as it should");
        *last = Some(problem.clone());
    }
}
