//! The incident of 30 September 2025, played on a relay of its own: the query that locates devices slips while tunnels
//! are open, and so do others. Nobody loses a tunnel, the guard names the cause, and the mend heals by itself.

mod installation;
mod slips;

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::DemoError;
use super::admin::get;
use super::answer::{CREDENTIALS, DISPUTED, ESTABLISHED};
use super::echo::{exchange, open_echo};
use super::interrupt::Interrupt;
use super::revocation::wait_for_close;
use super::steps::{DemoFailure, Expecting, Steps};
use super::world::DemoWorld;
use crate::admin::api::SourceStatus;
use installation::{Installation, PageDevice};
use slips::{Meanwhile, Slip};

pub(super) fn show(world: &DemoWorld, steps: &mut Steps, interrupt: &Interrupt) -> Result<(), DemoError> {
    steps.section("The incident of 30 September 2025, on a third relay");
    let installation = Installation::start(world.folder())?;
    let tunnel = open_echo(installation.client, installation.echo, &installation.token);
    match tunnel {
        Err(failure) => steps.record("a tunnel", Err(failure)),
        Ok(tunnel) => Incident::new(&installation, tunnel).play(steps, interrupt)?,
    }
    installation.stop();
    Ok(())
}

/// The course of the incident.
struct Incident<'a> {
    relay: &'a Installation,
    /// A tunnel that is open all the time.
    tunnel: TcpStream,
    messages: u32,
    held_after: Vec<Duration>,
    healed_after: Vec<Duration>,
}

impl<'a> Incident<'a> {
    fn new(relay: &'a Installation, tunnel: TcpStream) -> Self {
        Self { relay, tunnel, messages: 1, held_after: Vec::new(), healed_after: Vec::new() }
    }

    fn play(mut self, steps: &mut Steps, interrupt: &Interrupt) -> Result<(), DemoError> {
        for (slip, number) in slips::all().iter().zip(1..) {
            steps.record(slip.name, self.slips(slip));
            steps.record("  authz status and the page", self.names(slip));
            steps.record("  the open tunnel", self.echoes());
            steps.record("  new tunnels", self.new_tunnels(slip.meanwhile));
            if number == 1 {
                let closed = self.revoked();
                if let Ok(took) = &closed {
                    steps.figure(
                        "revoked during a hold",
                        format!("{} ms", took.as_millis()),
                        "commit to close",
                    );
                }
                let line = |took: Duration| {
                    format!("its tunnel closed {} ms after the commit; then 407", took.as_millis())
                };
                steps.record("  a token revoked meanwhile", closed.map(line));
            }
            steps.record("  the query is mended", self.mended(slip));
            interrupt.check()?;
        }
        steps.record("the revoked token, at the end", self.stays_ended());
        let worst = |times: &[Duration]| times.iter().max().map_or(0, Duration::as_millis);
        let (held, healed) = (worst(&self.held_after), worst(&self.healed_after));
        steps.figure("a query slips until it is held", format!("{held} ms"), "worst of 3; nobody is refused");
        steps.figure("a mend until nothing is held", format!("{healed} ms"), "worst of 3, without a command");
        Ok(())
    }

    /// Deploys the slip, and waits until the guard holds what came of it.
    fn slips(&mut self, slip: &Slip) -> Result<String, DemoFailure> {
        self.relay.deploy(slip.view, &slip.query)?;
        let began = Instant::now();
        let status = self.wait_until(&format!("a hold of {}", slip.group), |status| {
            status.holds.iter().any(|hold| hold.subject() == slip.group)
        })?;
        self.held_after.push(began.elapsed());
        let rows = status.holds.iter().map(|hold| hold.rows).sum::<usize>();
        Ok(format!("{rows} rows held {} ms after the commit", began.elapsed().as_millis()))
    }

    /// Checks that the command and the page name the group, and the command the cause.
    fn names(&self, slip: &Slip) -> Result<String, DemoFailure> {
        let status = self.relay.status()?;
        let held = status.holds.iter().find(|hold| hold.subject() == slip.group);
        let held = held.ok_or_else(|| DemoFailure::new(slip.group, holds(&status)))?;
        let page = get(self.relay.admin_address(), "/status.json").expecting("the page's figures")?;
        let page: serde_json::Value = serde_json::from_str(&page).unwrap_or_default();
        let on_page = page["source"]["holds"].as_array().into_iter().flatten();
        if !on_page.map(|hold| &hold["group"]).any(|group| group == slip.group) {
            return Err(DemoFailure::new(format!("{} on the page", slip.group), &page["source"]["holds"]));
        }
        // The first words have the cause; the rest are limits and consequences.
        let cause = held.figures.split([',', ';']).next().unwrap_or_default();
        let cause = cause.split(" with others").next().unwrap_or_default();
        Ok(format!("{}: {cause}", slip.group))
    }

