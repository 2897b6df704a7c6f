//! `sluicegate check`: tests whether a relay could start with this configuration, and tells all that is wrong.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Map, Value, json};

use super::output::{AnswerTable, Cell, CommandAnswer, CommandError, Done, OutputFormat};
use super::{Global, log};
use crate::config::{self, Config, ConfigInspection, StoreUrl};
use crate::control::api::{BudgetUse, Group, WordKind};
use crate::control::{Control, GuardPreview, StoreAccess, TokenKeyThreads};
use crate::engine::{Engine, Shortage};
use crate::node::Node;
use crate::store::{self, NodeList, Relation, RelationRows, ReportQueue, StoreError};
use crate::wire::TlsConfigs;

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct CheckArgs {
    /// Check the keys and values of the configuration alone, for CI: no certificate, no address, no store, nothing of
    /// this machine. Files whose content is a part of the configuration (queries, keys of signers) must be there.
    #[arg(long)]
    config_only: bool,
}

const EXIT_CODES: &str = "Exit codes: 0 nothing is wrong (warnings are on stderr), 1 each thing that is wrong is a line \
                          on stderr, 2 wrong usage.";

/// Checks the configuration, what it names on this machine, the store, the canaries and the directory of nodes. All
/// errors are printed, in the order of the file. Every row of the store must decode. Also prints the warnings that a
/// relay would log, and the budgets of the guard.
pub(super) fn run(args: &CheckArgs, global: &Global) -> Result<(), CommandError> {
    let file = global.file()?;
    let environment = config::environment().map_err(CommandError::failed)?;
    if args.config_only {
        return check_values(file, environment, global.output());
    }
    let mut inspection = ConfigInspection::of(file.as_deref(), environment).map_err(CommandError::failed)?;
    let tls = inspection.add_errors_of(TlsConfigs::load_all);
    for problem in Node::check(&inspection.config) {
        inspection.add(problem);
    }
    let (problem, mut errors) = log::check(&inspection.config.log);
    if let Some(problem) = problem {
        inspection.add(problem);
    }
    errors.extend(Engine::check(&inspection.config).err().map(|error| error.to_string()));
    let (mut store, mut nodes) = (StoreFacts::default(), DirectoryFacts::default());
    if inspection.is_right(&["store", "authz.queries", "authz.tokens"]) {
        // The canaries, the guard and the addresses judge the rows by these sections.
        let depth = match inspection.is_right(&["authz", "vpn"]) {
            true => StoreCheck::Whole,
            false => StoreCheck::RowsOnly,
        };
        match check_store(&inspection.config, file.is_some(), depth) {
            Ok(facts) => store = facts,
            Err(failed) => errors.extend(failed),
        }
    }
    if inspection.is_right(&["authz.tokens"]) {
        errors.extend(TokenKeyThreads::check(&inspection.config));
    }
    if inspection.is_right(&["store", "forward", "vpn"]) {
        match check_directory(&inspection.config) {
            Ok(facts) => nodes = facts,
            Err(error) if errors.contains(&error.to_string()) => {}
            Err(error) => errors.push(error.to_string()),
        }
    }
    let (config, mut told) = match inspection.finish() {
        Ok(config) => (Some(config), Vec::new()),
        Err(wrong) => (None, vec![wrong.to_string()]),
    };
    told.append(&mut errors);
    let Some(config) = config.filter(|_| told.is_empty()) else {
        return Err(CommandError::failed(told.join("\n")));
    };
    report(&config, tls.as_ref(), file, store, nodes).print(global.output())
}

/// Checks keys and values alone.
fn check_values(
    file: Option<PathBuf>,
    environment: Vec<(String, String)>,
    output: OutputFormat,
) -> Result<(), CommandError> {
    let inspection =
        ConfigInspection::of_values(file.as_deref(), environment).map_err(CommandError::failed)?;
    inspection.finish().map_err(CommandError::failed)?;
    let file = file.map(|file| file.display().to_string());
    let shown = file.as_deref().unwrap_or("the embedded defaults");
    let text = format!("{shown}: fine; only its keys and values were checked");
    CommandAnswer::done(text, json!({ "config": file })).print(output)
}

/// The answer where nothing is wrong.
fn report(
    config: &Config,
    tls: Option<&TlsConfigs>,
    file: Option<PathBuf>,
    store: StoreFacts,
    nodes: DirectoryFacts,
) -> CommandAnswer {
    let file = file.map(|file| file.display().to_string());
    let shown = file.as_deref().unwrap_or("the embedded defaults");
    let of_machine = Shortage::of(config).map(|shortage| shortage.to_string());
    let of_state = Control::check_state(config);
    let warnings: Vec<String> = of_machine
        .into_iter()
        .chain(config.vpn.warnings())
        .chain(Node::check_awaited(config))
        .chain(certificate_warnings(tls))
        .chain(of_state)
        .chain(store.warnings)
        .chain(nodes.bad)
        .collect();
    let budgets: Map<String, Value> =
        store.budgets.iter().map(|budget| (budget_column(budget.group), budget.rows.into())).collect();
    let facts = json!({
        "config": file, "store": store.name, "rows": store.rows, "canaries": store.canaries, "budgets": budgets,
        "nodes": nodes.count, "warnings": warnings,
    });
    let lines: Vec<_> = warnings.iter().map(|warning| format!("warning: {warning}")).collect();
    let note = (!lines.is_empty()).then(|| lines.join("\n"));
    CommandAnswer::Done(Done { text: format!("{shown}: fine\n{}{}", store.text, nodes.text), note, facts })
}

