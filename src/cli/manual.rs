//! The manual page sluicegate.toml(5), made from the annotated reference configuration.

use std::fmt::Write as _;

use crate::config::reference::{ReferenceKey, ReferenceSection, sections};

/// The page in roff.
pub(super) fn config_page() -> String {
    let mut page = format!(
        ".TH sluicegate.toml 5 \"\" \"sluicegate {}\" \"sluicegate\"\n\
         .SH NAME\nsluicegate.toml \\- configuration of the relay sluicegate\n\
         .SH SYNOPSIS\n/etc/sluicegate/sluicegate.toml\n\
         .SH DESCRIPTION\n{}\n",
        env!("CARGO_PKG_VERSION"),
        escaped(DESCRIPTION)
    );
    for section in sections() {
        add_section(&mut page, section);
    }
    page.push_str(
        ".SH SEE ALSO\n.BR sluicegate (1),\n.BR sluicegate\\-check (1),\n.BR sluicegate\\-run (1)\n",
    );
    page
}

fn add_section(page: &mut String, section: &ReferenceSection) {
    // Writing to a string does not fail.
    let _written = write!(page, ".SH {}\n{}\n", escaped(section.header), escaped(&section.meaning));
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
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

const DESCRIPTION: &str = "The file is TOML. Every key has a default or may be left out, but a file must set \
    vpn.allow. Times are texts with a unit, such as \"50us\", \"100ms\", \"3s\", \"5m\", \"2h\" or \"7days\". The \
    environment overrides a key by SLUICEGATE_SECTION__KEY, such as SLUICEGATE_TIMEOUTS__HEAD=3s. \"sluicegate check\" \
    says all that is wrong, with line and key.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_section_and_every_key_with_its_meaning() {
        let page = config_page();
        for section in sections() {
            assert!(page.contains(&format!(".SH {}\n", escaped(section.header))), "{}", section.header);
            for key in &section.keys {
                let entry = format!(".TP\n.B {}\n{}\n", escaped(key.name), escaped(&key.meaning));
                assert!(page.contains(&entry), "{}", key.name);
            }
        }
        assert!(page.contains("Default: sessions = 8000\n"), "{page}");
        // A line that begins with a dot is a command of roff.
        for line in page.lines().filter(|line| line.starts_with('.')) {
            let command = line.split(' ').next().unwrap();
            assert!([".TH", ".SH", ".TP", ".B", ".br", ".BR"].contains(&command), "{line}");
        }
    }
}
