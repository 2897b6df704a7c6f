//! What `sluicegate check` says of a configuration and its store, and by which exit code.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::Site;
use assert_cmd::Command;

/// The binary with nothing of this machine's configuration, and its home in `home`.
fn sluicegate(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.env_clear().env("HOME", home);
    command
}

/// Exit code, stdout and stderr.
fn outcome(mut command: Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn check(site: &Site) -> Command {
    let mut command = sluicegate(site.folder());
    command.args(["check", "--config"]).arg(site.config_path());
    command
}

#[test]
fn a_configuration_that_works_is_fine() {
    let site = Site::new("limits.sessions = 10");
    let store = site.store_path();
    let (code, said, warned) = outcome(check(&site));
    let expected = format!(
        "{}: fine\nsqlite:{}: fine, 1 credentials, 1 grants, 2 devices\n\
         canaries: none; authz.guard.must_allow and must_refuse name some\n\
         rows that may change within 10m; more are held:\n\
         RELATION     ENDED  ABSENT  NARROWED  REASSIGNED  GAINED  WIDENED  MOVED  UNLOCATED  UNDECODABLE  EXPLICIT\n\
         credentials  1      1       1         1           3       3        -      -          1            20\n\
         grants       1      1       1         1           3       3        -      -          1            20\n\
         devices      -      1       -         1           3       -        1      1          1            20\n",
        site.config_path().display(),
        store.display()
    );
    assert_eq!((code, said.as_str(), warned.as_str()), (0, expected.as_str(), ""));
    let facts = site.cli(&["check"]);
    assert_eq!(facts["rows"]["devices"], 2);
    assert_eq!(facts["warnings"], serde_json::json!([]));
}

#[test]
fn budgets_of_the_configuration_are_shown_in_place_of_the_guards_own() {
    let site = Site::new("authz.guard = { window = '3m', budgets = { gained = { share = 0.5, rows = 9 } } }");
    let (_, said, _) = outcome(check(&site));
    assert!(said.contains("rows that may change within 3m"), "{said}");
    let budgets = &site.cli(&["check"])["budgets"];
    assert_eq!((&budgets["grants.gained"], &budgets["devices.gained"]), (&9.into(), &9.into()));
    assert_eq!(budgets["grants.absent"], 1, "the others are the guard's own");
}

#[test]
fn the_store_must_answer_the_canaries() {
    let canary = format!("principal:1 {}:22", crate::support::DEVICE);
    let site = Site::new(&format!("authz.guard.must_allow = ['{canary}']"));
    let (code, said, _) = outcome(check(&site));
    assert!(code == 0 && said.contains("canaries: fine, 1 asked\n"), "{said}");
    assert_eq!(site.cli(&["check"])["canaries"], 1);

    let site = Site::new(&format!("authz.guard.must_refuse = ['{canary}']"));
    let (code, said, message) = outcome(check(&site));
    let wrong = format!("1 of 1 canaries are answered wrongly: {canary} must be refused and is allowed;");
    assert!(code == 1 && said.is_empty() && message.contains(&wrong), "{message}");
}

#[test]
fn embedded_defaults_are_fine_before_their_store_exists() {
    let home = tempfile::tempdir().unwrap();
    let mut command = sluicegate(home.path());
    command.arg("check");
    let (code, said, _) = outcome(command);
    assert_eq!(code, 0);
    assert!(said.starts_with("the embedded defaults: fine\nsqlite:"), "{said}");
    assert!(said.ends_with("sluicegate.db: the first `sluicegate run` creates it\n"), "{said}");
}

#[test]
fn a_mistake_is_told_in_one_line_with_its_place() {
    let site = Site::new("");
    let text = "[timeouts]\nhaed = \"3s\"\n[vpn]\nallow = [\"10.0.0.0/8\"]\n";
    std::fs::write(
        site.config_path(),
        format!("{text}[store]\nurl = \"sqlite:{}\"\n", site.store_path().display()),
    )
    .unwrap();
    let (code, said, message) = outcome(check(&site));
    let expected = format!(
        "sluicegate: {}:2:1: timeouts.haed: unknown key `haed`; the nearest known key is `head`\n",
        site.config_path().display()
    );
    assert_eq!((code, said.as_str(), message), (1, "", expected));
}

#[test]
fn all_that_is_wrong_is_told_at_once_the_files_and_the_store_included() {
    let site = Site::new("");
    let token = site.folder().join("admin-token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let folder = site.folder().display();
    let text = format!(
        "[vpn]\nallow = [\"127.0.0.0/8\"]\n\n[audit]\npath = \"{folder}/nowhere/audit.jsonl\"\n\n[limits]\n\
         sessions = 0\n\n[admin]\ntoken_file = \"{folder}/admin-token\"\n\n[log]\nlevel = 7\n[authz.guard]\nwindow = \"25h\"\n[[listen]]\n\
         address = \"127.0.0.1:0\"\ntls = {{ certificates = [{{ chain = \"{folder}/no.pem\", key = \"{folder}/no.key\" }}] }}\n\n\
         [[listen]]\naddress = \"127.0.0.1:0\"\n\
         tls = {{ certificates = [{{ chain = \"{folder}/none.pem\", key = \"{folder}/no.key\" }}] }}\n\n\
         [store]\nurl = \"sqlite:{folder}/none.db\"\n"
    );
    std::fs::write(site.config_path(), text).unwrap();
    let (code, said, message) = outcome(check(&site));
    assert_eq!((code, said.as_str()), (1, ""));
    let file = site.config_path().display().to_string();
    let expected = [
        format!("{file}:5:1: audit.path: {folder}/nowhere/audit.jsonl cannot be opened: there is no folder"),
        format!("{file}:8:1: limits.sessions: must be at least 1"),
        format!("{file}:11:1: admin.token_file: {folder}/admin-token cannot be used: every user can read it"),
        format!("{file}:14:9: log.level: 7 stands here, and it must be a text in quotes"),
        format!("{file}:16:1: authz.guard.window: must be between"),
        format!("{file}:19:1: listen.0.tls: {folder}/no.pem: "),
        format!("{file}:23:1: listen.1.tls: {folder}/none.pem: "),
        format!("sqlite:{folder}/none.db does not exist; `sluicegate store init` creates it"),
    ];
    assert_eq!(message.lines().count(), expected.len(), "{message}");
    for (line, expected) in message.lines().zip(expected) {
        assert!(line.starts_with(&format!("sluicegate: {expected}")), "{line}\nis not\n{expected}");
    }
    assert!(!site.folder().join("nowhere").exists());
}

#[test]
fn what_run_refuses_is_told_by_check() {
    let site = Site::new("");
    let folder = site.folder();
    std::fs::write(folder.join("file"), "").unwrap();
    std::fs::write(folder.join("short"), "0123").unwrap();
    std::fs::set_permissions(folder.join("short"), std::fs::Permissions::from_mode(0o600)).unwrap();
    for (key, file) in [
        ("audit.path", "nowhere/audit.jsonl"),
        ("audit.path", "file/audit.jsonl"),
        ("audit.path", "."),
        ("admin.token_file", "nowhere"),
        ("admin.token_file", "short"),
    ] {
        let mut site = Site::new("");
        site.configure(&format!("{key} = '{}'", folder.join(file).display()));
        let (code, _, message) = outcome(check(&site));
        assert!(code == 1 && message.contains(&format!(" {key}: ")), "{key} {file}: {message}");
        let run = site.command(&["run"]).output().unwrap();
        assert_eq!(run.status.code(), Some(1), "{key} {file}: run starts");
    }
    // A relay waits for these.
    for text in [
        "listen = [{ address = '192.0.2.1:3128' }]",
        "listen = [{ address = '[2001:db8::1]:3128' }]",
        "admin.address = '192.0.2.1:9128'",
        "admin.health_address = '192.0.2.1:9129'",
    ] {
        let (code, _, message) = outcome(check(&Site::new(text)));
        assert_eq!(code, 0, "{message}");
        assert!(
            message.starts_with("warning: ") && message.contains(" is no address of this machine"),
            "{message}"
        );
    }
    let mut command = check(&site);
    command.env("RUST_LOG", "a=b=c");
    let (code, _, message) = outcome(command);
    assert!(code == 1 && message.starts_with("sluicegate: RUST_LOG is not understood: "), "{message}");
}

#[test]
fn a_state_that_others_could_have_written_is_a_warning() {
    let mut site = Site::new("");
    let state = site.folder().join("kept");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o777)).unwrap();
    site.configure(&format!("authz.state = '{}'", state.display()));
    let (code, _, warned) = outcome(check(&site));
    assert_eq!(code, 0);
    assert!(
        warned.starts_with(&format!("warning: {} can be written by other users", state.display())),
        "{warned}"
    );
}

