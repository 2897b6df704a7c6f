//! The names of principals, which the store keeps and a relay never reads.

use std::collections::HashMap;

use crate::authz::PrincipalId;
use crate::config::Config;
use crate::store;

/// The names that the store gives. Empty where its schema is not ours, or where this user may not read it.
#[derive(Default)]
pub(super) struct PrincipalNames(HashMap<PrincipalId, String>);

impl PrincipalNames {
    pub fn read(config: &Config) -> Self {
        match store::has_principal_names(config) {
            true => Self(store::principal_names(config).unwrap_or_default()),
            false => Self::default(),
        }
    }

    pub fn name(&self, id: PrincipalId) -> Option<&str> {
        self.0.get(&id).map(String::as_str)
    }

    /// The principal that a person means by its name, or else by its number.
    pub fn find(&self, text: &str) -> Option<PrincipalId> {
        let named = self.0.iter().find(|(_, name)| *name == text).map(|(id, _)| *id);
        named.or_else(|| text.parse().ok().map(PrincipalId))
    }
}
