//! The kernel of a simulated worker.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::operations::{Completed, Named, Operation, Submission};
use super::world::{Descriptor, World};
use crate::authz::UnixMillis;
use crate::config::{Config, KernelTls};
use crate::engine::kernel::pipe_pool::PipePool;
use crate::engine::kernel::thread::ThreadKernel;
use crate::engine::kernel::{Conveyor, Kernel, SocketOperation};
use crate::engine::listener::{Listener, Sharing};
use crate::engine::moved_tunnel::MovedTunnel;
use crate::engine::user_data::UserData;
use crate::sys::backlog::Backlog;
use crate::sys::buffers::FilledBuffer;
use crate::sys::kernel_tls::{Keys, Record};
use crate::sys::ring::{Completion, Gather, Wait};
use crate::sys::silence::Delivery;
use crate::sys::wake::Wake;
use crate::telemetry::HotCounters;

pub type SharedWorld = Rc<RefCell<World>>;

/// See the module.
pub struct WorldKernel {
    world: SharedWorld,
    backlog: Backlog<Submission, Rc<SocketAddr>>,
    pipes: PipePool<WorldPipe>,
    /// The bytes of filled buffers, by their numbers.
    buffers: Vec<Option<Vec<u8>>>,
    buffers_out: usize,
    user_timeout: Duration,
}

/// One descriptor of a connection.
pub struct WorldSocket {
    world: SharedWorld,
    descriptor: usize,
    connection: usize,
}

/// A pipe, with its two descriptors.
pub struct WorldPipe {
    world: SharedWorld,
    number: usize,
    descriptors: [usize; 2],
    capacity: usize,
    held_bytes: usize,
}

impl WorldKernel {
    pub fn new(world: SharedWorld, config: &Config) -> Self {
        Self {
            world,
            backlog: Backlog::default(),
            pipes: PipePool::new(&config.engine),
            buffers: (0..config.engine.buffers).map(|_| None).collect(),
            buffers_out: 0,
            user_timeout: config.timeouts.user_timeout,
        }
    }

    fn push(&mut self, user_data: UserData, operation: Operation) {
        let submission = Submission { user_data, operation, address: None };
        self.backlog.push(submission, None, &mut *self.world.borrow_mut());
    }

    fn completion(&mut self, completed: Completed) -> Completion<WorldSocket> {
        let Completed { user_data, result, more, buffer, accepted } = completed;
        let buffer = buffer.map(|(number, bytes)| {
            self.buffers_out += 1;
            self.buffers[usize::from(number)] = Some(bytes);
            FilledBuffer::for_tests(number)
        });
        let accepted = accepted.map(|(connection, descriptor)| WorldSocket {
            world: Rc::clone(&self.world),
            descriptor,
            connection,
        });
        Completion { user_data: user_data.into_bits(), result, more, buffer, accepted }
    }

    /// Buffers and pipes that sessions have, and pipes of the pool with bytes in them or in use.
    pub fn left_over(&self) -> (usize, usize, usize) {
        let world = self.world.borrow();
        let is_dirty = |pipe: &&WorldPipe| {
            let state = &world.pipes[pipe.number];
            !state.bytes.is_empty() || state.operations > 0
        };
        (self.buffers_out, self.pipes.out(), self.pipes.clean().iter().filter(is_dirty).count())
    }

    fn check_pool(&self) {
        if self.left_over().2 > 0 {
            self.world.borrow_mut().fail(|| {
                "a pipe is in the pool with a tunnel's bytes in it, or while the ring uses it".to_owned()
            });
        }
    }
}

/// The ring is closed: what is in flight ends, and connections that nobody has taken close.
impl Drop for WorldKernel {
    fn drop(&mut self) {
        self.world.borrow_mut().close_ring();
    }
}

impl WorldSocket {
    fn named(&self) -> Named {
        Named { descriptor: self.descriptor, connection: self.connection }
    }
}

impl Drop for WorldSocket {
    fn drop(&mut self) {
        let mut world = self.world.borrow_mut();
        if std::thread::panicking() {
            world.connections[self.connection].resets_on_close = true;
        }
        world.close_connection(self.descriptor, self.connection);
    }
}

