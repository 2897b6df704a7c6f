//! What an OpenVPN server says about who is connected, line by line: its status in version 1, 2 or 3, from a file
//! or from the management socket.
//!
//! Who is where is in its routing table. The list of clients beside it has clients that are not yet let in; it says
//! since when those are connected that are, from version 2 on.

use std::net::IpAddr;

use crate::authz::{DeviceUuid, UnixMillis};
use crate::store::presence::lines::{About, Lines, shown};

/// A status, as far as it was read.
pub(super) struct Status {
    /// Where it is from, for what is told of a bad line.
    name: String,
    lines_read: usize,
    format: Option<Format>,
    /// Of the list of clients; `None` before its header.
    clients: Option<Columns>,
    /// Of the routing table.
    columns: Option<Columns>,
    /// Good routes, each with its line.
    routes: Vec<(usize, DeviceUuid, IpAddr)>,
    lines: Lines,
}

/// Whether a status goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    GoesOn,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StatusError {
    #[error("it is no status of an OpenVPN server: it begins with {begin}")]
    NoStatus { begin: String },
    #[error("it is the status of an OpenVPN client; name the server's")]
    OfClient,
    #[error("its status has no routing table with the columns `Virtual Address` and `Common Name`")]
    NoRoutingTable,
    #[error("its status has no end; it is being written, or was cut off")]
    Unfinished,
    #[error("its status has more than {LINES_MAX} lines")]
    TooLong,
}

/// How fields are told apart, and tables from each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Version 1: commas; a line says which table follows.
    Titled,
    /// Version 2 with commas, version 3 with tabs: each line says which table it is of.
    Prefixed { separator: char },
}

/// Where in a line of a table a common name and the value beside it are, without the word that names the table.
#[derive(Clone, Copy)]
struct Columns {
    count: usize,
    common_name: usize,
    value: usize,
}

impl Status {
    pub(super) fn new(name: String) -> Self {
        // Once it has its end, all of it is meant so.
        let lines = Lines { may_be_empty: true, ..Lines::default() };
        Self { name, lines_read: 0, format: None, clients: None, columns: None, routes: Vec::new(), lines }
    }

    pub(super) fn parse(text: &str, name: String) -> Result<Lines, StatusError> {
        let mut status = Self::new(name);
        for line in text.lines() {
            if status.read(line)? == Progress::Ended {
                return status.finish();
            }
        }
        Err(StatusError::Unfinished)
    }

    /// Takes the next line, without its end.
    pub(super) fn read(&mut self, line: &str) -> Result<Progress, StatusError> {
        self.lines_read += 1;
        if self.lines_read > LINES_MAX {
            return Err(StatusError::TooLong);
        }
        let Some(format) = self.format else {
            self.format = Some(Format::of(line)?);
            return Ok(Progress::GoesOn);
        };
        if line == "END" {
            return Ok(Progress::Ended);
        }
        match format {
            Format::Titled => self.read_titled(line),
            Format::Prefixed { separator } => self.read_prefixed(line, separator),
        }
        Ok(Progress::GoesOn)
    }

    /// What it said, once it has ended.
    pub(super) fn finish(self) -> Result<Lines, StatusError> {
        let Self { name, columns, mut routes, mut lines, .. } = self;
        if columns.is_none() {
            return Err(StatusError::NoRoutingTable);
        }
        // A device with addresses of both kinds is dialled at its IPv4 address.
        routes.sort_by_key(|(line, _, address)| (address.is_ipv6(), *line));
        for (number, uuid, address) in routes {
            match lines.addresses.get(&uuid) {
                Some(first) if first.is_ipv4() && address.is_ipv6() => lines.occupy(address),
                _ => {
                    if let Err(reason) = lines.put(uuid, address) {
                        lines.refuse(About::Device(uuid), || format!("{name}:{number}: {reason}"));
                    }
                }
            }
        }
        Ok(lines)
    }

    fn read_titled(&mut self, line: &str) {
        match self.columns {
            None if line.starts_with("Virtual Address,") => self.columns = Columns::of(line, ',', ADDRESS),
            Some(columns) if line != "GLOBAL STATS" && !line.starts_with("Max bcast/mcast") => {
                self.read_route(line, ',', columns);
            }
            _ => {}
        }
    }

    fn read_prefixed(&mut self, line: &str, separator: char) {
        let Some((kind, rest)) = line.split_once(separator) else { return };
        match (kind, self.columns) {
            ("HEADER", None) => match rest.split_once(separator) {
                Some(("ROUTING_TABLE", header)) => self.columns = Columns::of(header, separator, ADDRESS),
                Some(("CLIENT_LIST", header)) => self.clients = Columns::of(header, separator, SINCE),
                _ => {}
            },
            ("CLIENT_LIST", _) => self.read_client(rest, separator),
            ("ROUTING_TABLE", Some(columns)) => self.read_route(rest, separator, columns),
            _ => {}
        }
    }

