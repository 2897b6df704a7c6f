//! Parses the status of an OpenVPN server line by line: version 1, 2 or 3, from a file or from the management socket.
//!
//! The routing table has the address of each client. The list of clients beside it also has clients that are not yet let
//! in; from version 2 on it says when each client connected.

use std::net::IpAddr;

use crate::authz::{DeviceUuid, UnixMillis};
use crate::store::presence::address_list::{AddressList, BadLineSubject, shown};

/// A status, as far as it was read.
pub(in crate::store::presence) struct OpenVpnStatus {
    /// Name of its file or socket, for log lines about bad lines.
    name: String,
    lines_read: usize,
    format: Option<StatusFormat>,
    /// Columns of the list of clients. `None` before its header.
    clients: Option<TableColumns>,
    /// Columns of the routing table. `None` before its header.
    columns: Option<TableColumns>,
    /// Good routes, each with the number of its line.
    routes: Vec<(usize, DeviceUuid, IpAddr)>,
    list: AddressList,
}

/// State of a status after a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::presence) enum StatusProgress {
    GoesOn,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::store::presence) enum StatusError {
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

/// Separators of fields and of tables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StatusFormat {
    /// Version 1 has commas, and a line that names the table that follows.
    Titled,
    /// Version 2 has commas and version 3 has tabs. Each line names its table.
    Prefixed { separator: char },
}

/// Positions of the common name and of one other value in the lines of a table. The word that names the table does not
/// count.
#[derive(Clone, Copy)]
struct TableColumns {
    count: usize,
    common_name: usize,
    value: usize,
}

impl OpenVpnStatus {
    pub(in crate::store::presence) fn new(name: String) -> Self {
        // A complete status without devices is meant so.
        let list = AddressList { may_be_empty: true, ..AddressList::default() };
        Self { name, lines_read: 0, format: None, clients: None, columns: None, routes: Vec::new(), list }
    }

    pub(in crate::store::presence) fn parse(text: &str, name: String) -> Result<AddressList, StatusError> {
        let mut status = Self::new(name);
        for line in text.lines() {
            if status.read(line)? == StatusProgress::Ended {
                return status.finish();
            }
        }
        Err(StatusError::Unfinished)
    }

    /// Reads the next line, without its end.
    pub(in crate::store::presence) fn read(&mut self, line: &str) -> Result<StatusProgress, StatusError> {
        self.lines_read += 1;
        if self.lines_read > LINES_MAX {
            return Err(StatusError::TooLong);
        }
        let Some(format) = self.format else {
            self.format = Some(StatusFormat::of(line)?);
            return Ok(StatusProgress::GoesOn);
        };
        if line == "END" {
            return Ok(StatusProgress::Ended);
        }
        match format {
            StatusFormat::Titled => self.read_titled(line),
            StatusFormat::Prefixed { separator } => self.read_prefixed(line, separator),
        }
        Ok(StatusProgress::GoesOn)
    }

    /// The addresses of a status that has ended.
    pub(in crate::store::presence) fn finish(self) -> Result<AddressList, StatusError> {
        let Self { name, columns, mut routes, mut list, .. } = self;
        if columns.is_none() {
            return Err(StatusError::NoRoutingTable);
        }
        // A device with addresses of both kinds is dialled at its IPv4 address.
        routes.sort_by_key(|(line, _, address)| (address.is_ipv6(), *line));
        for (number, uuid, address) in routes {
            match list.addresses.get(&uuid) {
                Some(first) if first.is_ipv4() && address.is_ipv6() => list.occupy(address),
                _ => {
                    if let Err(reason) = list.put(uuid, address) {
                        list.refuse(BadLineSubject::Device(uuid), || format!("{name}:{number}: {reason}"));
                    }
                }
            }
        }
        Ok(list)
    }

    fn read_titled(&mut self, line: &str) {
        match self.columns {
            None if line.starts_with("Virtual Address,") => {
                self.columns = TableColumns::of(line, ',', ADDRESS)
            }
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
                Some(("ROUTING_TABLE", header)) => {
                    self.columns = TableColumns::of(header, separator, ADDRESS)
                }
                Some(("CLIENT_LIST", header)) => self.clients = TableColumns::of(header, separator, SINCE),
                _ => {}
            },
            ("CLIENT_LIST", _) => self.read_client(rest, separator),
            ("ROUTING_TABLE", Some(columns)) => self.read_route(rest, separator, columns),
            _ => {}
        }
    }

    /// Reads a client. One that cannot be read is left out without a warning, since its route has its address.
    fn read_client(&mut self, line: &str, separator: char) {
        let fields: Vec<&str> = line.split(separator).collect();
        let Some((common_name, since)) = self.clients.and_then(|columns| columns.cut(&fields)) else {
            return;
        };
        let since_ms = since.parse().ok().and_then(|since_s: i64| since_s.checked_mul(1000));
        if let (Some(uuid), Some(since_ms)) = (DeviceUuid::parse(&common_name), since_ms) {
            // Of two connections of one device, the older one may be lost already.
            let since = self.list.since.entry(uuid).or_insert(UnixMillis(since_ms));
            since.0 = since.0.max(since_ms);
        }
    }

    fn read_route(&mut self, line: &str, separator: char, columns: TableColumns) {
        let number = self.lines_read;
        let place = format!("{}:{number}", self.name);
        let fields: Vec<&str> = line.split(separator).collect();
        let Some((common_name, address)) = columns.cut(&fields) else {
            let (found, wanted) = (fields.len(), columns.count);
            return self.list.refuse(BadLineSubject::Unreadable, || {
                format!("{place}: {found} fields of a route; {wanted} were announced")
            });
        };
        if is_learned(address) {
            return;
        }
        let uuid = DeviceUuid::parse(&common_name);
        match (uuid, address.parse::<IpAddr>()) {
            (Some(uuid), Ok(address)) => self.routes.push((number, uuid, address)),
            (Some(uuid), Err(_)) => self.list.refuse(BadLineSubject::Device(uuid), || {
                format!("{place}: {} is no IP address", shown(address))
            }),
            (None, address) => {
                if let Ok(address) = address {
                    self.list.occupy(address);
                }
                self.list.refuse(BadLineSubject::Stranger, || {
                    format!("{place}: {} is no uuid of 32 or 62 hex digits", shown(&common_name))
                });
            }
        }
    }
}

