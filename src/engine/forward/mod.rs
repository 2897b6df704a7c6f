//! One direction of a tunnel: bytes from a source to a sink, by copying or by splicing.
//!
//! It decides how the next bytes move and when to change the path. It owns no socket: the session lends both ends
//! for each call. It submits operations only through [`Io`].

mod copy;
mod moving;
mod records;
mod splice;
#[cfg(test)]
mod tests;

use std::io;

use super::kernel::io::{Io, Outcome, errno, retrying};
use super::kernel::{Conveyor, Kernel, SocketOperation};
use crate::config::Forwarding;
use crate::engine::session_view::{DirectionRow, PathKind};
use crate::engine::tls::ktls::{NoData, look_at_record};
use crate::engine::tls::scratch::ScratchMemory;
use crate::engine::tls::transport::Transport;
use crate::engine::user_data::Purpose;
use crate::sys::ring::First;
use crate::telemetry::HotCounters;
use copy::{CopyPath, SPILL_BYTES_MAX};
use records::RecordsPath;
#[cfg(test)]
pub(super) use splice::SLICE_BYTES;
use splice::SplicePath;

/// One direction of a tunnel, which moves bytes from a source to a sink.
pub(super) struct Flow<P> {
    direction: Direction,
    forwarding: Forwarding,
    path: Path<P>,
    /// Bytes that were sent to the sink.
    pub bytes: u64,
    /// The source has sent its FIN.
    source_ended: bool,
    /// The sink got a FIN after the last byte.
    finished: bool,
}

/// The way in which bytes move in one direction of a tunnel.
enum Path<P> {
    /// Small or sparse traffic: multishot receive into a shared buffer, immediate send.
    Copy(CopyPath),
    /// Streaming traffic: readiness, then splice through a pooled pipe.
    Splice(SplicePath<P>),
    /// An end speaks TLS: receive, open, seal, send. Boxed, so that tunnels without TLS are no larger.
    Records(Box<RecordsPath>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// Client to device.
    Up,
    /// Device to client.
    Down,
}

/// The end of a direction that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FlowEnd {
    Source,
    Sink,
}

/// The failure of a direction, which ends the tunnel.
#[derive(Debug)]
pub(super) struct FlowError {
    pub end: FlowEnd,
    pub error: io::Error,
}

/// The two sockets of a direction and their transports, lent for one call.
pub(super) struct FlowSockets<'a, K: Kernel> {
    pub source: &'a K::Socket,
    pub sink: &'a K::Socket,
    pub source_transport: &'a mut Transport,
    pub sink_transport: &'a mut Transport,
    /// The thread's memory for records.
    pub scratch: &'a mut ScratchMemory,
    /// The other direction is finished, so both sockets are closed as soon as this one is.
    pub is_last: bool,
}

/// The operations of a direction; [`Direction::purpose`] gives each one's purpose in the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FlowOperation {
    Receive,
    Readable,
    Writable,
    Hangup,
    Fill,
    Drain,
}

impl<P> Flow<P> {
    pub fn new(direction: Direction, forwarding: Forwarding) -> Self {
        let path = match forwarding {
            Forwarding::Auto | Forwarding::Copy => Path::Copy(CopyPath::default()),
            Forwarding::Splice | Forwarding::RingSplice => Path::Splice(SplicePath::beginning_at(0)),
        };
        Self { direction, forwarding, path, bytes: 0, source_ended: false, finished: false }
    }

    /// A flow with an end whose TLS records this process opens and seals.
    pub fn of_records(direction: Direction) -> Self {
        let path = Path::Records(Box::default());
        Self { path, ..Self::new(direction, Forwarding::Copy) }
    }

    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// This direction as `sessions` shows it.
    pub fn row(&self) -> DirectionRow {
        let path = match &self.path {
            Path::Copy(_) => PathKind::Copy,
            Path::Splice(_) => PathKind::Splice,
            Path::Records(_) => PathKind::Tls,
        };
        DirectionRow { bytes: self.bytes, path }
    }

    /// True where there is work left that no completion will announce.
    pub fn wants_turn(&self) -> bool {
        match &self.path {
            Path::Copy(_) => false,
            Path::Splice(path) => path.wants_turn(),
            Path::Records(path) => path.wants_turn,
        }
    }
}

impl<P: Conveyor> Flow<P> {
    /// Begins to forward, with `early` bytes ahead of the source's.
    pub fn start<K: Kernel<Pipe = P>>(
        &mut self,
        early: &[u8],
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        if let Path::Records(_) = self.path {
            return self.start_records(early, ends, io);
        }
        if early.is_empty() {
            self.read(First::Wait, ends, io);
            return Ok(());
        }
        // Early bytes are in our memory, so they are copied on every path.
        self.path = Path::Copy(CopyPath::for_early_bytes(self.forwarding));
        self.forward_bytes(early, ends, io)?;
        self.after_copying(ends, io)
    }

