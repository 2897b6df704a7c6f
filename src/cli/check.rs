//! `sluicegate check`: whether a relay could start with this configuration.

use serde_json::{Value, json};

use super::Loaded;
use super::output::{CommandAnswer, CommandError, Done, OutputFormat};
use crate::config::StoreUrl;
use crate::engine::Shortage;
use crate::store::{self, NodeList, ReportQueue};

/// The configuration was read already. What is left is the store, which must be readable whole with every
/// row decoding, and what a relay would warn of.
pub fn run(loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let file = loaded.file.as_ref().map(|file| file.display().to_string());
    let shown = file.as_deref().unwrap_or("the embedded defaults");
    let store = check_store(loaded)?;
    let nodes = check_directory(loaded)?;
    let shortage = Shortage::of(&loaded.config).map(|shortage| shortage.to_string());
    let warnings: Vec<String> = shortage.into_iter().chain(store.warnings).chain(nodes.bad).collect();
    let facts = json!({ "config": file, "store": store.name, "rows": store.rows, "nodes": nodes.count, "warnings": warnings });
    let told: Vec<_> = warnings.iter().map(|warning| format!("warning: {warning}")).collect();
    let note = (!told.is_empty()).then(|| told.join("\n"));
    CommandAnswer::Done(Done { text: format!("{shown}: fine\n{}{}", store.text, nodes.text), note, facts })
        .print(output)
}

/// What is to be said of a store that a relay could start with.
struct StoreFacts {
    text: String,
    /// `None` where it is to be created yet.
    name: Option<String>,
    rows: Value,
    /// What a relay could make nothing of.
    warnings: Vec<String>,
}

/// What is to be said of the directory of nodes; nothing of a node that stands alone.
#[derive(Default)]
struct DirectoryFacts {
    text: String,
    count: Option<usize>,
    bad: Vec<String>,
}

/// Reads it only. Whether this node may write its row shows once it runs; whether it may write where devices are, by
/// writing of none.
fn check_directory(loaded: &Loaded) -> Result<DirectoryFacts, CommandError> {
    let config = &loaded.config;
    if config.forward.listen.is_none() {
        return Ok(DirectoryFacts::default());
    }
    let NodeList { nodes, bad } = store::node_table(config).read()?;
    if let Some(node) = config.vpn.node.as_deref().filter(|_| config.vpn.report) {
        store::claim_table(config).write(node, config.forward.max_age, &[])?;
    }
    let count = nodes.len();
    Ok(DirectoryFacts {
        text: format!("\nthe directory of nodes: fine, {count} nodes"),
        count: Some(count),
        bad: bad.into_iter().map(|row| format!("{row}; nothing is forwarded to it")).collect(),
    })
}

fn check_store(loaded: &Loaded) -> Result<StoreFacts, CommandError> {
    let config = &loaded.config;
    let mut source = store::located_source(config, &ReportQueue::default());
    if let StoreUrl::Sqlite(path) = &config.store.url
        && loaded.file.is_none()
        && !path.exists()
    {
        let text = format!("{}: the first `sluicegate run` creates it", source.describe());
        return Ok(StoreFacts { text, name: None, rows: Value::Null, warnings: Vec::new() });
    }
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
    Ok(StoreFacts {
        text: format!(
            "{}: fine, {credentials} credentials, {grants} grants, {devices} devices",
            source.describe()
        ),
        name: Some(source.describe()),
        rows: json!({ "credentials": credentials, "grants": grants, "devices": devices }),
        warnings: source.warnings().lines(),
    })
}
