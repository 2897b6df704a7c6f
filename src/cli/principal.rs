//! `sluicegate principal`: manages principals.

use clap::Subcommand;
use serde_json::json;

use super::output::{AnswerTable, Cell, CommandAnswer, CommandError, StoreContext};
use crate::store::admin::{Admin, AdminError};

#[derive(Debug, Subcommand)]
pub enum PrincipalCommand {
    /// Add a principal.
    Add { name: String },
    /// List all principals.
    List,
    /// Remove a principal and revoke its tokens and grants; its tunnels end.
    Remove { name: String },
}

pub fn run(command: PrincipalCommand, context: &StoreContext) -> Result<(), CommandError> {
    context.answer(|admin| answer(command, admin))
}

fn answer(command: PrincipalCommand, admin: &mut Admin) -> Result<CommandAnswer, AdminError> {
    match command {
        PrincipalCommand::Add { name } => {
            let id = admin.add_principal(&name)?;
            Ok(CommandAnswer::done(
                format!("added principal {name}"),
                json!({ "principal": name, "id": id, "outcome": "added" }),
            ))
        }
        PrincipalCommand::List => list(admin),
        PrincipalCommand::Remove { name } => {
            let id = admin.remove_principal(&name)?;
            Ok(CommandAnswer::done(
                format!("removed principal {name} and revoked its tokens and grants"),
                json!({ "principal": name, "id": id, "outcome": "removed" }),
            ))
        }
    }
}

fn list(admin: &mut Admin) -> Result<CommandAnswer, AdminError> {
    let rows = admin.principals()?.into_iter().map(|row| {
        vec![
            row.name.into(),
            Cell::Number(row.id.0),
            Cell::Number(row.live_credentials),
            Cell::Number(row.live_grants),
            row.created_at.into(),
        ]
    });
    let columns = &["principal", "id", "live_tokens", "live_grants", "created_at"];
    Ok(CommandAnswer::Table(AnswerTable { columns, rows: rows.collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::OutputFormat;
    use crate::cli::support::{TestStore, refusal};

    #[test]
    fn a_principal_is_listed_until_it_is_removed() {
        let mut store = TestStore::new();
        let names = |admin: &mut Admin| -> Vec<String> {
            admin.principals().unwrap().into_iter().map(|row| row.name).collect()
        };
        for name in ["bob", "alice"] {
            answer(PrincipalCommand::Add { name: name.to_owned() }, &mut store.admin).unwrap();
        }
        assert_eq!(names(&mut store.admin), ["alice", "bob"]);
        let listed = answer(PrincipalCommand::List, &mut store.admin).unwrap().rendered(OutputFormat::Text);
        assert!(
            listed.starts_with("PRINCIPAL  ID  LIVE TOKENS  LIVE GRANTS  CREATED AT\nalice "),
            "{listed}"
        );

        let removed = answer(PrincipalCommand::Remove { name: "bob".to_owned() }, &mut store.admin).unwrap();
        assert_eq!(
            removed.rendered(OutputFormat::Text),
            "removed principal bob and revoked its tokens and grants\n"
        );
        assert_eq!(names(&mut store.admin), ["alice"]);
    }

    #[test]
    fn a_removed_name_can_be_given_again_and_is_somebody_else() {
        let mut store = TestStore::new();
        let first = store.admin.add_principal("bob").unwrap();
        store.admin.issue_token("bob", None, None).unwrap();
        store.admin.remove_principal("bob").unwrap();
        let second = store.admin.add_principal("bob").unwrap();
        assert_ne!(first, second);
        assert_eq!(store.admin.principals().unwrap()[0].live_credentials, 0);
    }

    #[test]
    fn an_error_about_a_wrong_name_suggests_the_right_one() {
        let mut store = TestStore::new();
        store.admin.add_principal("alice").unwrap();
        let mut error_of = |name: &str| {
            refusal(answer(PrincipalCommand::Remove { name: name.to_owned() }, &mut store.admin))
        };
        assert_eq!(error_of("alcie"), "no principal is named `alcie`; did you mean `alice`?");
        assert_eq!(error_of("zed"), "no principal is named `zed`; `sluicegate principal add` makes one");
    }

    #[test]
    fn names_are_unique_and_printable() {
        let mut store = TestStore::new();
        store.admin.add_principal("alice").unwrap();
        let mut error_of =
            |name: &str| refusal(answer(PrincipalCommand::Add { name: name.to_owned() }, &mut store.admin));
        assert_eq!(error_of("alice"), "a principal named `alice` exists; choose another name");
        let long = "x".repeat(129);
        for name in ["", " ", "a\nb", " a", long.as_str()] {
            assert!(error_of(name).ends_with("use 1 to 128 printable characters"), "{name:?}");
        }
    }
}
