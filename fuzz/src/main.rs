//! The targets under libFuzzer, which follows the coverage. `make fuzz` builds and runs it.
//!
//! `--list` lists the targets, `--seeds TARGET FOLDER` writes a target's corpus, `--bytes TARGET` prints the length of
//! its longest input. Else SLUICEGATE_FUZZ_TARGET names the target, and the arguments are libFuzzer's.
#![no_main]

use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;

use sluicegate_fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let arguments: Vec<String> = std::env::args().collect();
        match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
            ["--list"] => {
                TARGETS.iter().for_each(|target| println!("{}", target.name));
                exit(0);
            }
            ["--bytes", name] => {
                println!("{}", named(name).bytes_max);
                exit(0);
            }
            ["--seeds", name, folder] => {
                write_seeds(&named(name), Path::new(folder));
                exit(0);
            }
            _ => {}
        }
        let name = std::env::var("SLUICEGATE_FUZZ_TARGET").expect("SLUICEGATE_FUZZ_TARGET names a target");
        let target = named(&name);
        target.warm_up();
        TARGET.set(target).ok().expect("this is the first call");
    },
    |input: &[u8]| TARGET.get().expect("the target was chosen").run(input)
);

fn named(name: &str) -> Target {
    Target::named(name).unwrap_or_else(|| panic!("there is no target {name}"))
}

fn write_seeds(target: &Target, folder: &Path) {
    for (number, seed) in target.seeds().iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number}")), seed).expect("a folder for the seeds");
    }
}
