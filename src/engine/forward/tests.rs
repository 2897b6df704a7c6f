//! One direction against a simulated kernel: all bytes arrive, in order, whatever the kernel does.

use proptest::prelude::*;

use super::*;
use crate::engine::kernel::simulated::{SimulatedKernel, Socket};
use crate::engine::user_data::{InFlight, Slot};
use crate::sys::kernel_tls::Record;

/// A flow with its two ends and a simulated kernel.
struct FlowBench {
    flow: Flow<<SimulatedKernel as Kernel>::Pipe>,
    kernel: SimulatedKernel,
    in_flight: InFlight,
    counters: HotCounters,
    source: Socket,
    sink: Socket,
    scratch: ScratchMemory,
    /// The kernel opens and seals the records of both ends.
    by_kernel_tls: bool,
}

impl FlowBench {
    fn new(forwarding: Forwarding, seed: u64) -> Self {
        Self {
            flow: Flow::new(Direction::Up, forwarding),
            kernel: SimulatedKernel::new(seed),
            in_flight: InFlight::default(),
            counters: HotCounters::default(),
            source: Socket::default(),
            sink: Socket::default(),
            scratch: ScratchMemory::default(),
            by_kernel_tls: false,
        }
    }

    fn act(
        &mut self,
        act: impl FnOnce(
            &mut Flow<<SimulatedKernel as Kernel>::Pipe>,
            &mut FlowSockets<'_, SimulatedKernel>,
            &mut Io<'_, SimulatedKernel>,
        ) -> Result<(), FlowError>,
    ) -> Result<(), FlowError> {
        let transport = || if self.by_kernel_tls { Transport::KernelTls } else { Transport::Plain };
        let (mut source_transport, mut sink_transport) = (transport(), transport());
        let mut ends = FlowSockets {
            source: &self.source,
            sink: &self.sink,
            source_transport: &mut source_transport,
            sink_transport: &mut sink_transport,
            scratch: &mut self.scratch,
            is_last: false,
        };
        let mut io = Io {
            kernel: &mut self.kernel,
            slot: Slot(0),
            in_flight: &mut self.in_flight,
            counters: &self.counters,
        };
        act(&mut self.flow, &mut ends, &mut io)
    }

    fn start(&mut self, early: &[u8]) -> Result<(), FlowError> {
        self.act(|flow, ends, io| flow.start(early, ends, io))
    }

    /// Has the flow come to rest, captures it, and goes on with what was captured.
    fn move_elsewhere(&mut self) -> Result<(), FlowError> {
        let purposes: Vec<Purpose> = self.in_flight.iter().collect();
        self.act(|_, _, io| {
            purposes.into_iter().for_each(|purpose| io.cancel(purpose));
            Ok(())
        })?;
        while !self.in_flight.is_empty() {
            let (purpose, outcome) = self.kernel.step().expect("what is in flight completes");
            if !outcome.more {
                self.in_flight.end(purpose);
            }
            if let Some((_, operation)) = Direction::of(purpose) {
                self.act(|flow, ends, io| flow.absorb(operation, outcome, ends, io))?;
            }
            assert!(self.in_flight.iter().all(|each| each != Purpose::Cancel));
        }
        let captured = self.flow.capture(&mut self.kernel);
        assert_eq!(self.kernel.pipes_left, 2, "the pipe is the next owner's");
        let forwarding = self.flow.forwarding;
        self.flow = Flow::of_captured(Direction::Up, forwarding, captured, &mut self.kernel);
        self.act(|flow, ends, io| flow.go_on(ends, io))
    }

    /// Performs one step. Returns whether there was one.
    fn step(&mut self) -> Result<bool, FlowError> {
        if self.flow.wants_turn() {
            self.act(|flow, ends, io| flow.resume(ends, io))?;
            return Ok(true);
        }
        let Some((purpose, outcome)) = self.kernel.step() else { return Ok(false) };
        if !outcome.more {
            self.in_flight.end(purpose);
        }
        if let Some((_, operation)) = Direction::of(purpose) {
            self.act(|flow, ends, io| flow.complete(operation, outcome, ends, io))?;
        }
        Ok(true)
    }
}

