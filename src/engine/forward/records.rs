//! The records path, for a tunnel with an end whose TLS records this process opens and seals.
//!
//! Bytes are received, opened, sealed and sent in the thread's scratch memory. Only bytes that a socket had no room
//! for are kept with the session.

use std::io;

use super::{Flow, FlowError, FlowSockets, Path};
use crate::engine::kernel::io::{Io, Taken, retrying};
use crate::engine::kernel::{Conveyor, Kernel};
use crate::engine::tls::scratch::RecordScratch;
use crate::engine::tls::stream::SendBuffer;
use crate::sys::ring::First;
use crate::wire::TlsError;

/// The state of a direction that opens or seals records.
#[derive(Default)]
pub(super) struct RecordsPath {
    /// Unsent bytes of a sink without TLS; a sink with TLS has a buffer of its own.
    unsent: SendBuffer,
    /// The source may have bytes; the worker decides when they move.
    pub wants_turn: bool,
}

/// The end of a visit.
enum RecordsProgress {
    /// The visit moved all that it may; the source may have more.
    Moved,
    SourceEmpty,
    SinkFull,
    /// The source has ended, and the sink got the end.
    Ended,
}

impl<P: Conveyor> Flow<P> {
    /// Starts the path as [`Flow::start`] does, with `early` bytes ahead of the source's.
    pub(super) fn start_records<K: Kernel<Pipe = P>>(
        &mut self,
        early: &[u8],
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        // The end may have arrived together with the head.
        self.source_ended = ends.source_transport.stream().is_some_and(|source| source.has_ended());
        let mut scratch = ends.scratch.take();
        let sent = self.send_plain(early, &mut scratch, ends, io);
        ends.scratch.put(scratch);
        sent?;
        self.pump_records(ends, io)
    }

    /// Moves bytes until the source has none, the sink has no room, or this visit has moved enough.
    pub(super) fn pump_records<K: Kernel<Pipe = P>>(
        &mut self,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        let mut scratch = ends.scratch.take();
        let step = self.move_records(&mut scratch, ends, io);
        ends.scratch.put(scratch);
        let step = step?;
        if let Path::Records(path) = &mut self.path {
            path.wants_turn = matches!(step, RecordsProgress::Moved);
        }
        match step {
            RecordsProgress::Moved => {}
            RecordsProgress::SourceEmpty => self.read(First::Wait, ends, io),
            RecordsProgress::SinkFull => self.wait_for_room(ends, io),
            RecordsProgress::Ended => return self.finish(ends, io),
        }
        Ok(())
    }

