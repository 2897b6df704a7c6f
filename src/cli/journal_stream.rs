//! Whether stderr goes to the system's journal, and the priorities of the lines there.
//!
//! The journal takes each line of a service's stderr as information, unless the line begins with its priority
//! (sd-daemon(3)). Without that, `journalctl -p err` shows no error of a relay.

use std::fmt;
use std::io::{self, IsTerminal};

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// A format with the priority of each event in front.
pub(super) struct WithPriority<F>(pub F);

impl<S, N, F> FormatEvent<S, N> for WithPriority<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// True where stderr is a stream of the journal: systemd names its file in `JOURNAL_STREAM` (systemd.exec(5)).
pub(super) fn is_stderr() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr();
    fstat(&stderr).is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}

/// What stands in front of an error on stderr: its priority, where the journal reads it.
pub(super) fn error_prefix() -> &'static str {
    if is_stderr() { "<3>" } else { "" }
}

/// True where colours are of use: on a terminal, unless NO_COLOR is set (<https://no-color.org>).
pub(super) fn has_colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