fn forwardings() -> impl Strategy<Value = Forwarding> {
    prop::sample::select(FORWARDINGS)
}

const FORWARDINGS: &[Forwarding] =
    &[Forwarding::Auto, Forwarding::Copy, Forwarding::Splice, Forwarding::RingSplice];

const NEW_SESSION_TICKET: Record = Record::Handshake(4);
const CLOSE_NOTIFY: Record = Record::Alert(0);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_byte_arrives_once_and_in_order(
        forwarding in forwardings(),
        seed in any::<u64>(),
        by_kernel_tls in any::<bool>(),
        moves in any::<bool>(),
        early in prop::collection::vec(any::<u8>(), 0..300),
        pieces in prop::collection::vec((1usize..200_000, 0usize..60_000), 1..12),
    ) {
        let mut bench = FlowBench { by_kernel_tls, ..FlowBench::new(forwarding, seed) };
        let mut expected = early.clone();
        bench.sink.state().room.set(bench.kernel.roll(400));
        bench.start(&early).unwrap();
        for (sent, room) in pieces {
            // Repeats after 256 bytes. Computing each byte of each piece would take longer than the test.
            let period: Vec<u8> = (0..256).map(|at| (at ^ expected.len()) as u8).collect();
            let mut piece = period.repeat(sent.div_ceil(period.len()));
            piece.truncate(sent);
            expected.extend_from_slice(&piece);
            bench.source.state().incoming.borrow_mut().extend(&piece);
            if by_kernel_tls && bench.kernel.roll(2) == 0 {
                bench.source.state().record.set(Some(NEW_SESSION_TICKET));
            }
            // Room comes in small amounts, so that kept bytes are sent in several parts.
            for _ in 0..bench.kernel.roll(60) {
                let dribble = bench.kernel.roll(1 + room / 16);
                bench.sink.state().room.set(bench.sink.state().room.get() + dribble);
                bench.step().unwrap();
                if moves && bench.kernel.roll(8) == 0 {
                    bench.move_elsewhere().unwrap();
                }
            }
        }
        prop_assert!(!bench.sink.state().shut.get(), "no FIN before the source's");
        let (source, sink) = (bench.source.clone(), bench.sink.clone());
        sink.state().room.set(0);
        let mut steps = 0;
        while !bench.flow.is_finished() {
            if by_kernel_tls && source.state().record.get().is_none() && steps < 10_000 {
                source.state().record.set(Some(CLOSE_NOTIFY));
            }
            source.state().peer_ended.set(!by_kernel_tls);
            if moves && bench.kernel.roll(8) == 0 {
                bench.move_elsewhere().unwrap();
                if bench.flow.is_finished() {
                    break;
                }
            }
            if !bench.step().unwrap() {
                prop_assert_eq!(sink.state().room.get(), 0, "nothing can happen any more, and the flow is not done");
                // Sometimes only the end finds no room.
                let left = expected.len() - sink.state().sent.borrow().len();
                sink.state().room.set(left.max(1));
            }
            steps += 1;
            prop_assert!(steps < 100_000, "the flow makes no progress");
        }
        prop_assert!(*bench.sink.state().sent.borrow() == expected, "the bytes changed on their way");
        prop_assert_eq!(bench.flow.bytes, expected.len() as u64);
        prop_assert!(bench.sink.state().shut.get());
        prop_assert_eq!(bench.sink.state().close_notify_sent.get(), by_kernel_tls);
        prop_assert_eq!(bench.kernel.buffers_out(), 0);
        bench.flow.release(&mut bench.kernel);
        prop_assert_eq!(bench.kernel.pipes_left, 2, "every pipe is back");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// The kernel checks that a pipe which counts as clean is empty.
    #[test]
    fn no_pipe_goes_back_with_bytes_of_a_tunnel_that_ended_at_any_moment(
        forwarding in forwardings(),
        seed in any::<u64>(),
        steps in 0usize..40,
    ) {
        let mut bench = FlowBench::new(forwarding, seed);
        bench.sink.state().room.set(bench.kernel.roll(100_000));
        bench.start(&[]).unwrap();
        bench.source.state().incoming.borrow_mut().extend(vec![1; 300_000]);
        for _ in 0..steps {
            bench.step().unwrap();
        }
        // The session has ended. What was in flight completes, and the flow does not hear of it.
        while let Some((purpose, outcome)) = bench.kernel.step() {
            if let Some(buffer) = outcome.buffer {
                bench.kernel.give_back(buffer);
            }
            if !outcome.more {
                bench.in_flight.end(purpose);
            }
        }
        bench.flow.release(&mut bench.kernel);
        prop_assert_eq!(bench.kernel.pipes_left, 2, "every pipe is back or closed");
    }
}

