//! The operator of a soak: rights come and go, the database fails in each way, logs rotate, the configuration changes.

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::support::{Cluster, Device, Relay, Request, Signal, Site, wait_for};

/// Does the work of an operator, task by task.
pub struct Operator<'a> {
    site: Site,
    relay: &'a Relay,
    /// The process that serves now.
    pid: &'a AtomicU32,
    port: u16,
    cluster: Cluster,
    database: String,
    done: Done,
}

/// What was done, and what came of it.
#[derive(Default)]
pub struct Done {
    /// Time from the revocation's commit to the end of its tunnel.
    pub revocations_ms: Vec<f64>,
    pub holds: u64,
    pub reloads: u64,
    pub rotations: u64,
    pub restarts: u64,
    pub cuts: u64,
    /// Time from the command to its answer.
    pub hand_overs_ms: Vec<f64>,
    /// Tunnels that have ended by the audit log, of files that were rotated away too.
    pub audit_ends: u64,
    pub audit_lines: u64,
    pub faults: Vec<String>,
}

impl<'a> Operator<'a> {
    pub fn new(
        site: Site,
        relay: &'a Relay,
        pid: &'a AtomicU32,
        device: &Device,
        cluster: Cluster,
        database: String,
    ) -> Self {
        Self { site, relay, pid, port: device.port(), cluster, database, done: Done::default() }
    }

    pub fn done(&self) -> &Done {
        &self.done
    }

    /// Does one task after the other. Hands over only while `hands_over`.
    pub fn work_until(&mut self, is_over: &AtomicBool, hands_over: &AtomicBool) {
        for round in 0u64.. {
            for task in 0..6 {
                let next_at = Instant::now() + TASK_EVERY;
                match task {
                    0 => self.revoke(),
                    1 => self.hide_rows(),
                    2 => self.reload(round),
                    3 => self.rotate(),
                    4 if round.is_multiple_of(2) => self.restart_database(),
                    4 => self.cut_database_off(),
                    _ if hands_over.load(Ordering::Relaxed) => self.hand_over(),
                    _ => {}
                }
                while Instant::now() < next_at {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// Ends what is left. Counts the rest of the audit log.
    pub fn end(&mut self) {
        self.rotate();
    }

    fn fault(&mut self, what: &str, detail: impl std::fmt::Display) {
        self.done.faults.push(format!("{what}: {detail}"));
    }

    fn revoke(&mut self) {
        let issued = self.site.cli(&["token", "issue", "alice"]);
        let (token, credential) = (issued["token"].as_str().unwrap(), issued["credential"].as_str().unwrap());
        let request = Request::to(super::support::DEVICE, self.port).bearer(token);
        // A new token is known with the next read.
        let opened = wait_for(|| {
            let answer = request.send(self.relay.address());
            (answer.status == 200).then_some(answer.stream)
        });
        let Some(mut tunnel) = opened else { return self.fault("a new token", "it never counted") };
        let client = &mut self.cluster.client(&self.database);
        let hash =
            "UPDATE sluicegate.credentials SET revoked_at = now() WHERE encode(key_sha256, 'hex') LIKE $1";
        let began = match client.execute(hash, &[&format!("{credential}%")]) {
            Ok(1) => Instant::now(),
            other => return self.fault("a revocation", format!("{other:?}")),
        };
        match tunnel.read(&mut [0; 1]) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                self.done.revocations_ms.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            other => self.fault("a revoked tunnel", format!("{other:?}")),
        }
    }

    /// Has the store show none of its grants for a while: the guard holds that.
    fn hide_rows(&mut self) {
        let client = &mut self.cluster.client(&self.database);
        client.batch_execute("ALTER TABLE sluicegate.grants ENABLE ROW LEVEL SECURITY").unwrap();
        let held = self.relay.metric_becomes("sluicegate_guard_held", |held| held > 0.0);
        client.batch_execute("ALTER TABLE sluicegate.grants DISABLE ROW LEVEL SECURITY").unwrap();
        match held && self.relay.metric_becomes("sluicegate_guard_held", |held| held == 0.0) {
            true => self.done.holds += 1,
            false => self.fault("hidden rows", format!("held: {held}, and not mended")),
        }
    }

    fn reload(&mut self, round: u64) {
        self.site.configure(&format!("timeouts.half_closed = '{}s'", 60 + round % 2));
        self.command("reload");
        self.done.reloads += 1;
    }

    /// Renames the audit log, has the relay open another one, and counts and removes the first.
    fn rotate(&mut self) {
        let (log, aside) = (self.path("audit.jsonl"), self.path("audit.jsonl.1"));
        if let Err(error) = std::fs::rename(&log, &aside) {
            return self.fault("a rotation", error);
        }
        self.command("reload");
        if wait_for(|| log.exists().then_some(())).is_none() {
            return self.fault("a rotation", "no new log");
        }
        // Lines that were on their way.
        std::thread::sleep(Duration::from_secs(1));
        let text = std::fs::read_to_string(&aside).unwrap_or_default();
        let ends = text.lines().filter(|line| line.contains("\"event\":\"session-end\""));
        self.done.audit_ends += ends.count() as u64;
        self.done.audit_lines += text.lines().count() as u64;
        self.done.rotations += 1;
        let _gone_already = std::fs::remove_file(&aside);
    }

    fn restart_database(&mut self) {
        self.cluster.stop();
        std::thread::sleep(Duration::from_secs(3));
        self.cluster.run();
        self.done.restarts += 1;
    }

    /// Has the database answer the relay no more, for a while.
    fn cut_database_off(&mut self) {
        self.cluster.signal_backends("sluicegate", Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(4));
        self.cluster.signal_backends("sluicegate", Signal::SIGCONT);
        self.done.cuts += 1;
    }

    fn hand_over(&mut self) {
        let began = Instant::now();
        let output = self.site.command(&["upgrade", "--json"]).output().unwrap();
        let outcome: serde_json::Value = match serde_json::from_slice(&output.stdout) {
            Ok(outcome) if output.status.success() => outcome,
            _ => return self.fault("a hand-over", String::from_utf8_lossy(&output.stderr)),
        };
        self.done.hand_overs_ms.push(began.elapsed().as_secs_f64() * 1000.0);
        self.pid.store(outcome["pid"].as_u64().unwrap() as u32, Ordering::Relaxed);
    }

    fn command(&mut self, command: &str) {
        let output = self.site.command(&[command]).output().unwrap();
        if !output.status.success() {
            self.fault(command, String::from_utf8_lossy(&output.stderr));
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.folder().join(name)
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        // The first process is its handle's; a later one ends here.
        let _gone_already = kill(Pid::from_raw(self.pid.load(Ordering::Relaxed) as i32), Signal::SIGKILL);
    }
}

/// Time from the beginning of a task to that of the next one.
const TASK_EVERY: Duration = Duration::from_secs(10);
