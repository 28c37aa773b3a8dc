//! Lets queens find this hive: shows them that it knows the fleet's token, and announces it on the local network.

use std::net::SocketAddr;

use lan_discovery::{Announcer, Key, Offer};

use crate::App;

/// Makes the proofs of this hive, and announces it, if it is to be, until it is asked to end. A hive that cannot be announced
/// works all the same.
pub(crate) async fn be_found(app: &App) {
    let announced = tokio::select! {
        announced = start(app) => announced,
        () = app.shutdown.requested() => return,
    };
    match announced {
        Ok(None) => {}
        Ok(Some(mut announcer)) => {
            app.shutdown.requested().await;
            announcer.withdraw().await;
        }
        Err(error) => {
            tracing::error!(%error, "no queen finds this hive on the local network; name it with --hive there");
        }
    }
}

/// What shows a queen who came by herself that this hive knows the fleet's token, before she sends hers. Empty where there is
/// no token, and for a moment after the start.
pub(crate) fn proofs(app: &App) -> Vec<String> {
    let Some(key) = app.fleet_key.get() else {
        return Vec::new();
    };
    let proofs = lan_discovery::proofs(key, app.core.identity.id.as_str(), bound(app));
    proofs.unwrap_or_else(|error| {
        tracing::debug!(%error, "no proofs are shown");
        Vec::new()
    })
}

async fn start(app: &App) -> Result<Option<Announcer>, lan_discovery::Error> {
    let key = match &app.config.token {
        Some(token) => Some(app.fleet_key.get_or_init(|| Key::derive(token.expose())).await.clone()),
        None => None,
    };
    if !app.config.mdns {
        return Ok(None);
    }
    let offer = Offer {
        id: app.core.identity.id.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: app.core.identity.incarnation,
        bound: bound(app),
        key,
    };
    let announcer = Announcer::start(offer)?;
    tracing::info!(port = app.core.port, "announced on the local network");
    Ok(Some(announcer))
}

/// Where this hive listens: its port may be one that the system chose.
fn bound(app: &App) -> SocketAddr {
    SocketAddr::new(app.config.address.ip(), app.core.port)
}
