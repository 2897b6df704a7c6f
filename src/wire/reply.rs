//! Every reply that a client can get, each as the bytes of one write.

/// Which version the status line names: that of the request, 1.1 where it could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HttpVersion {
    Http10,
    #[default]
    Http11,
}

/// The rows of the reply table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    Established,
    Malformed,
    NotPermitted,
    Method,
    Credentials,
    HeadTimeout,
    Limit,
    HeadTooLarge,
    DeviceAddress,
    DevicePortClosed,
    DeviceUnreachable,
    DeviceOffline,
    Undecided,
    Draining,
    DeviceTimeout,
    Loop,
}

impl Reply {
    pub const ALL: [Self; 16] = [
        Self::Established,
        Self::Malformed,
        Self::NotPermitted,
        Self::Method,
        Self::Credentials,
        Self::HeadTimeout,
        Self::Limit,
        Self::HeadTooLarge,
        Self::DeviceAddress,
        Self::DevicePortClosed,
        Self::DeviceUnreachable,
        Self::DeviceOffline,
        Self::Undecided,
        Self::Draining,
        Self::DeviceTimeout,
        Self::Loop,
    ];

    pub const fn status(self) -> u16 {
        todo!()
    }

    /// The reason phrase; `balena` shows it to a person as it is.
    pub const fn reason(self) -> &'static str {
        todo!()
    }

    /// What `Sluicegate-Reason` says; `None` for the one reply that is no refusal.
    pub const fn slug(self) -> Option<&'static str> {
        todo!()
    }

    /// The whole reply, rendered once per process.
    pub fn bytes(self, version: HttpVersion) -> &'static [u8] {
        let _ = version;
        todo!()
    }
}
