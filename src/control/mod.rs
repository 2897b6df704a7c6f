//! Keeps the snapshot in force in step with the store.
