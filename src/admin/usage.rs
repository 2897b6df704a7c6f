//! `/usage`: who used how much. The thread that counts answers; this waits for it.

use std::time::{Duration, Instant};

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use crossbeam::channel::TryRecvError;

use super::caller::Viewer;
use super::{AdminState, response};
use crate::authz::UnixMillis;
use crate::usage::{UsageBusy, UsageBy, UsageReport};

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum UsageError {
    #[error("ask with `?by=` principal, device or credential, and `&since=` milliseconds since 1970")]
    Question,
    #[error(transparent)]
    Busy(#[from] UsageBusy),
    #[error("the records of use were not read in {} s; see the log of the relay", ANSWER_TIME_MAX.as_secs())]
    Late,
}

/// A request's question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct UsageQuestion {
    since: UnixMillis,
    by: UsageBy,
}

pub(super) async fn report(
    _viewer: Viewer,
    State(state): State<AdminState>,
    RawQuery(query): RawQuery,
) -> Result<Response, UsageError> {
    let UsageQuestion { since, by } = parse(query.as_deref().unwrap_or_default())?;
    let answered = state.sources.usage.report(since, by)?;
    let give_up_at = Instant::now() + ANSWER_TIME_MAX;
    let mut report: UsageReport = loop {
        match answered.try_recv() {
            Ok(report) => break report,
            Err(TryRecvError::Empty) if Instant::now() < give_up_at => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(_) => return Err(UsageError::Late),
        }
    };
    let names = state.sources.names.get();
    for row in &mut report.rows {
        row.principal_name = row.principal.and_then(|id| names.get(&id).cloned());
    }
    Ok(response::json(&report))
}

/// Reads the part of the path behind `?`. Without `since`, everything that is kept counts.
fn parse(query: &str) -> Result<UsageQuestion, UsageError> {
    let mut question = UsageQuestion { since: UnixMillis(0), by: UsageBy::Principal };
    for (name, value) in query.split('&').filter(|part| !part.is_empty()).map(split) {
        match name {
            "since" => question.since = UnixMillis(value.parse().map_err(|_| UsageError::Question)?),
            "by" => {
                let by = UsageBy::ALL.into_iter().find(|by| by.word() == value);
                question.by = by.ok_or(UsageError::Question)?;
            }
            _ => return Err(UsageError::Question),
        }
    }
    Ok(question)
}

fn split(part: &str) -> (&str, &str) {
    part.split_once('=').unwrap_or((part, ""))
}

impl IntoResponse for UsageError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Question => StatusCode::BAD_REQUEST,
            Self::Busy(_) | Self::Late => StatusCode::SERVICE_UNAVAILABLE,
        };
        response::failure(status, self.to_string())
    }
}

/// Time in which the thread answers. It reads a week of records in about a second.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

const POLL_INTERVAL: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_says_since_when_and_by_what() {
        let question = |since, by| Ok(UsageQuestion { since: UnixMillis(since), by });
        assert_eq!(parse(""), question(0, UsageBy::Principal));
        assert_eq!(parse("since=7&by=device"), question(7, UsageBy::Device));
        assert_eq!(parse("by=credential"), question(0, UsageBy::Credential));
        for wrong in ["by=port", "since=yesterday", "until=9", "by"] {
            assert_eq!(parse(wrong), Err(UsageError::Question), "{wrong}");
        }
    }
}
