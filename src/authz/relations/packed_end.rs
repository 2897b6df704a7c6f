//! When a right ends, in six bytes.

use crate::authz::UnixMillis;

/// Milliseconds since 1970 in 48 bits, which last until the year 10889; all ones stand for never.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct PackedEnd([u16; 3]);

impl PackedEnd {
    const NEVER: Self = Self([u16::MAX; 3]);

    /// `None` where `end` is out of range.
    pub(super) fn pack(end: Option<UnixMillis>) -> Option<Self> {
        let Some(UnixMillis(end)) = end else { return Some(Self::NEVER) };
        let in_range = (0..(1 << 48) - 1).contains(&end);
        in_range.then_some(Self([end as u16, (end >> 16) as u16, (end >> 32) as u16]))
    }

    pub(super) fn unpack(self) -> Option<UnixMillis> {
        let [low, middle, high] = self.0.map(i64::from);
        (self != Self::NEVER).then_some(UnixMillis(low | middle << 16 | high << 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_packed_to_the_millisecond_or_not_at_all() {
        let max = (1 << 48) - 2;
        for end in [None, Some(0), Some(1), Some(1_767_225_600_123), Some(max)] {
            let end = end.map(UnixMillis);
            assert_eq!(PackedEnd::pack(end).map(PackedEnd::unpack), Some(end));
        }
        for end in [-1, max + 1, i64::MIN, i64::MAX] {
            assert!(PackedEnd::pack(Some(UnixMillis(end))).is_none(), "{end}");
        }
    }
}