    /// Nothing is told of a client that cannot be read: where it is matters, and its route says that.
    fn read_client(&mut self, line: &str, separator: char) {
        let fields: Vec<&str> = line.split(separator).collect();
        let Some((common_name, since)) = self.clients.and_then(|columns| columns.cut(&fields)) else {
            return;
        };
        let since_ms = since.parse().ok().and_then(|since_s: i64| since_s.checked_mul(1000));
        if let (Some(uuid), Some(since_ms)) = (DeviceUuid::parse(&common_name), since_ms) {
            // Of two connections of one device the newer one is not the one that is lost already.
            let since = self.lines.since.entry(uuid).or_insert(UnixMillis(since_ms));
            since.0 = since.0.max(since_ms);
        }
    }

    fn read_route(&mut self, line: &str, separator: char, columns: Columns) {
        let number = self.lines_read;
        let place = format!("{}:{number}", self.name);
        let fields: Vec<&str> = line.split(separator).collect();
        let Some((common_name, address)) = columns.cut(&fields) else {
            let (found, wanted) = (fields.len(), columns.count);
            return self.lines.refuse(About::Unreadable, || {
                format!("{place}: {found} fields of a route; {wanted} were announced")
            });
        };
        if is_learned(address) {
            return;
        }
        let uuid = DeviceUuid::parse(&common_name);
        match (uuid, address.parse::<IpAddr>()) {
            (Some(uuid), Ok(address)) => self.routes.push((number, uuid, address)),
            (Some(uuid), Err(_)) => self
                .lines
                .refuse(About::Device(uuid), || format!("{place}: {} is no IP address", shown(address))),
            (None, address) => {
                if let Ok(address) = address {
                    self.lines.occupy(address);
                }
                self.lines.refuse(About::Stranger, || {
                    format!("{place}: {} is no uuid of 32 or 62 hex digits", shown(&common_name))
                });
            }
        }
    }
}

impl Format {
    /// By the first line.
    fn of(line: &str) -> Result<Self, StatusError> {
        if line == "OpenVPN CLIENT LIST" {
            return Ok(Self::Titled);
        }
        match line.strip_prefix("TITLE").and_then(|rest| rest.chars().next()) {
            Some(separator @ (',' | '\t')) => Ok(Self::Prefixed { separator }),
            _ if line == "OpenVPN STATISTICS" => Err(StatusError::OfClient),
            _ => Err(StatusError::NoStatus { begin: shown(line) }),
        }
    }
}

impl Columns {
    fn of(header: &str, separator: char, value: &str) -> Option<Self> {
        let names: Vec<&str> = header.split(separator).collect();
        let find = |wanted| names.iter().position(|name| *name == wanted);
        Some(Self { count: names.len(), common_name: find("Common Name")?, value: find(value)? })
    }

    /// The common name, which can have commas in it as nothing else can, and the value. `None` where there are fewer
    /// fields than were announced.
    fn cut<'a>(&self, fields: &[&'a str]) -> Option<(String, &'a str)> {
        let extra = fields.len().checked_sub(self.count)?;
        let common_name = fields[self.common_name..=self.common_name + extra].join(",");
        Some((common_name, fields[self.value + if self.value > self.common_name { extra } else { 0 }]))
    }
}

/// Whether it is a network behind a client (`iroute`), or an address that was seen in one (`C` for cached).
fn is_learned(address: &str) -> bool {
    address.contains('/') || address.ends_with('C')
}

/// Where a route leads to.
const ADDRESS: &str = "Virtual Address";

/// Since when a client is connected, in seconds since 1970.
const SINCE: &str = "Connected Since (time_t)";

