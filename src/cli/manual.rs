//! Manual pages: one per command, made from the command line's definition and the table of examples, and
//! sluicegate.toml(5), made from the annotated reference configuration.

use std::fmt::Write as _;
use std::io;

use clap_mangen::Man;

use super::manual_examples::{Example, examples_of};
use crate::VERSION;
use crate::config::reference::{ReferenceKey, ReferenceSection, sections};

/// A page, and the name of its file.
pub(super) struct ManualPage {
    pub file: String,
    pub roff: Vec<u8>,
}

/// The pages of `command` and of all commands below it, and the page of the configuration.
pub(super) fn pages(command: clap::Command) -> io::Result<Vec<ManualPage>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add_pages(&command, &[], &mut pages)?;
    pages.push(ManualPage { file: CONFIG_PAGE.to_owned(), roff: config_page().into_bytes() });
    Ok(pages)
}

/// Adds the pages below `parents`. `parents` are the names of the commands above, without `sluicegate`.
fn add_pages(command: &clap::Command, parents: &[&str], pages: &mut Vec<ManualPage>) -> io::Result<()> {
    let below: Vec<&clap::Command> = command.get_subcommands().filter(|each| !each.is_hide_set()).collect();
    for each in &below {
        let path: Vec<&str> = parents.iter().copied().chain([each.get_name()]).collect();
        add_pages(each, &path, pages)?;
    }
    let man = Man::new(command.clone()).source(format!("sluicegate {VERSION}")).manual("sluicegate");
    let file = man.get_filename();
    let mut roff = Vec::new();
    man.render_title(&mut roff)?;
    man.render_name_section(&mut roff)?;
    man.render_synopsis_section(&mut roff)?;
    man.render_description_section(&mut roff)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut roff)?;
    }
    if !below.is_empty() {
        man.render_subcommands_section(&mut roff)?;
    }
    let mut more = String::new();
    add_exit_status(&mut more);
    add_environment(&mut more, parents);
    add_files(&mut more);
    add_examples(&mut more, examples_of(parents));
    let others = below.iter().map(|each| each.get_name()).collect::<Vec<_>>();
    add_see_also(&mut more, parents, &others);
    roff.extend_from_slice(more.as_bytes());
    Ok(pages.push(ManualPage { file, roff }))
}

fn add_exit_status(page: &mut String) {
    page.push_str(".SH \"EXIT STATUS\"\n");
    for (code, meaning) in EXIT_STATUS {
        add_entry(page, code, meaning);
    }
}

fn add_environment(page: &mut String, path: &[&str]) {
    page.push_str(".SH ENVIRONMENT\n");
    let of_clients =
        CLIENT_ENVIRONMENT.iter().filter(|_| matches!(path.first(), Some(&("tunnel" | "canary"))));
    for (name, meaning) in ENVIRONMENT.iter().chain(of_clients) {
        add_entry(page, name, meaning);
    }
}

fn add_files(page: &mut String) {
    page.push_str(".SH FILES\n");
    for (path, meaning) in FILES {
        add_entry(page, path, meaning);
    }
}

fn add_examples(page: &mut String, examples: &[Example]) {
    page.push_str(".SH EXAMPLES\n");
    for Example { purpose, line } in examples {
        // Writing to a string does not fail.
        let _written =
            write!(page, ".PP\n{}:\n.PP\n.RS 4\n.EX\n{}\n.EE\n.RE\n", escaped(purpose), escaped(line));
    }
}

/// Adds the pages of the command above, of those below, and of the configuration.
fn add_see_also(page: &mut String, path: &[&str], below: &[&str]) {
    let name = |path: &[&str]| [&["sluicegate"], path].concat().join("-");
    let mut names: Vec<String> = Vec::new();
    if let Some((_, above)) = path.split_last() {
        names.push(name(above));
    }
    names.extend(below.iter().map(|each| name(&[path, &[each]].concat())));
    page.push_str(".SH \"SEE ALSO\"\n");
    for name in names {
        let _written = writeln!(page, ".BR {} (1),", escaped(&name));
    }
    page.push_str(".BR sluicegate.toml (5)\n");
    let _written = write!(page, ".PP\n{}\n", escaped(DOCUMENTATION));
}

fn add_entry(page: &mut String, name: &str, meaning: &str) {
    let _written = write!(page, ".TP\n.B {}\n{}\n", escaped(name), escaped(meaning));
}

/// The page of the configuration, in roff.
fn config_page() -> String {
    let mut page = format!(
        ".TH sluicegate.toml 5 \"\" \"sluicegate {VERSION}\" \"sluicegate\"\n\
         .SH NAME\nsluicegate.toml \\- configuration of the relay sluicegate\n\
         .SH SYNOPSIS\n/etc/sluicegate/sluicegate.toml\n\
         .SH DESCRIPTION\n{}\n",
        escaped(DESCRIPTION)
    );
    for section in sections() {
        add_section(&mut page, section);
    }
    add_environment(&mut page, &[]);
    add_files(&mut page);
    let _written = write!(page, ".SH EXAMPLES\n.PP\n{}:\n.PP\n.RS 4\n.EX\n", escaped(CONFIG_EXAMPLE.0));
    for line in CONFIG_EXAMPLE.1.lines() {
        let _written = writeln!(page, "{}", escaped(line));
    }
    page.push_str(".EE\n.RE\n");
    page.push_str(
        ".SH \"SEE ALSO\"\n.BR sluicegate (1),\n.BR sluicegate\\-check (1),\n.BR sluicegate\\-run (1)\n",
    );
    page
}