/// Certificates that end soon, have ended or are not valid yet, and chains that are not in order.
fn certificate_warnings(tls: Option<&TlsConfigs>) -> Vec<String> {
    let now = SystemTime::now();
    let shown = tls.map(TlsConfigs::shown).unwrap_or_default();
    shown.iter().flat_map(|each| each.warning(now).into_iter().chain(each.order_warning())).collect()
}

/// What is asked of a store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StoreCheck {
    Whole,
    /// Only whether its rows can be read and decode.
    RowsOnly,
}

/// Check of a store that a relay could start with.
#[derive(Default)]
struct StoreFacts {
    text: String,
    /// Name of the store. `None` where the first start creates it.
    name: Option<String>,
    rows: Value,
    /// Number of canaries, which the store answers as they must be.
    canaries: usize,
    /// Rows of each group that may change within the window.
    budgets: Vec<BudgetUse>,
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
fn check_directory(config: &Config) -> Result<DirectoryFacts, StoreError> {
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

/// Reads the store as a relay does, and puts the canaries to what it answers. Fails with a line for each error.
fn check_store(config: &Config, has_file: bool, depth: StoreCheck) -> Result<StoreFacts, Vec<String>> {
    let StoreAccess { readers, mut layer, .. } = StoreAccess::of(config, &ReportQueue::default());
    let mut reader = readers();
    let name = reader.describe();
    if let StoreUrl::Sqlite(path) = &config.store.url
        && !has_file
        && !path.exists()
    {
        let text = format!("{name}: the first `sluicegate run` creates it");
        return Ok(StoreFacts { text, ..StoreFacts::default() });
    }
    store::check_stores(config).map_err(|error| vec![error.to_string()])?;
    let (mut credentials, mut grants, mut devices) = (Vec::new(), Vec::new(), Vec::new());
    let (mut quarantined, mut errors) = (Vec::new(), Vec::<String>::new());
    for relation in Relation::ALL {
        let answer = match reader.read_relation(relation) {
            Ok(answer) => answer,
            Err(error) => {
                // The other relations would mostly fail in the same way.
                if !errors.contains(&error.to_string()) {
                    errors.push(error.to_string());
                }
                continue;
            }
        };
        quarantined.extend(answer.quarantined);
        match answer.rows {
            RelationRows::Credentials(rows) => credentials = rows,
            RelationRows::Grants(rows) => grants = rows,
            RelationRows::Devices(rows) => devices = rows,
            RelationRows::Unchanged => {}
        }
    }
    if let Some(first) = quarantined.first() {
        let count = quarantined.len();
        errors.push(format!(
            "{name}: {count} rows do not decode; the first is {}: {}",
            first.key, first.reason
        ));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    if depth == StoreCheck::RowsOnly {
        return Ok(StoreFacts::default());
    }
    layer.wait_for_tables();
    layer.lay_relation(&mut devices);
    let mut warnings = reader.warnings();
    layer.add_warnings(&mut warnings);
    let counts = (credentials.len(), grants.len(), devices.len());
    let preview = GuardPreview::of(config, credentials, grants, devices);
    if !preview.wrong_canaries.is_empty() {
        let (wrong, all) = (preview.wrong_canaries.len(), preview.canaries);
        let list = preview.wrong_canaries.join("; ");
        return Err(vec![format!(
            "{name}: {wrong} of {all} canaries are answered wrongly: {list}; mend the rows, the queries or \
             authz.guard"
        )]);
    }
    let (credentials, grants, devices) = counts;
    let guard = guard_text(&preview, config);
    Ok(StoreFacts {
        text: format!("{name}: fine, {credentials} credentials, {grants} grants, {devices} devices\n{guard}"),
        name: Some(name),
        rows: json!({ "credentials": credentials, "grants": grants, "devices": devices }),
        canaries: preview.canaries,
        budgets: preview.budgets,
        warnings: warnings.lines(),
    })
}

/// The canaries, and a table of the rows that may change within the window.
fn guard_text(preview: &GuardPreview, config: &Config) -> String {
    let window = humantime::format_duration(config.authz.guard.window);
    let canaries = match preview.canaries {
        0 => "canaries: none; authz.guard.must_allow and must_refuse name some".to_owned(),
        all => format!("canaries: fine, {all} asked"),
    };
    let row = |relation: Relation| {
        let budget = |column: &&str| {
            let name = format!("{}.{column}", relation.name());
            let known = preview.budgets.iter().find(|budget| budget_column(budget.group) == name);
            known.map_or(Cell::Empty, |budget| Cell::Number(i64::try_from(budget.rows).unwrap_or(i64::MAX)))
        };
        let name = Cell::Text(relation.name().to_owned());
        std::iter::once(name).chain(BUDGET_COLUMNS[1..].iter().map(budget)).collect()
    };
    let table = AnswerTable { columns: BUDGET_COLUMNS, rows: Relation::ALL.into_iter().map(row).collect() };
    let table = CommandAnswer::Table(table).rendered(OutputFormat::Text);
    format!("{canaries}\nrows that may change within {window}; more are held:\n{}", table.trim_end())
}

/// Relation and column of a group's budget.
fn budget_column(group: Group) -> String {
    match group.word {
        WordKind::Explicit => format!("{}.explicit", group.relation.name()),
        WordKind::Inferred => group.to_string(),
    }
}

/// Columns of the table of budgets, with the kinds by their names.
const BUDGET_COLUMNS: &[&str] = &[
    "relation",
    "ended",
    "absent",
    "narrowed",
    "reassigned",
    "gained",
    "widened",
    "moved",
    "unlocated",
    "undecodable",
    "explicit",
];