    fn echoes(&mut self) -> Result<String, DemoFailure> {
        exchange(&mut self.tunnel, self.messages)?;
        self.messages += 1;
        Ok("still echoes".to_owned())
    }

    /// Checks what a new client gets, and that it is never another device.
    fn new_tunnels(&self, meanwhile: Meanwhile) -> Result<String, DemoFailure> {
        let [lamp, pump] = &self.relay.pages;
        match meanwhile {
            Meanwhile::Tunnel => {
                self.own_page(lamp)?;
                self.own_page(pump)?;
                Ok(format!("{}, each to its device", ESTABLISHED.status_line))
            }
            Meanwhile::Disputed => {
                self.disputed(lamp)?;
                self.disputed(pump)
            }
        }
    }

    fn own_page(&self, device: &PageDevice) -> Result<(), DemoFailure> {
        let page = self.relay.page_of(device)?;
        if page.ends_with(&device.page) { Ok(()) } else { Err(DemoFailure::new(&device.page, page)) }
    }

    /// Requests tunnels until the device is disputed. Until then a client may get the device that it asked for, and
    /// never another one.
    fn disputed(&self, device: &PageDevice) -> Result<String, DemoFailure> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let request = device.target.connect(Some(&self.relay.token));
            let (stream, answer) = self.relay.client.request(&request).expecting(DISPUTED)?;
            if DISPUTED.check(&answer).is_ok() {
                return Ok(answer.to_columns());
            }
            ESTABLISHED.check(&answer)?;
            let page = super::page::fetch(stream).expecting("the device's page")?;
            if !page.ends_with(&device.page) || Instant::now() > deadline {
                return Err(DemoFailure::new(DISPUTED, page));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Revokes a token during a hold, while its tunnel is open. Returns the time from the commit to the close.
    fn revoked(&self) -> Result<Duration, DemoFailure> {
        let relay = self.relay;
        let tunnel = open_echo(relay.client, relay.echo, &relay.leaver.token)?;
        let (committed, closed) = thread::scope(|scope| {
            let waiting = scope.spawn(|| wait_for_close(tunnel));
            let committed = relay.revoke_leaver().map(|()| Instant::now());
            (committed, waiting.join())
        });
        let closed = closed.unwrap_or_else(|_| Err(std::io::Error::other("a panic of the client")));
        let took = closed.expecting("a closed tunnel")?.saturating_duration_since(committed?);
        if took > REVOCATION_MAX {
            let expected = format!("a close within {} ms of the commit", REVOCATION_MAX.as_millis());
            return Err(DemoFailure::new(expected, format!("{} ms", took.as_millis())));
        }
        self.refused()?;
        Ok(took)
    }

    fn mended(&mut self, slip: &Slip) -> Result<String, DemoFailure> {
        self.relay.deploy(slip.view, slip.view.true_query())?;
        let began = Instant::now();
        self.wait_until("nothing held", |status| {
            status.holds.is_empty() && status.figures.disputed_devices == 0
        })?;
        self.healed_after.push(began.elapsed());
        for device in &self.relay.pages {
            self.own_page(device)?;
        }
        self.refused()?;
        Ok(format!("nothing is held after {} ms, without a command", began.elapsed().as_millis()))
    }

    fn stays_ended(&self) -> Result<String, DemoFailure> {
        self.refused()?;
        Ok(format!("{}, as at its revocation", CREDENTIALS.status_line))
    }

    fn refused(&self) -> Result<(), DemoFailure> {
        let request = self.relay.echo.connect(Some(&self.relay.leaver.token));
        let (_, answer) = self.relay.client.request(&request).expecting(CREDENTIALS)?;
        CREDENTIALS.check(&answer)
    }

    fn wait_until(
        &self,
        expected: &str,
        is_so: impl Fn(&SourceStatus) -> bool,
    ) -> Result<SourceStatus, DemoFailure> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let status = self.relay.status()?;
            if is_so(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(DemoFailure::new(expected, holds(&status)));
            }
            thread::sleep(PAUSE);
        }
    }
}

fn holds(status: &SourceStatus) -> String {
    match &status.holds[..] {
        [] => "nothing held".to_owned(),
        holds => holds.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

/// Time limit for a change to take effect, on a machine that may be busy.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time from a revocation's commit to its tunnel's close. The promise is 250 ms; this machine may be busy.
const REVOCATION_MAX: Duration = Duration::from_secs(1);

/// Pause between two looks at the relay.
const PAUSE: Duration = Duration::from_millis(10);
