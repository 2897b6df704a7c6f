//! The splice path: bytes go from socket to pipe to socket inside the kernel.
//!
//! `auto` and `splice` call splice(2) directly once the ring reports that the source is readable. The pipe is filled
//! only when it is empty. So "would block" at the source always means that the source has nothing; the call itself
//! gives the same error for a full pipe. `ring-splice` uses the ring's own operation for both halves. A direction
//! holds a pipe only from the first byte in to the last byte out.

use std::io;

use super::{Flow, FlowError, FlowOperation, FlowSockets, Path};
use crate::config::Forwarding;
use crate::engine::kernel::io::{Io, errno, retrying};
use crate::engine::kernel::{Conveyor, Kernel, SocketOperation};
use crate::sys::ring::First;

/// The state of a direction that splices.
pub(super) struct SplicePath<P> {
    pipe: Option<P>,
    /// The ring fills or drains the pipe. How many bytes are in it is not known until that completes; if its session
    /// ends first, nobody learns it.
    is_pipe_in_flight: bool,
    /// Bytes that the flow had moved when its source last became readable.
    burst_began_at: u64,
    /// Bursts in a row that were too small to justify a pipe.
    quiet_in_a_row: u8,
    /// The source may have bytes; the worker decides when they move.
    wants_turn: bool,
}

/// The end of one round of filling and draining.
enum SpliceProgress {
    /// The pipe is empty; there may be more at the source.
    Moved,
    SourceEmpty,
    SourceEnded,
    SinkFull,
}

impl<P> SplicePath<P> {
    /// The path of a flow that has moved `bytes` so far.
    pub fn beginning_at(bytes: u64) -> Self {
        Self {
            pipe: None,
            is_pipe_in_flight: false,
            burst_began_at: bytes,
            quiet_in_a_row: 0,
            wants_turn: false,
        }
    }

    /// The path of a direction that comes from elsewhere, with a pipe that holds bytes of it.
    pub fn with_filled(pipe: P, bytes: u64) -> Self {
        Self { pipe: Some(pipe), ..Self::beginning_at(bytes) }
    }

    pub fn wants_turn(&self) -> bool {
        self.wants_turn
    }

    /// Gives the pipe back. One that the ring had when the session ended may hold bytes of this tunnel: it is closed.
    pub fn release<K: Kernel<Pipe = P>>(&mut self, kernel: &mut K) {
        match self.pipe.take() {
            Some(pipe) if self.is_pipe_in_flight => kernel.close_pipe(pipe),
            Some(pipe) => kernel.put_pipe(pipe),
            None => {}
        }
        self.is_pipe_in_flight = false;
    }

    /// The bytes in the pipe are to be moved on.
    pub fn go_on(&mut self) {
        self.wants_turn = true;
    }

    /// Takes the pipe back from the ring, whose operation on it has completed.
    fn take_from_ring(&mut self) -> Option<P> {
        self.is_pipe_in_flight = false;
        self.pipe.take()
    }
}

impl<P: Conveyor> SplicePath<P> {
    /// Bytes are in the pipe.
    pub fn is_filled(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| pipe.held_bytes() > 0)
    }

    /// Takes the pipe with the bytes in it. One without bytes goes back to the thread.
    pub fn take_filled<K: Kernel<Pipe = P>>(&mut self, kernel: &mut K) -> Option<P> {
        if !self.is_filled() {
            self.release(kernel);
        }
        self.pipe.take()
    }
}

impl<P: Conveyor> Flow<P> {
    /// The ring has filled the pipe of a direction that comes to rest.
    pub(super) fn absorb_filled<K: Kernel<Pipe = P>>(
        &mut self,
        result: i32,
        ends: &FlowSockets<'_, K>,
        io: &Io<'_, K>,
    ) -> Result<(), FlowError> {
        let Path::Splice(path) = &mut self.path else { return Ok(()) };
        path.is_pipe_in_flight = false;
        match result {
            0 => self.end_source(ends),
            filled @ 1.. => {
                if let Some(pipe) = &mut path.pipe {
                    pipe.record_filled(filled as usize);
                }
                Ok(())
            }
            error if is_retry(error) => Ok(()),
            error => self.on_source_error(errno(error), ends, io),
        }
    }

