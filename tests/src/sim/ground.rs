//! The truth: which processes live where, and which ways are open. The world changes it, the oracle reads it.

use std::net::{IpAddr, Ipv4Addr};

use super::clock::Time;
use std::time::Duration;

/// One process that beats: one start of one member.
#[derive(Debug, Clone)]
pub(super) struct Process {
    /// The id that it uses, as a number.
    pub(super) slot: usize,
    /// Of its newest beat: a process that is taken for gone goes on under a newer one.
    pub(super) incarnation: u64,
    /// Since when it has had this incarnation.
    pub(super) renewed: Time,
    pub(super) host: usize,
    pub(super) port: u16,
    /// Whether its beats name the host's address.
    pub(super) names_host: bool,
    pub(super) started: Time,
    /// When what it is a copy of was started: a copied machine has lived as long as the original.
    pub(super) born: Time,
    /// Dead, or about to say goodbye.
    pub(super) ended: Option<Time>,
    /// Since when it has not been stopped; `None` while it is.
    pub(super) running: Option<Time>,
    /// Since when it has been at its address.
    pub(super) settled: Time,
    /// The pace that it was asked for last.
    pub(super) interval: Duration,
}

/// One direction between the queen and a host. Several troubles may block it at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Way {
    blocks: u32,
    open_since: Time,
}

impl Way {
    pub(super) fn block(&mut self) {
        self.blocks += 1;
    }

    pub(super) fn unblock(&mut self, now: Time) {
        self.blocks -= 1;
        self.open_since = now;
    }

    pub(super) fn is_open(self) -> bool {
        self.blocks == 0
    }

    fn open_since(self) -> Option<Time> {
        self.is_open().then_some(self.open_since)
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Host {
    /// Host to queen: requests.
    pub(super) beats: Way,
    /// Queen to host: answers.
    pub(super) acks: Way,
    /// Connections that the queen opens: a firewall may block these alone.
    pub(super) calls: Way,
}

#[derive(Debug, Default)]
pub(super) struct Ground {
    pub(super) hosts: Vec<Host>,
    pub(super) processes: Vec<Process>,
    /// The processes of each id, dead ones too, in the order of their start.
    pub(super) slots: Vec<Vec<usize>>,
    /// Since when the queen has run without a break.
    pub(super) queen: Option<Time>,
    /// Since when the network has lost nothing by chance.
    pub(super) lossless: Option<Time>,
}

impl Ground {
    pub(super) fn address(host: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, (host / 250) as u8, (host % 250 + 1) as u8))
    }

    /// Processes of an id that live.
    pub(super) fn living(&self, slot: usize) -> impl Iterator<Item = usize> {
        let ids = &self.slots[slot];
        ids.iter().copied().filter(|it| self.processes[*it].ended.is_none())
    }

    /// Since when nothing has hindered this process's beats, chance set aside.
    pub(super) fn connected_since(&self, process: usize) -> Option<Time> {
        let it = &self.processes[process];
        if it.ended.is_some() {
            return None;
        }
        let way = self.hosts[it.host].beats.open_since()?;
        Some(it.running?.max(it.settled).max(way).max(self.queen?))
    }

    /// Since when each of its beats has surely reached the queen.
    pub(super) fn heard_since(&self, process: usize) -> Option<Time> {
        Some(self.connected_since(process)?.max(self.lossless?))
    }

    /// Since when each of its beats has surely been answered, too.
    pub(super) fn answered_since(&self, process: usize) -> Option<Time> {
        let way = self.hosts[self.processes[process].host].acks.open_since()?;
        Some(self.heard_since(process)?.max(way))
    }

    /// Whether the queen can open a connection to this process.
    pub(super) fn can_be_called(&self, process: usize) -> bool {
        let it = &self.processes[process];
        let host = &self.hosts[it.host];
        let is_open = host.beats.is_open() && host.acks.is_open() && host.calls.is_open();
        it.ended.is_none() && it.running.is_some() && is_open
    }

    /// Since when it could have been called.
    pub(super) fn callable_since(&self, process: usize) -> Option<Time> {
        let host = &self.hosts[self.processes[process].host];
        Some(self.answered_since(process)?.max(host.calls.open_since()?))
    }
}