#[test]
fn an_override_counts_and_is_told_by_its_name() {
    let site = Site::new("");
    let mut command = check(&site);
    command.env("SLUICEGATE_LIMITS__SESSIONS", "0");
    let (code, _, message) = outcome(command);
    assert_eq!(code, 1);
    assert_eq!(message, "sluicegate: the environment's SLUICEGATE_LIMITS__SESSIONS: must be at least 1\n");
}

#[test]
fn an_environment_that_is_not_utf8_matters_only_where_it_is_ours() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let site = Site::new("limits.sessions = 10");
    let mut command = check(&site);
    command.env("SOMEBODY_ELSES", OsStr::from_bytes(b"\xff"));
    assert_eq!(outcome(command).0, 0);
    let mut command = check(&site);
    command.env("SLUICEGATE_LOG__LEVEL", OsStr::from_bytes(b"\xff"));
    let (code, _, message) = outcome(command);
    assert_eq!(code, 1);
    assert!(message.contains("SLUICEGATE_LOG__LEVEL: is not UTF-8"), "{message}");
}

#[test]
fn a_missing_store_is_told_with_its_remedy() {
    let site = Site::new("");
    std::fs::remove_file(site.store_path()).unwrap();
    let (code, _, message) = outcome(check(&site));
    let store = site.store_path();
    let expected = format!(
        "sluicegate: sqlite:{} does not exist; `sluicegate store init` creates it\n",
        store.display()
    );
    assert_eq!((code, message), (1, expected));
}

