//! Where devices are: files, OpenVPN, WireGuard.

use std::collections::HashSet;
use std::time::Duration;

use sluicegate::store::fuzzing::presence::{
    ListedDevices, MANAGEMENT_LINE_BYTES_MAX, address_file as parse_address_file,
    openvpn_management as read_management, openvpn_status as parse_status, wireguard_dump as read_dump,
};

use super::{KIB, Memory, Target, no_seeds};
use crate::input::{Input, long};

pub const ADDRESS_FILE: Target = Target {
    name: "address_file",
    run: address_file,
    seeds: no_seeds,
    words: &[
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ",
        "10.8.0.2",
        "::ffff:10.8.0.2",
        "fd00::1",
        "nobody",
        "#",
        "\n",
    ],
    bytes_max: 4 * KIB,
    memory: Memory { fixed: 8 * KIB, per_byte: 60 },
};

pub const OPENVPN_STATUS: Target = Target {
    name: "openvpn_status",
    run: openvpn_status,
    seeds: status_seeds,
    words: STATUS_WORDS,
    bytes_max: 4 * KIB,
    memory: STATUS_MEMORY,
};

pub const OPENVPN_MANAGEMENT: Target = Target {
    name: "openvpn_management",
    run: openvpn_management,
    seeds: management_seeds,
    words: STATUS_WORDS,
    bytes_max: 12 * KIB,
    memory: STATUS_MEMORY,
};

pub const WIREGUARD_DUMP: Target = Target {
    name: "wireguard_dump",
    run: wireguard_dump,
    seeds: dump_seeds,
    words: &[
        "\t",
        "\n",
        "(none)",
        "off",
        "0",
        "1795455640",
        "18446744073709551615",
        "10.9.0.2/32",
        "fd00::2/128",
        "10.9.0.0/24",
        ",",
        "keyA=",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ],
    bytes_max: 4 * KIB,
    memory: Memory { fixed: 8 * KIB, per_byte: 60 },
};

/// Each field of a line is a reference of 16 bytes, and an empty one takes a byte of the input.
const STATUS_MEMORY: Memory = Memory { fixed: 24 * KIB, per_byte: 60 };

const STATUS_WORDS: &[&str] = &[
    "TITLE\t",
    "TITLE,",
    "OpenVPN CLIENT LIST\n",
    "HEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\n",
    "HEADER\tCLIENT_LIST\tCommon Name\tConnected Since (time_t)\n",
    "ROUTING_TABLE\t",
    "CLIENT_LIST\t",
    "Virtual Address,Common Name\n",
    "GLOBAL STATS\n",
    "END\n",
    "ERROR: ",
    ">CLIENT:ESTABLISHED,0\n",
    "\r\n",
    "10.77.0.2",
    "fd00:77::1",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "1795455833",
    "9223372036854775807",
];

fn address_file(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let listed = parse_address_file(&text);
    check_listed(&listed);
    let again: String =
        listed.devices.iter().map(|(uuid, address, _)| format!("{uuid} {address}\n")).collect();
    let again = parse_address_file(&again);
    assert_eq!((again.devices, again.bad_lines), (listed.devices, 0), "written and read again");
}

/// The statuses that OpenVPN 2.6.14 wrote.
const STATUSES: [&str; 3] = [
    include_str!("../../../src/store/presence/openvpn/version_1.txt"),
    include_str!("../../../src/store/presence/openvpn/version_2.txt"),
    include_str!("../../../src/store/presence/openvpn/version_3.txt"),
];

