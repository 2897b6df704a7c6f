//! Ways into the private parsers of addresses, for the targets in `fuzz/`.

use std::net::IpAddr;
use std::time::Duration;

use super::address_list::AddressList;
use super::openvpn::connection::{LINE_BYTES_MAX, LineBuffer};
use super::openvpn::management::AnswerLine;
use super::openvpn::status::{OpenVpnStatus, StatusProgress};
use super::wireguard::dump::{DumpReader, PeerDevices};

/// The devices that a source gave, in order, and its bad lines.
#[derive(Debug, PartialEq, Eq)]
pub struct ListedDevices {
    /// Uuid, address, and the time in ms since 1970 when the device came there.
    pub devices: Vec<(String, IpAddr, Option<i64>)>,
    pub bad_lines: usize,
    pub examples: Vec<String>,
}

/// Parses a file of lines `uuid address`.
pub fn address_file(text: &str) -> ListedDevices {
    AddressList::parse(text, "file").into()
}

/// Parses a status of any version.
pub fn openvpn_status(text: &str) -> Result<ListedDevices, String> {
    OpenVpnStatus::parse(text, "openvpn".to_owned()).map(Into::into).map_err(|error| error.to_string())
}

/// Reads what a management interface sends, in pieces, up to the end of its answer. `None` if the answer has no end.
pub fn openvpn_management<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Option<Result<ListedDevices, String>> {
    let mut buffer = LineBuffer::default();
    let mut status = OpenVpnStatus::new("openvpn".to_owned());
    for mut piece in pieces {
        while !piece.is_empty() {
            let (taken, line) = buffer.take(piece);
            piece = &piece[taken..];
            let Some(line) = line else { continue };
            match AnswerLine::of(&line) {
                AnswerLine::Notification { .. } => {}
                AnswerLine::Error(message) => return Some(Err(message.to_owned())),
                AnswerLine::Status(line) => match status.read(line) {
                    Ok(StatusProgress::GoesOn) => {}
                    Ok(StatusProgress::Ended) => {
                        let ended = status.finish().map(Into::into);
                        return Some(ended.map_err(|error| error.to_string()));
                    }
                    Err(error) => return Some(Err(error.to_string())),
                },
            }
        }
    }
    None
}

/// Reads the output of `wg show INTERFACE dump` with the file of its peers.
pub fn wireguard_dump(peers: &str, dump: &str, now: Duration) -> ListedDevices {
    let reader = DumpReader { name: "wireguard".to_owned(), now, max_age: Duration::from_secs(180) };
    reader.read(dump, PeerDevices::parse(peers, "peers")).into()
}

/// Longest line of a management interface that is kept whole.
pub const MANAGEMENT_LINE_BYTES_MAX: usize = LINE_BYTES_MAX;

impl From<AddressList> for ListedDevices {
    fn from(list: AddressList) -> Self {
        let since = |uuid| list.since.get(uuid).map(|since| since.0);
        let mut devices: Vec<_> =
            list.addresses.iter().map(|(uuid, address)| (uuid.to_string(), *address, since(uuid))).collect();
        devices.sort_unstable();
        Self { devices, bad_lines: list.bad.examples.count, examples: list.bad.examples.examples }
    }
}
