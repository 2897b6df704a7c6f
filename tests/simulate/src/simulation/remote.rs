//! The remote end of a connection: what a client or a device sends, how it reads, and how it ends.

use super::connection::{Closed, Connection, Progress, Side, take_front};
use super::content::Content;
use super::plan::Plan;
use super::tape::Tape;
use super::tls::TlsEnd;

/// See the module.
pub struct Remote {
    /// A client's request; a device has none.
    pub head: Vec<u8>,
    pub head_sent: usize,
    pub content: Content,
    /// Bytes of the content that it means to send, and has sent.
    pub total: u64,
    pub sent: u64,
    /// Bytes follow the head before the reply is there.
    pub is_early: bool,
    end: End,
    /// Bytes that it sends before it resets, closes or goes silent.
    end_at: u64,
    /// It has sent its FIN, by a half-close or a close.
    pub has_ended: bool,
    pub has_reset: bool,
    /// It reads and sends no more, but its machine answers.
    pub has_closed: bool,
    /// Its machine is gone, since this time.
    pub silent_since_us: Option<u64>,
    /// The client's reply, up to the empty line.
    reply: Vec<u8>,
    pub status: Option<u16>,
    /// The content that it expects, and its bytes so far.
    expected: Content,
    pub got: u64,
    pub saw_fin: bool,
    pub saw_reset: bool,
    reading: Reading,
    /// A pause that it begins now.
    pause_us: u64,
    not_before_us: u64,
    /// A client's TLS.
    pub tls: Option<Box<TlsEnd>>,
}

/// The way in which a remote end ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// A FIN behind the last byte.
    Fin,
    /// The same, once the other side's has come.
    FinAfterOther,
    Reset,
    /// It closes, whatever it has not read.
    Close,
    Silence,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    AtOnce,
    /// Little at a time, with pauses.
    Slowly,
    /// Only after a long time.
    Late,
}

/// What an act of a remote end has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acted {
    Nothing,
    Something,
    /// The FIN of the relay was read.
    SawFin,
    /// Bytes came that are not the other side's.
    Corrupt,
}

impl Remote {
    pub fn draw(side: Side, tunnel: usize, head: Vec<u8>, plan: &Plan, tape: &mut Tape) -> Self {
        let total = match tape.roll(8) {
            0 => tape.roll(200),
            1..=3 => tape.roll(3_000),
            4 | 5 => tape.roll(40_000),
            6 => tape.roll(150_000),
            _ => 100_000 + tape.roll(400_000),
        } as u64;
        let is_whole = !tape.chance(plan.reset_times);
        let is_silent = tape.chance(plan.silence_times);
        let end = match (is_whole, is_silent) {
            (false, _) => [End::Reset, End::Close][tape.roll(2)],
            (_, true) => End::Silence,
            _ => [End::Fin, End::FinAfterOther][tape.roll(2)],
        };
        let reading = match tape.roll(12) {
            0..=8 => Reading::AtOnce,
            9 | 10 => Reading::Slowly,
            _ => Reading::Late,
        };
        let (up, down) = (Content::new(2 * tunnel), Content::new(2 * tunnel + 1));
        let (content, expected) = if side == Side::Client { (up, down) } else { (down, up) };
        Self {
            head,
            head_sent: 0,
            content,
            total,
            sent: 0,
            is_early: side == Side::Device || tape.roll(2) == 1,
            end,
            end_at: if total == 0 { 0 } else { tape.roll(total as usize) as u64 },
            has_ended: false,
            has_reset: false,
            has_closed: false,
            silent_since_us: None,
            reply: Vec::new(),
            status: None,
            expected,
            got: 0,
            saw_fin: false,
            saw_reset: false,
            reading,
            pause_us: 0,
            not_before_us: 0,
            tls: (side == Side::Client && plan.has_tls).then(|| Box::new(TlsEnd::new())),
        }
    }

    /// Nothing will come of it any more.
    pub fn is_over(&self) -> bool {
        let has_sent_end = match &self.tls {
            Some(tls) => self.has_closed || (self.has_ended && tls.outbox.is_empty()),
            None => self.has_ended,
        };
        self.silent_since_us.is_some() || self.has_reset || self.saw_reset || (self.saw_fin && has_sent_end)
    }

    /// Time before which it does nothing.
    pub fn not_before_us(&self) -> u64 {
        self.not_before_us
    }

    /// It has sent, with this FIN, all that it ever sends.
    pub fn has_sent_all(&self) -> bool {
        self.has_ended
    }

    fn is_open(&self, side: Side) -> bool {
        side == Side::Device || self.status == Some(200)
    }

    /// The client was refused, and has nothing to send any more.
    fn is_refused(&self, side: Side) -> bool {
        side == Side::Client && self.status.is_some_and(|status| status != 200)
    }

