//! The status page, in a real browser, on a relay with real tunnels.
//!
//! With SLUICEGATE_SCREENSHOTS set to a folder, it also leaves a light and a dark picture there.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{
    Browser, DEVICE, DEVICE_V6, Device, OTHER_DEVICE, Relay, Request, Site, exchange, tools_or_skip, wait_for,
};

/// Both IPv4 devices answer here, each by its own address.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

const ENTER: &str = "\u{E007}";

const TAB: &str = "\u{E004}";

/// A relay with tunnels that move bytes until they are told to stop, and its page in a browser.
struct Scene {
    site: Site,
    relay: Relay,
    browser: Browser,
    device: Device,
    moving: Arc<AtomicBool>,
    tunnels: Vec<TcpStream>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Scene {
    fn new(fragment: &str) -> Self {
        let mut site = Site::new("authz = { reconcile = '200ms', refresh = '50ms' }");
        site.configure(fragment);
        site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
        let relay = site.start();
        let (browser, device) = (Browser::start(), Device::serving(ANY, answer_threefold));
        let moving = Arc::new(AtomicBool::new(true));
        Self { site, relay, browser, device, moving, tunnels: Vec::new(), threads: Vec::new() }
    }

    fn with_token() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, TOKEN).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Self::new(&format!("admin.token_file = '{}'", path.display()))
    }

    /// A tunnel that sends `bytes` every 20 ms, more and less of them as time goes by, and takes what comes back.
    fn tunnel(&mut self, uuid: &str, bytes: usize) {
        let request = Request::to(uuid, self.device.port()).bearer(&self.site.token);
        let stream = request.send(self.relay.address()).opened();
        self.tunnels.push(stream.try_clone().unwrap());
        let moving = Arc::clone(&self.moving);
        self.threads.push(std::thread::spawn(move || {
            let mut stream = stream;
            let mut buffer = vec![7; 6 * bytes];
            for round in 0u32.. {
                if !moving.load(Ordering::Relaxed) {
                    break;
                }
                let share = 1.0 + 0.8 * (f64::from(round) / 300.0 + bytes as f64).sin();
                let count = (bytes as f64 * share) as usize;
                // One that was ended is over.
                if stream
                    .write_all(&buffer[..count])
                    .and_then(|()| stream.read_exact(&mut buffer[..3 * count]))
                    .is_err()
                {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            // Kept open: a session that is quiet is still one.
            while moving.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }));
    }

    /// A client with a token that nobody has issued.
    fn refused(&self) {
        let answer = Request::to(DEVICE, self.device.port()).bearer("sg_unknown").send(self.relay.address());
        assert_eq!(answer.status, 407);
    }

    /// Has clients come and go, and some of them refused, until the flag is lowered.
    fn newcomers(&mut self) -> Arc<AtomicBool> {
        let coming = Arc::new(AtomicBool::new(true));
        let (go_on, relay, token) = (Arc::clone(&coming), self.relay.address(), self.site.token.clone());
        let (open, closed, unknown) = (self.device.port(), Device::closed_port(), "f".repeat(32));
        self.threads.push(std::thread::spawn(move || {
            let targets =
                [(DEVICE, open), (DEVICE, open), (OTHER_DEVICE, closed), (&unknown, open), (DEVICE, open)];
            for (place, (uuid, port)) in targets.into_iter().cycle().enumerate() {
                if !go_on.load(Ordering::Relaxed) {
                    break;
                }
                let token = if place % 7 == 0 { "sg_unknown" } else { &token };
                drop(Request::to(uuid, port).bearer(token).send(relay));
                std::thread::sleep(Duration::from_millis(70));
            }
        }));
        coming
    }

    fn open_page(&self) {
        self.browser.show_as(1200, 1150, "light");
        self.browser.open(&format!("http://{}/", self.relay.admin()));
        assert!(self.browser.comes_to("return document.getElementById('state').innerText === 'ready'"));
    }

    fn stand_still(&mut self) {
        self.moving.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }

    fn hold(&self) {
        let store = rusqlite::Connection::open(self.site.store_path()).unwrap();
        store.busy_timeout(crate::support::PATIENCE).unwrap();
        store
            .execute_batch(&format!(
                "ALTER TABLE devices RENAME TO devices_table;
                CREATE VIEW devices AS SELECT * FROM devices_table WHERE uuid = '{DEVICE_V6}'"
            ))
            .unwrap();
        assert!(self.relay.metric_becomes("sluicegate_guard_held", |held| held == 1.0));
    }

    fn enter_token(&self, token: &str) {
        self.browser.run("document.getElementById('token').focus()");
        self.browser.press(&format!("{token}{ENTER}"));
    }

    /// Moves the focus with the keyboard alone until it is where `script` says.
    fn tab_to(&self, script: &str) {
        for _ in 0..100 {
            if self.browser.run(&format!("return {script}")) == true {
                return;
            }
            self.browser.press(TAB);
        }
        panic!("the keyboard does not reach {script}");
    }
}

/// A figure with its unit, such as `1.25 MiB so far`, as bytes.
fn shown_bytes(text: &str) -> f64 {
    let mut words = text.split(' ');
    let figure: f64 = words.next().unwrap().parse().unwrap_or_else(|_| panic!("no figure in {text:?}"));
    let unit = words.next().unwrap().trim_end_matches("/s");
    let power = ["B", "KiB", "MiB", "GiB"].iter().position(|name| *name == unit).unwrap();
    figure * 1024f64.powi(power as i32)
}

/// A device that has more to say than it is asked.
fn answer_threefold(mut socket: TcpStream) {
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        if (0..3).any(|_| socket.write_all(&buffer[..count]).is_err()) {
            return;
        }
    }
}

