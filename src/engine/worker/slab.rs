//! A worker's table of sessions. A slot is reused once no operation of its last session is in flight.

use crate::authz::Query;
use crate::engine::kernel::Kernel;
use crate::engine::session::Session;
use crate::engine::timers::Tick;
use crate::engine::user_data::Slot;

/// The sessions of one worker, by slot.
pub(in crate::engine) struct Sessions<K: Kernel> {
    slots: Vec<Option<Session<K>>>,
    free: Vec<Slot>,
    /// The first place of the next slice of a sweep; `None` where no sweep is under way.
    sweep_from: Option<usize>,
}

impl<K: Kernel> Sessions<K> {
    /// Makes a table with room for `sessions_max` sessions, so that it never moves in memory. Unused room takes no
    /// memory.
    pub fn with_capacity(sessions_max: usize) -> Self {
        Self {
            slots: Vec::with_capacity(sessions_max),
            free: Vec::with_capacity(sessions_max),
            sweep_from: None,
        }
    }

    /// Makes room for `sessions_max` sessions in all, where there is less.
    pub fn make_room(&mut self, sessions_max: usize) {
        self.slots.reserve(sessions_max.saturating_sub(self.slots.len()));
        self.free.reserve(sessions_max.saturating_sub(self.free.len()));
    }

    /// Reserves a slot for one more session; follow with [`Sessions::fill`].
    pub fn reserve(&mut self) -> Slot {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot(u32::try_from(self.slots.len() - 1).expect("the node's limit on sessions fits 32 bits"))
        })
    }

    pub fn fill(&mut self, slot: Slot, session: Session<K>) {
        let place = &mut self.slots[slot.0 as usize];
        debug_assert!(place.is_none());
        *place = Some(session);
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Session<K>> {
        self.slots.get_mut(slot.0 as usize)?.as_mut()
    }

    pub fn take(&mut self, slot: Slot) -> Option<Session<K>> {
        let session = self.slots.get_mut(slot.0 as usize)?.take()?;
        self.free.push(slot);
        Some(session)
    }

    /// Number of places in the table, in use or not.
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// All slots in use.
    pub fn occupied(&self) -> Vec<Slot> {
        (0u32..).zip(&self.slots).filter(|(_, place)| place.is_some()).map(|(slot, _)| Slot(slot)).collect()
    }

    /// The tunnels that have stalled since this time or before, with the time.
    pub fn stalled_until(&self, until: Tick) -> Vec<(Tick, Slot)> {
        let slots = (0u32..).map(Slot).zip(&self.slots);
        let stalled = slots.filter_map(|(slot, session)| Some((session.as_ref()?.stalled_since()?, slot)));
        stalled.filter(|(since, _)| *since <= until).collect()
    }

    /// Begins a sweep over all sessions; restarts the one under way.
    pub fn start_sweep(&mut self) {
        self.sweep_from = Some(0);
    }

    pub fn is_sweeping(&self) -> bool {
        self.sweep_from.is_some()
    }

    /// The next sessions of the sweep that rest on a decision, and the query of each. Advances by at most `count`
    /// slots.
    pub fn sweep(&mut self, count: usize) -> (Vec<Slot>, Vec<Query>) {
        let Some(from) = self.sweep_from else { return Default::default() };
        let to = (from + count).min(self.slots.len());
        self.sweep_from = (to < self.slots.len()).then_some(to);
        let question = |place: usize| self.slots[place].as_ref()?.standing_query();
        (from..to).filter_map(|place| Some((Slot(place as u32), question(place)?))).unzip()
    }
}
