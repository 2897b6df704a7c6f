//! The copy path: bytes arrive in the thread's shared buffers and are sent on at once.
//!
//! A buffer goes back to the ring in the call in which it arrived, so a stalled tunnel never holds the thread's
//! buffers. Bytes that the sink has no room for go to the direction's own spill, and the receive is cancelled. A
//! receive ends by itself after a number of bytes, and the next one begins only when the spill is empty. So that
//! number bounds the spill, however late the cancellation takes effect.

use std::io;

use super::{Flow, FlowError, FlowOperation, FlowSockets, Path};
use crate::config::Forwarding;
use crate::engine::kernel::io::{Io, Outcome, Taken, errno, send_until_full};
use crate::engine::kernel::{Conveyor, Kernel};
use crate::sys::buffers::{BUFFER_BYTES, FilledBuffer};
use crate::sys::ring::{First, RECEIVE_BYTES_MAX};
use crate::telemetry::HotCounters;

/// Bytes that one direction may hold in our memory while its sink is full: as many as one receive delivers before
/// it ends by itself, and some buffers for the excess; or the early bytes after a head. If the kernel delivers
/// more, the tunnel ends, and the node goes on.
pub(super) const SPILL_BYTES_MAX: usize = RECEIVE_BYTES_MAX + 4 * BUFFER_BYTES;

/// The state of a direction that copies.
#[derive(Default)]
pub(super) struct CopyPath {
    /// The bytes that wait for room at the sink; `None` while the sink keeps up.
    spill: Option<Box<Spill>>,
    /// A measure of how much the traffic looks like a stream; see [`Self::measure`].
    streaming: u8,
    /// The direction changes to splicing once the receive has ended and the spill is sent.
    promote: bool,
    /// The receive in flight has been cancelled.
    receive_cancelled: bool,
}

/// Bytes that were received and not yet sent. Boxed in the path, since few tunnels ever have a spill and every
/// tunnel would have the space for one.
struct Spill {
    bytes: Vec<u8>,
    sent: usize,
}

impl CopyPath {
    /// The path for bytes that are in our memory already, whichever path `forwarding` sets.
    pub fn for_early_bytes(forwarding: Forwarding) -> Self {
        Self { promote: streams(forwarding, 0), ..Self::default() }
    }

    /// The path of a direction that comes from elsewhere with bytes which its sink had no room for.
    pub fn with_unsent(forwarding: Forwarding, bytes: Vec<u8>) -> Self {
        Self { spill: Some(Box::new(Spill { bytes, sent: 0 })), ..Self::for_early_bytes(forwarding) }
    }

    /// Takes the bytes that wait for room at the sink.
    pub fn take_unsent(&mut self) -> Option<Vec<u8>> {
        self.spill.take().map(|spill| spill.unsent().to_vec())
    }

    /// A receive was submitted.
    pub fn begin_receive(&mut self) {
        self.receive_cancelled = false;
    }

    /// Counts a full buffer as a sign of a stream and a partial one as a sign against it. A single partial buffer
    /// does not decide: segments of a stream need not be multiples of a buffer. Those of loopback are fifteen
    /// buffers and a part.
    fn measure(&mut self, len: usize) {
        self.streaming = if len == BUFFER_BYTES {
            self.streaming.saturating_add(1)
        } else {
            self.streaming.saturating_sub(PART_AGAINST)
        };
    }

    /// Appends bytes that the sink had no room for.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), FlowError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let spill = self.spill.get_or_insert_with(Spill::with_room);
        if spill.unsent().len() + bytes.len() > SPILL_BYTES_MAX {
            return Err(FlowError::sink(io::ErrorKind::OutOfMemory.into()));
        }
        spill.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn is_spilled(&self) -> bool {
        self.spill.is_some()
    }
}

impl Spill {
    /// Allocates the whole spill at once: growing it step by step would fragment the memory.
    fn with_room() -> Box<Self> {
        Box::new(Self { bytes: Vec::with_capacity(SPILL_BYTES_MAX), sent: 0 })
    }

    fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }
}

impl<P: Conveyor> Flow<P> {
    pub(super) fn on_received<K: Kernel<Pipe = P>>(
        &mut self,
        outcome: Outcome,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        match (outcome.result, outcome.buffer) {
            (len @ 1.., Some(buffer)) => self.forward_buffer(buffer, len as usize, ends, io)?,
            (0.., _) => self.end_source(ends)?,
            (error, _) => match -error {
                // All buffers were filled in one batch. They go back before this turn ends, so the receive is
                // repeated; the scheduler submits it among the first.
                libc::ENOBUFS => io.counters.buffers_exhausted.add(1),
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
                _ => self.on_source_error(errno(error), ends, io)?,
            },
        }
        self.after_copying(ends, io)
    }