fn pictures() -> Option<PathBuf> {
    std::env::var_os("SLUICEGATE_SCREENSHOTS").map(PathBuf::from)
}

/// A picture of the whole page, where somebody wants one.
fn take_picture(scene: &Scene, width: u32, scheme: &str, name: &str) {
    let Some(folder) = pictures() else { return };
    scene.browser.show_as(width, 900, scheme);
    // It is drawn anew each second.
    std::thread::sleep(Duration::from_millis(1500));
    let height = scene.browser.run("return document.documentElement.scrollHeight").as_u64().unwrap();
    scene.browser.show_as(width, height as u32, scheme);
    std::thread::sleep(Duration::from_millis(1500));
    scene.browser.screenshot(&folder.join(name));
}

#[test]
fn the_page_shows_what_the_metrics_say_ends_a_session_and_tells_of_a_hold() {
    if !tools_or_skip("the page", &["chromium", "chromedriver"]) {
        return;
    }
    let mut scene = Scene::with_token();
    scene.tunnel(DEVICE, 40_000);
    scene.tunnel(DEVICE, 20_000);
    scene.tunnel(OTHER_DEVICE, 10_000);
    for _ in 0..3 {
        scene.refused();
    }
    scene.open_page();
    let browser = &scene.browser;

    // Figures, live.
    assert!(
        browser.comes_to("return points.length > 2 && points.at(-1).up > 1000 && points.at(-1).down > 1000")
    );
    assert_eq!(browser.text("active"), "3");
    assert!(browser.text("opened-more").starts_with("3 so far"));
    let refusals = browser.text("refusals");
    assert!(refusals.contains("credential-unknown") && refusals.ends_with('3'), "{refusals}");
    assert!(browser.text("threads").contains('%'));
    assert!(browser.text("slowest").contains("open"));
    assert!(browser.text("source").contains("devices 3"));
    // Nobody without the token is told who is there.
    assert_eq!(browser.run("return before.top === null && before.slowest.every(h => h.uuid === null)"), true);
    assert!(!browser.run("return document.body.innerText").as_str().unwrap().contains(&DEVICE[..12]));

    // A wrong token, then the right one, by the keyboard.
    scene.enter_token("wrong");
    assert!(
        browser
            .comes_to("return document.getElementById('denied').innerText.includes('not the admin token')")
    );
    assert_eq!(browser.run("return token"), "", "it is not tried again each second");
    scene.enter_token(TOKEN);
    assert!(browser.comes_to("return document.querySelectorAll('button.end:enabled').length === 3"));
    assert!(
        browser.comes_to("return before.top.length === 3 && before.top[0].rate_up > before.top[2].rate_up")
    );
    if pictures().is_some() {
        let newcomers = scene.newcomers();
        std::thread::sleep(Duration::from_secs(60));
        take_picture(&scene, 1200, "light", "status-light.png");
        take_picture(&scene, 390, "light", "status-phone.png");
        newcomers.store(false, Ordering::Relaxed);
    }

    // The fastest session is ended, by the keyboard alone.
    let browser = &scene.browser;
    browser.show_as(1200, 1150, "light");
    assert!(browser.comes_to("return document.querySelectorAll('button.end:enabled').length === 3"));
    scene.tab_to("document.activeElement.classList.contains('end')");
    let ended = browser.run("return document.activeElement.dataset.session");
    browser.press(ENTER);
    assert!(browser.comes_to("return document.getElementById('ask').open"));
    scene.tab_to("document.activeElement.id === 'end'");
    browser.press(ENTER);
    assert!(browser.comes_to("return document.querySelectorAll('button.end').length === 2"));
    let event = scene.site.audit().wait_for(|event| event["cause"] == "ended-by-admin");
    assert_eq!(event["session"].to_string(), ended.as_str().unwrap());
    let client = event["client"].as_str().unwrap().to_owned();
    let is_ended = |tunnel: &TcpStream| tunnel.local_addr().unwrap().to_string() == client;
    assert_eq!(scene.tunnels.iter().filter(|tunnel| is_ended(tunnel)).count(), 1);

    // A hold appears in words.
    scene.hold();
    assert!(browser.comes_to("return !document.getElementById('alert').hidden"));
    let alert = browser.text("alert");
    assert!(alert.contains("The guard holds devices.absent for") && alert.contains("rule budget"), "{alert}");
    take_picture(&scene, 1200, "dark", "status-dark.png");

    // Sums, once nothing moves.
    scene.stand_still();
    let browser = &scene.browser;
    let metrics = exchange(TcpStream::connect(scene.relay.admin()).unwrap(), "GET /metrics", "").body;
    for direction in ["up", "down"] {
        let wanted = format!("sluicegate_forwarded_bytes_total{{direction=\"{direction}\"");
        let sum: f64 = metrics
            .lines()
            .filter(|line| line.starts_with(&wanted))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum();
        let matches = || {
            let shown = shown_bytes(&browser.text(&format!("{direction}-more")));
            ((shown - sum).abs() / sum < 0.01).then_some(())
        };
        assert!(
            wait_for(matches).is_some(),
            "{direction}: {sum} is not {}",
            browser.text(&format!("{direction}-more"))
        );
    }

    // The page on a phone needs no sideways scrolling.
    browser.show_as(390, 1400, "dark");
    assert!(browser.comes_to("return document.documentElement.scrollWidth <= 390"));
    // It has asked nobody else, and its policy had nothing to refuse. The wrong token was refused.
    let strangers = browser.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith(location.origin)).length");
    assert_eq!(strangers, 0);
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|line| line.contains("401")), "{complaints:?}");
}