#[test]
fn a_tls_source_that_ends_without_close_notify_is_cut_off() {
    for forwarding in [Forwarding::Copy, Forwarding::Splice, Forwarding::RingSplice] {
        let mut bench = FlowBench { by_kernel_tls: true, ..FlowBench::new(forwarding, 5) };
        bench.sink.state().room.set(usize::MAX / 2);
        bench.start(&[]).unwrap();
        bench.source.state().incoming.borrow_mut().extend([1; 10]);
        bench.source.state().peer_ended.set(true);
        let broken = (0..100).find_map(|_| bench.step().err()).unwrap();
        assert_eq!((broken.end, broken.error.kind()), (FlowEnd::Source, io::ErrorKind::UnexpectedEof));
        assert_eq!(bench.sink.state().sent.borrow().len(), 10, "the sink got the bytes that had arrived");
        assert!(!bench.sink.state().close_notify_sent.get() && !bench.sink.state().shut.get());
    }
}

#[test]
fn a_record_that_ends_a_tls_connection_gives_the_reason() {
    let records = [
        (Record::Alert(80), "the peer sent alert 80"),
        (Record::Handshake(24), "the peer changed its keys, which the kernel does not follow"),
        (Record::Handshake(1), "a record that does not belong there"),
        (Record::Other, "a record that does not belong there"),
    ];
    for (forwarding, (record, reason)) in FORWARDINGS.iter().copied().cycle().zip(records.repeat(4)) {
        let mut bench = FlowBench { by_kernel_tls: true, ..FlowBench::new(forwarding, 5) };
        bench.sink.state().room.set(usize::MAX / 2);
        bench.start(&[]).unwrap();
        bench.source.state().record.set(Some(record));
        let broken = (0..100).find_map(|_| bench.step().err()).unwrap();
        assert_eq!((broken.end, broken.error.kind()), (FlowEnd::Source, io::ErrorKind::InvalidData));
        assert_eq!(broken.error.to_string(), reason);
    }
}

#[test]
fn a_record_that_does_not_open_differs_from_a_lost_connection() {
    for (errno, kind) in
        [(libc::EBADMSG, io::ErrorKind::InvalidData), (libc::ECONNRESET, io::ErrorKind::ConnectionReset)]
    {
        let mut bench = FlowBench { by_kernel_tls: true, ..FlowBench::new(Forwarding::Splice, 5) };
        bench.start(&[]).unwrap();
        bench.source.state().broken.set(Some(errno));
        let broken = (0..100).find_map(|_| bench.step().err()).unwrap();
        assert_eq!((broken.end, broken.error.kind()), (FlowEnd::Source, kind));
    }
}

#[test]
fn a_stalled_copy_gives_its_buffers_back_and_stops_receiving() {
    let mut bench = FlowBench::new(Forwarding::Copy, 7);
    bench.start(&[]).unwrap();
    bench.source.state().incoming.borrow_mut().extend([1; 100_000]);
    for _ in 0..200 {
        bench.step().unwrap();
    }
    assert_eq!(bench.kernel.buffers_out(), 0);
    assert!(bench.kernel.pending.iter().all(|pending| pending.purpose != Purpose::UpReceive));
    assert!(bench.kernel.pending.iter().any(|pending| pending.purpose == Purpose::UpWritable));
    assert!(!bench.source.state().incoming.borrow().is_empty(), "the rest waits at the source");
}

