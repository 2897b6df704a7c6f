//! Inferred moves in which devices change places.
//!
//! A device may move to an address that another one has left: a VPN gives addresses out again. A query whose join slips
//! moves devices to the addresses of others, too. What tells them apart is the number of such moves, and whether they
//! form a circle: two devices that have each other's address are no ordinary reuse.

use std::collections::{HashMap, HashSet};

use super::Place;
use crate::authz::DeviceId;

/// A device's way from one place to another. `None` stands for offline, absent or without an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::control) struct PlaceMove {
    pub device: DeviceId,
    /// The place that the device had before. `None` if it was offline meanwhile: then it left that place by itself.
    pub from: Option<Place>,
    pub to: Option<Place>,
    /// The move has taken effect already, and is not proved yet.
    pub is_in_force: bool,
}

/// Moves to places of others that are ordinary in one window among so many devices: 1 of 4, 9 of 300, 36 of 5,000, 500 of
/// a million. A circle of any length is never ordinary.
pub(in crate::control) fn places_max(devices: usize) -> usize {
    devices.isqrt().div_ceil(2).max(1)
}

/// The devices whose moves are contested: to a place whose device stays, to a place to which another one moves as well,
/// in a circle, or beyond `places_max` moves to places that others had. A move that is held leaves its device where it
/// is, so that a move to that place is contested, too.
pub(super) fn contested(
    moves: &[PlaceMove],
    occupants: impl Fn(Place) -> [Option<DeviceId>; 2],
    places_max: usize,
) -> HashSet<DeviceId> {
    let steps = || moves.iter().filter(|step| step.from != step.to);
    let mut left: HashMap<Place, DeviceId> = HashMap::new();
    let mut arrivals: HashMap<Place, Vec<&PlaceMove>> = HashMap::new();
    let mut leaves_later: HashSet<DeviceId> = HashSet::new();
    for step in steps() {
        if let Some(from) = step.from {
            left.insert(from, step.device);
        }
        if let Some(to) = step.to {
            arrivals.entry(to).or_default().push(step);
        }
        if !step.is_in_force {
            leaves_later.insert(step.device);
        }
    }
    let mut contested = HashSet::new();
    // Each device that takes another one's place, and that other one.
    let mut takes: HashMap<DeviceId, DeviceId> = HashMap::new();
    for step in steps() {
        let Some(to) = step.to else { continue };
        if let Some(previous) = left.get(&to).filter(|previous| **previous != step.device) {
            takes.insert(step.device, *previous);
        }
        let mut occupants = occupants(to).into_iter().flatten();
        let stays = |id: DeviceId| id != step.device && !leaves_later.contains(&id);
        if occupants.any(stays) || arrivals.get(&to).is_some_and(|steps| steps.len() > 1) {
            contested.insert(step.device);
        }
    }
    if takes.len() > places_max {
        contested.extend(takes.keys());
    }
    contested.extend(circles(&takes));
    // Everybody who stays keeps a place that somebody may be moving to.
    let mut staying: Vec<DeviceId> = contested.iter().copied().collect();
    let by_device: HashMap<DeviceId, &PlaceMove> = steps().map(|step| (step.device, step)).collect();
    while let Some(device) = staying.pop() {
        let Some(step) = by_device.get(&device).filter(|step| !step.is_in_force) else { continue };
        let Some(arriving) = step.from.and_then(|from| arrivals.get(&from)) else { continue };
        staying.extend(arriving.iter().map(|step| step.device).filter(|device| contested.insert(*device)));
    }
    contested
}

/// The devices that are on a circle. Each has one successor at most.
fn circles(takes: &HashMap<DeviceId, DeviceId>) -> HashSet<DeviceId> {
    let mut seen: HashMap<DeviceId, usize> = HashMap::with_capacity(takes.len());
    let mut on_circles = HashSet::new();
    for (walk, start) in takes.keys().enumerate() {
        let mut device = *start;
        loop {
            match seen.get(&device) {
                // The walk has come to where it was: round the circle once more.
                Some(earlier) if *earlier == walk => {
                    let mut on_circle = device;
                    while on_circles.insert(on_circle) {
                        on_circle = takes[&on_circle];
                    }
                    break;
                }
                Some(_) => break,
                None => _ = seen.insert(device, walk),
            }
            match takes.get(&device) {
                Some(next) => device = *next,
                None => break,
            }
        }
    }
    on_circles
}