#[test]
fn without_a_token_the_page_shows_sessions_on_this_machine_and_ends_none() {
    if !tools_or_skip("the page without a token", &["chromium", "chromedriver"]) {
        return;
    }
    let mut scene = Scene::new("");
    scene.tunnel(DEVICE, 1_000);
    scene.open_page();
    let browser = &scene.browser;
    assert!(browser.comes_to("return document.querySelectorAll('button.end:disabled').length === 1"));
    assert!(browser.text("top").contains(&DEVICE[..12]));
    assert_eq!(browser.run("return document.getElementById('enter').hidden"), true);
    assert!(browser.text("why-hidden").contains("configure admin.token_file"));
    // What `sessions kill ID` needs, to be copied: a selection outlives the next pictures.
    browser.run("getSelection().selectAllChildren(at('top').querySelector('tbody code')); drawn = before.at");
    assert!(browser.comes_to("return before.at > drawn + 1500"));
    let copied = browser.run("return getSelection().toString().trim()");
    let id = scene.site.cli(&["sessions"])[0]["id"].clone();
    assert_eq!(copied, id);
    browser.run("getSelection().removeAllRanges(); rows = at('top').tBodies[0].rows[0]");
    assert!(browser.comes_to("return at('top').tBodies[0].rows[0] !== rows"), "it goes on afterwards");
    assert!(browser.text("source").contains("up for"), "{}", browser.text("source"));
    assert!(browser.comes_to("return at('top').innerText.includes('alice')"), "{}", browser.text("top"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
    scene.stand_still();
}

#[test]
fn the_page_makes_sense_of_figures_that_jump() {
    if !tools_or_skip("what the page makes of figures", &["chromium", "chromedriver"]) {
        return;
    }
    let scene = Scene::new("");
    scene.open_page();
    let browser = &scene.browser;
    // From here on nobody draws but this.
    browser.run("poll = () => {}; last = structuredClone(before)");
    assert!(browser.comes_to("setTimeout(() => { quiet = true }, 1500); return window.quiet === true"));
    let draw = |change: &str, wanted: &str| {
        browser.run(&format!(
            "next = structuredClone(before); next.at += 2000; {change}; draw(next); return {wanted}"
        ))
    };
    let moved = draw(
        "next.bytes = { up_copied: 1000, up_spliced: 3000, up_tls: 0, down_copied: 500, down_spliced: 7500, down_tls: 0 };
        before.bytes = { up_copied: 0, up_spliced: 0, up_tls: 0, down_copied: 0, down_spliced: 0, down_tls: 0 }",
        "points.at(-1)",
    );
    assert_eq!(moved, serde_json::json!({ "up": 2000, "down": 4000 }), "both paths, over two seconds");
    let anew = draw("next.bytes.up_copied = 0; next.bytes.up_spliced = 0", "points.at(-1).up");
    assert_eq!(anew, 0, "a node that was started anew counts from 0");
    let loaded = draw("next.threads[0].cpu_ns = before.threads[0].cpu_ns + 5e8", "at('threads').innerText");
    assert!(loaded.as_str().unwrap().contains("25 %"), "{loaded}");
    let refusals = draw("next.refusals = { rare: 1, frequent: 30, some: 7 }", "at('refusals').innerText");
    let places = ["frequent", "some", "rare"].map(|cause| refusals.as_str().unwrap().find(cause).unwrap());
    assert!(places.is_sorted(), "the most frequent first: {refusals}");
    draw("next.source.last_error = 'nobody <b>answers</b>'", "0");
    assert_eq!(
        browser.text("alert"),
        "The store cannot be read: nobody <b>answers</b>. The last good state stays in force."
    );
    draw("next.source.last_error = null", "0");
    assert_eq!(browser.run("return at('alert').hidden"), true);
    let points = draw("for (let n = 0; n < 2 * POINTS_MAX; n++) draw(next)", "points.length === POINTS_MAX");
    assert_eq!(points, true);
}

#[test]
fn a_session_is_kept_where_somebody_thinks_better_of_it_and_a_node_that_comes_back_is_shown() {
    if !tools_or_skip("second thoughts on the page", &["chromium", "chromedriver"]) {
        return;
    }
    let mut scene = Scene::with_token();
    scene.tunnel(DEVICE, 1_000);
    scene.open_page();
    scene.enter_token(TOKEN);
    let browser = &scene.browser;
    assert!(browser.comes_to("return document.querySelectorAll('button.end:enabled').length === 1"));
    browser.run("document.querySelector('button.end').click()");
    assert!(browser.comes_to("return at('ask').open"));
    browser.run("at('keep').click()");
    assert!(browser.comes_to("return !at('ask').open"));

    browser.run("answering = window.fetch; window.fetch = () => Promise.reject(new Error('cut off'))");
    assert!(browser.comes_to("return at('state').innerText === 'no answer'"));
    assert!(browser.text("asked").ends_with("cut off"), "{}", browser.text("asked"));
    browser.run("window.fetch = answering");
    assert!(browser.comes_to("return at('state').innerText === 'ready'"));

    assert!(browser.comes_to("return document.querySelectorAll('button.end:enabled').length === 1"));
    assert_eq!(browser.run("return at('ended').hidden"), true, "nothing was ended");
    scene.stand_still();
}

#[test]
fn a_page_whose_node_is_gone_says_so() {
    if !tools_or_skip("the page of a node that is gone", &["chromium", "chromedriver"]) {
        return;
    }
    let mut scene = Scene::new("");
    scene.open_page();
    scene.relay.signal(crate::support::Signal::SIGTERM);
    assert!(scene.relay.wait().is_some());
    assert!(scene.browser.comes_to("return document.getElementById('state').innerText === 'no answer'"));
}

/// Lists what axe finds wrong with the page as it is now.
fn barriers(browser: &Browser, axe: &str) -> serde_json::Value {
    browser.run(&format!("if (!window.axe) {{ {axe} }}"));
    browser.run(
        "window.barriers = null; axe.run().then((found) => { window.barriers = found.violations.map((each) =>
         `${each.id}: ${each.nodes.map((node) => node.html).join(' ')}`) })",
    );
    assert!(browser.comes_to("return window.barriers !== null"));
    browser.run("return window.barriers")
}

