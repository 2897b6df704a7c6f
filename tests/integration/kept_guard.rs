//! What the guard knows survives a crash: holds by each rule, what was undone, announcements and what budgets have left.
//! A crash is a copy of the state folder of a process that is running.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Installation, Judged, StoreUnderTest, on_both_stores, wait_for};
use sluicegate::authz::Decision;
use sluicegate::control::api::{ChangeKind, ExpectRequest, Rule};

on_both_stores!(
    held_groups_budgets_and_announcements_survive_a_crash,
    what_was_undone_is_not_put_in_force_by_a_restart,
    an_end_during_a_hold_survives_a_crash,
);

const DEVICES: usize = 60;

/// An installation, and the folders of the processes that have crashed.
struct Crashing {
    installation: Installation,
    crashes: std::cell::Cell<usize>,
}

impl Crashing {
    fn new(store: StoreUnderTest) -> Self {
        Self { installation: Installation::on(store, DEVICES), crashes: std::cell::Cell::new(0) }
    }

    fn folder(&self) -> PathBuf {
        self.installation.state_folder().with_extension(self.crashes.get().to_string())
    }

    fn start(&self) -> Judged {
        let state = Some(self.folder());
        self.installation.start_with(|config| config.authz.state = state)
    }

    /// Starts with what was on disk at this moment, as a crash leaves it.
    fn crash(&self, judged: Judged) -> Judged {
        let before = self.folder();
        self.crashes.set(self.crashes.get() + 1);
        // The first state is written within a second.
        assert!(wait_for(|| before.join("last-good.snapshot").exists().then_some(())).is_some());
        copy(&before, &self.folder());
        drop(judged);
        self.start()
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn block_on<T>(answer: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(answer)
}

fn rules(judged: &Judged) -> Vec<Rule> {
    judged.holds().into_iter().map(|held| held.rule).collect()
}

fn used(judged: &Judged, group: &str) -> usize {
    let budgets = judged.status().budgets;
    budgets.iter().find(|of| of.group.to_string() == group).map_or(0, |of| of.used)
}

fn held_groups_budgets_and_announcements_survive_a_crash(store: StoreUnderTest) {
    let crashing = Crashing::new(store);
    let judged = crashing.start();
    // Two absences are within the budget of 60 rows, and count for ten minutes.
    crashing.installation.sql("CREATE TABLE lost (below integer); INSERT INTO lost VALUES (3)");
    let query = "SELECT * FROM grants_table WHERE id >= (SELECT below FROM lost)";
    crashing.installation.replace_query("grants", query);
    assert!(judged.comes_to(|judged| judged.allowed() == DEVICES - 2 && used(judged, "grants.absent") == 2));
    let request = ExpectRequest {
        relation: "credentials".to_owned(),
        kind: ChangeKind::Absent,
        rows: 5,
        lasts: Duration::from_secs(600),
    };
    block_on(judged.control.commands().expect(request)).unwrap();

    let judged = crashing.crash(judged);

    assert_eq!(judged.allowed(), DEVICES - 2);
    assert_eq!(used(&judged, "grants.absent"), 2, "a restart gives no budget back");
    assert_eq!(judged.status().expectations.len(), 1);

    // The rest of the budget is three; a mass is held, before and after the next crash.
    crashing.installation.sql("UPDATE lost SET below = 31");
    assert!(judged.comes_to(|judged| judged.held_groups() == ["grants.absent"]));
    let judged = crashing.crash(judged);
    assert!(judged.comes_to(|judged| judged.held_groups() == ["grants.absent"]));
    judged.read_whole(3);
    assert_eq!(judged.allowed(), DEVICES - 2, "nothing of the mass has passed");

    crashing.installation.restore_query("grants");
    assert!(judged.comes_to(|judged| judged.holds().is_empty() && judged.allowed() == DEVICES));
}

fn what_was_undone_is_not_put_in_force_by_a_restart(store: StoreUnderTest) {
    let crashing = Crashing::new(store);
    let judged = crashing.start();
    crashing.installation.replace_query("grants", "SELECT * FROM grants_table WHERE id > 2");
    assert!(judged.comes_to(|judged| judged.allowed() == DEVICES - 2));
    block_on(judged.control.commands().roll_back(None)).unwrap();
    assert!(judged.comes_to(|judged| judged.allowed() >= DEVICES - 1));
    let allowed = judged.allowed();
    assert_eq!(rules(&judged), [Rule::Operator]);

    let judged = crashing.crash(judged);

    assert_eq!(rules(&judged), [Rule::Operator]);
    judged.read_whole(3);
    assert_eq!((judged.allowed(), rules(&judged)), (allowed, vec![Rule::Operator]));
    crashing.installation.restore_query("grants");
    assert!(judged.comes_to(|judged| judged.holds().is_empty() && judged.allowed() == DEVICES));
}

fn an_end_during_a_hold_survives_a_crash(store: StoreUnderTest) {
    let crashing = Crashing::new(store);
    let judged = crashing.start();
    crashing.installation.replace_query("devices", "SELECT * FROM devices_table WHERE id <= 10");
    assert!(judged.comes_to(|judged| judged.held_groups() == ["devices.absent"]));
    crashing
        .installation
        .sql("UPDATE grants SET revoked_at = 1 WHERE id = 21; DELETE FROM grants WHERE id = 22");
    let has_ended =
        |judged: &Judged| [20, 21].iter().all(|n| matches!(judged.decide(*n), Decision::Refuse(_)));
    assert!(judged.comes_to(has_ended));

    let judged = crashing.crash(judged);

    assert!(has_ended(&judged), "{:?}", [20, 21].map(|n| judged.decide(n)));
    assert!(judged.comes_to(|judged| judged.held_groups() == ["devices.absent"]));
    judged.read_whole(2);
    assert!(has_ended(&judged));
    assert_eq!(judged.allowed(), DEVICES - 2);
}