    fn move_records<K: Kernel<Pipe = P>>(
        &mut self,
        scratch: &mut RecordScratch,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<RecordsProgress, FlowError> {
        let visit_end = self.bytes + VISIT_BYTES;
        loop {
            if !self.flush(ends, io)? {
                return Ok(RecordsProgress::SinkFull);
            }
            if self.source_ended {
                return self.end_sink(scratch, ends, io);
            }
            if self.bytes >= visit_end {
                return Ok(RecordsProgress::Moved);
            }
            if !self.receive(scratch, ends, io)? {
                // The last bytes may still be unsent.
                return Ok(if self.flush(ends, io)? {
                    RecordsProgress::SourceEmpty
                } else {
                    RecordsProgress::SinkFull
                });
            }
        }
    }

    /// Moves the bytes of one receive. Returns true where the source may have more or has ended.
    fn receive<K: Kernel<Pipe = P>>(
        &mut self,
        scratch: &mut RecordScratch,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<bool, FlowError> {
        let mut incoming = std::mem::take(&mut scratch.incoming);
        let mut plain = std::mem::take(&mut scratch.plain);
        let moved = self.receive_into(&mut incoming, &mut plain, scratch, ends, io);
        plain.clear();
        (scratch.incoming, scratch.plain) = (incoming, plain);
        moved
    }

    fn receive_into<K: Kernel<Pipe = P>>(
        &mut self,
        incoming: &mut [u8],
        plain: &mut Vec<u8>,
        scratch: &mut RecordScratch,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<bool, FlowError> {
        let rest_bytes = match ends.source_transport.stream() {
            Some(source) => source.copy_rest(incoming).map_err(|error| FlowError::source(error.into()))?,
            None => 0,
        };
        let room = &mut incoming[rest_bytes..];
        let room_bytes = room.len();
        let received = match retrying(|| io.kernel.receive(ends.source, room)) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(false),
            Err(error) => return Err(FlowError::source(error)),
        };
        let Some(source) = ends.source_transport.stream() else {
            self.source_ended = received == 0;
            self.send_plain(&incoming[..received], scratch, ends, io)?;
            return Ok(self.source_ended || received == room_bytes);
        };
        if received == 0 {
            // Without a close_notify, the stream may have been cut off.
            return Err(FlowError::source(io::ErrorKind::UnexpectedEof.into()));
        }
        let opened = source.open(&mut incoming[..rest_bytes + received], plain);
        self.source_ended = source.has_ended();
        // Bytes that were opened before an error are genuine, so send them.
        self.send_plain(plain, scratch, ends, io)?;
        if let Err(error) = opened {
            return Err(self.send_alert(error, ends, io));
        }
        Ok(self.source_ended || received == room_bytes)
    }

    /// Sends `plain` on, sealed where the sink speaks TLS.
    fn send_plain<K: Kernel<Pipe = P>>(
        &mut self,
        plain: &[u8],
        scratch: &mut RecordScratch,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        if plain.is_empty() {
            return Ok(());
        }
        let taken = match ends.sink_transport.stream() {
            Some(sink) => {
                scratch.sealed.clear();
                sink.seal(plain, &mut scratch.sealed).map_err(sink_broken)?;
                let Taken { outcome, .. } =
                    sink.outgoing().send(scratch.sealed.bytes(), io.kernel, ends.sink);
                Taken { bytes: plain.len(), outcome }
            }
            None => {
                let Path::Records(path) = &mut self.path else { return Ok(()) };
                path.unsent.send(plain, io.kernel, ends.sink)
            }
        };
        self.count(taken.bytes, io.counters);
        taken.outcome.map_err(FlowError::sink)
    }

    /// Sends the kept bytes. Returns true where none are left.
    fn flush<K: Kernel<Pipe = P>>(
        &mut self,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<bool, FlowError> {
        if let Some(sink) = ends.sink_transport.stream() {
            // These bytes were counted when they were sealed.
            sink.outgoing().flush(io.kernel, ends.sink).outcome.map_err(FlowError::sink)?;
            return Ok(sink.outgoing().is_empty());
        }
        let Path::Records(path) = &mut self.path else { return Ok(true) };
        let taken = path.unsent.flush(io.kernel, ends.sink);
        let is_all = path.unsent.is_empty();
        self.count(taken.bytes, io.counters);
        taken.outcome.map_err(FlowError::sink)?;
        Ok(is_all)
    }

    fn end_sink<K: Kernel<Pipe = P>>(
        &mut self,
        scratch: &mut RecordScratch,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<RecordsProgress, FlowError> {
        if let Some(sink) = ends.sink_transport.stream() {
            scratch.sealed.clear();
            sink.end(&mut scratch.sealed).map_err(sink_broken)?;
            let taken = sink.outgoing().send(scratch.sealed.bytes(), io.kernel, ends.sink);
            taken.outcome.map_err(FlowError::sink)?;
            if !sink.outgoing().is_empty() {
                return Ok(RecordsProgress::SinkFull);
            }
        }
        Ok(RecordsProgress::Ended)
    }

    /// Sends the alert to a source whose records are invalid, as far as there is room. Returns the error of the flow.
    fn send_alert<K: Kernel<Pipe = P>>(
        &self,
        error: TlsError,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> FlowError {
        if let Some(source) = ends.source_transport.stream() {
            // The connection ends in any case.
            let _no_room = source.outgoing().flush(io.kernel, ends.source);
        }
        FlowError::source(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

fn sink_broken(error: TlsError) -> FlowError {
    FlowError::sink(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Bytes that one direction moves in one visit: about 50 µs of sealing.
const VISIT_BYTES: u64 = 64 * 1024;
