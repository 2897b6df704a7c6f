//! Rule `contract`: the store answers as the contract says, by names and types.
//!
//! The store itself checks it where a query is prepared; here its word becomes a hold, so that a query gone
//! wrong is reported as such and not as an outage.

use super::{Hold, Rule};
use crate::store::StoreError;

/// The hold that `error` amounts to, unless it says nothing about the contract.
pub(in crate::control) fn broken_contract(error: &StoreError) -> Option<Hold> {
    error.breaks_contract().then(|| Hold::new(Rule::Contract, 1, error.to_string(), NO_EXAMPLES))
}

const NO_EXAMPLES: [&str; 0] = [];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_fails_is_a_matter_of_the_contract_and_a_lost_store_is_not() {
        let store = || "sqlite:store.db".to_owned();
        let query = StoreError::Query { store: store(), detail: "no such column: grants.scope".to_owned() };
        let hold = broken_contract(&query).unwrap();
        assert_eq!(hold.rule, Rule::Contract);
        assert!(hold.figures.contains("grants.scope"), "{hold}");
        assert_eq!(broken_contract(&StoreError::Missing { store: store() }), None);
        assert_eq!(broken_contract(&StoreError::Locked { store: store() }), None);
    }
}