    /// Handles the completion of an operation of this direction; bytes may have moved.
    pub fn complete<K: Kernel<Pipe = P>>(
        &mut self,
        operation: FlowOperation,
        outcome: Outcome,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        match operation {
            FlowOperation::Hangup => reset_of(&outcome),
            _ if self.finished => {
                outcome.give_back(io.kernel);
                Ok(())
            }
            FlowOperation::Receive => self.on_received(outcome, ends, io),
            FlowOperation::Writable if matches!(self.path, Path::Copy(_)) => self.on_room(ends, io),
            FlowOperation::Readable | FlowOperation::Writable if matches!(self.path, Path::Records(_)) => {
                self.pump_records(ends, io)
            }
            FlowOperation::Readable | FlowOperation::Writable => self.on_ready(ends, io),
            FlowOperation::Fill => self.on_filled(outcome.result, ends, io),
            FlowOperation::Drain => self.on_drained(outcome.result, ends, io),
        }
    }

    /// Continues the work that [`Flow::wants_turn`] reported.
    pub fn resume<K: Kernel<Pipe = P>>(
        &mut self,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        match self.path {
            _ if self.finished => Ok(()),
            Path::Records(_) => self.pump_records(ends, io),
            Path::Copy(_) | Path::Splice(_) => self.pump(ends, io),
        }
    }

    /// Gives the flow's pipe back. Call it when no operation of the flow is in flight.
    pub fn release<K: Kernel<Pipe = P>>(&mut self, kernel: &mut K) {
        if let Path::Splice(path) = &mut self.path {
            path.release(kernel);
        }
    }

    /// Changes to the splice path; the caller then reads.
    fn switch_to_splicing(&mut self) {
        self.path = Path::Splice(SplicePath::beginning_at(self.bytes));
    }

    /// Changes to the copy path; the caller then reads.
    fn switch_to_copying(&mut self) {
        self.path = Path::Copy(CopyPath::default());
    }

    /// Submits the operation that waits for the source's next bytes.
    fn read<K: Kernel<Pipe = P>>(&mut self, first: First, ends: &FlowSockets<'_, K>, io: &mut Io<'_, K>) {
        match &mut self.path {
            Path::Copy(path) => {
                path.begin_receive();
                io.submit(
                    self.direction.purpose(FlowOperation::Receive),
                    SocketOperation::ReceiveStream(ends.source, first),
                );
            }
            Path::Splice(_) | Path::Records(_) => io.submit(
                self.direction.purpose(FlowOperation::Readable),
                SocketOperation::PollReadable(ends.source),
            ),
        }
    }

    /// Waits for room at the sink. Meanwhile the source is not read, so watches it for a reset.
    fn wait_for_room<K: Kernel<Pipe = P>>(&mut self, ends: &FlowSockets<'_, K>, io: &mut Io<'_, K>) {
        let writable = self.direction.purpose(FlowOperation::Writable);
        if !io.in_flight.has(writable) {
            io.submit(writable, SocketOperation::PollWritable(ends.sink));
        }
        self.watch_source(ends, io);
    }

    /// Watches for a reset of a source that is not read.
    pub fn watch_source<K: Kernel<Pipe = P>>(&mut self, ends: &FlowSockets<'_, K>, io: &mut Io<'_, K>) {
        let hangup = self.direction.purpose(FlowOperation::Hangup);
        if !io.in_flight.has(hangup) {
            io.submit(hangup, SocketOperation::PollHangup(ends.source));
        }
    }

    /// Handles the end of the source's stream.
    fn end_source<K: Kernel<Pipe = P>>(&mut self, ends: &FlowSockets<'_, K>) -> Result<(), FlowError> {
        if let Transport::KernelTls = ends.source_transport {
            // Without a close_notify, the stream may have been cut off.
            return Err(FlowError::source(io::ErrorKind::UnexpectedEof.into()));
        }
        self.source_ended = true;
        Ok(())
    }

    /// Handles an error of a read. By kernel TLS it may stand for a record that carries no data, which is then
    /// received.
    fn on_source_error<K: Kernel<Pipe = P>>(
        &mut self,
        error: io::Error,
        ends: &FlowSockets<'_, K>,
        io: &Io<'_, K>,
    ) -> Result<(), FlowError> {
        let Transport::KernelTls = ends.source_transport else { return Err(FlowError::source(error)) };
        match look_at_record(error, io.kernel, ends.source).map_err(FlowError::source)? {
            NoData::End => self.source_ended = true,
            NoData::Nothing => {}
        }
        Ok(())
    }

