//! `sluicegate check`: tests whether a relay could start with this configuration.

use serde_json::{Value, json};

use super::Loaded;
use super::output::{CommandAnswer, CommandError, Done, OutputFormat};
use crate::config::StoreUrl;
use crate::engine::Shortage;
use crate::store::{self, NodeList, ReportQueue};

/// Checks the store and the directory of nodes; the configuration was read already. Every row of the store must
/// decode. Also prints the warnings that a relay would log.
pub fn run(loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let file = loaded.file.as_ref().map(|file| file.display().to_string());
    let shown = file.as_deref().unwrap_or("the embedded defaults");
    let store = check_store(loaded)?;
    let nodes = check_directory(loaded)?;
    let shortage = Shortage::of(&loaded.config).map(|shortage| shortage.to_string());
    let warnings: Vec<String> = shortage.into_iter().chain(store.warnings).chain(nodes.bad).collect();
    let facts = json!({ "config": file, "store": store.name, "rows": store.rows, "nodes": nodes.count, "warnings": warnings });
    let lines: Vec<_> = warnings.iter().map(|warning| format!("warning: {warning}")).collect();
    let note = (!lines.is_empty()).then(|| lines.join("\n"));
    CommandAnswer::Done(Done { text: format!("{shown}: fine\n{}{}", store.text, nodes.text), note, facts })
        .print(output)
}

/// Check of a store that a relay could start with.
struct StoreFacts {
    text: String,
    /// Name of the store. `None` where the first start creates it.
    name: Option<String>,
    rows: Value,
    /// Rows and lines that a relay would not understand.
    warnings: Vec<String>,
}

/// Check of the directory of nodes. It is empty where the node stands alone.
#[derive(Default)]
struct DirectoryFacts {
    text: String,
    count: Option<usize>,
    bad: Vec<String>,
}

/// Reads the directory. The heartbeat of this node is not tested here: a relay logs whether it can write it. The
/// table of locations is tested by writing no locations.
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
