//! `sluicegate token`: manages tokens.

use clap::Subcommand;
use serde_json::json;

use super::output::{AnswerTable, CommandAnswer, CommandError, Done, StoreContext, rfc3339};
use super::values::{parse_expiry, state};
use crate::authz::UnixMillis;
use crate::store::admin::{Admin, AdminError, Revoked};

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Issue a token and print it once; the store keeps only its SHA-256.
    Issue {
        /// Name of the principal, as in `principal list`.
        principal: String,
        /// Expiry of the token: a duration such as 30d, or an RFC 3339 time. Without it, the token does not expire.
        #[arg(long, value_parser = parse_expiry, value_name = "WHEN")]
        expires: Option<UnixMillis>,
        /// Purpose of the token, for listings.
        #[arg(long)]
        label: Option<String>,
    },
    /// List all credentials; a listing never shows tokens.
    List,
    /// Revoke a token permanently; its tunnels end.
    Revoke {
        /// Credential of the token, as in `token list`.
        credential: String,
    },
}

pub fn run(command: TokenCommand, context: &StoreContext) -> Result<(), CommandError> {
    context.answer(|admin| answer(command, admin))
}

fn answer(command: TokenCommand, admin: &mut Admin) -> Result<CommandAnswer, AdminError> {
    match command {
        TokenCommand::Issue { principal, expires, label } => {
            let issued = admin.issue_token(&principal, label.as_deref(), expires)?;
            let expires = expires.map(rfc3339);
            let until =
                expires.as_ref().map_or("does not expire".to_owned(), |at| format!("expires at {at}"));
            let credential = issued.credential;
            Ok(CommandAnswer::Done(Done {
                note: Some(format!(
                    "credential {credential} of {principal} {until}; its token is not shown again"
                )),
                facts: json!({
                    "token": &issued.token,
                    "credential": credential,
                    "principal": principal,
                    "label": label,
                    "expires_at": expires,
                }),
                text: issued.token,
            }))
        }
        TokenCommand::List => list(admin),
        TokenCommand::Revoke { credential } => {
            let (text, outcome) = match admin.revoke_credential(&credential)? {
                Revoked::Now => (format!("revoked credential {credential}"), "revoked"),
                Revoked::Before(at) => {
                    (format!("credential {credential} was revoked at {}", rfc3339(at)), "was-revoked")
                }
            };
            Ok(CommandAnswer::done(text, json!({ "credential": credential, "outcome": outcome })))
        }
    }
}

fn list(admin: &mut Admin) -> Result<CommandAnswer, AdminError> {
    let rows = admin.credentials()?.into_iter().map(|row| {
        vec![
            row.credential.to_string().into(),
            row.principal.into(),
            row.label.into(),
            state(row.revoked_at, row.expires_at),
            row.created_at.into(),
            row.expires_at.into(),
            row.revoked_at.into(),
        ]
    });
    let columns = &["credential", "principal", "label", "state", "created_at", "expires_at", "revoked_at"];
    Ok(CommandAnswer::Table(AnswerTable { columns, rows: rows.collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::KeyHash;
    use crate::cli::output::OutputFormat;
    use crate::cli::support::{TestStore, refusal};

    fn issue(store: &mut TestStore, label: Option<&str>) -> String {
        let command = TokenCommand::Issue {
            principal: "alice".to_owned(),
            expires: None,
            label: label.map(Into::into),
        };
        answer(command, &mut store.admin).unwrap().rendered(OutputFormat::Text).trim_end().to_owned()
    }

    fn store_with_alice() -> TestStore {
        let mut store = TestStore::new();
        store.admin.add_principal("alice").unwrap();
        store
    }

    #[test]
    fn a_token_is_printed_once_and_kept_nowhere() {
        let mut store = store_with_alice();
        let token = issue(&mut store, Some("laptop"));
        assert!(token.starts_with("sg_") && token.len() == 46, "{token}");
        assert_ne!(token, issue(&mut store, None));

        let listed = answer(TokenCommand::List, &mut store.admin).unwrap().rendered(OutputFormat::Json);
        let credential = KeyHash::of_token(token.as_bytes()).credential_id().to_string();
        assert!(
            listed.contains(&credential) && listed.contains("laptop") && listed.contains("live"),
            "{listed}"
        );
        assert!(!listed.contains(&token));
        let secret = token.as_bytes();
        for file in std::fs::read_dir(store.folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }

    #[test]
    fn revoking_is_for_good_and_can_be_repeated() {
        let mut store = store_with_alice();
        let token = issue(&mut store, None);
        let credential = KeyHash::of_token(token.as_bytes()).credential_id().to_string();
        let mut revoke = |credential: &str| {
            answer(TokenCommand::Revoke { credential: credential.to_owned() }, &mut store.admin)
        };
        let text = revoke(&credential).unwrap().rendered(OutputFormat::Text);
        assert_eq!(text, format!("revoked credential {credential}\n"));
        let text = revoke(&credential).unwrap().rendered(OutputFormat::Text);
        assert!(text.starts_with(&format!("credential {credential} was revoked at 20")), "{text}");
        let unknown = ["0011223344556677", "xyz", ""].map(|id| refusal(revoke(id)));
        assert!(unknown.iter().all(|text| text.ends_with("`sluicegate token list` shows them all")));
    }

    #[test]
    fn a_token_for_nobody_is_refused() {
        let mut store = store_with_alice();
        let issue = TokenCommand::Issue { principal: "alise".to_owned(), expires: None, label: None };
        let text = refusal(answer(issue, &mut store.admin));
        assert_eq!(text, "no principal is named `alise`; did you mean `alice`?");
    }
}