#[test]
fn axe_finds_no_barrier_on_the_page_light_and_dark_on_a_phone_and_a_large_screen() {
    let name = "axe_finds_no_barrier_on_the_page_light_and_dark_on_a_phone_and_a_large_screen";
    let axe = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("axe-core/axe.min.js");
    if !tools_or_skip(name, &["chromium", "chromedriver"]) {
        return;
    }
    let Ok(axe) = std::fs::read_to_string(axe) else {
        crate::support::skip(name, "needs axe-core; run .ci/axe-core");
        return;
    };
    let mut scene = Scene::with_token();
    scene.tunnel(DEVICE, 10_000);
    scene.tunnel(OTHER_DEVICE, 5_000);
    scene.refused();
    scene.open_page();
    scene.enter_token(TOKEN);
    assert!(scene.browser.comes_to("return document.querySelectorAll('button.end:enabled').length === 2"));
    scene.hold();
    assert!(scene.browser.comes_to("return !document.getElementById('alert').hidden"));
    // It goes on by itself no more, so that nothing is replaced under the check.
    scene.browser.run("poll = () => {}");
    for (width, scheme) in [(390, "light"), (1280, "dark"), (1920, "light")] {
        scene.browser.show_as(width, 1100, scheme);
        let found = barriers(&scene.browser, &axe);
        assert_eq!(found, serde_json::json!([]), "{width} {scheme}");
    }
    scene.browser.run("askToDrain()");
    assert_eq!(barriers(&scene.browser, &axe), serde_json::json!([]), "the dialog");
    scene.stand_still();
}

