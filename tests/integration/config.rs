//! What a person is told about a configuration that is wrong: file, line, key, remedy.

use std::path::PathBuf;
use std::time::Duration;

use sluicegate::config::{Allowance, Config, Forwarding, Preference, Queries};

/// Loads `text` as a file, with `environment` on top.
fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("sluicegate.toml");
    std::fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let prefix = format!("{}/", folder.path().display());
    Config::load(Some(&path), environment).map_err(|error| error.to_string().replace(&prefix, ""))
}

const VPN: &str = "[vpn]\nallow = [\"10.0.0.0/8\"]\n";

fn refusal(text: &str) -> String {
    load(&format!("{text}\n{VPN}"), &[]).unwrap_err()
}

#[test]
fn an_unknown_key_is_told_with_its_line_and_the_nearest_known_one() {
    assert_eq!(
        refusal("[timeouts]\nhaed = \"3s\""),
        "sluicegate.toml:2:1: timeouts.haed: unknown key `haed`; the nearest known key is `head`"
    );
    assert_eq!(
        refusal("[limit]\nsessions = 3"),
        "sluicegate.toml:1:2: limit: unknown key `limit`; the nearest known key is `limits`"
    );
    assert_eq!(
        refusal("[[listen]]\naddress = \"127.0.0.1:1\"\nsuffix = []"),
        "sluicegate.toml:3:1: listen.0.suffix: unknown key `suffix`; the nearest known key is `suffixes`"
    );
}

#[test]
fn a_value_of_the_wrong_kind_is_told_with_its_key() {
    let message = refusal("[limits]\nsessions = \"many\"");
    assert_eq!(
        message,
        "sluicegate.toml:2:12: limits.sessions: the text \"many\" stands here, and it must be a whole number that is \
         not negative; for example `sessions = 8000`"
    );
    let message = refusal("[timeouts]\nhead = \"3 fortnights\"");
    assert_eq!(
        message,
        "sluicegate.toml:2:8: timeouts.head: the text \"3 fortnights\" stands here, and it must be a time in quotes, a \
         number with its unit (`us`, `ms`, `s`, `m`, `h`, `days`); for example `head = \"10s\"`"
    );
    let message = refusal("[store]\nurl = \"mysql://db\"");
    assert_eq!(
        message,
        "sluicegate.toml:2:7: store.url: `mysql:` is not a store; use `sqlite:PATH` or \
         `postgres://USER@HOST/DATABASE`"
    );
    let message = refusal("[engine]\nforwarding = \"warp\"");
    assert_eq!(
        message,
        "sluicegate.toml:2:14: engine.forwarding: `warp` is not one of the values that it may have: `auto`, `copy`, \
         `splice`, `ring-splice`; for example `forwarding = \"auto\"`"
    );
}