impl StatusFormat {
    /// Finds the format by the first line.
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

impl TableColumns {
    fn of(header: &str, separator: char, value: &str) -> Option<Self> {
        let names: Vec<&str> = header.split(separator).collect();
        let find = |wanted| names.iter().position(|name| *name == wanted);
        Some(Self { count: names.len(), common_name: find("Common Name")?, value: find(value)? })
    }

    /// The common name and the value. The common name may have commas in it, and nothing else may. `None` if there are
    /// fewer fields than the header announced.
    fn cut<'a>(&self, fields: &[&'a str]) -> Option<(String, &'a str)> {
        let extra = fields.len().checked_sub(self.count)?;
        let common_name = fields[self.common_name..=self.common_name + extra].join(",");
        Some((common_name, fields[self.value + if self.value > self.common_name { extra } else { 0 }]))
    }
}

/// True for a network behind a client (`iroute`), and for an address that was seen in one (`C` for cached).
fn is_learned(address: &str) -> bool {
    address.contains('/') || address.ends_with('C')
}

/// Column with the address that a route leads to.
const ADDRESS: &str = "Virtual Address";

/// Column with the time when a client connected, in seconds since 1970.
const SINCE: &str = "Connected Since (time_t)";

/// Limit of lines in one status. A route takes up to three, and a device has up to two routes.
const LINES_MAX: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    // OpenVPN 2.6.14 wrote these, with two clients of which one has a network behind it.
    const VERSION_1: &str = include_str!("version_1.txt");
    const VERSION_2: &str = include_str!("version_2.txt");
    const VERSION_3: &str = include_str!("version_3.txt");

    fn parse(text: &str) -> AddressList {
        OpenVpnStatus::parse(text, "vpn".to_owned()).unwrap()
    }

    fn addresses(list: &AddressList) -> Vec<(String, String)> {
        list.addresses.iter().map(|(uuid, address)| (uuid.to_string(), address.to_string())).collect()
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
            assert_eq!(lines.bad.examples.count, 2, "both of the other client's: {text}");
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
    fn a_client_whose_name_is_no_uuid_is_reported_and_no_device_is_kept_at_its_address() {
        let lines = parse(VERSION_2);
        let expected = "vpn:7: `laptop, spare` is no uuid of 32 or 62 hex digits";
        assert_eq!(lines.bad.examples.examples[0], expected);
        assert!(lines.bad.occupied().contains(&"10.77.0.3".parse().unwrap()));
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
    fn a_bad_route_of_a_device_is_reported_with_its_line() {
        for (bad, expected) in [
            ("ROUTING_TABLE\t10.77.0\t", "vpn:11: `10.77.0` is no IP address"),
            ("ROUTING_TABLE\t", "vpn:11: 4 fields of a route; 5 were announced"),
        ] {
            let lines = parse(&VERSION_3.replace("ROUTING_TABLE\t10.77.0.2\t", bad));
            assert_eq!(lines.bad.examples.examples.last().map(String::as_str), Some(expected));
            assert!(lines.bad.may_name(&DeviceUuid::parse(A).unwrap()), "so that it stays where it was");
        }
    }

    #[test]
    fn a_status_without_its_end_says_nothing() {
        let half = &VERSION_1[..VERSION_1.len() / 2];
        for text in ["", half, VERSION_3.trim_end().trim_end_matches("END")] {
            assert_eq!(
                OpenVpnStatus::parse(text, "vpn".to_owned()).err(),
                Some(StatusError::Unfinished),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_status_of_a_server_is_refused() {
        let refused = |text: &str| OpenVpnStatus::parse(text, "vpn".to_owned()).err().unwrap().to_string();
        assert!(refused("OpenVPN STATISTICS\nEND\n").contains("of an OpenVPN client"));
        assert!(refused("root:x:0:0\nEND\n").contains("it begins with `root:x:0:0`"));
        assert!(refused("TITLE,OpenVPN\nEND\n").contains("no routing table"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(TITLE[,\t]|OpenVPN CLIENT LIST\n)?(\\PC|[,\t\n])*") {
            let _whatever = OpenVpnStatus::parse(&text, "vpn".to_owned());
        }

        #[test]
        fn a_status_that_is_damaged_anywhere_never_panics(
            version in prop::sample::select(vec![VERSION_1, VERSION_2, VERSION_3]),
            at in any::<prop::sample::Index>(),
            cut in 0..40_usize,
        ) {
            let at = at.index(version.len());
            let damaged = [&version[..at], &version[(at + cut).min(version.len())..]].concat();
            let _whatever = OpenVpnStatus::parse(&damaged, "vpn".to_owned());
        }
    }
}
