//! A relay on bare sockets: the least that passes a request on, and so what this machine allows.
//!
//! Its backends take turns; of HTTP it knows where a message ends. It passes bytes as they come.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use tokio::net::{TcpListener, TcpStream};

use crate::Result;
use crate::wire::{Connection, EventLines, Framing, Line};

/// Where requests go.
struct Backend {
    address: SocketAddr,
    idle: RefCell<Vec<Connection>>,
}

struct Relay {
    backends: Vec<Backend>,
    turn: Cell<usize>,
}

/// Listens, prints the port, and relays to the backends at these ports until it is killed.
pub(crate) async fn serve(ports: &[u16]) -> Result<()> {
    let backends = ports.iter().map(|port| Backend {
        address: (Ipv4Addr::LOCALHOST, *port).into(),
        idle: RefCell::default(),
    });
    let relay = Rc::new(Relay {
        backends: backends.collect(),
        turn: Cell::new(0),
    });
    let failed = |error: io::Error| format!("listen: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    println!("{}", listener.local_addr().map_err(failed)?.port());
    let clients = tokio::task::LocalSet::new();
    clients
        .run_until(async {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let relay = Rc::clone(&relay);
                    tokio::task::spawn_local(async move {
                        // A connection ends when either side closes it; how does not matter.
                        let _ = relay.converse(stream).await;
                    });
                }
            }
        })
        .await
}

impl Relay {
    async fn converse(&self, stream: TcpStream) -> io::Result<()> {
        let mut client = Connection::new(stream)?;
        while let Some((_, request)) = client.message().await? {
            let turn = self.turn.replace(self.turn.get() + 1);
            let backend = &self.backends[turn % self.backends.len()];
            let idle = backend.idle.borrow_mut().pop();
            let mut upstream = match idle {
                Some(connection) => connection,
                None => Connection::open(backend.address).await?,
            };
            upstream.send(request).await?;
            let length = request.len();
            client.used(length);
            answer(&mut client, &mut upstream).await?;
            backend.idle.borrow_mut().push(upstream);
        }
        Ok(())
    }
}

async fn answer(client: &mut Connection, upstream: &mut Connection) -> io::Result<()> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let head = upstream.head().await?.ok_or_else(cut)?;
    if let Framing::Length(_) = head.framing {
        let (_, bytes) = upstream.message().await?.ok_or_else(cut)?;
        client.send(bytes).await?;
        let length = bytes.len();
        upstream.used(length);
        return Ok(());
    }
    let mut lines = EventLines::default();
    let mut seen = head.len;
    loop {
        while let Some((line, length)) = lines.next(&upstream.bytes()[seen..]) {
            seen += length;
            if line == Line::End {
                client.send(&upstream.bytes()[..seen]).await?;
                upstream.used(seen);
                return Ok(());
            }
        }
        // Whole lines only, so that each is read once; events end with one.
        if seen > 0 {
            client.send(&upstream.bytes()[..seen]).await?;
            upstream.used(seen);
            seen = 0;
        }
        if !upstream.more().await? {
            return Err(cut());
        }
    }
}