#[test]
fn rows_that_do_not_decode_are_told() {
    let site = Site::new("");
    let store = rusqlite::Connection::open(site.store_path()).unwrap();
    store.execute_batch("PRAGMA ignore_check_constraints = ON; UPDATE grants SET port_min = 0").unwrap();
    let (code, _, message) = outcome(check(&site));
    assert_eq!(code, 1);
    assert!(message.contains(": 1 rows do not decode; the first is grants 1: "), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn a_vpn_that_is_every_address_is_a_warning_here_and_in_the_log() {
    for network in ["0.0.0.0/0", "::/0"] {
        let site = Site::new(&format!("vpn.allow = ['127.0.0.0/8', '{network}']"));
        let (code, _, warned) = outcome(check(&site));
        let expected =
            format!("warning: vpn.allow has {network}, so the relay connects clients to whatever address");
        assert!(code == 0 && warned.contains(&expected), "{warned}");
        assert!(site.start().logs(&expected["warning: ".len()..]));
    }
}

#[test]
fn too_few_descriptors_are_a_warning_that_names_the_numbers() {
    let site = Site::new("limits.sessions = 4000000");
    let (code, said, warned) = outcome(check(&site));
    assert_eq!(code, 0);
    assert!(said.contains(": fine\n"), "{said}");
    assert!(warned.starts_with("warning: limits.sessions is 4000000, but "), "{warned}");
    assert!(warned.contains(" file descriptors are enough for "), "{warned}");
    assert!(warned.ends_with("; raise LimitNOFILE= or `ulimit -n`\n"), "{warned}");
    assert_eq!(site.cli(&["check"])["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn a_command_line_that_makes_no_sense_is_bad_usage() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [&["chekc"][..], &["check", "--confg", "x"], &[], &["token", "list", "--store", "x"]] {
        let mut command = sluicegate(home.path());
        command.args(arguments);
        assert_eq!(outcome(command).0, 2, "{arguments:?}");
    }
}

#[test]
fn a_store_command_works_on_the_store_that_it_is_given() {
    let home = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", home.path().join("other.db").display());
    let run = |arguments: &[&str]| {
        let mut command = sluicegate(home.path());
        command.args(arguments).args(["--store", &url]);
        outcome(command)
    };
    assert_eq!(run(&["store", "init"]).0, 0);
    assert_eq!(run(&["principal", "add", "bob"]).0, 0);
    let (code, said, _) = run(&["principal", "list"]);
    assert!(code == 0 && said.contains("bob"), "{said}");
    assert!(!home.path().join(".local").exists(), "the embedded store was touched");
}

#[test]
fn keys_and_values_alone_can_be_checked_where_nothing_else_is_there() {
    let site = Site::new("");
    let text = "[vpn]\nallow = [\"10.8.0.0/16\"]\n\n[[listen]]\naddress = \"192.0.2.1:443\"\ntls = { certificates = [\
                { chain = \"/nowhere/a.pem\", key = \"/nowhere/a.key\" }] }\n\n[store]\n\
                url = \"postgres://relay@db.invalid/rights\"\n\n[admin]\nsocket_group = \"no-such-group\"\n\
                token_file = \"/nowhere/token\"\n\n[audit]\npath = \"/nowhere/audit.jsonl\"\n";
    std::fs::write(site.config_path(), text).unwrap();
    let only = || {
        let mut command = check(&site);
        command.arg("--config-only");
        outcome(command)
    };
    let file = site.config_path().display().to_string();
    let expected = format!("{file}: fine; only its keys and values were checked\n");
    assert_eq!(only(), (0, expected, String::new()));

    let (code, _, message) = outcome(check(&site));
    assert_eq!(code, 1);
    for key in ["listen.0.tls", "admin.socket_group", "admin.token_file", "audit.path"] {
        assert!(message.contains(&format!(": {key}: ")), "{key} is missing: {message}");
    }

    std::fs::write(
        site.config_path(),
        text.replace("[audit]", "[limits]\nsessions = 0\n[audit]\njournal = true"),
    )
    .unwrap();
    let (code, said, message) = only();
    assert_eq!((code, said.as_str(), message.lines().count()), (1, "", 2), "{message}");
    assert!(message.contains(&format!("{file}:16:1: limits.sessions: ")), "{message}");
    assert!(message.contains(&format!("{file}:18:1: audit.journal: unknown key `journal`")), "{message}");
}

#[test]
fn the_help_has_the_exit_codes() {
    let mut command = sluicegate(Path::new("/"));
    command.args(["check", "--help"]);
    let (code, said, _) = outcome(command);
    assert!(code == 0 && said.contains("Exit codes: 0 nothing is wrong"), "{said}");
}
