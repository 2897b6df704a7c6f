//! The sessions of a thread whose heads have not come, the oldest first.
//!
//! A client that sends nothing costs a place for `timeouts.head`. Where places are short, the session that has waited
//! longest gives way to a new client: whoever speaks at once is served, however many are silent.

use std::collections::VecDeque;
use std::time::Duration;

use ipnet::IpNet;

use super::slab::Sessions;
use crate::engine::kernel::Kernel;
use crate::engine::user_data::Slot;

/// See the module. A session whose head has come stays in the list until it is met there.
#[derive(Default)]
pub(super) struct AwaitedHeads {
    sessions: VecDeque<(Slot, u64)>,
    /// Entries at which the list is cleaned next.
    clean_at: usize,
}

impl AwaitedHeads {
    /// Adds a session that has begun, by its slot and number.
    pub fn add<K: Kernel>(&mut self, slot: Slot, id: u64, sessions: &mut Sessions<K>) {
        self.sessions.push_back((slot, id));
        if self.sessions.len() > self.clean_at {
            self.sessions.retain(|(slot, id)| awaits_since(sessions, *slot, *id).is_some());
            self.clean_at = 2 * self.sessions.len() + ENTRIES_KEPT;
        }
    }

    /// The session that has waited longest, of this network if one is given. `None` where none has waited for
    /// [`PATIENCE`].
    pub fn oldest<K: Kernel>(
        &mut self,
        network: Option<IpNet>,
        now_us: u64,
        sessions: &mut Sessions<K>,
    ) -> Option<Slot> {
        while let Some((slot, id)) = self.sessions.front()
            && awaits_since(sessions, *slot, *id).is_none()
        {
            self.sessions.pop_front();
        }
        let waited_until = now_us.saturating_sub(PATIENCE.as_micros() as u64);
        for (slot, id) in self.sessions.iter().take(LOOKED_AT_MAX) {
            let Some(since_us) = awaits_since(sessions, *slot, *id) else { continue };
            if since_us > waited_until {
                return None;
            }
            let of_network =
                |session: &crate::engine::session::Session<K>| session.heads_network() == network;
            if network.is_none() || sessions.get_mut(*slot).is_some_and(|session| of_network(session)) {
                return Some(*slot);
            }
        }
        None
    }
}

/// Time since which this session waits for its head, if it still does.
fn awaits_since<K: Kernel>(sessions: &mut Sessions<K>, slot: Slot, id: u64) -> Option<u64> {
    let session = sessions.get_mut(slot)?;
    if session.id() == id { session.awaits_head_since_us() } else { None }
}

/// Time that a client has to send its head, however many others want its place: the way there and back, also by
/// satellite for one without TLS.
const PATIENCE: Duration = Duration::from_millis(500);

/// Entries that one search looks at: a client that comes must not cost more than an accept.
const LOOKED_AT_MAX: usize = 256;

/// Entries up to which the list is not worth cleaning.
const ENTRIES_KEPT: usize = 1024;