#[test]
fn the_page_keeps_a_filter_saves_sessions_and_takes_the_node_out_of_service() {
    if !tools_or_skip("the page's filter, CSV and drain", &["chromium", "chromedriver"]) {
        return;
    }
    let mut scene = Scene::with_token();
    scene.tunnel(DEVICE, 1_000);
    scene.tunnel(DEVICE, 1_000);
    scene.tunnel(OTHER_DEVICE, 1_000);
    scene.refused();
    scene.open_page();
    scene.enter_token(TOKEN);
    let browser = &scene.browser;
    assert!(browser.comes_to("return document.querySelectorAll('button.end:enabled').length === 3"));
    // What a cause means stands beside it.
    let meaning = "return at('refusals').innerText.includes('No credential in the store has this token.')";
    assert!(browser.comes_to(meaning), "{}", browser.text("refusals"));
    let listener = browser.text("listeners");
    assert!(listener.contains(&scene.relay.address().to_string()), "{listener}");
    let counts: Vec<&str> = listener.lines().last().unwrap().split_whitespace().rev().take(2).collect();
    assert_eq!(counts, ["1", "3"], "refusals and tunnels of that listener: {listener}");

    // A filter finds a device in all sessions, and is there after a reload.
    browser.run("document.getElementById('filter').focus()");
    browser.press(&OTHER_DEVICE[..10]);
    let is_found =
        "return at('top').tBodies[0].rows.length === 1 && at('shown').innerText === '1 of 3 sessions'";
    assert!(browser.comes_to(is_found), "{}", browser.text("shown"));
    browser.run("location.reload()");
    assert!(browser.comes_to("return typeof token === 'string' && token === '' && before !== null"));
    assert_eq!(browser.run("return document.getElementById('filter').value"), OTHER_DEVICE[..10]);
    scene.enter_token(TOKEN);
    assert!(browser.comes_to(is_found));
    browser.run("at('filter').value = ''; keepFilter()");
    assert_eq!(browser.run("return location.hash"), "");

    // CSV, and what a spreadsheet would take for a formula.
    let lines = browser.run(
        "return csv([{ id: '7', client: '10.0.0.1:5', uuid: 'ab', port: 22, principal_name: '=1+1',
         state: 'a,\"b', since: 0 }])",
    );
    let lines: Vec<&str> = lines.as_str().unwrap().lines().collect();
    assert!(lines[0].starts_with("id,client,uuid,port,principal,principal_name,"), "{lines:?}");
    assert_eq!(lines[1], "7,10.0.0.1:5,ab,22,,'=1+1,,,\"a,\"\"b\",1970-01-01T00:00:00.000Z,,,,,,");
    browser.run(
        "saved = null; HTMLAnchorElement.prototype.click = function () { saved = this.download };
         at('csv').click()",
    );
    assert!(browser.comes_to("return saved !== null && saved.endsWith('.csv')"));

    // Out of service, and back.
    browser.run("at('drain').click()");
    assert!(browser.text("ask-what").contains("Refuse new clients"));
    browser.run("at('end').click()");
    assert!(browser.comes_to("return at('state').innerText.startsWith('draining')"));
    assert!(scene.relay.admin_get("/readyz").contains("draining"));
    let event = scene.site.audit().wait_for(|event| event["event"] == "operator-command");
    assert_eq!(event["command"], "drain", "{event}");
    assert!(browser.comes_to("return at('drain').innerText === 'Serve new clients again'"));
    browser.run("at('drain').click(); at('end').click()");
    assert!(browser.comes_to("return at('state').innerText === 'ready'"));
    scene.stand_still();
}