    /// The ring has drained the pipe of a direction that comes to rest, or part of it.
    pub(super) fn absorb_drained<K: Kernel<Pipe = P>>(
        &mut self,
        result: i32,
        io: &Io<'_, K>,
    ) -> Result<(), FlowError> {
        let Path::Splice(path) = &mut self.path else { return Ok(()) };
        path.is_pipe_in_flight = false;
        match result {
            drained @ 0.. => {
                if let Some(pipe) = &mut path.pipe {
                    pipe.record_drained(drained as usize);
                }
                self.count(drained as usize, io.counters);
                Ok(())
            }
            error if is_retry(error) => Ok(()),
            error => Err(FlowError::sink(errno(error))),
        }
    }

    /// The source has bytes, or the sink has room. The ring's own splice starts at once; an inline splice waits for
    /// its turn among the other streams.
    pub(super) fn on_ready<K: Kernel<Pipe = P>>(
        &mut self,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        if self.source_ended {
            return self.finish(ends, io);
        }
        if self.forwarding == Forwarding::RingSplice {
            return self.pump(ends, io);
        }
        if let Path::Splice(path) = &mut self.path {
            path.wants_turn = true;
        }
        Ok(())
    }

    /// Moves bytes until the source has none, the sink has no room, or this slice is used up.
    pub(super) fn pump<K: Kernel<Pipe = P>>(
        &mut self,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        let Path::Splice(path) = &mut self.path else { return Ok(()) };
        path.wants_turn = false;
        let Some(mut pipe) = path.pipe.take().or_else(|| io.kernel.take_pipe()) else {
            io.counters.pipes_exhausted.add(1);
            self.copy_instead(ends, io);
            return Ok(());
        };
        if self.forwarding == Forwarding::RingSplice {
            self.pump_by_ring(pipe, ends, io);
            return Ok(());
        }
        let slice_end = self.bytes + SLICE_BYTES;
        let step = loop {
            match self.move_once(&mut pipe, ends, io) {
                Ok(SpliceProgress::Moved) if self.bytes < slice_end => {}
                step => break step,
            }
        };
        self.after_pumping(step, pipe, ends, io)
    }

    /// The ring has filled the pipe.
    pub(super) fn on_filled<K: Kernel<Pipe = P>>(
        &mut self,
        result: i32,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        let Path::Splice(path) = &mut self.path else { return Ok(()) };
        let Some(mut pipe) = path.take_from_ring() else { return Ok(()) };
        let step = match result {
            0 => self.end_source(ends).map(|()| SpliceProgress::SourceEnded),
            filled @ 1.. => {
                pipe.record_filled(filled as usize);
                self.pump_by_ring(pipe, ends, io);
                return Ok(());
            }
            error if is_retry(error) => Ok(SpliceProgress::SourceEmpty),
            error => self.after_source_error(errno(error), ends, io),
        };
        self.after_pumping(step, pipe, ends, io)
    }

    /// The ring has drained the pipe, or part of it.
    pub(super) fn on_drained<K: Kernel<Pipe = P>>(
        &mut self,
        result: i32,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        let Path::Splice(path) = &mut self.path else { return Ok(()) };
        let Some(mut pipe) = path.take_from_ring() else { return Ok(()) };
        let step = match result {
            drained @ 0.. => {
                pipe.record_drained(drained as usize);
                self.count(drained as usize, io.counters);
                self.pump_by_ring(pipe, ends, io);
                return Ok(());
            }
            error if is_retry(error) => Ok(SpliceProgress::SinkFull),
            error => Err(FlowError::sink(errno(error))),
        };
        self.after_pumping(step, pipe, ends, io)
    }

    fn after_source_error<K: Kernel<Pipe = P>>(
        &mut self,
        error: io::Error,
        ends: &FlowSockets<'_, K>,
        io: &Io<'_, K>,
    ) -> Result<SpliceProgress, FlowError> {
        self.on_source_error(error, ends, io)?;
        Ok(if self.source_ended { SpliceProgress::SourceEnded } else { SpliceProgress::SourceEmpty })
    }