impl WorldPipe {
    fn new(world: &SharedWorld, capacity: usize) -> io::Result<Self> {
        let mut state = world.borrow_mut();
        if state.is_refused() {
            return Err(errno(libc::ENFILE));
        }
        let number = state.pipes.len();
        let first = state.open(Descriptor::PipeEnd(number)).map_err(errno)?;
        let second = match state.open(Descriptor::PipeEnd(number)) {
            Ok(second) => second,
            Err(error) => {
                state.descriptors[first] = None;
                return Err(errno(error));
            }
        };
        // A user who has many pipes gets small ones.
        let capacity = if state.tape.chance(8) { 4096 } else { capacity };
        state.pipes.push(super::world::PipeState { is_open: true, ..Default::default() });
        let world = Rc::clone(world);
        Ok(Self { world, number, descriptors: [first, second], capacity, held_bytes: 0 })
    }
}

impl Drop for WorldPipe {
    fn drop(&mut self) {
        let mut world = self.world.borrow_mut();
        for descriptor in self.descriptors {
            world.descriptors[descriptor] = None;
        }
        world.pipes[self.number].is_open = false;
    }
}

impl Conveyor for WorldPipe {
    fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn record_filled(&mut self, bytes: usize) {
        self.held_bytes += bytes;
    }

    fn record_drained(&mut self, bytes: usize) {
        self.held_bytes -= bytes;
    }
}

impl Kernel for WorldKernel {
    type Socket = WorldSocket;
    type Pipe = WorldPipe;

    fn submit(&mut self, user_data: UserData, operation: SocketOperation<'_, Self>) {
        let operation = match operation {
            SocketOperation::Receive(socket) => {
                Operation::Receive { socket: socket.named(), is_stream: false }
            }
            SocketOperation::ReceiveStream(socket, _) => {
                Operation::Receive { socket: socket.named(), is_stream: true }
            }
            SocketOperation::Connect(socket, address) => {
                let operation = Operation::Connect { socket: socket.named() };
                let address = Rc::new(address);
                let pointer = Some(Rc::downgrade(&address));
                let submission = Submission { user_data, operation, address: pointer };
                return self.backlog.push(submission, Some(address), &mut *self.world.borrow_mut());
            }
            SocketOperation::PollReadable(socket) => {
                Operation::Poll { socket: socket.named(), mask: libc::POLLIN | libc::POLLRDHUP }
            }
            SocketOperation::PollWritable(socket) => {
                Operation::Poll { socket: socket.named(), mask: libc::POLLOUT }
            }
            SocketOperation::PollHangup(socket) => Operation::Poll { socket: socket.named(), mask: 0 },
            SocketOperation::SpliceIn(socket, pipe) => {
                Operation::Fill { socket: socket.named(), pipe: pipe.number, bytes: pipe.capacity }
            }
            SocketOperation::SpliceOut(pipe, socket) => {
                Operation::Drain { pipe: pipe.number, socket: socket.named(), bytes: pipe.held_bytes }
            }
        };
        self.push(user_data, operation);
    }

    fn cancel(&mut self, user_data: UserData, target: UserData) {
        self.push(user_data, Operation::Cancel { target: target.into_bits() });
    }