#[test]
fn a_page_that_is_opened_after_an_incident_shows_the_last_hour() {
    if !tools_or_skip("the page's last hour", &["chromium", "chromedriver"]) {
        return;
    }
    let mut scene = Scene::new("");
    scene.tunnel(DEVICE, 10_000);
    for _ in 0..3 {
        scene.refused();
    }
    let past = || {
        let answer = scene.relay.admin_get("/history.json");
        serde_json::from_str::<serde_json::Value>(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    };
    let refused = |report: &serde_json::Value| {
        let points = report["points"].as_array().unwrap().iter();
        points.filter_map(|point| point["refusals"]["credential-unknown"].as_u64()).sum::<u64>()
    };
    let report = wait_for(|| Some(past()).filter(|report| refused(report) == 3)).expect("a point");
    let point = report["points"].as_array().unwrap().last().unwrap();
    assert!(point["up"].as_u64() > Some(100) && point["sessions"].as_u64() > Some(0), "{point}");
    scene.stand_still();

    scene.open_page();
    let browser = &scene.browser;
    assert!(browser.comes_to("return at('hour-refused').innerText === '3'"));
    assert!(browser.comes_to("return at('refusals').innerText.includes('credential-unknown')"));
    assert_ne!(browser.text("hour-up"), "0 B/s");
}

/// A node with as many sessions as an operator of a large fleet has. With pictures, it is shown in all sizes.
#[test]
fn the_page_goes_on_with_five_thousand_sessions() {
    if !tools_or_skip("the page with five thousand sessions", &["chromium", "chromedriver"]) {
        return;
    }
    const SESSIONS: usize = 5_000;
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let most = most.min(40_000);
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut scene = Scene::new(
        "limits = { sessions = 6000, sessions_per_principal = 6000, sessions_per_device = 6000,
         heads_per_network = 0 }",
    );
    let quiet = Device::listening(ANY);
    let request = Request::to(DEVICE, quiet.port()).bearer(&scene.site.token);
    let mut kept = Vec::with_capacity(SESSIONS);
    for _ in 0..SESSIONS {
        kept.push((request.send(scene.relay.address()).opened(), quiet.accept()));
    }
    scene.tunnel(OTHER_DEVICE, 10_000);
    scene.open_page();
    let browser = &scene.browser;
    assert!(browser.comes_to("return at('active').innerText === '5,001'"));
    browser.run("at('filter').value = 'alice'; keepFilter()");
    let is_found = "return at('shown').innerText === '5,001 of 5,001 sessions, the first 200 are shown'";
    assert!(browser.comes_to(is_found), "{}", browser.text("shown"));
    // It still draws each second or two.
    browser.run("drawn = before.at");
    assert!(browser.comes_to("return before.at > drawn + 1500"));
    browser.run("at('filter').value = ''; keepFilter()");
    for (width, scheme) in
        [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark"), (1920, "light"), (1920, "dark")]
    {
        take_picture(&scene, width, scheme, &format!("sessions-{width}-{scheme}.png"));
        assert_eq!(
            scene.browser.run("return document.documentElement.scrollWidth <= innerWidth"),
            true,
            "{width}"
        );
    }
    drop(kept);
    scene.stand_still();
}
