//! Workers, and all gateways in front of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::backend::Backends;
use crate::load::{Ask, Load, Tally};
use crate::peers::{Peer, Workers};
use crate::{Result, Run};

/// Load before the measured part of a round: connections are made, memory is taken.
const WARM_UP: Duration = Duration::from_millis(300);

/// All processes of a part. The bare relay is the first gateway, then nginx if there is one, then the queens.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) gateways: Vec<Peer>,
    workers: Workers,
}

impl Stage {
    /// Starts so many workers, and the gateways, each on one CPU if one is named.
    pub(crate) async fn set(run: &Run, workers: u16, cpu: Option<usize>) -> Result<Self> {
        let mut queens = Vec::new();
        for queen in &run.queens {
            queens.push(Peer::queen(queen, &[], cpu).await?);
        }
        let options = Backends {
            count: workers,
            queen: queens.iter().map(|queen| queen.address).collect(),
            ..Backends::default()
        };
        let workers = Workers::start(&options).await?;
        for queen in &queens {
            queen.knows(workers.ports.len()).await?;
        }
        let mut gateways = vec![Peer::relay(&workers.ports, cpu).await?];
        gateways.extend(Peer::nginx(&workers.ports, cpu).await?);
        gateways.append(&mut queens);
        Ok(Self { gateways, workers })
    }

    /// Where a worker is asked without a gateway.
    pub(crate) fn direct(&self) -> Result<SocketAddr> {
        let port = self.workers.ports.first().ok_or("start a worker")?;
        Ok((Ipv4Addr::LOCALHOST, *port).into())
    }
}

/// Load on one gateway, after a moment of the same load that does not count; with the CPU time that it took, in seconds.
pub(crate) async fn weigh(gateway: &Peer, ask: Ask, clients: usize, time: Duration) -> Result<(Tally, f64)> {
    let load = Load::new(gateway.address, ask);
    load.clients(clients, WARM_UP).await.check(&gateway.name)?;
    let before = gateway.cpu()?;
    let tally = load.clients(clients, time).await.check(&gateway.name)?;
    let cpu = gateway.cpu()?.saturating_sub(before);
    Ok((tally, cpu.as_secs_f64()))
}
