//! An ordinary day and a morning: clients come and go, devices go offline and come back, people come and leave, nodes
//! and the database restart, and a node is new. No alert fires.

use std::fs;
use std::path::PathBuf;

use super::{Recording, Scrape};
use crate::support::{
    ALL_V4, Authority, DEVICE, Device, OTHER_DEVICE, Relay, Request, Signal, Site, assert_done,
    tools_or_skip, wait_for,
};
use serde_json::Value;

/// Devices of the day beside those of the site.
const DEVICES: usize = 24;

/// From eight in the morning until ten on the next day, so that a second morning has a yesterday.
const MINUTES: usize = 26 * 60;

/// Minutes of a night without clients or events for which one scrape stands.
const NIGHT_STEP: usize = 10;

struct Day {
    site: Site,
    relay: Option<Relay>,
    /// A second node, which is there from the evening on.
    young: Option<Relay>,
    device: Device,
    /// The VPN's addresses: lines of `uuid address`.
    addresses: PathBuf,
    away: Vec<usize>,
    recording: Recording,
}

fn uuid(device: usize) -> String {
    format!("{:032x}", 0xda7_0000 + device)
}

impl Day {
    fn new() -> Self {
        let mut site = Site::new(
            "timeouts.drain = '50ms'\nprobe.interval = '1s'\nlimits.unknown_tokens_per_minute = 100000",
        );
        let authority = Authority::new(site.folder(), "root");
        let (chain, key) = authority.issue_until("relay.example", 2060, 1, 1).write(site.folder(), "relay");
        let addresses = site.folder().join("addresses");
        site.configure(&format!(
            "vpn.addresses = ['file:{}', 'store']\nlisten = [{{ address = '127.0.0.1:0' }}, {{ address = '127.0.0.1:0',
             tls = {{ certificates = [{{ chain = '{}', key = '{}' }}] }} }}]",
            addresses.display(),
            chain.display(),
            key.display(),
        ));
        for device in 0..DEVICES {
            site.cli(&["device", "add", &uuid(device)]);
        }
        let mut day = Self {
            site,
            relay: None,
            young: None,
            device: Device::echo(ALL_V4),
            addresses,
            away: Vec::new(),
            recording: Recording::default(),
        };
        day.write_addresses();
        day.relay = Some(day.site.start());
        day
    }

    /// Writes what the VPN's server knows: all devices but those that are away.
    fn write_addresses(&self) {
        let line = |device: usize| format!("{} 127.2.0.{}\n", uuid(device), device + 1);
        let lines: String = (0..DEVICES).filter(|device| !self.away.contains(device)).map(line).collect();
        let new = self.addresses.with_extension("new");
        fs::write(&new, format!("{DEVICE} 127.0.0.1\n{lines}")).unwrap();
        fs::rename(new, &self.addresses).unwrap();
    }

    fn relays(&self) -> impl Iterator<Item = &Relay> {
        self.relay.iter().chain(&self.young)
    }

    fn ask(&self, relay: &Relay, uuid: &str, token: &str) -> u16 {
        let answer = Request::to(uuid, self.device.port()).bearer(token).send(relay.address());
        answer.status
    }

    /// Clients of one minute: most get in; of ten, one has an old token or asks for what is not there.
    fn clients(&self, minute: usize, count: usize) {
        for relay in self.relays() {
            for number in 0..count {
                let device = uuid((minute * 7 + number) % DEVICES);
                match (minute * count + number) % 10 {
                    3 => drop(self.ask(relay, &device, "an old token")),
                    _ => drop(self.ask(relay, &device, &self.site.token)),
                }
            }
        }
    }

    fn minute(&mut self) {
        let mut scrapes = vec![match &self.relay {
            Some(relay) => Scrape::of("node-1", relay),
            None => Scrape::failed("node-1"),
        }];
        scrapes.extend(self.young.iter().map(|relay| Scrape::of("node-2", relay)));
        self.recording.minute(&scrapes);
    }

    fn store_is_reachable(&self, wanted: f64) {
        let becomes =
            |relay: &Relay| relay.metric_becomes("sluicegate_store_reachable", |found| found == wanted);
        assert!(self.relays().all(becomes));
    }

    /// Events of this minute, beside clients.
    fn events(&mut self, minute: usize) {
        let store = self.site.store_path();
        match minute {
            // Restarts: of the node, which is not there at one scrape, and of the database.
            1140 => self.stop(),
            1141 => self.relay = Some(self.site.start()),
            1160 => {
                fs::rename(&store, store.with_extension("away")).unwrap();
                self.store_is_reachable(0.0);
                // One client whom nobody knows, and one with a right.
                let relay = self.relay.as_ref().unwrap();
                assert_eq!(self.ask(relay, DEVICE, "who is that"), 503);
                assert_eq!(self.ask(relay, DEVICE, &self.site.token), 200);
            }
            1161 => {
                fs::rename(store.with_extension("away"), &store).unwrap();
                self.store_is_reachable(1.0);
            }
            // Devices go offline, one by one and a few at once, and come back.
            70 => self.devices_away(&[3]),
            90 => self.devices_away(&[3, 9, 10]),
            180 => self.devices_away(&[]),
            // People come and leave.
            30 => {
                self.site.cli(&["principal", "add", "bob"]);
                let issued = self.site.cli(&["token", "issue", "bob"]);
                let token = issued["token"].as_str().unwrap();
                self.site.cli(&["grant", "add", "bob", "--device", &uuid(1)]);
                let relay = self.relay.as_ref().unwrap();
                assert!(wait_for(|| (self.ask(relay, &uuid(1), token) == 200).then_some(())).is_some());
                self.site.cli(&["principal", "remove", "bob"]);
                assert!(wait_for(|| (self.ask(relay, &uuid(1), token) == 407).then_some(())).is_some());
            }
            50 => drop(self.site.cli(&["device", "add", OTHER_DEVICE])),
            60 => drop(self.site.cli(&["device", "remove", OTHER_DEVICE])),
            // A reload at noon, which changes nothing.
            240 => assert_done(&self.site.command(&["reload"]).output().unwrap()),
            // The new node.
            600 => self.young = Some(self.site.start_sibling("young", "").0),
            _ => {}
        }
        // A device that is away, and a job that wants it: it tries four times a minute.
        if (90..150).contains(&minute) {
            let relay = self.relay.as_ref().unwrap();
            (0..4).for_each(|_| assert_eq!(self.ask(relay, &uuid(9), &self.site.token), 503));
        }
    }

    fn devices_away(&mut self, away: &[usize]) {
        self.away = away.to_vec();
        self.write_addresses();
        let relay = self.relay.as_ref().unwrap();
        let wanted = |device| if away.contains(&device) { 503 } else { 200 };
        for device in [3, 9, 10] {
            let comes = || (self.ask(relay, &uuid(device), &self.site.token) == wanted(device)).then_some(());
            assert!(wait_for(comes).is_some(), "device {device} away: {away:?}");
        }
    }

    fn stop(&mut self) {
        let mut relay = self.relay.take().unwrap();
        relay.signal(Signal::SIGTERM);
        assert!(relay.wait().is_some());
    }
}

