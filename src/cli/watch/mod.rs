//! What a running relay tells of itself, in types: for `status`, `sessions` and `top`.

mod report;
mod session;
mod words;

pub(super) use report::{ProbeResult, Rates, Report};
pub(super) use session::{Filter, Session, SessionList, SortKey, sort};
pub(super) use words::{ago, bytes, micros, rate};

#[cfg(test)]
pub(super) mod tests {
    pub use super::report::tests::report;
    pub use super::session::tests::session;
}
