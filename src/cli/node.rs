//! `sluicegate node`: the directory of nodes.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::Loaded;
use super::output::{AnswerTable, Cell, CommandAnswer, CommandError, OutputFormat, print};
use super::watch::ago;
use crate::authz::UnixMillis;
use crate::store::{self, NodeList, NodeRow};

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List all nodes in the directory: the address for other nodes, the time since the last heartbeat, and the
    /// number of devices that the node held then.
    List,
}

pub fn run(command: NodeCommand, loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let NodeCommand::List = command;
    let NodeList { nodes, bad } = store::node_table(&loaded.config).read()?;
    bad.iter().for_each(|row| eprintln!("{row}; nothing is forwarded to it"));
    let max_age = loaded.config.forward.max_age;
    match output {
        OutputFormat::Json => print(&format!("{:#}\n", facts(&nodes, max_age))),
        OutputFormat::Text => CommandAnswer::Table(table(&nodes, max_age)).print(output),
    }
}

fn facts(nodes: &[NodeRow], max_age: Duration) -> serde_json::Value {
    let fact = |node: &NodeRow| {
        json!({
            "name": node.name,
            "forward_address": node.forward,
            "heartbeat_age_ms": node.age_ms,
            "devices": node.devices,
            "state": state(node, max_age),
        })
    };
    nodes.iter().map(fact).collect()
}

fn table(nodes: &[NodeRow], max_age: Duration) -> AnswerTable {
    let row = |node: &NodeRow| {
        vec![
            Cell::from(node.name.to_string()),
            Cell::from(node.forward.to_string()),
            Cell::from(ago(UnixMillis(node.age_ms), UnixMillis(0))),
            Cell::from(node.devices.map_or_else(|| "-".to_owned(), |devices| devices.to_string())),
            Cell::from(state(node, max_age).to_owned()),
        ]
    };
    let columns = &["name", "forward_address", "heartbeat_age", "devices", "state"];
    AnswerTable { columns, rows: nodes.iter().map(row).collect() }
}

/// State of a node, as in the metric `sluicegate_nodes`.
fn state(node: &NodeRow, max_age: Duration) -> &'static str {
    if node.is_stale(max_age) { "stale" } else { "fresh" }
}
