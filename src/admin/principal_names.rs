//! The names of principals, for people who look at sessions.
//!
//! A relay decides by numbers and reads no names. So they are read only while somebody looks, and by a thread of its
//! own: a slow store delays no answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::authz::PrincipalId;
use crate::config::Config;
use crate::store;

/// The names that the store gives, as of the last reading. Cheap to clone.
#[derive(Clone)]
pub struct PrincipalNames(Arc<SharedNames>);

struct SharedNames {
    config: Arc<Config>,
    names: Mutex<KnownNames>,
}

#[derive(Default)]
struct KnownNames {
    known: Arc<HashMap<PrincipalId, String>>,
    /// The last reading, whether it succeeded or not.
    read_at: Option<Instant>,
    is_reading: bool,
}

impl PrincipalNames {
    pub fn new(config: Arc<Config>) -> Self {
        Self(Arc::new(SharedNames { config, names: Mutex::default() }))
    }

    /// The names that are known. Where they are old, a thread begins to read them, and a later call has them.
    pub(super) fn get(&self) -> Arc<HashMap<PrincipalId, String>> {
        let mut names = self.0.names.lock();
        let is_due = names.read_at.is_none_or(|read_at| read_at.elapsed() >= READ_INTERVAL);
        if is_due && !names.is_reading && store::has_principal_names(&self.0.config) {
            let shared = Arc::clone(&self.0);
            let reading = std::thread::Builder::new().name("names".to_owned()).spawn(move || shared.read());
            names.is_reading = reading.is_ok();
        }
        Arc::clone(&names.known)
    }
}

impl SharedNames {
    fn read(&self) {
        let read = store::principal_names(&self.config);
        let mut names = self.names.lock();
        // Old names are better than none.
        if let Ok(read) = read {
            names.known = Arc::new(read);
        }
        names.read_at = Some(Instant::now());
        names.is_reading = false;
    }
}

/// Age at which names are read again while somebody looks. A new principal has its number until then.
const READ_INTERVAL: Duration = Duration::from_secs(30);