    /// Bytes of the content that are sent before it ends.
    fn wanted(&self) -> u64 {
        match self.end {
            End::Reset | End::Close | End::Silence => self.end_at,
            End::Fin | End::FinAfterOther => self.total,
        }
    }
}

impl Connection {
    /// Lets the remote end do one thing.
    pub fn remote_acts(&mut self, now_us: u64, tape: &mut Tape) -> Acted {
        if self.remote.is_over() || self.remote.not_before_us > now_us {
            return Acted::Nothing;
        }
        let first = tape.roll(2);
        let acted = if first == 0 { self.remote_reads(tape) } else { self.remote_sends(now_us, tape) };
        let acted = match acted {
            Acted::Nothing if first == 0 => self.remote_sends(now_us, tape),
            Acted::Nothing => self.remote_reads(tape),
            acted => acted,
        };
        if acted != Acted::Nothing {
            let pause_us = match (tape.roll(32), self.remote.reading) {
                (30, _) => tape.roll(20_000),
                (31, _) => tape.roll(400_000),
                (_, Reading::Slowly) => tape.roll(100_000),
                _ => 0,
            };
            self.remote.not_before_us = now_us + pause_us as u64 + std::mem::take(&mut self.remote.pause_us);
        }
        acted
    }

    fn remote_reads(&mut self, tape: &mut Tape) -> Acted {
        let side = self.side;
        if self.remote.has_closed {
            if self.sent.is_empty() {
                return self.see_end();
            }
            // Nobody reads: the machine answers with a reset.
            self.sent.clear();
            self.remote_resets(tape);
            return Acted::Something;
        }
        if self.sent.is_empty() {
            return self.see_end();
        }
        let most = match self.remote.reading {
            Reading::AtOnce => tape.most_of(self.sent.len()),
            Reading::Slowly => 1 + tape.roll(self.sent.len().min(2_000)),
            Reading::Late => {
                self.remote.reading = Reading::AtOnce;
                self.remote.pause_us = 1 + tape.roll(40_000_000) as u64;
                return Acted::Something;
            }
        };
        let mut bytes = take_front(&mut self.sent, most);
        let remote = &mut self.remote;
        let mut has_seen_end = false;
        if let Some(tls) = &mut remote.tls {
            let had_seen_end = tls.has_seen_end();
            bytes = tls.receive(&bytes);
            has_seen_end = tls.has_seen_end() && !had_seen_end;
            if tls.has_failed() {
                return Acted::Corrupt;
            }
        }
        let mut payload = &bytes[..];
        if side == Side::Client && remote.status.is_none() {
            remote.reply.extend_from_slice(&bytes);
            let Some(end) = remote.reply.windows(4).position(|four| four == b"\r\n\r\n") else {
                return self.saw(has_seen_end);
            };
            let head_bytes = end + 4;
            let before = remote.reply.len() - bytes.len();
            payload = &bytes[head_bytes - before..];
            remote.reply.truncate(head_bytes);
            let text = String::from_utf8_lossy(&remote.reply);
            remote.status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        }
        if remote.is_refused(side) {
            // The rest is for a person.
            return self.saw(has_seen_end);
        }
        if !remote.expected.matches(remote.got, payload) {
            return Acted::Corrupt;
        }
        remote.got += payload.len() as u64;
        self.saw(has_seen_end)
    }

    /// The end of a stream by TLS stands in it, and not in a FIN.
    fn saw(&mut self, has_seen_end: bool) -> Acted {
        self.remote.saw_fin |= has_seen_end;
        if has_seen_end { Acted::SawFin } else { Acted::Something }
    }

    /// Nothing is left to read: sees the end, if there is one.
    fn see_end(&mut self) -> Acted {
        if self.reset {
            self.remote.saw_reset = true;
            return Acted::Something;
        }
        if self.fin && self.remote.tls.is_some() && !self.remote.saw_fin {
            // Without a close_notify, the stream was cut off.
            self.remote.saw_reset = true;
            return Acted::Something;
        }
        if self.fin && !self.remote.saw_fin {
            self.remote.saw_fin = true;
            return Acted::SawFin;
        }
        Acted::Nothing
    }