    /// Passes the end on after the last byte, now or once there is room for it.
    fn finish<K: Kernel<Pipe = P>>(
        &mut self,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        if let Transport::KernelTls = ends.sink_transport {
            let sent = retrying(|| io.kernel.send_close_notify(ends.sink).map(|()| 0));
            if sent.map_err(FlowError::sink)?.is_none() {
                self.wait_for_room(ends, io);
                return Ok(());
            }
        }
        if !ends.is_last {
            io.kernel.shut_write(ends.sink);
        }
        self.finished = true;
        Ok(())
    }

    /// Counts `bytes` that the sink took.
    fn count(&mut self, bytes: usize, counters: &HotCounters) {
        self.bytes += bytes as u64;
        let counter = match (self.direction, &self.path) {
            (Direction::Up, Path::Copy(_)) => &counters.bytes_up_copied,
            (Direction::Up, Path::Splice(_)) => &counters.bytes_up_spliced,
            (Direction::Up, Path::Records(_)) => &counters.bytes_up_tls,
            (Direction::Down, Path::Copy(_)) => &counters.bytes_down_copied,
            (Direction::Down, Path::Splice(_)) => &counters.bytes_down_spliced,
            (Direction::Down, Path::Records(_)) => &counters.bytes_down_tls,
        };
        counter.add(bytes as u64);
    }
}

impl Direction {
    pub const fn purpose(self, operation: FlowOperation) -> Purpose {
        match (self, operation) {
            (Self::Up, FlowOperation::Receive) => Purpose::UpReceive,
            (Self::Up, FlowOperation::Readable) => Purpose::UpReadable,
            (Self::Up, FlowOperation::Writable) => Purpose::UpWritable,
            (Self::Up, FlowOperation::Hangup) => Purpose::UpHangup,
            (Self::Up, FlowOperation::Fill) => Purpose::UpFill,
            (Self::Up, FlowOperation::Drain) => Purpose::UpDrain,
            (Self::Down, FlowOperation::Receive) => Purpose::DownReceive,
            (Self::Down, FlowOperation::Readable) => Purpose::DownReadable,
            (Self::Down, FlowOperation::Writable) => Purpose::DownWritable,
            (Self::Down, FlowOperation::Hangup) => Purpose::DownHangup,
            (Self::Down, FlowOperation::Fill) => Purpose::DownFill,
            (Self::Down, FlowOperation::Drain) => Purpose::DownDrain,
        }
    }

    /// The direction and operation of a purpose; `None` for a purpose that belongs to no direction.
    pub const fn of(purpose: Purpose) -> Option<(Self, FlowOperation)> {
        Some(match purpose {
            Purpose::UpReceive => (Self::Up, FlowOperation::Receive),
            Purpose::UpReadable => (Self::Up, FlowOperation::Readable),
            Purpose::UpWritable => (Self::Up, FlowOperation::Writable),
            Purpose::UpHangup => (Self::Up, FlowOperation::Hangup),
            Purpose::UpFill => (Self::Up, FlowOperation::Fill),
            Purpose::UpDrain => (Self::Up, FlowOperation::Drain),
            Purpose::DownReceive => (Self::Down, FlowOperation::Receive),
            Purpose::DownReadable => (Self::Down, FlowOperation::Readable),
            Purpose::DownWritable => (Self::Down, FlowOperation::Writable),
            Purpose::DownHangup => (Self::Down, FlowOperation::Hangup),
            Purpose::DownFill => (Self::Down, FlowOperation::Fill),
            Purpose::DownDrain => (Self::Down, FlowOperation::Drain),
            Purpose::Head | Purpose::Connect | Purpose::TlsHandshake | Purpose::Cancel => return None,
        })
    }
}

impl FlowError {
    fn source(error: io::Error) -> Self {
        Self { end: FlowEnd::Source, error }
    }

    fn sink(error: io::Error) -> Self {
        Self { end: FlowEnd::Sink, error }
    }
}

/// The reset that a poll of a source has seen. It is polled while it is not read, so that a reset is passed on even if the
/// sink stalls.
fn reset_of(hangup: &Outcome) -> Result<(), FlowError> {
    match hangup.result > 0 && hangup.result & i32::from(libc::POLLERR) != 0 {
        true => Err(FlowError::source(errno(-libc::ECONNRESET))),
        false => Ok(()),
    }
}

/// Bytes that one tunnel may hold in the node's memory, both directions together, while its peers do not read.
pub const SESSION_BYTES_MAX: usize = 2 * SPILL_BYTES_MAX;