    /// Fills the pipe if it is empty, then drains it as far as the sink has room.
    fn move_once<K: Kernel<Pipe = P>>(
        &mut self,
        pipe: &mut P,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<SpliceProgress, FlowError> {
        if pipe.held_bytes() == 0 {
            match retrying(|| io.kernel.fill_pipe(pipe, ends.source)) {
                Ok(Some(0)) => return self.end_source(ends).map(|()| SpliceProgress::SourceEnded),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(SpliceProgress::SourceEmpty),
                Err(error) => return self.after_source_error(error, ends, io),
            }
        }
        while pipe.held_bytes() > 0 {
            match retrying(|| io.kernel.drain_pipe(pipe, ends.sink)) {
                // No bytes and no error would be no progress; wait for room as after "would block".
                Ok(None | Some(0)) => return Ok(SpliceProgress::SinkFull),
                Ok(Some(moved)) => self.count(moved, io.counters),
                Err(error) => return Err(FlowError::sink(error)),
            }
        }
        Ok(SpliceProgress::Moved)
    }

    /// Keeps the pipe where it holds bytes or is needed at once, and starts the next step.
    fn after_pumping<K: Kernel<Pipe = P>>(
        &mut self,
        step: Result<SpliceProgress, FlowError>,
        pipe: P,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        let Path::Splice(path) = &mut self.path else { return Ok(()) };
        path.pipe = Some(pipe);
        match step {
            Err(broken) => return Err(broken),
            Ok(SpliceProgress::Moved) => path.wants_turn = true,
            Ok(SpliceProgress::SinkFull) => self.wait_for_room(ends, io),
            Ok(SpliceProgress::SourceEnded) => {
                path.release(io.kernel);
                return self.finish(ends, io);
            }
            Ok(SpliceProgress::SourceEmpty) => {
                path.release(io.kernel);
                let burst_bytes = self.bytes - path.burst_began_at;
                path.quiet_in_a_row =
                    if burst_bytes < QUIET_BYTES { path.quiet_in_a_row.saturating_add(1) } else { 0 };
                path.burst_began_at = self.bytes;
                if self.forwarding == Forwarding::Auto && path.quiet_in_a_row >= QUIET_BURSTS_TO_COPY {
                    self.switch_to_copying();
                }
                self.read(First::Wait, ends, io);
            }
        }
        Ok(())
    }

    /// Submits the next half to the ring: drains the pipe where it holds bytes, else fills it.
    fn pump_by_ring<K: Kernel<Pipe = P>>(&mut self, pipe: P, ends: &FlowSockets<'_, K>, io: &mut Io<'_, K>) {
        let (half, operation) = if pipe.held_bytes() == 0 {
            (FlowOperation::Fill, SocketOperation::SpliceIn(ends.source, &pipe))
        } else {
            (FlowOperation::Drain, SocketOperation::SpliceOut(&pipe, ends.sink))
        };
        io.submit(self.direction.purpose(half), operation);
        if let Path::Splice(path) = &mut self.path {
            path.pipe = Some(pipe);
            path.is_pipe_in_flight = true;
        }
        if half == FlowOperation::Drain {
            // The ring waits for room by itself, however long.
            self.watch_source(ends, io);
        }
    }

    /// Copies, since every pipe is in use, until the traffic looks like a stream again.
    fn copy_instead<K: Kernel<Pipe = P>>(&mut self, ends: &FlowSockets<'_, K>, io: &mut Io<'_, K>) {
        self.switch_to_copying();
        self.read(First::Read, ends, io);
    }
}

/// True for results after which the ring's splice is repeated once the socket is ready.
fn is_retry(result: i32) -> bool {
    matches!(-result, libc::EAGAIN | libc::EINTR | libc::ECANCELED)
}

/// Bytes that one direction moves in one visit; a pipe that was filled is then still drained.
pub(in crate::engine) const SLICE_BYTES: u64 = 256 * 1024;

/// Bytes below which a burst is cheaper to copy.
const QUIET_BYTES: u64 = 8 * 1024;

/// Number of such small bursts in a row after which a direction copies again.
const QUIET_BURSTS_TO_COPY: u8 = 4;