    /// The sink has room again.
    pub(super) fn on_room<K: Kernel<Pipe = P>>(
        &mut self,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        let Path::Copy(path) = &mut self.path else { return Ok(()) };
        if let Some(mut spill) = path.spill.take() {
            spill.sent += self.send_on(spill.unsent(), ends, io)?;
            if let Path::Copy(path) = &mut self.path
                && !spill.unsent().is_empty()
            {
                path.spill = Some(spill);
            }
        }
        self.after_copying(ends, io)
    }

    /// Sends `bytes` on, and keeps those that the sink has no room for.
    pub(super) fn forward_bytes<K: Kernel<Pipe = P>>(
        &mut self,
        bytes: &[u8],
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        let spilled = matches!(&self.path, Path::Copy(path) if path.is_spilled());
        let sent = if spilled { 0 } else { self.send_on(bytes, ends, io)? };
        if let Path::Copy(path) = &mut self.path {
            path.keep(&bytes[sent..])?;
        }
        Ok(())
    }

    /// Does the next step after bytes were sent or kept: waits for room, passes the end on, changes the path, or
    /// receives again.
    pub(super) fn after_copying<K: Kernel<Pipe = P>>(
        &mut self,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        let Path::Copy(path) = &self.path else { return Ok(()) };
        let receive = self.direction.purpose(FlowOperation::Receive);
        if path.is_spilled() {
            self.wait_for_room(ends, io);
            self.stop_receiving(io);
        } else if self.source_ended {
            return self.finish(ends, io);
        } else if path.promote {
            if io.in_flight.has(receive) {
                self.stop_receiving(io);
            } else {
                if self.forwarding == Forwarding::Auto {
                    io.counters.promotions.add(1);
                }
                self.switch_to_splicing();
                self.read(First::Read, ends, io);
            }
        } else if !io.in_flight.has(receive) {
            self.read(First::Read, ends, io);
        }
        Ok(())
    }

    pub(super) fn forward_buffer<K: Kernel<Pipe = P>>(
        &mut self,
        buffer: FilledBuffer,
        len: usize,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        let bytes = io.kernel.received(&buffer, len);
        let kept = self.forward_received(bytes, ends, io.kernel, io.counters);
        io.kernel.give_back(buffer);
        kept
    }

    /// Sends the bytes of a buffer on or keeps them, and updates the measure of a stream.
    fn forward_received<K: Kernel<Pipe = P>>(
        &mut self,
        bytes: &[u8],
        ends: &FlowSockets<'_, K>,
        kernel: &K,
        counters: &HotCounters,
    ) -> Result<(), FlowError> {
        let Path::Copy(path) = &mut self.path else { return Ok(()) };
        path.measure(bytes.len());
        path.promote |= streams(self.forwarding, path.streaming);
        if path.is_spilled() {
            return path.keep(bytes);
        }
        let Taken { bytes: sent, outcome } = send_until_full(kernel, ends.sink, bytes);
        self.count(sent, counters);
        outcome.map_err(FlowError::sink)?;
        if let Path::Copy(path) = &mut self.path { path.keep(&bytes[sent..]) } else { Ok(()) }
    }

    fn send_on<K: Kernel<Pipe = P>>(
        &mut self,
        bytes: &[u8],
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<usize, FlowError> {
        let Taken { bytes: sent, outcome } = send_until_full(io.kernel, ends.sink, bytes);
        self.count(sent, io.counters);
        outcome.map_err(FlowError::sink)?;
        Ok(sent)
    }

    /// Cancels the receive that is in flight, once.
    fn stop_receiving<K: Kernel<Pipe = P>>(&mut self, io: &mut Io<'_, K>) {
        let receive = self.direction.purpose(FlowOperation::Receive);
        if let Path::Copy(path) = &mut self.path
            && !path.receive_cancelled
            && io.in_flight.has(receive)
        {
            path.receive_cancelled = true;
            io.cancel(receive);
        }
    }
}

/// True where a direction with this measure of a stream is to be spliced. Where splicing is forced, only early
/// bytes are copied.
fn streams(forwarding: Forwarding, streaming: u8) -> bool {
    match forwarding {
        Forwarding::Auto => streaming >= STREAMING_TO_PROMOTE,
        Forwarding::Copy => false,
        Forwarding::Splice | Forwarding::RingSplice => true,
    }
}

/// Full buffers that make a stream: 64 KiB with hardly a pause.
const STREAMING_TO_PROMOTE: u8 = 16;

/// Number of full buffers that one partial buffer cancels out.
const PART_AGAINST: u8 = 4;
