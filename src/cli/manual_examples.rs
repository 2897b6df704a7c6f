//! The examples in manual pages, by command. A test parses each.

/// One line for a shell, and what it is for.
pub(super) struct Example {
    pub purpose: &'static str,
    pub line: &'static str,
}

/// The examples of the command whose name is `path`, without `sluicegate`. Empty for an unknown command.
pub(super) fn examples_of(path: &[&str]) -> &'static [Example] {
    let name = path.join(" ");
    TABLE.iter().find(|(command, _)| *command == name).map_or(&[], |(_, examples)| examples)
}

const fn example(purpose: &'static str, line: &'static str) -> Example {
    Example { purpose, line }
}

const TABLE: &[(&str, &[Example])] = &[
    (
        "",
        &[
            example("See a whole relay at work on this machine", "sluicegate demo"),
            example("Check the configuration, then run the relay", "sluicegate check && sluicegate run"),
        ],
    ),
    ("demo", &[example("Show everything once, without waiting for a key", "sluicegate demo --once")]),
    ("run", &[example("Run with another configuration", "sluicegate run --config ./relay.toml")]),
    ("reload", &[example("Take over the configuration and renewed certificates", "sluicegate reload")]),
    (
        "drain",
        &[
            example("Take the node out of service for ten minutes", "sluicegate drain --for 10m"),
            example("Serve new clients again", "sluicegate drain --cancel"),
        ],
    ),
    ("upgrade", &[example("Hand over to the program that was installed", "sluicegate upgrade")]),
    (
        "check",
        &[
            example("Check everything", "sluicegate check"),
            example(
                "Check a file that another machine will use",
                "sluicegate check --config-only --config ./relay.toml",
            ),
        ],
    ),
    ("store", &[example("Create the store that the configuration names", "sluicegate store init")]),
    (
        "store init",
        &[
            example("Create the store that the configuration names", "sluicegate store init"),
            example(
                "Create one in PostgreSQL",
                "sluicegate store init --store postgres://owner@db.example/sluicegate",
            ),
        ],
    ),
    ("principal", &[example("List all principals", "sluicegate principal list")]),
    ("principal add", &[example("Add a principal", "sluicegate principal add alice")]),
    ("principal list", &[example("List all principals, for a program", "sluicegate principal list --json")]),
    (
        "principal remove",
        &[example("Remove a principal; its tunnels end", "sluicegate principal remove alice")],
    ),
    ("token", &[example("Issue a token, which is shown once", "sluicegate token issue alice")]),
    (
        "token issue",
        &[example("Issue a token that ends after an hour", "sluicegate token issue alice --expires 1h")],
    ),
    ("token list", &[example("List all tokens, without their secrets", "sluicegate token list")]),
    ("token revoke", &[example("Revoke one; its tunnels end", "sluicegate token revoke 0123456789abcdef")]),
    ("device", &[example("List all devices", "sluicegate device list")]),
    (
        "device add",
        &[example(
            "Add a device at an address of the VPN",
            "sluicegate device add 0123456789abcdef0123456789abcdef --address 10.8.0.7",
        )],
    ),
    (
        "device set",
        &[example(
            "Say that a device is at another address",
            "sluicegate device set 0123456789abcdef0123456789abcdef --address 10.8.0.8",
        )],
    ),
    ("device list", &[example("List all devices", "sluicegate device list")]),
    (
        "device remove",
        &[example("Remove a device", "sluicegate device remove 0123456789abcdef0123456789abcdef")],
    ),
    ("grant", &[example("Let a principal reach all devices", "sluicegate grant add alice --any")]),
    (
        "grant add",
        &[example(
            "Let a principal reach the SSH port of one device for eight hours",
            "sluicegate grant add alice --device 0123456789abcdef0123456789abcdef --ports 22222 --expires 8h",
        )],
    ),
    ("grant list", &[example("List all grants", "sluicegate grant list")]),
    ("grant revoke", &[example("Revoke a grant; its tunnels end", "sluicegate grant revoke 7")]),
    ("authz", &[example("Show what the guard holds, and what to do", "sluicegate authz status")]),
    ("authz status", &[example("Show what the guard holds, and what to do", "sluicegate authz status")]),
    ("authz diff", &[example("List the rows that are held, and their digest", "sluicegate authz diff")]),
    (
        "authz accept",
        &[example("Publish one group, as it was listed", "sluicegate authz accept 4f1d grants.absent")],
    ),
    (
        "authz expect",
        &[example(
            "Announce that 400 devices will be deleted",
            "sluicegate authz expect devices absent 400 --for 15m",
        )],
    ),
    ("authz history", &[example("List the last publications", "sluicegate authz history")]),
    ("authz rollback", &[example("Undo the last publication", "sluicegate authz rollback")]),
    ("status", &[example("Show the node on one screen", "sluicegate status")]),
    ("sessions", &[example("List the sessions of a principal", "sluicegate sessions --principal alice")]),
    ("sessions kill", &[example("End a session", "sluicegate sessions kill 42")]),
    (
        "usage",
        &[
            example("Show who used how much in the last day", "sluicegate usage"),
            example(
                "Sum a week by device, for a spreadsheet",
                "sluicegate usage --since 7days --by device --csv",
            ),
        ],
    ),
    ("top", &[example("Watch the node", "sluicegate top")]),
    ("doctor", &[example("Check this machine", "sluicegate doctor")]),
    ("node", &[example("List the nodes", "sluicegate node list")]),
    ("node list", &[example("List the nodes, for a program", "sluicegate node list --json")]),
    (
        "tunnel",
        &[example(
            "Have local port 2222 lead to the SSH port of a device",
            "sluicegate tunnel 0123456789abcdef0123456789abcdef:22222 --relay relay.example:443 --listen 127.0.0.1:2222",
        )],
    ),
    (
        "canary",
        &[example(
            "Test a relay, and write the result for Prometheus",
            "sluicegate canary --relay relay.example:443 --device 0123456789abcdef0123456789abcdef:22222 \
             --textfile /var/lib/prometheus/node-exporter/sluicegate.prom",
        )],
    ),
    ("vpn", &[example("See the hook of OpenVPN", "sluicegate vpn openvpn-hook --help")]),
    (
        "vpn openvpn-hook",
        &[example(
            "In the configuration of OpenVPN's server",
            "sluicegate vpn openvpn-hook --addresses /run/openvpn-sluicegate/addresses",
        )],
    ),
];

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;
    use crate::cli::CommandLine;

    fn add_paths(command: &clap::Command, path: &str, paths: &mut Vec<String>) {
        paths.push(path.to_owned());
        for below in command.get_subcommands().filter(|each| !each.is_hide_set() && each.get_name() != "help")
        {
            add_paths(below, format!("{path} {}", below.get_name()).trim(), paths);
        }
    }

    #[test]
    fn every_command_has_an_example_and_no_other_has() {
        let mut paths = Vec::new();
        add_paths(&CommandLine::command(), "", &mut paths);
        paths.sort();
        let mut named: Vec<&str> = TABLE.iter().map(|(command, _)| *command).collect();
        named.sort_unstable();
        assert_eq!(named, paths);
        assert!(TABLE.iter().all(|(_, examples)| !examples.is_empty()));
    }

    #[test]
    fn every_example_is_a_command_line_that_the_program_takes() {
        for (command, examples) in TABLE {
            for Example { line, .. } in *examples {
                for line in line.split(" && ") {
                    let taken = CommandLine::command().try_get_matches_from(line.split_whitespace());
                    let is_help = |error: &clap::Error| error.kind() == ErrorKind::DisplayHelp;
                    assert!(taken.as_ref().map_or_else(is_help, |_| true), "{line}: {taken:?}");
                    assert!(
                        line.starts_with(format!("sluicegate {command}").trim()) || command.is_empty(),
                        "{line}"
                    );
                }
            }
        }
    }
}
