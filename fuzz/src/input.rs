//! Takes an input apart into values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What is left of an input. Behind its end everything is zero or empty.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.array())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, as far as there are any.
    pub fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next bytes, of which a byte says how many.
    pub fn short(&mut self) -> &'a [u8] {
        let bytes = usize::from(self.byte());
        self.take(bytes)
    }

    /// The next bytes, of which two say how many.
    pub fn long(&mut self) -> &'a [u8] {
        let bytes = usize::from(self.u16());
        self.take(bytes)
    }

    pub fn address(&mut self) -> IpAddr {
        match self.byte() % 2 {
            0 => Ipv4Addr::from(self.array::<4>()).into(),
            _ => Ipv6Addr::from(self.array::<16>()).into(),
        }
    }

    pub fn socket(&mut self) -> SocketAddr {
        SocketAddr::new(self.address(), self.u16())
    }

    /// Cuts `bytes` at places that a few bytes of the input name.
    pub fn cut<'b>(&mut self, bytes: &'b [u8]) -> Vec<&'b [u8]> {
        let mut places: Vec<usize> = (0..3).map(|_| usize::from(self.u16()) % (bytes.len() + 1)).collect();
        places.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for place in places {
            pieces.push(&bytes[from..place]);
            from = place;
        }
        pieces.push(&bytes[from..]);
        pieces
    }
}

/// An input that [`Input::long`] reads.
pub(crate) fn long(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&len.to_le_bytes(), bytes].concat()
}