#[test]
fn a_stream_is_promoted_whatever_the_size_of_its_segments() {
    // The buffers of loopback's largest segment, and of two Ethernet segments.
    for segment in [[4096; 15].iter().chain(&[4043]).copied().collect::<Vec<_>>(), vec![2896]] {
        let mut bench = FlowBench::new(Forwarding::Auto, 7);
        bench.sink.state().room.set(usize::MAX / 2);
        bench.start(&[]).unwrap();
        let is_stream = segment.contains(&4096);
        for &len in segment.iter().cycle().take(100) {
            bench.source.state().incoming.borrow_mut().extend(vec![1; len]);
            let buffer = bench.kernel.deliver(&bench.source.clone());
            let outcome = Outcome { result: len as i32, more: true, buffer: Some(buffer) };
            bench.act(|flow, ends, io| flow.complete(FlowOperation::Receive, outcome, ends, io)).unwrap();
        }
        // The path changes once the receive in flight has ended.
        bench.in_flight.end(Purpose::UpReceive);
        bench.kernel.pending.clear();
        let ended = Outcome { result: -libc::ECANCELED, more: false, buffer: None };
        bench.act(|flow, ends, io| flow.complete(FlowOperation::Receive, ended, ends, io)).unwrap();
        let is_promoted = matches!(bench.flow.path, Path::Splice(_));
        assert_eq!(is_promoted, is_stream, "{segment:?}");
    }
}

#[test]
fn a_reset_of_a_source_that_is_not_read_is_noticed() {
    let mut bench = FlowBench::new(Forwarding::Copy, 7);
    bench.start(b"the sink has no room for this").unwrap();
    let error = Outcome { result: i32::from(libc::POLLERR | libc::POLLHUP), more: false, buffer: None };
    let broken =
        bench.act(|flow, ends, io| flow.complete(FlowOperation::Hangup, error, ends, io)).unwrap_err();
    assert_eq!((broken.end, broken.error.raw_os_error()), (FlowEnd::Source, Some(libc::ECONNRESET)));
}

#[test]
fn a_broken_sink_is_distinguished_from_a_broken_source() {
    for (forwarding, errno) in [(Forwarding::Copy, libc::EPIPE), (Forwarding::Splice, libc::ECONNRESET)] {
        let mut bench = FlowBench::new(forwarding, 3);
        bench.start(&[]).unwrap();
        bench.source.state().incoming.borrow_mut().extend([1; 10]);
        bench.sink.state().broken.set(Some(errno));
        let broken = (0..100).find_map(|_| bench.step().err()).unwrap();
        assert_eq!((broken.end, broken.error.raw_os_error()), (FlowEnd::Sink, Some(errno)));
        assert_eq!(bench.kernel.buffers_out(), 0);
    }
}

#[test]
fn a_kernel_that_never_stops_delivering_breaks_the_tunnel_at_the_spills_bound() {
    let mut bench = FlowBench::new(Forwarding::Copy, 7);
    bench.start(&[1]).unwrap();
    bench.source.state().incoming.borrow_mut().extend(vec![1; 1_000_000]);
    let held = |bench: &FlowBench| 1_000_001 - bench.source.state().incoming.borrow().len();
    let broken = loop {
        // A cancelled receive that still delivers, again and again.
        let buffer = bench.kernel.deliver(&bench.source.clone());
        let outcome = Outcome { result: 4096, more: true, buffer: Some(buffer) };
        if let Err(broken) =
            bench.act(|flow, ends, io| flow.complete(FlowOperation::Receive, outcome, ends, io))
        {
            break broken;
        }
    };
    assert_eq!(broken.error.kind(), io::ErrorKind::OutOfMemory);
    assert_eq!(held(&bench).div_ceil(4096), 32 + 4 + 1);
    assert_eq!(bench.kernel.buffers_out(), 0);
}
