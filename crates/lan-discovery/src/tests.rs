//! Both sides, over the loopback interface and a port of their own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use mdns_sd::{IfKind, ServiceDaemon};

use crate::announce::is_one_hosts;
use crate::{Announcement, Announcer, Browser, Key, Offer, Sighting};

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
/// Far longer than anything here takes; reached only by a test that fails.
const LONG: Duration = Duration::from_secs(60);

/// A port for one test's multicast; `None`, with a word, where multicast does not work over loopback.
fn multicast_port() -> Option<u16> {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let port = socket.local_addr()?.port();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        sender.send_to(b"heard", (GROUP, port))?;
        socket.recv(&mut [0; 8])?;
        Ok::<_, std::io::Error>(port)
    };
    probe()
        .inspect_err(|error| eprintln!("skipped: no multicast over loopback here: {error}"))
        .ok()
}

fn daemon(port: u16) -> ServiceDaemon {
    let daemon = ServiceDaemon::new_with_port(port).unwrap();
    daemon.disable_interface(IfKind::All).unwrap();
    daemon.enable_interface(IfKind::LoopbackV4).unwrap();
    daemon
}

/// All that these tests announce is on loopback.
fn believing(port: u16) -> Browser {
    Browser::with(daemon(port), |_| true).unwrap()
}

fn offer(key: Option<Key>) -> Offer {
    Offer {
        id: "gpu-box".to_owned(),
        version: "1.2.3".to_owned(),
        incarnation: 7,
        bound: SocketAddr::from((Ipv4Addr::LOCALHOST, 7835)),
        key,
    }
}

async fn next(browser: &mut Browser) -> Sighting {
    tokio::time::timeout(LONG, browser.next())
        .await
        .expect("nothing is heard")
        .unwrap()
}

async fn found(browser: &mut Browser) -> Announcement {
    match next(browser).await {
        Sighting::Found(announcement) => announcement,
        Sighting::Gone { name } => panic!("{name} is gone"),
    }
}

#[tokio::test]
async fn a_hive_is_found_whoever_comes_first_and_is_gone_once_it_withdraws() {
    let Some(port) = multicast_port() else { return };
    let mut early = believing(port);
    let mut announcer = Announcer::with(daemon(port), offer(None)).unwrap();
    let heard = found(&mut early).await;
    assert_eq!((heard.id.as_str(), heard.version.as_str()), ("gpu-box", "1.2.3"));
    assert_eq!(heard.incarnation, 7);
    assert_eq!(heard.claimed(), [offer(None).bound]);

    let mut late = believing(port);
    assert_eq!(found(&mut late).await, heard);

    announcer.withdraw().await;
    for browser in [&mut early, &mut late] {
        let gone = Sighting::Gone {
            name: heard.name.clone(),
        };
        assert_eq!(next(browser).await, gone);
    }
}

#[tokio::test]
async fn a_hive_that_starts_again_without_a_goodbye_is_heard_again() {
    let Some(port) = multicast_port() else { return };
    let mut browser = believing(port);
    let first = Announcer::with(daemon(port), offer(None)).unwrap();
    assert_eq!(found(&mut browser).await.incarnation, 7);
    // Without a goodbye, as if it had been killed.
    drop(first);
    let again = Offer {
        incarnation: 8,
        ..offer(None)
    };
    let _second = Announcer::with(daemon(port), again).unwrap();
    let heard = async {
        loop {
            if let Sighting::Found(heard) = next(&mut browser).await
                && heard.incarnation == 8
            {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, heard)
        .await
        .expect("the new start is not heard");
}

#[tokio::test]
async fn only_an_announcement_of_somebody_who_knows_the_token_is_proven() {
    let Some(port) = multicast_port() else { return };
    let key = |token| Key::with_rounds(token, 2);
    let _announcer = Announcer::with(daemon(port), offer(Some(key("fleet-token")))).unwrap();
    let mut browser = believing(port);
    let heard = found(&mut browser).await;
    assert_eq!(heard.proven(&key("fleet-token")), heard.claimed());
    assert_eq!(heard.proven(&key("other-token")), []);

    let Some(port) = multicast_port() else { return };
    let _announcer = Announcer::with(daemon(port), offer(None)).unwrap();
    let mut browser = believing(port);
    assert_eq!(found(&mut browser).await.proven(&key("fleet-token")), []);
}

#[tokio::test]
async fn an_announcement_that_leads_whoever_believes_it_to_himself_is_not_heard() {
    let Some(port) = multicast_port() else { return };
    let mut cautious = Browser::with(daemon(port), is_one_hosts).unwrap();
    let mut announcer = Announcer::with(daemon(port), offer(None)).unwrap();
    found(&mut believing(port)).await;
    // Its withdrawal is the first that is heard of it.
    announcer.withdraw().await;
    assert!(matches!(next(&mut cautious).await, Sighting::Gone { .. }));
}