/// Clients a minute at this time of day: none at night, none for an hour in the evening, and more than a few at nine and
/// at six.
fn clients_at(minute: usize) -> usize {
    match (minute / 60 + 8) % 24 {
        0..=5 | 20 => 0,
        9 | 18 => 7,
        _ => 1,
    }
}

#[test]
fn an_ordinary_day_fires_no_alert() {
    if !tools_or_skip("an_ordinary_day_fires_no_alert", &["promtool"]) {
        return;
    }
    let mut day = Day::new();
    for minute in 0..MINUTES {
        day.events(minute);
        if day.relay.is_some() {
            day.clients(minute, clients_at(minute));
        }
        let is_still = clients_at(minute) == 0 && !(1130..1170).contains(&minute) && minute % NIGHT_STEP != 0;
        if is_still { day.recording.repeat() } else { day.minute() }
    }
    // The day had what it is about: refusals of each kind, a young node, and a night without clients.
    for cause in ["device-offline", "credential-unknown"] {
        assert!(day.site.audit().has(|event| event["cause"] == cause), "{cause}");
    }
    assert!(day.young.as_ref().unwrap().metric("sluicegate_sessions_accepted_total") > Some(600.0));
    assert_eq!(day.recording.minutes(), MINUTES);
    let conditions = |relay: &Relay| -> Value {
        let answer = relay.admin_get("/status.json");
        serde_json::from_str::<Value>(answer.split_once("\r\n\r\n").unwrap().1).unwrap()["conditions"].take()
    };
    assert!(day.relays().all(|relay| conditions(relay) == Value::Array(Vec::new())));

    let firing = "count by (alertname, instance) (count_over_time(ALERTS{alertstate=\"firing\"}[26h]))";
    // So that it is known that there was something to find.
    let scraped = "count(count_over_time(up{instance=\"node-1\"}[26h]))";
    day.recording.evaluate(&[(firing, None), (scraped, Some(1.0))]);
}