/// Of one status; a route takes up to three, and a device has up to two routes.
const LINES_MAX: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    // As OpenVPN 2.6.14 wrote them, with two clients of which one has a network behind it.
    const VERSION_1: &str = include_str!("version_1.txt");
    const VERSION_2: &str = include_str!("version_2.txt");
    const VERSION_3: &str = include_str!("version_3.txt");

    fn parse(text: &str) -> Lines {
        Status::parse(text, "vpn".to_owned()).unwrap()
    }

    fn addresses(lines: &Lines) -> Vec<(String, String)> {
        lines.addresses.iter().map(|(uuid, address)| (uuid.to_string(), address.to_string())).collect()
    }

    fn at(address: &str) -> Vec<(String, String)> {
        vec![(A.to_owned(), address.to_owned())]
    }

    #[test]
    fn a_device_is_where_the_routing_table_of_any_version_says() {
        for (text, address) in [(VERSION_1, "10.77.0.3"), (VERSION_2, "10.77.0.2"), (VERSION_3, "10.77.0.2")]
        {
            let lines = parse(text);
            assert_eq!(addresses(&lines), at(address), "{text}");
            assert_eq!(lines.bad.noted.count, 2, "both of the other client's: {text}");
        }
    }

    #[test]
    fn since_when_a_device_is_connected_is_read_where_it_is_written_as_a_number() {
        let uuid = DeviceUuid::parse(A).unwrap();
        for (text, since) in [
            (VERSION_1.to_owned(), None),
            (VERSION_2.to_owned(), Some(1_795_455_635_000)),
            (VERSION_3.to_owned(), Some(1_795_455_833_000)),
            (VERSION_3.replace("\t1795455833\tUNDEF", "\tyesterday\tUNDEF"), None),
        ] {
            assert_eq!(parse(&text).since.get(&uuid).copied(), since.map(UnixMillis), "{text}");
        }
        let client =
            VERSION_3.lines().find(|line| line.starts_with("CLIENT_LIST") && line.contains(A)).unwrap();
        let newer = client.replace("1795455833", "1795455999");
        let text = VERSION_3.replace(client, &format!("{newer}\n{client}"));
        assert_eq!(parse(&text).since[&uuid], UnixMillis(1_795_455_999_000), "of two, the newer");
    }

    #[test]
    fn a_client_whose_name_is_no_uuid_is_told_and_no_device_is_kept_at_its_address() {
        let lines = parse(VERSION_2);
        let told = "vpn:7: `laptop, spare` is no uuid of 32 or 62 hex digits";
        assert_eq!(lines.bad.noted.examples[0], told);
        assert!(lines.bad.not_free().contains(&"10.77.0.3".parse().unwrap()));
        assert!(!lines.bad.may_name(&DeviceUuid::parse(A).unwrap()));
    }

    #[test]
    fn a_name_that_begins_with_a_uuid_is_no_device() {
        let lines = parse(&VERSION_2.replace("laptop, spare", &format!("{},b", "b".repeat(32))));
        assert_eq!(addresses(&lines), at("10.77.0.2"));
    }

    #[test]
    fn a_device_that_has_only_an_ipv6_address_is_dialled_there() {
        let kept = |line: &&str| !line.contains("10.77.0.2\t");
        let text: String = VERSION_3.lines().filter(kept).map(|line| format!("{line}\n")).collect();
        assert_eq!(addresses(&parse(&text)), at("fd00:77::1000"));
    }

    #[test]
    fn networks_behind_a_device_and_addresses_seen_there_are_not_where_it_is() {
        let cached = format!("10.77.0.9C,{A},192.0.2.2:1194,2026-11-23 17:43:47\n");
        let text = VERSION_1.replace("GLOBAL STATS\n", &format!("{cached}GLOBAL STATS\n"));
        assert_eq!(addresses(&parse(&text)), at("10.77.0.3"));
    }

    #[test]
    fn a_bad_route_of_a_device_is_told_with_its_line() {
        for (bad, told) in [
            ("ROUTING_TABLE\t10.77.0\t", "vpn:11: `10.77.0` is no IP address"),
            ("ROUTING_TABLE\t", "vpn:11: 4 fields of a route; 5 were announced"),
        ] {
            let lines = parse(&VERSION_3.replace("ROUTING_TABLE\t10.77.0.2\t", bad));
            assert_eq!(lines.bad.noted.examples.last().map(String::as_str), Some(told));
            assert!(lines.bad.may_name(&DeviceUuid::parse(A).unwrap()), "so that it stays where it was");
        }
    }

    #[test]
    fn a_status_without_its_end_says_nothing() {
        let half = &VERSION_1[..VERSION_1.len() / 2];
        for text in ["", half, VERSION_3.trim_end().trim_end_matches("END")] {
            assert_eq!(Status::parse(text, "vpn".to_owned()).err(), Some(StatusError::Unfinished), "{text}");
        }
    }

    #[test]
    fn what_is_no_status_of_a_server_is_refused() {
        let refused = |text: &str| Status::parse(text, "vpn".to_owned()).err().unwrap().to_string();
        assert!(refused("OpenVPN STATISTICS\nEND\n").contains("of an OpenVPN client"));
        assert!(refused("root:x:0:0\nEND\n").contains("it begins with `root:x:0:0`"));
        assert!(refused("TITLE,OpenVPN\nEND\n").contains("no routing table"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(TITLE[,\t]|OpenVPN CLIENT LIST\n)?(\\PC|[,\t\n])*") {
            let _whatever = Status::parse(&text, "vpn".to_owned());
        }

        #[test]
        fn a_status_that_is_damaged_anywhere_never_panics(
            version in prop::sample::select(vec![VERSION_1, VERSION_2, VERSION_3]),
            at in any::<prop::sample::Index>(),
            cut in 0..40_usize,
        ) {
            let at = at.index(version.len());
            let damaged = [&version[..at], &version[(at + cut).min(version.len())..]].concat();
            let _whatever = Status::parse(&damaged, "vpn".to_owned());
        }
    }
}