fn status_seeds() -> Vec<Vec<u8>> {
    STATUSES.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn openvpn_status(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(listed) = parse_status(&text) else { return };
    check_listed(&listed);
    // The same routes in each version of the status are the same devices.
    let routes = |separator: &str, prefix: &str| -> String {
        let line = |(uuid, address, _): &(String, std::net::IpAddr, Option<i64>)| {
            format!("{prefix}{address}{separator}{uuid}\n")
        };
        listed.devices.iter().map(line).collect()
    };
    let titled = format!(
        "OpenVPN CLIENT LIST\nROUTING TABLE\nVirtual Address,Common Name\n{}GLOBAL STATS\nEND\n",
        routes(",", "")
    );
    let prefixed = |separator: &str| {
        format!(
            "TITLE{separator}x\nHEADER{separator}ROUTING_TABLE{separator}Virtual Address{separator}Common Name\n{}END\n",
            routes(separator, &format!("ROUTING_TABLE{separator}")),
        )
    };
    for text in [titled, prefixed(","), prefixed("\t")] {
        let again = parse_status(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let places = |listed: &ListedDevices| -> Vec<_> {
            listed.devices.iter().map(|(uuid, address, _)| (uuid.clone(), *address)).collect()
        };
        assert_eq!((places(&again), again.bad_lines), (places(&listed), 0), "{text}");
    }
}

fn management_seeds() -> Vec<Vec<u8>> {
    let text =
        [">INFO:OpenVPN Management Interface Version 5\r\n", STATUSES[2]].concat().replace('\n', "\r\n");
    let hinted = text.replace("HEADER\tR", ">CLIENT:ESTABLISHED,0\r\nHEADER\tR");
    [text, hinted, "ERROR: The 'status' command is not available\r\n".to_owned()]
        .map(|text| [&[3, 0, 80, 0, 200, 0], text.as_bytes()].concat())
        .to_vec()
}

/// The pieces in which the bytes come do not matter, and neither do notifications between the lines.
fn openvpn_management(input: &[u8]) {
    let mut input = Input(input);
    let places = input.take(6);
    let bytes = input.0;
    let pieces = Input(places).cut(bytes);
    let whole = read_management([bytes]);
    assert_eq!(read_management(pieces), whole, "in pieces");
    if let Some(Ok(listed)) = &whole {
        check_listed(listed);
    }
    let is_short = bytes.split(|byte| *byte == b'\n').all(|line| line.len() <= MANAGEMENT_LINE_BYTES_MAX);
    if is_short {
        // A status from a file, with the same lines.
        let text = String::from_utf8_lossy(bytes);
        let lines: String = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n') && !line.starts_with('>'))
            .map(|line| format!("{}\n", line.trim_end_matches('\n').trim_end_matches('\r')))
            .collect();
        if !lines.lines().any(|line| line.starts_with("ERROR: ")) && !lines.contains('\r') {
            let parsed = parse_status(&lines);
            let is_cut = matches!(&parsed, Err(error) if error.contains("has no end"));
            assert_eq!(whole, (!is_cut).then_some(parsed), "{lines:?}");
        }
    }
}

fn dump_seeds() -> Vec<Vec<u8>> {
    let uuid = "a".repeat(32);
    let peers = format!("# fleet\nkeyA= {uuid}\nkeyB= {}\n", "b".repeat(62));
    let peer = |key: &str, allowed: &str, at: u64| {
        format!("{key}\t(none)\t192.0.2.2:51820\t{allowed}\t{at}\t1\t2\toff\n")
    };
    let dump = [
        "secret\tpublic\t51820\toff\n",
        &peer("keyA=", "fd00:77::2/128,10.9.0.0/24,10.9.0.2/32", 1_795_455_640),
        &peer("keyB=", "10.9.0.3/32", 0),
        &peer("keyC=", "(none)", 1_795_455_000),
    ]
    .concat();
    vec![[long(peers.as_bytes()), dump.into_bytes()].concat()]
}

fn wireguard_dump(input: &[u8]) {
    let mut input = Input(input);
    let peers = String::from_utf8_lossy(input.long());
    let dump = String::from_utf8_lossy(input.0);
    let now = Duration::from_secs(1_795_455_640);
    let listed = read_dump(&peers, &dump, now);
    check_listed(&listed);
    for (uuid, _, since) in &listed.devices {
        // Its handshake is not older than 180 s, and a time that fits no clock stays in order.
        let since = since.expect("a device that is there has had a handshake");
        assert!(since >= (now.as_millis() as i64) - 180_000, "{uuid} is there since {since} ms");
    }
}

fn check_listed(listed: &ListedDevices) {
    let mut addresses = HashSet::new();
    for (uuid, address, _) in &listed.devices {
        assert!(addresses.insert(address), "{address} is of two devices");
        assert!(matches!(uuid.len(), 32 | 62), "{uuid}");
        assert_eq!(address.to_canonical(), *address, "as the kernel dials it");
    }
    assert!(listed.examples.len() <= listed.bad_lines && listed.examples.len() <= 10);
    assert!(
        listed.examples.iter().all(|example| !example.chars().any(char::is_control) && example.len() < 2000)
    );
}
