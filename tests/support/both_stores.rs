//! Scenarios that run on SQLite and on PostgreSQL from one body.

use super::Cluster;

/// The store that a scenario runs on.
#[derive(Clone, Copy)]
pub enum StoreUnderTest {
    Sqlite,
    /// A database on this server.
    Postgres(&'static Cluster),
}

impl StoreUnderTest {
    /// `None` where PostgreSQL is not installed; the test is then recorded as skipped.
    pub fn postgres() -> Option<Self> {
        Cluster::shared().map(Self::Postgres)
    }
}

/// Makes two tests of each scenario: `sqlite::NAME` and `postgres::NAME`.
///
/// A scenario is a function beside this macro that takes a [`StoreUnderTest`]. The compiler reports one that is
/// missing from the list as dead code.
macro_rules! on_both_stores {
    ($($scenario:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[test]
                fn $scenario() {
                    super::$scenario($crate::support::StoreUnderTest::Sqlite);
                }
            )+
        }

        mod postgres {
            $(
                #[test]
                fn $scenario() {
                    if let Some(store) = $crate::support::StoreUnderTest::postgres() {
                        super::$scenario(store);
                    }
                }
            )+
        }
    };
}

pub(crate) use on_both_stores;
