//! What a running relay tells of itself, in types: for `status`, `sessions` and `top`.

mod figures;
mod report;
mod session;

pub(super) use figures::{ago, bytes, micros, rate};
pub(super) use report::{ProbeResult, Rates, Report};
pub(super) use session::{Filter, Session, SessionList, SortKey, sort};

#[cfg(test)]
pub(super) mod tests {
    pub use super::report::tests::report;
    pub use super::session::tests::session;
}
