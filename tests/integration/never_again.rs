//! Once a revocation was applied, no later decision of the node allows it, unless the store or a person gives it back
//! explicitly: at random, through holds, rollbacks, restarts, and a store that goes away.

use std::collections::HashSet;
use std::fs;

use crate::support::{Installation, Judged};
use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use sluicegate::authz::{Decision, Refusal};
use sluicegate::control::{Commands, GuardCommandError};

const DEVICES: usize = 12;

/// Time in which the node has read what was written.
const WORDS_ARE_READ: std::time::Duration = std::time::Duration::from_millis(300);

#[derive(Clone, Debug)]
enum Step {
    RevokeGrant(usize),
    RevokeCredential(usize),
    RemovePrincipal(usize),
    /// Deletes a grant without a revocation: it counts once a second read confirms it.
    DeleteGrant(usize),
    /// The store itself records that nothing is revoked: a newer explicit word, which gives back.
    TakeBackRevocations,
    /// Most devices vanish from the query.
    BreakQuery,
    MendQuery,
    /// Something that passes the guard and that clients notice.
    NarrowGrants,
    WidenGrants,
    Ask,
    Accept,
    RollBack,
    Restart,
    LoseStore,
    RegainStore,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..DEVICES).prop_map(Step::RevokeGrant),
        1 => (0..3usize).prop_map(Step::RevokeCredential),
        1 => (0..3usize).prop_map(Step::RemovePrincipal),
        2 => (0..DEVICES).prop_map(Step::DeleteGrant),
        3 => Just(Step::TakeBackRevocations),
        2 => Just(Step::BreakQuery),
        1 => Just(Step::MendQuery),
        2 => Just(Step::NarrowGrants),
        1 => Just(Step::WidenGrants),
        2 => Just(Step::Ask),
        1 => Just(Step::Accept),
        3 => Just(Step::RollBack),
        3 => Just(Step::Restart),
        1 => Just(Step::LoseStore),
        2 => Just(Step::RegainStore),
    ]
}

/// A node on an installation, and what it has revoked.
struct Scene {
    installation: Installation,
    judged: Option<Judged>,
    is_query_broken: bool,
    is_store_lost: bool,
    /// Devices whose holder was told that a right is revoked.
    revoked: HashSet<usize>,
}

impl Scene {
    fn new() -> Self {
        let installation = Installation::new(DEVICES);
        // So that a store can be made to take back what the schema would keep.
        installation.sql(
            "DROP TRIGGER credentials_stay_revoked; DROP TRIGGER grants_stay_revoked;
            DROP TRIGGER principals_stay_removed",
        );
        let mut scene = Self {
            installation,
            judged: None,
            is_query_broken: false,
            is_store_lost: false,
            revoked: HashSet::new(),
        };
        scene.start();
        scene
    }

    fn start(&mut self) {
        let state = Some(self.installation.state_folder());
        self.judged = Some(self.installation.start_with(|config| config.authz.state = state));
    }

    fn judged(&self) -> &Judged {
        self.judged.as_ref().expect("a node runs between steps")
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::RevokeGrant(device) => {
                self.sql(&format!("UPDATE grants SET revoked_at = 1 WHERE id = {}", device + 1));
            }
            Step::RevokeCredential(principal) => {
                self.sql(&format!(
                    "UPDATE credentials SET revoked_at = 1 WHERE principal = {}",
                    principal + 1
                ));
            }
            Step::RemovePrincipal(principal) => {
                self.sql(&format!("UPDATE principals SET removed_at = 1 WHERE id = {}", principal + 1));
            }
            Step::DeleteGrant(device) => self.sql(&format!("DELETE FROM grants WHERE id = {}", device + 1)),
            Step::TakeBackRevocations if !self.is_store_lost => {
                self.sql(
                    "UPDATE grants SET revoked_at = NULL; UPDATE credentials SET revoked_at = NULL;
                    UPDATE principals SET removed_at = NULL",
                );
                self.begin_anew();
            }
            Step::BreakQuery if !self.is_query_broken && !self.is_store_lost => {
                self.installation.replace_query("devices", "SELECT * FROM devices_table WHERE id = 1");
                self.is_query_broken = true;
            }
            Step::MendQuery if self.is_query_broken && !self.is_store_lost => {
                self.installation.restore_query("devices");
                self.is_query_broken = false;
            }
            Step::NarrowGrants => self.sql("UPDATE grants SET port_min = 443"),
            Step::WidenGrants => self.sql("UPDATE grants SET port_min = 1"),
            Step::Ask => (0..DEVICES).for_each(|device| {
                let _whatever_it_is_told = self.judged().ask(device);
            }),
            Step::Accept => {
                self.command(|commands| {
                    let digest = block_on(commands.diff())?.digest;
                    block_on(commands.accept(digest, None)).map(drop)
                });
                self.begin_anew();
            }
            Step::RollBack => self.command(|commands| block_on(commands.roll_back(None)).map(drop)),
            Step::Restart => {
                self.judged = None;
                self.start();
            }
            Step::LoseStore if !self.is_store_lost => {
                fs::rename(self.installation.store_path(), self.aside()).unwrap();
                self.is_store_lost = true;
            }
            Step::RegainStore if self.is_store_lost => {
                fs::rename(self.aside(), self.installation.store_path()).unwrap();
                self.is_store_lost = false;
            }
            Step::TakeBackRevocations
            | Step::BreakQuery
            | Step::MendQuery
            | Step::LoseStore
            | Step::RegainStore => {}
        }
    }

    /// What was given back explicitly, by the store or by a person, may be allowed from here on.
    fn begin_anew(&mut self) {
        std::thread::sleep(WORDS_ARE_READ);
        self.revoked.clear();
    }

    /// A store that is away cannot be told anything.
    fn sql(&self, statements: &str) {
        if !self.is_store_lost {
            self.installation.sql(statements);
        }
    }

    fn aside(&self) -> std::path::PathBuf {
        self.installation.store_path().with_extension("aside")
    }

    /// Most are refused for want of something to act on.
    fn command(&self, command: impl FnOnce(Commands) -> Result<(), GuardCommandError>) {
        let _outcome = command(self.judged().control.commands());
    }

    /// Looks at every decision, for as long as some reads take.
    fn look(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..8 {
            for device in 0..DEVICES {
                match self.judged().decide(device) {
                    Decision::Allow(_) => {
                        prop_assert!(!self.revoked.contains(&device), "device {device} is allowed again");
                    }
                    Decision::Refuse(
                        Refusal::GrantRevoked | Refusal::CredentialRevoked | Refusal::PrincipalRevoked,
                    ) => {
                        self.revoked.insert(device);
                    }
                    _ => {}
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(())
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 10,
        max_shrink_iters: 8,
        failure_persistence: None,
        rng_seed: RngSeed::Random,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_was_revoked_is_never_allowed_again(steps in prop::collection::vec(step(), 25)) {
        let mut scene = Scene::new();
        scene.look()?;
        for step in &steps {
            scene.take(step);
            scene.look()?;
        }
    }
}
