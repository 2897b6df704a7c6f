//! The configuration file, with overrides from the environment.

use std::cell::OnceCell;
use std::path::PathBuf;

use sluicegate::config::{Config, ConfigInspection};

use super::tokens::folder;
use super::{KIB, Memory, Target};
use crate::input::{Input, long};

pub const CONFIG: Target = Target {
    name: "config",
    run: config,
    seeds,
    words: &[
        "[[listen]]\n",
        "[authz.guard]\n",
        "address = '127.0.0.1:1'\n",
        "allow = ['10.0.0.0/8']\n",
        "[",
        "]",
        "{",
        "}",
        "= ",
        "'''",
        "\"\\u",
        "\n",
        "1e400",
        "-1",
        "18446744073709551616",
        "'3s'",
        "SLUICEGATE_LISTEN__0__ADDRESS=",
        "\0",
    ],
    bytes_max: 4 * KIB,
    // The reference with all keys takes some 40 bytes for each of its own; errors quote what they are about.
    memory: Memory { fixed: 512 * KIB, per_byte: 400 },
};

fn seeds() -> Vec<Vec<u8>> {
    let reference = include_str!("../../../docs/reference.toml");
    // Each part of the reference, without the comments and without the files that it names.
    let lines = reference.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let lines: Vec<&str> = lines.filter(|line| !line.contains("_file")).collect();
    let mut seeds: Vec<Vec<u8>> = lines
        .chunks(30)
        .map(|part| [long(part.join("\n").as_bytes()), b"SLUICEGATE_LIMITS__SESSIONS=7".to_vec()].concat())
        .collect();
    seeds.push(long(b"vpn.allow = ['10.8.0.0/16']\n[[listen]]\naddress = '127.0.0.1:3128'\n"));
    seeds
}

fn config(input: &[u8]) {
    thread_local!(static PATH: OnceCell<PathBuf> = const { OnceCell::new() });
    PATH.with(|path| {
        let path = path.get_or_init(|| folder().join("sluicegate.toml"));
        let mut input = Input(input);
        let text = input.long();
        std::fs::write(path, text).expect("a file in memory");
        let environment: Vec<(String, String)> = input
            .0
            .split(|byte| *byte == 0)
            .filter_map(|line| {
                let line = String::from_utf8_lossy(line);
                line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
            })
            .take(8)
            .collect();
        let inspected = || -> Result<Config, Vec<String>> {
            let inspection = ConfigInspection::of_values(Some(path), environment.iter().cloned());
            inspection.and_then(ConfigInspection::finish).map_err(|errors| errors.lines().collect())
        };
        match inspected() {
            Ok(config) => {
                assert!(!config.listen.is_empty(), "a relay without a listener");
                let again = inspected().expect("the same again");
                assert_eq!(format!("{again:?}"), format!("{config:?}"));
            }
            Err(errors) => {
                assert!(!errors.is_empty());
                for error in errors {
                    assert!(error.lines().count() == 1, "an error is one line: {error:?}");
                }
            }
        }
    });
}