    fn send(&self, socket: &WorldSocket, bytes: &[u8]) -> io::Result<usize> {
        let mut world = self.world.borrow_mut();
        world.interrupt();
        if world.has_fault(2) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let id = socket.connection;
        if let Some(error) = world.error_of_send(id) {
            return Err(errno(error));
        }
        let room = world.connections[id].room().min(bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = if world.has_fault(1) { 1 + world.tape.roll(room) } else { room };
        let now_us = world.now_us;
        world.connections[id].send(&bytes[..count], now_us);
        world.record("send", id, count as i64);
        Ok(count)
    }

    fn receive(&self, socket: &WorldSocket, room: &mut [u8]) -> io::Result<usize> {
        let mut world = self.world.borrow_mut();
        world.interrupt();
        if world.has_fault(2) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let id = socket.connection;
        if world.connections[id].arrived.is_empty() {
            let end = world.connections[id].end_of_read();
            return end.map_or(Err(io::ErrorKind::WouldBlock.into()), |end| end.map(|()| 0).map_err(errno));
        }
        let most = room.len().min(world.connections[id].arrived.len());
        let most = if world.has_fault(1) { 1 + world.tape.roll(most) } else { most };
        let bytes = world.connections[id].read(most);
        world.record("receive", id, bytes.len() as i64);
        room[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn shut_write(&self, socket: &WorldSocket) {
        let mut world = self.world.borrow_mut();
        let id = socket.connection;
        if world.connections[id].fin && !world.connections[id].is_dead {
            world.fail(|| format!("the relay sends a FIN twice on connection {id}"));
        }
        world.connections[id].fin = true;
        world.record("fin", id, 0);
    }

    fn reset_on_close(&self, socket: &WorldSocket) {
        self.world.borrow_mut().connections[socket.connection].resets_on_close = true;
    }

    fn open_device_socket(&self, address: SocketAddr) -> io::Result<WorldSocket> {
        let (connection, descriptor) = self.world.borrow_mut().open_socket(address).map_err(errno)?;
        Ok(WorldSocket { world: Rc::clone(&self.world), descriptor, connection })
    }

    fn open_peer_socket(&self, address: SocketAddr) -> io::Result<WorldSocket> {
        self.open_device_socket(address)
    }

    fn duplicate(&self, socket: &WorldSocket) -> io::Result<WorldSocket> {
        let mut world = self.world.borrow_mut();
        let connection = socket.connection;
        let descriptor = world.open(Descriptor::Connection(connection)).map_err(errno)?;
        world.connections[connection].descriptors += 1;
        Ok(WorldSocket { world: Rc::clone(&self.world), descriptor, connection })
    }

    fn watch_for_silence(&self, _socket: &WorldSocket) {}

    fn delivery(&self, socket: &WorldSocket) -> Delivery {
        let world = self.world.borrow();
        let connection = &world.connections[socket.connection];
        if connection.sent.is_empty() || connection.is_dead {
            return Delivery::Complete;
        }
        match connection.remote.silent_since_us {
            Some(since_us) if world.now_us - since_us >= self.user_timeout.as_micros() as u64 => {
                Delivery::Unanswered
            }
            _ => Delivery::Pending,
        }
    }

    fn prepare_tls(&self, _socket: &WorldSocket) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn give_tls(&self, _socket: &WorldSocket, _keys: &Keys) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn receive_record(&self, _socket: &WorldSocket) -> io::Result<Record> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn send_close_notify(&self, _socket: &WorldSocket) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn received<'a>(&'a self, buffer: &'a FilledBuffer, len: usize) -> &'a [u8] {
        match &self.buffers[usize::from(buffer.number())] {
            Some(bytes) => &bytes[..len],
            None => panic!("{buffer:?} is with the kernel"),
        }
    }

    fn give_back(&mut self, buffer: FilledBuffer) {
        let number = buffer.number();
        let mut world = self.world.borrow_mut();
        if self.buffers[usize::from(number)].take().is_none() {
            world.fail(|| format!("{buffer:?} is given back twice"));
            return;
        }
        self.buffers_out -= 1;
        world.free_buffers.push(number);
    }

    fn take_pipe(&mut self) -> Option<WorldPipe> {
        self.check_pool();
        let world = &self.world;
        self.pipes.take(|bytes| WorldPipe::new(world, bytes))
    }

    fn put_pipe(&mut self, pipe: WorldPipe) {
        self.pipes.put(pipe);
        self.check_pool();
    }

    fn close_pipe(&mut self, pipe: WorldPipe) {
        self.pipes.close(pipe);
    }

    fn pipe_leaves(&mut self) {
        self.pipes.leaves();
    }

    fn pipe_comes(&mut self) {
        self.pipes.comes();
    }

    fn fill_pipe(&self, pipe: &mut WorldPipe, from: &WorldSocket) -> io::Result<usize> {
        let mut world = self.world.borrow_mut();
        world.interrupt();
        if world.has_fault(2) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let moved = world.splice_in(from.connection, pipe.number, pipe.capacity).map_err(errno)?;
        world.record("fill", from.connection, moved as i64);
        pipe.held_bytes += moved;
        Ok(moved)
    }

    fn drain_pipe(&self, pipe: &mut WorldPipe, to: &WorldSocket) -> io::Result<usize> {
        let mut world = self.world.borrow_mut();
        world.interrupt();
        if world.has_fault(2) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let moved = world.splice_out(pipe.number, to.connection, pipe.held_bytes).map_err(errno)?;
        world.record("drain", to.connection, moved as i64);
        pipe.held_bytes -= moved;
        Ok(moved)
    }
}

impl ThreadKernel for WorldKernel {
    type Listener = ();
    type Accepted = WorldSocket;

    fn monotonic_us(&self) -> u64 {
        self.world.borrow().now_us
    }

    fn wall_time(&self) -> UnixMillis {
        let mut world = self.world.borrow_mut();
        world.interrupt();
        let wall = world.wall();
        world.latest = world.latest.max(wall);
        wall
    }

    fn turn(
        &mut self,
        wait: Wait,
        _gather: Option<Gather>,
        completions: &mut Vec<Completion<WorldSocket>>,
    ) -> io::Result<()> {
        let mut world = self.world.borrow_mut();
        if world.loses_ring() {
            world.done.ring_losses += 1;
            world.record("ring lost", 0, 0);
            return Err(errno(libc::ENOMEM));
        }
        // A turn takes its time.
        world.now_us += 1;
        while !self.backlog.move_into(&mut *world) && world.submit_queued() {}
        world.submit_queued();
        self.backlog.forget_submitted(&mut *world);
        let has_submitted_all = self.backlog.has_submitted_all(&mut *world);
        match wait {
            Wait::No => {
                for _ in 0..1 + world.tape.roll(3) {
                    world.step();
                }
            }
            _ if !has_submitted_all => {}
            Wait::Until(time) => {
                let until_us = world.now_us + time.as_micros() as u64;
                world.sleep(Some(until_us));
            }
            Wait::Forever => world.sleep(None),
        }
        world.refill_completed();
        let completed: Vec<Completed> = world.completed.drain(..).collect();
        world.refill_completed();
        world.is_turn_woken = completed.iter().any(|each| each.user_data == UserData::Wake);
        world.turn_began = (world.version(), world.latest);
        world.record("turn", completed.len(), 0);
        drop(world);
        for each in completed {
            let completion = self.completion(each);
            completions.push(completion);
        }
        Ok(())
    }

    fn has_work_within(&mut self, budget: Duration) -> bool {
        let mut world = self.world.borrow_mut();
        let until_us = world.now_us + budget.as_micros() as u64;
        while world.completed.is_empty() && world.now_us < until_us && world.step() {}
        world.now_us = world.now_us.max(until_us);
        !world.completed.is_empty()
    }

    fn record_use(&self, counters: &HotCounters) {
        counters.buffers_in_use.set(self.buffers_out as u64);
        counters.pipes_in_use.set(self.pipes.out() as u64);
    }

    fn reconfigure(&mut self, config: &Config, _kernel_tls: KernelTls) {
        self.pipes.reconfigure(&config.engine);
        self.user_timeout = config.timeouts.user_timeout;
    }

    fn watch_wake(&mut self, user_data: UserData, _wake: &Wake) {
        self.push(user_data, Operation::Wake);
    }

    fn accept(&mut self, user_data: UserData, listener: &Listener<()>) {
        self.push(user_data, Operation::Accept { is_multishot: listener.sharing == Sharing::Own });
    }

    fn accepted(&self, connection: WorldSocket) -> (WorldSocket, Option<SocketAddr>) {
        let address = self.world.borrow().client_address(connection.connection);
        (connection, address)
    }

    fn set_silence_options(&self, _listener: &Listener<()>, _config: &Config) {}

    fn share_listener(&self, _listener: &Listener<()>) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn share(&self, _socket: &WorldSocket) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn send_away(&mut self, _tunnel: MovedTunnel<OwnedFd, WorldPipe>) -> MovedTunnel {
        unreachable!("no socket is shared")
    }

    fn take_in(&mut self, _tunnel: MovedTunnel) -> MovedTunnel<WorldSocket, WorldPipe> {
        unreachable!("no tunnel has left")
    }
}

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
