//! Views of a running relay that `status`, `sessions` and `top` share.

mod figures;
mod rates;
mod session;

pub(super) use figures::{ago, bytes, micros, rate};
pub(super) use rates::{Rates, StateLine};
pub(super) use session::{SessionFilter, SortKey, client, mentions, paths, principal, sort, target};

#[cfg(test)]
pub(super) mod tests {
    pub use super::rates::tests::report;
    pub use super::session::tests::session;
}
