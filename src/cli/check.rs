//! `sluicegate check`: whether a relay could start with this configuration.

use serde_json::json;

use super::Loaded;
use super::output::{Answer, CommandError, Output};
use crate::config::StoreUrl;
use crate::store;

/// The configuration was read already, so what is left is the store: that it can be read whole, and how
/// many of its rows do not decode.
pub fn run(loaded: &Loaded, output: Output) -> Result<(), CommandError> {
    let StoreUrl::Sqlite(path) = &loaded.config.store.url;
    let config = loaded.file.as_ref().map(|file| file.display().to_string());
    let shown = config.as_deref().unwrap_or("the embedded defaults");
    if loaded.file.is_none() && !path.exists() {
        let text = format!("{shown}: fine; the first `sluicegate run` creates the store {}", path.display());
        return Answer::done(text, json!({ "config": config, "store": null })).print(output);
    }
    let mut source = store::source(&loaded.config.store.url);
    let rows = source.read_all()?;
    if let Some(first) = rows.quarantined.first() {
        return Err(CommandError::failed(format!(
            "{}: {} rows do not decode; the first is {}: {}",
            source.describe(),
            rows.quarantined.len(),
            first.key,
            first.reason
        )));
    }
    let (credentials, grants, devices) = (rows.credentials.len(), rows.grants.len(), rows.devices.len());
    let text = format!(
        "{shown}: fine\n{}: fine, {credentials} credentials, {grants} grants, {devices} devices",
        source.describe()
    );
    let rows = json!({ "credentials": credentials, "grants": grants, "devices": devices });
    let facts = json!({ "config": config, "store": source.describe(), "rows": rows });
    Answer::done(text, facts).print(output)
}
