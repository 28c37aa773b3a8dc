//! Lets queens on the local network find this hive.

use std::net::SocketAddr;

use lan_discovery::{Announcer, Key, Offer};

use crate::App;

/// Announces the hive, if it is to be, until it is asked to end. A hive that cannot be announced works all the same.
pub(crate) async fn announce(app: &App, port: u16) {
    if !app.config.mdns {
        return;
    }
    let announced = tokio::select! {
        announced = start(app, port) => announced,
        () = app.shutdown.requested() => return,
    };
    match announced {
        Ok(mut announcer) => {
            app.shutdown.requested().await;
            announcer.withdraw().await;
        }
        Err(error) => {
            tracing::error!(%error, "no queen finds this hive on the local network; name it with --hive there");
        }
    }
}

async fn start(app: &App, port: u16) -> Result<Announcer, lan_discovery::Error> {
    let offer = Offer {
        id: app.core.identity.id.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: app.core.identity.incarnation,
        bound: SocketAddr::new(app.config.address.ip(), port),
        key: match &app.config.token {
            Some(token) => Some(Key::derive(token.expose()).await),
            None => None,
        },
    };
    let announcer = Announcer::start(offer)?;
    tracing::info!(port, "announced on the local network");
    Ok(announcer)
}