#[test]
fn a_value_of_any_wrong_kind_is_told_with_what_is_allowed_and_an_example_and_no_name_of_a_type() {
    let wrong = ["1", "-1", "1.5", "true", "\"x\"", "[]", "[1]", "[[1]]", "{ a = 1 }", "{}", "1979-05-27"];
    let mut refused = 0;
    for section in sluicegate::config::reference::sections() {
        for key in &section.keys {
            for value in wrong {
                let header = section.header;
                let allow = "allow = [\"10.0.0.0/8\"]";
                let networks = match (header, key.name) {
                    ("[vpn]", "allow") => String::new(),
                    ("[vpn]", _) => allow.to_owned(),
                    _ => format!("[vpn]\n{allow}"),
                };
                // Some keys do take some of these values.
                let text = format!("{header}\n{} = {value}\n{networks}\n", key.name);
                let Err(errors) = load(&text, &[]) else { continue };
                let name = format!("{}.", section.name());
                for error in errors.lines() {
                    refused += 1;
                    let is_ours = [
                        "struct ",
                        "enum ",
                        "map",
                        "sequence",
                        "variant",
                        "u32",
                        "u64",
                        "usize",
                        "expected ",
                    ];
                    let found = is_ours.iter().find(|word| error.contains(*word));
                    assert!(found.is_none(), "{section_name}{}: {error}", key.name, section_name = name);
                    // A value out of bounds is told with its bounds, any other with an example.
                    let says_what_to_write = error.contains('`') || error.contains("must be ");
                    assert!(error.contains(": ") && says_what_to_write, "no key or no example: {error}");
                }
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn the_keys_of_the_guard_are_told_as_they_are_written() {
    assert_eq!(
        refusal("[authz.guard.budgets]\ngained = 50"),
        "sluicegate.toml:2:10: authz.guard.budgets.gained: 50 stands here, and it must be a table of keys in `{` and `}`, \
         or a section; for example `gained = { rows = 50, share = 0.01 }`"
    );
    assert_eq!(
        refusal("[authz.guard.budgets]\ngained = { share = 0.5 }"),
        "sluicegate.toml:2:10: authz.guard.budgets.gained: the key `rows` is missing here; for example \
         `gained = { rows = 50, share = 0.01 }`"
    );
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let text = "[limits]\nsessions = 0\nsession = 3\n\n[timeouts]\nhead = 5\nidle = \"0s\"\n\n[[listen]]\n\
                address = \"nowhere\"\n\n[authz.guard]\nbudgets.gained = 7\nwindow = \"25h\"\n\n[vpn]\n\
                allow = [\"10.0.0.0/8\", \"10.x\"]\nreport = true\n";
    let environment =
        [("SLUICEGATE_ENGINE__BUFFERS", "1000"), ("SLUICEGATE_LOG__LEVEL", "5"), ("SLUICEGATE_LOG__X", "5")];
    let errors = load(text, &environment).unwrap_err();
    let places: Vec<&str> = errors.lines().map(|line| line.split(": ").take(2).last().unwrap()).collect();
    let lines: Vec<&str> = errors.lines().map(|line| line.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines[..8], ["2", "3", "6", "7", "10", "13", "14", "17"], "{errors}");
    assert_eq!(
        places[..9],
        [
            "limits.sessions",
            "limits.session",
            "timeouts.head",
            "timeouts.idle",
            "listen.0.address",
            "authz.guard.budgets.gained",
            "authz.guard.window",
            "vpn.allow.1",
            "vpn.report"
        ],
        "{errors}"
    );
    for variable in ["SLUICEGATE_ENGINE__BUFFERS", "SLUICEGATE_LOG__LEVEL", "SLUICEGATE_LOG__X"] {
        assert_eq!(errors.matches(variable).count(), 1, "{errors}");
    }
    assert_eq!(errors.lines().count(), 13, "a mistake is told once, and its consequences never: {errors}");
}

#[test]
fn what_follows_from_a_mistake_is_no_mistake_of_its_own() {
    for text in [
        // The address was wrong, so it is not missing, and there is a listener.
        "[[listen]]\naddress = 5",
        // The names were wrong, so they are not missing where they are needed.
        "[vpn]\nnode = 5\nallow = [\"10.0.0.0/8\"]\n[forward]\nlisten = \"10.0.0.1:1\"\ntls = { chain = 1, key = \"b\", ca = \"c\" }",
        "[authz]\nrefresh = 5\nmax_stale = \"50ms\"",
    ] {
        let text = if text.contains("[vpn]") { text.to_owned() } else { format!("{text}\n{VPN}") };
        let errors = load(&text, &[]).unwrap_err();
        let count = if text.contains("node = 5") { 2 } else { 1 };
        assert_eq!(errors.lines().count(), count, "{errors}");
    }
}

#[test]
fn every_broken_line_is_told() {
    let errors = refusal("[timeouts]\nhead = \nidle = 3h\n[limits\nsessions = 5");
    let lines: Vec<&str> = errors.lines().map(|line| line.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["2", "3", "4"], "{errors}");
}

#[test]
fn broken_syntax_is_told_with_its_line() {
    let message = refusal("[timeouts]\nhead = ");
    assert!(message.starts_with("sluicegate.toml:2:"), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_value_that_cannot_work_is_told_with_its_line() {
    for (text, message) in [
        ("[timeouts]\nidle = \"0s\"", "sluicegate.toml:2:1: timeouts.idle: must be between 1ms and 10years"),
        (
            "[timeouts]\ndrain = \"500000000000years\"",
            "sluicegate.toml:2:1: timeouts.drain: must be between 0s and 10years",
        ),
        (
            "[timeouts]\nkeepalive = \"10h\"",
            "sluicegate.toml:2:1: timeouts.keepalive: must be between 1s and 9h 6m 7s",
        ),
        (
            "[timeouts]\nuser_timeout = \"30days\"",
            "sluicegate.toml:2:1: timeouts.user_timeout: must be between 1ms and 24days",
        ),
        (
            "[engine]\nbusy_poll = \"1s\"",
            "sluicegate.toml:2:1: engine.busy_poll: must be between 0s and 10ms",
        ),
        (
            "[authz]\nmax_stale = \"100ms\"",
            "sluicegate.toml:2:1: authz.max_stale: must be longer than authz.refresh, or nothing is ever decided",
        ),
        (
            "[authz.guard]\nwindow = \"25h\"",
            "sluicegate.toml:2:1: authz.guard.window: must be between 1ms and 1day",
        ),
        (
            "[authz.guard]\nbudgets.gained = { share = 1.5, rows = 3 }",
            "sluicegate.toml:2:20: authz.guard.budgets.gained.share: must be a share from 0 to 1",
        ),
        (
            "[engine]\npipe_bytes = 1",
            "sluicegate.toml:2:1: engine.pipe_bytes: must be between 4096 and 16777216",
        ),
        (
            "[engine]\npipes = 9223372036854775807",
            "sluicegate.toml:2:1: engine.pipes: must be at most 524288; each takes two descriptors",
        ),
        (
            "[engine]\nthreads = 2000",
            "sluicegate.toml:2:1: engine.threads: must be at most 1024; 0 means one per CPU",
        ),
        (
            "listen = []",
            "sluicegate.toml:1:1: listen: no listener; add one, such as `[[listen]]` with `address = \"127.0.0.1:3128\"`",
        ),
        (
            "[admin]\naddress = \"127.0.0.1:3128\"",
            "sluicegate.toml:2:1: admin.address: 127.0.0.1:3128 is also the address of another listener; set another port",
        ),
        (
            "[engine]\nbuffers = 1000",
            "sluicegate.toml:2:1: engine.buffers: must be a power of two of at most 32768",
        ),
        ("[limits]\nsessions = 0", "sluicegate.toml:2:1: limits.sessions: must be at least 1"),
        (
            "[[listen]]\naddress = \"127.0.0.1:7\"\n[[listen]]\naddress = \"127.0.0.1:7\"",
            "sluicegate.toml:4:1: listen.1.address: 127.0.0.1:7 is listed twice",
        ),
        (
            "[[listen]]\naddress = \"127.0.0.1:7\"\nsuffixes = [\".balena\"]",
            "sluicegate.toml:3:1: listen.0.suffixes: `.balena` is not a suffix; use letters, digits and `-`, without the dot",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
}

#[test]
fn the_guard_counts_over_the_window_by_the_budgets_of_the_file() {
    let guard = |text: &str| load(&format!("{text}\n{VPN}"), &[]).map(|config| config.authz.guard);
    let default = guard("").unwrap();
    assert_eq!((default.window, default.prefer), (Duration::from_secs(600), Preference::Availability));
    assert!(default.budgets.all().iter().all(|(_, budget)| budget.is_none()), "the guard's own law");

    let kinds = default.budgets.all().map(|(kind, _)| kind);
    for kind in kinds {
        let text = format!("[authz.guard.budgets]\n{kind} = {{ share = 0.25, rows = 7 }}");
        let budgets = guard(&text).unwrap().budgets.all();
        let changed: Vec<_> = budgets.into_iter().filter(|(_, budget)| budget.is_some()).collect();
        assert_eq!(changed, [(kind, Some(Allowance { share: 0.25, rows: 7 }))]);
    }
    let other = guard("[authz.guard]\nwindow = \"3m\"\nprefer = \"security\"").unwrap();
    assert_eq!((other.window, other.prefer), (Duration::from_secs(180), Preference::Security));

    let refused = guard("[authz.guard]\nprefer = \"neither\"").unwrap_err();
    assert!(refused.contains("`availability` or `security`"), "{refused}");
    let refused = guard("[authz.guard.budgets]\ngaind = { share = 0.25, rows = 7 }").unwrap_err();
    assert!(refused.ends_with("unknown key `gaind`; the nearest known key is `gained`"), "{refused}");
}

#[test]
fn a_key_of_an_earlier_guard_is_refused_with_the_one_that_replaces_it() {
    for (key, value, instead) in [
        (
            "max_loss",
            "{ share = 0.1, rows = 5 }",
            "set `budgets.absent`, `budgets.ended` and `budgets.narrowed`",
        ),
        ("max_bad_rows", "{ share = 0.1, rows = 5 }", "set `budgets.undecodable`"),
        ("max_dangling", "{ share = 0.1, rows = 5 }", "set `budgets.gained` and `budgets.reassigned`"),
        ("max_outside", "{ share = 0.1, rows = 5 }", "set `budgets.moved`"),
        ("max_unlocated", "{ share = 0.1, rows = 5 }", "set `budgets.unlocated`"),
        ("replay", "0", "remove it; `budgets` bound what clients lose"),
        ("max_replay_failures", "0.1", "remove it; `budgets` bound what clients lose"),
    ] {
        let refused = refusal(&format!("[authz.guard]\n{key} = {value}"));
        let place = format!("sluicegate.toml:2:1: authz.guard.{key}: `{key}` is a key of earlier versions; ");
        assert!(refused.starts_with(&place) && refused[place.len()..].starts_with(instead), "{refused}");
    }
    let variable = "SLUICEGATE_AUTHZ__GUARD__REPLAY";
    let refused = load(VPN, &[(variable, "0")]).unwrap_err();
    assert!(refused.starts_with(&format!("the environment's {variable}: `replay` is a key")), "{refused}");
    assert!(refusal("[probe]\nreplay = 1").contains("unknown key `replay`"), "elsewhere it never was one");
}

#[test]
fn a_query_for_ended_rows_is_read_with_the_others_and_replaces_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ended.sql");
    std::fs::write(&file, "SELECT relation, id, at FROM ends;\n").unwrap();
    let queries =
        load(&format!("[authz.queries]\nended = \"{}\"\n{VPN}", file.display()), &[]).unwrap().authz.queries;
    assert_eq!(queries.ended.as_ref().unwrap().sql, "SELECT relation, id, at FROM ends");
    assert!(!queries.are_replaced());
    assert_eq!(queries.replaced_by(&Queries::default()), queries);
    assert_eq!(Queries::default().replaced_by(&queries), queries);
}

#[test]
fn a_file_must_name_the_networks_of_its_devices() {
    let message = load("[limits]\nsessions = 5\n", &[]).unwrap_err();
    assert!(message.starts_with("sluicegate.toml: vpn.allow: no network is allowed"), "{message}");
    let embedded = Config::load(None, []).unwrap();
    assert!(embedded.vpn.allows([127, 0, 0, 1].into()));
    assert!(!embedded.vpn.allows([10, 0, 0, 1].into()));
}

#[test]
fn a_name_that_no_interface_can_have_is_told() {
    let with = |interface: &str| load(&format!("{VPN}interface = \"{interface}\"\n"), &[]);
    for absent in ["", "..", "a/b", "a-name-longer-than-any-interface"] {
        let message = with(absent).unwrap_err();
        assert_eq!(
            message,
            format!("sluicegate.toml:3:1: vpn.interface: no network interface can have the name `{absent}`")
        );
    }
    // Whether it is there is found out while the relay runs.
    assert_eq!(with("tun77").unwrap().vpn.interface.as_deref(), Some("tun77"));
}

#[test]
fn the_environment_overrides_the_file() {
    let text = format!("{VPN}[limits]\nsessions = 5\n");
    let config = load(
        &text,
        &[
            ("SLUICEGATE_LIMITS__SESSIONS", "77"),
            ("SLUICEGATE_TIMEOUTS__HEAD", "3s"),
            ("SLUICEGATE_ENGINE__FORWARDING", "ring-splice"),
            ("SLUICEGATE_LISTEN__0__ADDRESS", "[::1]:4000"),
            ("SLUICEGATE_VPN__ALLOW", "[\"192.0.2.0/24\"]"),
            ("SLUICEGATE_TOKEN", "not a key"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!(config.limits.sessions, 77);
    assert_eq!(config.timeouts.head.as_secs(), 3);
    assert_eq!(config.engine.forwarding, Forwarding::RingSplice);
    assert_eq!(config.listen[0].address.to_string(), "[::1]:4000");
    assert!(config.vpn.allows([192, 0, 2, 7].into()) && !config.vpn.allows([10, 0, 0, 7].into()));
}

#[test]
fn a_wrong_override_names_its_variable() {
    let message = load(VPN, &[("SLUICEGATE_LIMITS__SESSION", "77")]).unwrap_err();
    assert_eq!(
        message,
        "the environment's SLUICEGATE_LIMITS__SESSION: unknown key `session`; the nearest known key is \
         `sessions`"
    );
    let message = load(VPN, &[("SLUICEGATE_LISTEN__3__ADDRESS", "[::1]:1")]).unwrap_err();
    assert_eq!(
        message,
        "the environment's SLUICEGATE_LISTEN__3__ADDRESS: the next free place in the list is 1"
    );
    let message = load(VPN, &[("SLUICEGATE_LISTEN__ADDRESS", "[::1]:1")]).unwrap_err();
    assert_eq!(
        message,
        "the environment's SLUICEGATE_LISTEN__ADDRESS: `address` should be a place in a list, from 0"
    );
    let message = load(VPN, &[("SLUICEGATE_LISTEN__1__SUFFIXES", "[]")]).unwrap_err();
    assert_eq!(
        message,
        "the environment's SLUICEGATE_LISTEN__1__SUFFIXES: the key `address` is missing here; for example \
         `address = \"127.0.0.1:3128\"`"
    );
    let message = load(VPN, &[("SLUICEGATE_TIMEOUTS__HEAD__MAX", "3s")]).unwrap_err();
    assert!(
        message.starts_with("the environment's SLUICEGATE_TIMEOUTS__HEAD__MAX: a table stands here"),
        "{message}"
    );
}

#[test]
fn a_value_that_an_override_set_is_not_blamed_on_the_file() {
    let text = format!("{VPN}[limits]\nsessions = 5\n");
    let message = load(&text, &[("SLUICEGATE_LIMITS__SESSIONS", "0")]).unwrap_err();
    assert_eq!(message, "the environment's SLUICEGATE_LIMITS__SESSIONS: must be at least 1");
    // Nor on another variable, whichever comes first.
    let message =
        load(&text, &[("SLUICEGATE_ENGINE__BUFFERS", "64"), ("SLUICEGATE_LIMITS__SESSIONS", "many")]);
    let message = message.unwrap_err();
    assert!(
        message.starts_with("the environment's SLUICEGATE_LIMITS__SESSIONS: the text \"many\" stands here"),
        "{message}"
    );
    let message =
        load("[limits]\nsessions = 0\n", &[("SLUICEGATE_VPN__ALLOW", "[\"10.0.0.0/8\"]")]).unwrap_err();
    assert_eq!(message, "sluicegate.toml:2:1: limits.sessions: must be at least 1");
}

#[test]
fn the_order_of_the_environment_means_nothing() {
    let mut environment = vec![
        ("SLUICEGATE_LISTEN__0__SUFFIXES", "[\"zero\"]"),
        ("SLUICEGATE_LISTEN__2__ADDRESS", "127.0.0.1:2"),
        ("SLUICEGATE_LISTEN__10__ADDRESS", "127.0.0.1:10"),
        ("SLUICEGATE_LISTEN__1__SUFFIXES", "[\"one\"]"),
        ("SLUICEGATE_LISTEN__1__ADDRESS", "127.0.0.1:1"),
    ];
    for place in ["3", "4", "5", "6", "7", "8", "9"] {
        let address: &str = format!("127.0.0.1:{place}").leak();
        environment.push((format!("SLUICEGATE_LISTEN__{place}__ADDRESS").leak(), address));
    }
    let forwards = load(VPN, &environment).unwrap();
    environment.reverse();
    assert_eq!(load(VPN, &environment).unwrap().listen, forwards.listen);
    assert_eq!(forwards.listen[0].address.to_string(), "127.0.0.1:3128");
    assert_eq!(forwards.listen[0].suffixes, ["zero"]);
    assert_eq!(forwards.listen[10].address.port(), 10);
}

#[test]
fn an_override_is_one_value_and_never_a_piece_of_toml() {
    let message = load(VPN, &[("SLUICEGATE_LIMITS__SESSIONS", "7\nsessions_per_device = 3")]).unwrap_err();
    assert!(
        message.starts_with("the environment's SLUICEGATE_LIMITS__SESSIONS: the text \"7\\nsessions"),
        "{message}"
    );
    assert!(!message.contains('\n'), "{message}");
    let config = load(VPN, &[("SLUICEGATE_VPN__NODE", "2026-01-01")]).unwrap();
    assert_eq!(config.vpn.node.as_deref(), Some("2026-01-01"));
}

#[test]
fn a_node_without_a_file_can_be_told_to_allow_something_else_or_nothing() {
    let load = |value: &str| Config::load(None, [("SLUICEGATE_VPN__ALLOW".to_owned(), value.to_owned())]);
    let message = load("[]").unwrap_err().to_string();
    assert!(
        message.starts_with("the environment's SLUICEGATE_VPN__ALLOW: no network is allowed"),
        "{message}"
    );
    let config = load("[\"192.0.2.0/24\"]").unwrap();
    assert!(config.vpn.allows([192, 0, 2, 1].into()) && !config.vpn.allows([127, 0, 0, 1].into()));
}

#[test]
fn the_password_of_a_store_is_told_to_nobody() {
    let message = refusal("[store]\nurl = \"postgres://relay:hunter2@db/balena?sslmode=never\"");
    assert!(
        message.starts_with(
            "sluicegate.toml:2:7: store.url: this is not a PostgreSQL URL (sslmode `never` is none of"
        ),
        "{message}"
    );
    assert!(!message.contains("hunter2"), "{message}");
    let message = refusal("[store]\nurl = \"mysql://relay:hunter2@db/balena\"");
    assert!(!message.contains("hunter2"), "{message}");
    for url in ["postgres://relay:hunter2@db/balena?hostaddr=10.x", "postgres://relay:hunter2@[::1/balena"] {
        let message = refusal(&format!("[store]\nurl = \"{url}\""));
        assert!(message.contains("store.url: ") && !message.contains("hunter2"), "{message}");
    }
    let text = format!("{VPN}[store]\nurl = \"postgres://relay:hunter2@db/balena\"");
    let config = load(&text, &[]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
}

#[test]
fn a_missing_file_is_told() {
    let message = Config::load(Some("/nonexistent/x.toml".as_ref()), []).unwrap_err().to_string();
    assert_eq!(message, "/nonexistent/x.toml cannot be read: No such file or directory (os error 2)");
}

#[test]
fn an_address_that_maps_ipv4_is_judged_as_ipv4() {
    let config = load(VPN, &[]).unwrap();
    assert!(config.vpn.allows("::ffff:10.1.2.3".parse().unwrap()));
    assert!(!config.vpn.allows("::ffff:11.1.2.3".parse().unwrap()));
}

#[test]
fn an_address_without_a_prefix_is_that_address_alone() {
    let text = "[[listen]]\naddress = \"127.0.0.1:1\"\nproxy_from = [\"192.0.2.7\"]\n\
                [vpn]\nallow = [\"10.0.0.1\", \"fd00::1\"]\n";
    let config = load(text, &[]).unwrap();
    for address in ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"] {
        assert!(config.vpn.allows(address.parse().unwrap()), "{address}");
    }
    for address in ["10.0.0.2", "fd00::2"] {
        assert!(!config.vpn.allows(address.parse().unwrap()), "{address}");
    }
    let listen = &config.listen[0];
    assert!(listen.trusts_proxy([192, 0, 2, 7].into()) && !listen.trusts_proxy([192, 0, 2, 8].into()));
    let message = refusal("[[listen]]\naddress = \"127.0.0.1:1\"\nproxy_from = [\"balancer.example\"]");
    assert!(
        message.starts_with("sluicegate.toml:3:15: listen.0.proxy_from.0: `balancer.example` is neither"),
        "{message}"
    );
}

#[test]
fn a_signer_of_session_tokens_that_cannot_work_is_told_where_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let signer = format!("[[authz.tokens]]\nalgorithm = \"HS256\"\nkey_file = \"{}\"\n", key.display());
    let defaults = load(&format!("{signer}{VPN}"), &[]).unwrap().authz.tokens;
    assert_eq!((defaults.len(), defaults[0].leeway), (1, std::time::Duration::from_secs(30)));

    assert_eq!(
        refusal(&format!("{signer}isuer = \"login\"")),
        "sluicegate.toml:4:1: authz.tokens.0.isuer: unknown key `isuer`; the nearest known key is `issuer`"
    );
    assert_eq!(
        refusal(&format!("{signer}leeway = \"6m\"")),
        "sluicegate.toml:4:1: authz.tokens.0.leeway: must be at most 5m, since tokens stay valid that long after their `exp`"
    );
    let message = refusal(&signer.replace("HS256", "none"));
    assert!(
        message
            .starts_with("sluicegate.toml:2:13: authz.tokens.0.algorithm: `none` is not one of the values"),
        "{message}"
    );
    assert!(message.contains("`EdDSA`"), "{message}");
    let message = refusal(&signer.repeat(17));
    assert!(message.contains("authz.tokens: must be at most 16"), "{message}");
}
