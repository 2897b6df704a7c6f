//! Attacks on a relay, and on HAProxy where that has the same job: the long run of tests/integration/attack.rs, which
//! `make attack` starts. Arguments are words; then every attack that has all of them in its name runs, and no other.

mod harness;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use harness::{ATTACKS, Target, header, line, run, write};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let seconds = std::env::var("ATTACK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let chosen: Vec<_> =
        ATTACKS.iter().filter(|attack| words.iter().all(|word| attack.name.contains(word))).collect();
    let mut table = header();
    print!("{table}");
    let mut lost = 0;
    for attack in chosen {
        let targets: &[fn() -> Option<Target>] = match attack.has_haproxy {
            true => &[|| Some(Target::sluicegate()), Target::haproxy],
            false => &[|| Some(Target::sluicegate())],
        };
        for target in targets {
            let Some(target) = target() else { continue };
            let outcome = run(attack, &target, Duration::from_secs(seconds));
            if target.is_ours() {
                lost += outcome.during.lost + outcome.after.lost;
            }
            let line = line(attack, &target, &outcome);
            print!("{line}");
            let during = &outcome.during;
            if let Some(why) = &during.why_not {
                println!(
                    "after {} messages, {} tunnels were not opened: {why}",
                    during.messages, during.not_opened
                );
            }
            table += &line;
        }
    }
    println!("written to {}", write("attack.md", &table).display());
    if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
