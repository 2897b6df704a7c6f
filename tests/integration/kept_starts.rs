//! A start with kept state opens its listeners at once, whatever the store does.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{
    DEVICE, Device, Request, Site, StoreUnderTest, V4, forwarder, on_both_stores, wait_for,
};
use sluicegate::config::Config;
use sluicegate::node::Node;

on_both_stores!(a_store_that_hangs_delays_no_start, a_store_that_is_gone_delays_no_start);

/// Time to listeners, on a machine that does other things as well.
const START_MAX: Duration = Duration::from_secs(1);

/// A site whose state was kept, and a store that hangs or is gone on demand.
struct Kept {
    site: Site,
    hangs: Arc<AtomicBool>,
    is_gone: Arc<AtomicBool>,
    device: Device,
}

impl Kept {
    fn new(store: StoreUnderTest) -> Self {
        let (hangs, is_gone) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let site = match store {
            StoreUnderTest::Sqlite => Site::new(""),
            StoreUnderTest::Postgres(cluster) => {
                let database = cluster.database();
                let mut site = Site::on_postgres(&database, "");
                let backend = (V4, cluster.port()).into();
                let (hung, gone) = (Arc::clone(&hangs), Arc::clone(&is_gone));
                let proxy = forwarder::serve(move |client| {
                    if gone.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    while hung.load(Ordering::SeqCst) {
                        thread::sleep(Duration::from_millis(50));
                    }
                    forwarder::forward(client, backend, forwarder::Tamper::default())
                });
                let port = |port: u16| format!(":{port}/");
                let url = database.relay_url().replace(&port(cluster.port()), &port(proxy.port()));
                assert_ne!(url, database.relay_url());
                site.configure(&format!("store.url = '{url}'"));
                site
            }
        };
        let kept = Self { site, hangs, is_gone, device: Device::echo(V4) };
        let node = kept.start();
        assert_eq!(kept.status(&node), 200);
        node.stop();
        kept
    }

    fn start(&self) -> Node {
        let mut config = Config::load(Some(&self.site.config_path()), []).unwrap();
        config.authz.state = Some(self.site.folder().join("state"));
        config.admin.socket = Some(self.site.folder().join("admin.sock"));
        Node::start(config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a node, which is ready at once; returns how long the start lasted.
    fn start_at_once(&self) -> Node {
        let began = Instant::now();
        let node = self.start();
        let lasted = began.elapsed();
        assert!(lasted < START_MAX, "{lasted:?}");
        assert_eq!(self.status(&node), 200);
        assert_eq!(readyz(&node), 200);
        node
    }

    fn status(&self, node: &Node) -> u16 {
        let request = Request::to(DEVICE, self.device.port()).bearer(&self.site.token);
        request.send(node.client_addresses()[0]).status
    }
}

fn readyz(node: &Node) -> u16 {
    let mut stream = TcpStream::connect(node.admin_address()).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn a_store_that_hangs_delays_no_start(store: StoreUnderTest) {
    let kept = Kept::new(store);
    kept.hangs.store(true, Ordering::SeqCst);
    let locked = matches!(store, StoreUnderTest::Sqlite).then(|| {
        let store = rusqlite::Connection::open(kept.site.store_path()).unwrap();
        store.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
        store
    });

    let node = kept.start_at_once();

    assert!(!node.authority().is_store_reachable());
    drop(locked);
    kept.hangs.store(false, Ordering::SeqCst);
    assert!(wait_for(|| node.authority().is_store_reachable().then_some(())).is_some());
    node.stop();
}

fn a_store_that_is_gone_delays_no_start(store: StoreUnderTest) {
    let kept = Kept::new(store);
    kept.is_gone.store(true, Ordering::SeqCst);
    if matches!(store, StoreUnderTest::Sqlite) {
        std::fs::rename(kept.site.store_path(), kept.site.store_path().with_extension("away")).unwrap();
    }

    let node = kept.start_at_once();

    assert!(wait_for(|| node.status().get().last_error).is_some());
    assert!(!node.authority().is_store_reachable());
    node.stop();
}
