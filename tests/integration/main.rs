//! Tests of the relay from outside: one module for each behaviour that a user can name, with real sockets,
//! databases and clients. They are one program, so that a change of the relay is linked once.

#[path = "../support/mod.rs"]
mod support;

mod address_safety;
mod admin;
mod admin_access;
mod admin_slow;
mod alerts;
mod attack;
mod audit_guard;
mod audit_journal;
mod audit_log;
mod authz_commands;
mod authz_rollback;
mod cache_model;
mod canary;
mod certificate_age;
mod check;
mod clients;
mod clock;
mod compare_generator;
mod compare_network;
mod compare_report;
mod config;
mod confinement;
mod contract;
mod control;
mod demo;
mod directory;
mod docs;
mod doctor;
mod drain;
mod engine_threads;
mod error_causes;
mod faults;
mod fleet;
mod forwarding;
mod fresh_nodes;
mod guard_absences;
mod guard_addresses;
mod guard_ends;
mod guard_gains;
mod guard_holds;
mod guard_network;
mod guard_nodes;
mod guard_rows;
mod handover;
mod head_parser;
mod holding;
mod kept;
mod kept_guard;
mod kept_starts;
mod late_start;
mod lifecycle;
mod limits;
mod metrics;
mod monitoring;
mod mutation;
mod never_again;
mod nodes;
mod openbalena;
mod openbalena_decisions;
mod openbalena_logins;
mod openvpn;
mod package;
mod page;
mod paths;
mod postgres;
mod postgres_changes;
mod postgres_commands;
mod postgres_outages;
mod postgres_reader;
mod postgres_standby;
mod postgres_tls;
mod postgres_wake;
mod postgres_wire;
mod probation;
mod probe;
mod probe_nodes;
mod proxy_protocol;
mod regression;
mod reload;
mod reload_keys;
mod replies;
mod restarts;
mod revocation;
mod run;
mod scale;
mod secrets;
mod session_tokens;
mod sessions;
mod silence;
mod silent_clients;
mod slow_store;
mod sqlite_files;
mod sqlite_reader;
mod starved;
mod stops;
mod store;
mod store_parity;
mod systemd;
mod tcp_memory;
mod timeouts;
mod tls;
mod token_keys;
mod top;
mod tunnel;
mod tunnel_tls;
mod unknown_tokens;
mod usage;
mod vpn_addresses;
mod vpn_report;
mod vpn_storm;

// Modules of the comparison that `compare_generator`, `compare_network` and `compare_report` test. They refer to each
// other from the root of their program, so they stand at the root of this one as well.
#[allow(dead_code, unused_imports, reason = "the comparison uses all of it")]
#[path = "../../benches/compare/generator/mod.rs"]
mod generator;
#[allow(dead_code, unused_imports, reason = "the comparison uses all of it")]
#[path = "../../benches/compare/network.rs"]
mod network;
#[allow(dead_code, unused_imports, reason = "the comparison uses all of it")]
#[path = "../../benches/compare/contender/peers.rs"]
mod peers;
#[allow(dead_code, unused_imports, reason = "the comparison uses all of it")]
#[path = "../../benches/compare/plan.rs"]
mod plan;
#[allow(dead_code, unused_imports, reason = "the comparison uses all of it")]
#[path = "../../benches/compare/process.rs"]
mod process;
#[allow(dead_code, unused_imports, reason = "the comparison uses all of it")]
#[path = "../../benches/compare/record.rs"]
mod record;
#[allow(dead_code, unused_imports, reason = "the comparison uses all of it")]
#[path = "../../benches/compare/report/mod.rs"]
mod report;
#[allow(dead_code, unused_imports, reason = "the comparison uses all of it")]
#[path = "../../benches/compare/works.rs"]
mod works;