fn add_section(page: &mut String, section: &ReferenceSection) {
    let _written = write!(page, ".SH \"{}\"\n{}\n", escaped(section.header), escaped(&section.meaning));
    for ReferenceKey { name, meaning, value, has_default } in &section.keys {
        let what = if *has_default { "Default" } else { "No default. Example" };
        let _written = write!(
            page,
            ".TP\n.B {}\n{}\n.br\n{what}: {}\n",
            escaped(name),
            escaped(meaning),
            escaped(&format!("{name} = {value}"))
        );
    }
}

/// Text that roff shows as it is.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('`', "\\(ga").replace('~', "\\(ti");
    let text = text.replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

/// File of the manual page of the configuration.
const CONFIG_PAGE: &str = "sluicegate.toml.5";

const DESCRIPTION: &str = "The file is TOML. Every key has a default or may be left out, but a file must set \
    vpn.allow. Times are texts with a unit, such as \"50us\", \"100ms\", \"3s\", \"5m\", \"2h\" or \"7days\". The \
    environment overrides a key by SLUICEGATE_SECTION__KEY, such as SLUICEGATE_TIMEOUTS__HEAD=3s. \"sluicegate check\" \
    says all that is wrong, with line and key.";

const DOCUMENTATION: &str =
    "The documentation is in /usr/share/doc/sluicegate, where the package is installed.";

const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "The command did what it says."),
    ("1", "It failed; standard error has one line for each reason."),
    ("2", "The command line is wrong; standard error says how."),
];

const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "SLUICEGATE_SECTION__KEY",
        "Overrides a key of the configuration file, such as SLUICEGATE_TIMEOUTS__HEAD=3s. A number names an element of a \
         list, such as SLUICEGATE_LISTEN__0__ADDRESS.",
    ),
    ("STATE_DIRECTORY", "The state folder; systemd sets it. Else it is ~/.local/state/sluicegate."),
];

const CLIENT_ENVIRONMENT: [(&str, &str); 1] = [("SLUICEGATE_TOKEN", "The token, where no file is named.")];

const FILES: [(&str, &str); 4] = [
    ("/etc/sluicegate/sluicegate.toml", "The configuration, where --config names no other."),
    (
        "/var/lib/sluicegate",
        "The state folder of the service: the embedded store and the state that is kept.",
    ),
    ("/var/lib/sluicegate/admin.sock", "The socket by which commands reach the running relay."),
    ("/var/log/sluicegate/audit.jsonl", "The audit log of the service."),
];

const CONFIG_EXAMPLE: (&str, &str) = (
    "A node with TLS, an embedded store and an audit log",
    "listen = [{ address = \"0.0.0.0:443\", tls = { certificates = [\n  \
         { chain = \"/etc/sluicegate/relay.crt\", key = \"/etc/sluicegate/relay.key\" }] } }]\n\n\
     [vpn]\nallow = [\"10.8.0.0/16\"]\n\n[audit]\npath = \"/var/log/sluicegate/audit.jsonl\"",
);

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::CommandLine;
    use crate::config::Config;

    #[test]
    fn the_page_has_every_section_and_every_key_with_its_meaning() {
        let page = config_page();
        for section in sections() {
            assert!(page.contains(&format!(".SH \"{}\"\n", escaped(section.header))), "{}", section.header);
            for key in &section.keys {
                let entry = format!(".TP\n.B {}\n{}\n", escaped(key.name), escaped(&key.meaning));
                assert!(page.contains(&entry), "{}", key.name);
            }
        }
        assert!(page.contains("Default: sessions = 8000\n"), "{page}");
        // A line that begins with a dot is a command of roff.
        for line in page.lines().filter(|line| line.starts_with('.')) {
            let command = line.split(' ').next().unwrap();
            let known = [".TH", ".SH", ".TP", ".B", ".br", ".BR", ".PP", ".RS", ".RE", ".EX", ".EE"];
            assert!(known.contains(&command), "{line}");
        }
        toml::from_str::<Config>(CONFIG_EXAMPLE.1).unwrap();
    }

    #[test]
    fn every_page_has_what_a_reader_of_manuals_looks_for() {
        let pages = pages(CommandLine::command()).unwrap();
        assert!(pages.len() > 40, "{}", pages.len());
        for ManualPage { file, roff } in pages {
            let text = String::from_utf8(roff).unwrap();
            for section in
                ["NAME", "SYNOPSIS", "DESCRIPTION", "ENVIRONMENT", "FILES", "EXAMPLES", "\"SEE ALSO\""]
            {
                assert!(text.contains(&format!(".SH {section}\n")), "{file} has no {section}");
            }
            assert!(text.contains(".SH \"EXIT STATUS\"\n") || file == CONFIG_PAGE, "{file}");
            assert!(text.contains(".EX\n"), "{file} has no example");
        }
    }

    #[test]
    fn a_page_names_the_one_above_and_those_below() {
        let mut page = String::new();
        add_see_also(&mut page, &["authz"], &["status"]);
        assert!(page.contains(".BR sluicegate (1),\n.BR sluicegate\\-authz\\-status (1),\n"), "{page}");
    }
}
