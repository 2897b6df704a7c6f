//! What a person is told about a configuration that is wrong: file, line, key, remedy.

use std::path::PathBuf;

use sluicegate::config::{Config, Forwarding};

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
    let told = refusal("[limits]\nsessions = \"many\"");
    assert!(told.starts_with("sluicegate.toml:2:12: limits.sessions: invalid type: string"), "{told}");
    let told = refusal("[timeouts]\nhead = \"3 fortnights\"");
    assert!(told.starts_with("sluicegate.toml:2:8: timeouts.head: "), "{told}");
    let told = refusal("[store]\nurl = \"mysql://db\"");
    assert_eq!(
        told,
        "sluicegate.toml:2:7: store.url: store.url `mysql://db` is not understood; this version knows \
         `sqlite:PATH`"
    );
    let told = refusal("[engine]\nforwarding = \"warp\"");
    assert!(told.contains("engine.forwarding") && told.contains("ring-splice"), "{told}");
}

#[test]
fn broken_syntax_is_told_with_its_line() {
    let told = refusal("[timeouts]\nhead = ");
    assert!(told.starts_with("sluicegate.toml:2:"), "{told}");
    assert!(!told.contains('\n'), "{told}");
}

#[test]
fn a_value_that_cannot_work_is_told_with_its_line() {
    for (text, told) in [
        (
            "[timeouts]\nidle = \"0s\"",
            "sluicegate.toml:2:1: timeouts.idle: must be longer than nothing, such as \"10s\"",
        ),
        (
            "[engine]\nbuffers = 1000",
            "sluicegate.toml:2:1: engine.buffers: must be a power of two of at most 32768",
        ),
        ("[limits]\nsessions = 0", "sluicegate.toml:2:1: limits.sessions: must be at least 1"),
        (
            "[[listen]]\naddress = \"127.0.0.1:7\"\n[[listen]]\naddress = \"127.0.0.1:7\"",
            "sluicegate.toml:4:1: listen.1.address: 127.0.0.1:7 is there twice",
        ),
        (
            "[[listen]]\naddress = \"127.0.0.1:7\"\nsuffixes = [\".balena\"]",
            "sluicegate.toml:3:1: listen.0.suffixes: `.balena` is no suffix; use letters, digits and `-`, without the dot",
        ),
    ] {
        assert_eq!(refusal(text), told);
    }
}

#[test]
fn a_file_must_name_the_networks_of_its_devices() {
    let told = load("[limits]\nsessions = 5\n", &[]).unwrap_err();
    assert!(told.starts_with("sluicegate.toml: vpn.allow: no network is allowed"), "{told}");
    let embedded = Config::load(None, []).unwrap();
    assert!(embedded.vpn.allows([127, 0, 0, 1].into()));
    assert!(!embedded.vpn.allows([10, 0, 0, 1].into()));
}

#[test]
fn an_interface_that_is_not_there_is_told() {
    let told = load("[vpn]\nallow = [\"10.0.0.0/8\"]\ninterface = \"tun77\"\n", &[]).unwrap_err();
    assert_eq!(
        told,
        "sluicegate.toml:3:1: vpn.interface: there is no network interface `tun77` on this machine"
    );
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
    let told = load(VPN, &[("SLUICEGATE_LIMITS__SESSION", "77")]).unwrap_err();
    assert_eq!(
        told,
        "the environment's SLUICEGATE_LIMITS__SESSION: unknown key `session`; the nearest known key is \
         `sessions`"
    );
    let told = load(VPN, &[("SLUICEGATE_LISTEN__3__ADDRESS", "[::1]:1")]).unwrap_err();
    assert_eq!(told, "the environment's SLUICEGATE_LISTEN__3__ADDRESS: the list has no element 3, only 0");
}

#[test]
fn a_missing_file_is_told() {
    let told = Config::load(Some("/nonexistent/x.toml".as_ref()), []).unwrap_err().to_string();
    assert_eq!(told, "/nonexistent/x.toml cannot be read: No such file or directory (os error 2)");
}

#[test]
fn an_address_that_maps_ipv4_is_judged_as_ipv4() {
    let config = load(VPN, &[]).unwrap();
    assert!(config.vpn.allows("::ffff:10.1.2.3".parse().unwrap()));
    assert!(!config.vpn.allows("::ffff:11.1.2.3".parse().unwrap()));
}
