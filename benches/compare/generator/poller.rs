//! Readiness of many sockets, and what each of them is: epoll with a table.

use std::io;
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Sockets of the type `T`, each under a key that is never used for another.
pub struct Poller<T> {
    epoll: Epoll,
    places: Vec<Place<T>>,
    free: Vec<u32>,
    events: Vec<EpollEvent>,
}

struct Place<T> {
    generation: u32,
    held: Option<T>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key(u64);

/// The readiness that a socket waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interest {
    /// Everything, once each time that it begins.
    Edges,
    Readable,
    Writable,
    ReadableAndWritable,
}

#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub key: Key,
    pub readable: bool,
    pub writable: bool,
}

impl<T: AsFd> Poller<T> {
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self {
            epoll,
            places: Vec::new(),
            free: Vec::new(),
            events: vec![EpollEvent::empty(); EVENTS_MAX],
        })
    }

    pub fn add(&mut self, socket: T, interest: Interest) -> io::Result<Key> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, held: None });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        let key = Key(u64::from(place.generation) << 32 | u64::from(index));
        self.epoll.add(&socket, EpollEvent::new(interest.flags(), key.0))?;
        place.held = Some(socket);
        Ok(key)
    }

    pub fn set_interest(&self, key: Key, interest: Interest) -> io::Result<()> {
        match self.get(key) {
            Some(socket) => Ok(self.epoll.modify(socket, &mut EpollEvent::new(interest.flags(), key.0))?),
            None => Ok(()),
        }
    }

    /// Takes a socket back; closing it is what ends its readiness.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let index = key.index();
        self.get(key)?;
        let place = &mut self.places[index];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index as u32);
        place.held.take()
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index())?;
        if place.generation == key.generation() { place.held.as_mut() } else { None }
    }

    /// Replaces the content of `ready`. Returns at once where `patience_ms` is 0.
    pub fn wait(&mut self, patience_ms: u8, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let count = match self.epoll.wait(&mut self.events, EpollTimeout::from(patience_ms)) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let failed = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        ready.extend(self.events[..count].iter().map(|event| Ready {
            key: Key(event.data()),
            readable: event.events().intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | failed),
            writable: event.events().intersects(EpollFlags::EPOLLOUT | failed),
        }));
        Ok(())
    }

    fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index())?;
        if place.generation == key.generation() { place.held.as_ref() } else { None }
    }
}

impl Key {
    fn index(self) -> usize {
        self.0 as u32 as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Edges => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
            Self::Readable => EpollFlags::EPOLLIN,
            Self::Writable => EpollFlags::EPOLLOUT,
            Self::ReadableAndWritable => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
        }
    }
}

/// Sockets that one wait tells of; the others' turn comes with the next.
const EVENTS_MAX: usize = 512;
