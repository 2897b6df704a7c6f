//! A direction that comes to rest, is captured, and goes on: in another process, or here where that fails.
//!
//! At rest nothing of it is in flight. Bytes that arrive until then are sent or kept, and nothing is submitted.

use super::copy::CopyPath;
use super::splice::SplicePath;
use super::{Direction, Flow, FlowError, FlowOperation, FlowSockets, Path, reset_of};
use crate::config::Forwarding;
use crate::engine::kernel::io::{Io, Outcome, errno};
use crate::engine::kernel::{Conveyor, Kernel};
use crate::engine::moved_tunnel::{MovedFlow, Unsent};

impl<P: Conveyor> Flow<P> {
    /// Handles the completion of an operation of a direction that comes to rest: as [`Flow::complete`], but submits
    /// nothing.
    pub fn absorb<K: Kernel<Pipe = P>>(
        &mut self,
        operation: FlowOperation,
        outcome: Outcome,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        match operation {
            // Of these, the next owner polls again.
            FlowOperation::Hangup => reset_of(&outcome),
            FlowOperation::Readable | FlowOperation::Writable => Ok(()),
            _ if self.finished => Ok(()),
            FlowOperation::Receive => self.absorb_received(outcome, ends, io),
            FlowOperation::Fill => self.absorb_filled(outcome.result, ends, io),
            FlowOperation::Drain => self.absorb_drained(outcome.result, io),
        }
    }

    /// Takes what is left of a direction at rest.
    pub fn capture<K: Kernel<Pipe = P>>(&mut self, kernel: &mut K) -> MovedFlow<P> {
        let unsent = match &mut self.path {
            Path::Copy(path) => path.take_unsent().map_or(Unsent::Nothing, Unsent::Bytes),
            Path::Splice(path) => match path.take_filled(kernel) {
                Some(pipe) => {
                    kernel.pipe_leaves();
                    Unsent::Pipe(pipe)
                }
                None => Unsent::Nothing,
            },
            // Directions with records do not move.
            Path::Records(_) => Unsent::Nothing,
        };
        MovedFlow { bytes: self.bytes, source_ended: self.source_ended, finished: self.finished, unsent }
    }

    /// Makes the direction that [`Flow::capture`] took, at rest. `forwarding` is the path from here on.
    pub fn of_captured<K: Kernel<Pipe = P>>(
        direction: Direction,
        forwarding: Forwarding,
        captured: MovedFlow<P>,
        kernel: &mut K,
    ) -> Self {
        let MovedFlow { bytes, source_ended, finished, unsent } = captured;
        let path = match unsent {
            Unsent::Nothing => None,
            Unsent::Bytes(unsent) => Some(Path::Copy(CopyPath::with_unsent(forwarding, unsent))),
            Unsent::Pipe(pipe) => {
                kernel.pipe_comes();
                Some(Path::Splice(SplicePath::with_filled(pipe, bytes)))
            }
        };
        let flow = Self::new(direction, forwarding);
        Self { path: path.unwrap_or(flow.path), bytes, source_ended, finished, ..flow }
    }

    /// Goes on from rest. Some of it is left to [`Flow::resume`].
    pub fn go_on<K: Kernel<Pipe = P>>(
        &mut self,
        ends: &mut FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        match &mut self.path {
            _ if self.finished => Ok(()),
            Path::Copy(_) => self.on_room(ends, io),
            Path::Splice(path) if path.is_filled() => {
                path.go_on();
                Ok(())
            }
            Path::Splice(_) => self.on_ready(ends, io),
            Path::Records(_) => self.resume(ends, io),
        }
    }

    fn absorb_received<K: Kernel<Pipe = P>>(
        &mut self,
        outcome: Outcome,
        ends: &FlowSockets<'_, K>,
        io: &mut Io<'_, K>,
    ) -> Result<(), FlowError> {
        match (outcome.result, outcome.buffer) {
            (len @ 1.., Some(buffer)) => self.forward_buffer(buffer, len as usize, ends, io),
            (0.., _) => self.end_source(ends),
            (error, _) => match -error {
                libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN => Ok(()),
                _ => self.on_source_error(errno(error), ends, io),
            },
        }
    }
}