    fn remote_sends(&mut self, now_us: u64, tape: &mut Tape) -> Acted {
        let side = self.side;
        let room = self.room_max.saturating_sub(self.wire.len() + self.arrived.len());
        let remote = &mut self.remote;
        if let Some(tls) = &mut remote.tls
            && !tls.outbox.is_empty()
            && !remote.has_closed
        {
            if room == 0 {
                return Acted::Nothing;
            }
            let count = tape.most_of(tls.outbox.len().min(room));
            self.wire.extend(take_front(&mut tls.outbox, count));
            if remote.has_ended && tls.outbox.is_empty() {
                self.remote_fin = Progress::Underway;
            }
            return Acted::Something;
        }
        if remote.has_ended || remote.has_closed {
            return Acted::Nothing;
        }
        if remote.is_refused(side) {
            if remote.saw_fin {
                self.remote_closes(tape);
                return Acted::Something;
            }
            return Acted::Nothing;
        }
        if remote.tls.as_ref().is_some_and(|tls| !tls.is_open()) {
            return Acted::Nothing;
        }
        if remote.head_sent < remote.head.len() {
            if room == 0 {
                return Acted::Nothing;
            }
            let count = tape.most_of((remote.head.len() - remote.head_sent).min(room));
            let piece = &remote.head[remote.head_sent..remote.head_sent + count];
            match &mut remote.tls {
                Some(tls) => tls.send(piece),
                None => self.wire.extend(piece),
            }
            remote.head_sent += count;
            return Acted::Something;
        }
        let may_send = remote.is_early || remote.is_open(side);
        let left = remote.wanted() - remote.sent;
        if may_send && left > 0 {
            if room == 0 {
                return Acted::Nothing;
            }
            let most = if tape.roll(3) == 0 { usize::MAX } else { 1 + tape.roll(20_000) };
            let piece = remote.content.at(remote.sent, most.min(room).min(left as usize));
            remote.sent += piece.len() as u64;
            match &mut remote.tls {
                Some(tls) => tls.send(piece),
                None => self.wire.extend(piece),
            }
            return Acted::Something;
        }
        if left > 0 {
            return Acted::Nothing;
        }
        match remote.end {
            End::Fin if may_send => self.remote_ends(),
            End::FinAfterOther if remote.saw_fin => self.remote_ends(),
            End::Fin | End::FinAfterOther => return Acted::Nothing,
            End::Reset => self.remote_resets(tape),
            End::Close => self.remote_closes(tape),
            End::Silence => remote.silent_since_us = Some(now_us),
        }
        Acted::Something
    }

    fn remote_ends(&mut self) {
        self.remote.has_ended = true;
        match &mut self.remote.tls {
            // The FIN follows once this is sent.
            Some(tls) => tls.end(),
            None => self.remote_fin = Progress::Underway,
        }
    }

    /// The remote program closes its socket.
    fn remote_closes(&mut self, tape: &mut Tape) {
        self.remote.has_closed = true;
        if self.sent.is_empty() && self.remote.tls.is_some() {
            // Without a close_notify.
            self.remote_fin = Progress::Underway;
        } else if self.sent.is_empty() {
            self.remote_ends();
        } else {
            self.remote_resets(tape);
        }
    }

    fn remote_resets(&mut self, tape: &mut Tape) {
        self.remote.has_reset = true;
        self.remote_reset = Progress::Underway;
        // A reset can overtake what was sent before it.
        if tape.chance(3) {
            self.wire.clear();
        }
    }

    /// The relay has closed. Bytes that are on their way to the remote end may be lost behind a reset.
    pub fn settle_close(&mut self, closed: Closed, tape: &mut Tape) {
        if closed == Closed::Reset && !self.sent.is_empty() {
            let kept = self.sent.len() - tape.roll(self.sent.len() + 1);
            self.sent.truncate(kept);
        }
        self.arrived.clear();
    }

    /// Brings what the remote end has sent closer to the relay. Returns whether there was anything.
    pub fn deliver(&mut self, now_us: u64, tape: &mut Tape) -> bool {
        if self.remote.silent_since_us.is_some() && self.wire.is_empty() {
            return false;
        }
        if self.is_closed || self.is_dead {
            let had_some = !self.wire.is_empty();
            self.wire.clear();
            if had_some && self.is_closed && !self.reset {
                // Nobody is there any more: the kernel answers with a reset.
                self.reset = true;
            }
            return had_some;
        }
        if !self.wire.is_empty() {
            let count = match tape.roll(4) {
                0 | 1 => self.wire.len(),
                2 => 1 + tape.roll(self.wire.len().min(1_460)),
                _ => 1 + tape.roll(self.wire.len()),
            };
            self.arrived.extend(take_front(&mut self.wire, count));
            return true;
        }
        if self.remote_reset == Progress::Underway {
            self.remote_reset = Progress::Arrived;
            self.is_dead = true;
            self.error =
                Some(if self.fin && self.has_fin_arrived() { libc::EPIPE } else { libc::ECONNRESET });
            self.reset_at_us = Some(now_us);
            self.sent.clear();
            return true;
        }
        if self.remote_fin == Progress::Underway {
            self.remote_fin = Progress::Arrived;
            return true;
        }
        false
    }

    fn has_fin_arrived(&self) -> bool {
        self.remote_fin == Progress::Arrived
    }
}
