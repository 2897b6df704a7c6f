//! `sluicegate canary`: what it says of a relay that works, and of each way in which one does not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use std::time::Instant;

use crate::support::{
    ALL_V4, Authority, BINARY, DEVICE, Device, OTHER_DEVICE, Relay, Signal, Site, V4, assert_done, output_of,
    read_head, receive,
};
use serde_json::Value;

const NAME: &str = "relay.example";

/// No site knows it.
const NO_DEVICE: &str = "ffffffffffffffffffffffffffffffff";

/// A relay with TLS, and without on its second listener, and a device that speaks first.
struct Scene {
    site: Site,
    relay: Relay,
    device: Device,
    authority: Authority,
}

impl Scene {
    fn new() -> Self {
        Self::with(ssh())
    }

    fn with(device: Device) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let authority = Authority::new(&folder, "root");
        let (chain, key) = authority.issue(NAME, &[NAME]).write(&folder, "relay");
        let site = Site::new(&format!(
            "listen = [{{ address = '127.0.0.1:0', tls = {{ certificates = [
             {{ chain = '{}', key = '{}' }}] }} }}, {{ address = '127.0.0.1:0' }}]",
            chain.display(),
            key.display(),
        ));
        let relay = site.start();
        Self { site, relay, device, authority }
    }

    fn folder(&self) -> &Path {
        self.authority.file.parent().unwrap()
    }

    fn textfile(&self) -> PathBuf {
        self.folder().join("canary.prom")
    }

    fn target(&self) -> String {
        format!("{DEVICE}:{}", self.device.port())
    }

    /// A canary that finds everything in order, by TLS.
    fn canary(&self) -> Command {
        let mut command = canary(&self.relay.address().to_string(), &self.target(), &self.site.token);
        command.arg("--ca").arg(&self.authority.file).args(["--server-name", NAME]);
        command
    }

    fn plain(&self) -> Command {
        let relay = self.relay.addresses()[1].to_string();
        let mut command = canary(&relay, &self.target(), &self.site.token);
        command.arg("--plain");
        command
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.folder()).unwrap();
    }
}

fn ssh() -> Device {
    Device::serving(ALL_V4, |mut socket| {
        let _gone = socket.write_all(b"SSH-2.0-dropbear\r\n");
        receive(&mut socket);
    })
}

fn canary(relay: &str, device: &str, token: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["canary", "--relay", relay, "--device", device]).env("SLUICEGATE_TOKEN", token);
    command
}

/// The steps that were told as done, each with a time.
fn steps(output: &Output) -> Vec<String> {
    let message = String::from_utf8_lossy(&output.stdout).into_owned();
    let step = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [step, number, "ms", ref more @ ..] = words[..] else { panic!("{line}") };
        assert!(number.parse::<f64>().is_ok(), "{line}");
        assert_eq!(more.first(), (step == "tls").then_some(&"certificate"), "{line}");
        step.to_owned()
    };
    message.lines().map(step).collect()
}

/// The one line of output of a canary that fails.
fn failure(output: &Output) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

/// The value of a sample, its labels included.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn steps_in(metrics: &str) -> Vec<&str> {
    let prefix = "sluicegate_canary_step_seconds{step=\"";
    metrics.lines().filter_map(|line| line.strip_prefix(prefix)?.split('"').next()).collect()
}

#[test]
fn a_relay_that_works_is_found_so_step_by_step() {
    let scene = Scene::new();
    scene.site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
    assert!(scene.relay.metric_becomes("sluicegate_snapshot_rows", |rows| rows >= 5.0));
    let other = format!("{OTHER_DEVICE}:{}", scene.device.port());
    let mut command = scene.canary();
    command.args(["--forwarded", &other, "--refused", &format!("{NO_DEVICE}:22")]);
    let output = output_of(&mut command, b"");
    assert_done(&output);
    assert_eq!(steps(&output), ["connect", "tls", "device", "forwarded", "token", "refused"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    // Nothing that would look like trouble to whoever reads the audit log.
    let events = scene.site.audit().wait_for_events(4);
    let causes: Vec<&str> = events.iter().map(|event| event["cause"].as_str().unwrap()).collect();
    assert_eq!(causes.iter().filter(|cause| **cause == "closed").count(), 2, "{events:?}");
    assert!(!causes.contains(&"client-truncated"), "{causes:?}");
}

#[test]
fn a_relay_without_tls_is_spoken_to_plainly() {
    let scene = Scene::new();
    let output = output_of(&mut scene.plain(), b"");
    assert_done(&output);
    assert_eq!(steps(&output), ["connect", "device", "token"]);
    let output = output_of(scene.plain().args(["--server-name", NAME]), b"");
    assert_eq!(output.status.code(), Some(2), "one of the two is not meant");
}

#[test]
fn programs_get_one_document_of_it() {
    let scene = Scene::new();
    let output = output_of(scene.plain().arg("--json"), b"");
    assert_done(&output);
    let message: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&message["success"], &message["failed_step"]), (&true.into(), &Value::Null));
    assert_eq!(message["steps"][1]["step"], "device");
    assert!(message["steps"][1]["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));

    let output = output_of(scene.plain().args(["--json", "--expect", "HTTP"]), b"");
    assert_eq!(output.status.code(), Some(1));
    let message: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&message["success"], &message["failed_step"]), (&false.into(), &"device".into()));
    assert_eq!(message["steps"].as_array().map(Vec::len), Some(1));
    assert!(message["error"].as_str().unwrap().contains("began with"), "{message}");
}

#[test]
fn the_first_step_that_fails_ends_it_and_says_why() {
    let scene = Scene::new();
    let stranger = Authority::new(scene.folder(), "stranger");
    let mut command = canary(&scene.relay.address().to_string(), &scene.target(), &scene.site.token);
    let output = output_of(command.arg("--ca").arg(&stranger.file), b"");
    assert_eq!(steps(&output), ["connect"]);
    let message = failure(&output);
    assert!(
        message.contains("tls failed after ") && message.contains("not signed by a CA that we trust"),
        "{message}"
    );

    let closed = canary(&format!("127.0.0.1:{}", Device::closed_port()), &scene.target(), "sg_any")
        .arg("--plain")
        .output()
        .unwrap();
    assert_eq!(steps(&closed), [""; 0]);
    assert!(failure(&closed).contains("connect failed after "), "{}", failure(&closed));

    let output = output_of(scene.plain().env("SLUICEGATE_TOKEN", "sg_nobody"), b"");
    assert!(failure(&output).contains("device failed after "), "{}", failure(&output));
    assert!(failure(&output).contains("407 Proxy Authentication Required"), "{}", failure(&output));
}

#[test]
fn a_device_that_says_something_else_or_nothing_is_told() {
    let scene = Scene::new();
    let output = output_of(scene.plain().args(["--expect", "SSH-1"]), b"");
    let message = failure(&output);
    assert!(message.contains(r#"began with "SSH-2" instead of "SSH-1""#), "{message}");

    let mute = Scene::with(Device::echo(V4));
    let begin = Instant::now();
    let output = output_of(mute.canary().args(["--timeout", "400ms"]), b"");
    assert!(begin.elapsed() < Duration::from_secs(5), "the step's own time");
    assert!(failure(&output).contains("it said nothing in time"), "{}", failure(&output));
    assert_eq!(steps(&output), ["connect", "tls"]);
    let output = output_of(mute.canary().args(["--expect", ""]), b"");
    assert_done(&output);

    let leaves = Scene::with(Device::serving(V4, drop));
    let output = output_of(&mut leaves.canary(), b"");
    assert!(failure(&output).contains("its first bytes did not arrive"), "{}", failure(&output));
}

#[test]
fn a_device_that_speaks_http_is_asked_for_a_page() {
    let web = Scene::with(Device::serving(V4, |mut socket| {
        let request = read_head(&mut socket);
        let is_whole = request.is_ok_and(|head| head.starts_with(b"GET /ping?all HTTP/1.1\r\nHost: "));
        let status = if is_whole { "204 No Content" } else { "400 Bad Request" };
        let _gone = write!(socket, "{}/1.1 {status}\r\n\r\n", if is_whole { "HTTP" } else { "NOT-HTTP" });
        receive(&mut socket);
    }));
    assert_done(&output_of(web.canary().args(["--http", "/ping?all"]), b""));
    assert_done(&output_of(web.plain().args(["--http", "/ping?all"]), b""));
    let message = failure(&output_of(web.canary().args(["--http", "/other"]), b""));
    assert!(message.contains(r#"began with "NOT-HTT" instead of "HTTP/1.""#), "{message}");

    for (arguments, message) in [
        (&["--http", "ping"][..], "a path begins with /"),
        (&["--http", "/a b"], "a path begins with /"),
        (&["--http", "/", "--expect", "SSH-"], "cannot be used with"),
    ] {
        let output = output_of(web.canary().args(arguments), b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(message), "{said}");
    }
}

#[test]
fn a_relay_that_says_nothing_costs_a_step_its_time_and_no_more() {
    let mute = Device::serving(V4, |mut socket| {
        receive(&mut socket);
    });
    for (plain, step) in [(true, "device"), (false, "tls")] {
        let mut command = canary(&mute.address().to_string(), &format!("{DEVICE}:22"), "sg_any");
        command.args(plain.then_some("--plain")).args(["--timeout", "300ms"]);
        let begin = Instant::now();
        let message = failure(&output_of(&mut command, b""));
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(
            message.contains(&format!("{step} failed after 0.3 s: ")) && message.contains("in time"),
            "{message}"
        );
    }
}

/// Answers everybody as a relay that asks nobody for anything.
fn lets_everybody_in(mut socket: TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(socket.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    let _gone = socket.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\nSSH-2.0-any\r\n");
    receive(&mut socket);
}

#[test]
fn who_is_let_in_and_should_not_be_is_a_failure() {
    let relay = Device::serving(V4, lets_everybody_in);
    let mut command = canary(&relay.address().to_string(), &format!("{DEVICE}:22"), "sg_any");
    let output = output_of(command.arg("--plain"), b"");
    assert_eq!(steps(&output), ["connect", "device"]);
    let message = failure(&output);
    assert!(
        message.contains("token failed after ") && message.contains("nobody holds was let in"),
        "{message}"
    );

    let scene = Scene::new();
    let output = output_of(scene.plain().args(["--refused", &scene.target()]), b"");
    let message = failure(&output);
    assert!(
        message.contains("refused failed after ") && message.contains("may not reach was let in"),
        "{message}"
    );

    let closed = format!("{DEVICE}:{}", Device::closed_port());
    let output = output_of(scene.plain().args(["--refused", &closed]), b"");
    let message = failure(&output);
    assert!(message.contains("should get 403, but got ") && message.contains("502 "), "{message}");
}

#[test]
fn the_metrics_are_written_whole_whatever_came_of_the_run() {
    let scene = Scene::new();
    let run = |more: &[&str]| {
        let mut command = scene.canary();
        let output = output_of(command.args(more).arg("--textfile").arg(scene.textfile()), b"");
        (output.status.success(), std::fs::read_to_string(scene.textfile()).unwrap())
    };
    let (is_success, metrics) = run(&[]);
    assert!(is_success);
    assert_eq!(sample(&metrics, "sluicegate_canary_success"), Some(1.0));
    assert_eq!(steps_in(&metrics), ["connect", "tls", "device", "token"]);
    let at = sample(&metrics, "sluicegate_canary_last_run_timestamp_seconds").unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((now - 60.0..=now).contains(&at), "{at}");
    // What the alerts ask about.
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/alerts.yml");
    let rules = std::fs::read_to_string(rules).unwrap();
    let words = rules.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let asked: Vec<&str> = words.filter(|word| word.starts_with("sluicegate_canary_")).collect();
    assert!(asked.len() > 1 && asked.iter().all(|name| sample(&metrics, name).is_some()), "{asked:?}");
    for secret in [scene.site.token.as_str(), DEVICE, "sg_", NAME, "127.0.0.1"] {
        assert!(!metrics.contains(secret), "{secret} is in {metrics}");
    }

    let (is_success, metrics) = run(&["--expect", "HTTP"]);
    assert!(!is_success);
    assert_eq!(sample(&metrics, "sluicegate_canary_success"), Some(0.0));
    assert_eq!(steps_in(&metrics), ["connect", "tls"]);
    assert!(sample(&metrics, "sluicegate_canary_last_run_timestamp_seconds").is_some_and(|later| later > at));

    let (is_success, metrics) = run(&["--token-file", "/nowhere/at/all"]);
    assert!(!is_success, "what fails before the first step, too");
    assert_eq!(sample(&metrics, "sluicegate_canary_success"), Some(0.0));

    let mode = std::fs::metadata(scene.textfile()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "for whoever node_exporter runs as");
    let left = std::fs::read_dir(scene.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(".sluicegate-canary")));
}

#[test]
fn the_end_of_the_certificate_is_told_before_it_comes() {
    let scene = Scene::new();
    let (chain, _) = scene.authority.issue_until(NAME, 2061, 2, 3).write(scene.folder(), "relay");
    scene.relay.signal(Signal::SIGHUP);
    assert!(scene.relay.logs("reloaded"), "{}", scene.relay.log());
    let openssl = ["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in"];
    let output = output_of(Command::new("openssl").args(openssl).arg(chain), b"");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "notAfter=2061-02-03 00:00:00Z");

    let output = output_of(scene.canary().arg("--textfile").arg(scene.textfile()), b"");
    assert_done(&output);
    let message = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(message.contains("certificate good until 2061-02-03T00:00:00Z\n"), "{message}");
    let metrics = std::fs::read_to_string(scene.textfile()).unwrap();
    let expiry = sample(&metrics, "sluicegate_canary_certificate_expiry_timestamp_seconds");
    assert_eq!(expiry, Some(2_874_614_400.0));

    let output = output_of(scene.plain().arg("--textfile").arg(scene.textfile()), b"");
    assert_done(&output);
    let metrics = std::fs::read_to_string(scene.textfile()).unwrap();
    assert_eq!(sample(&metrics, "sluicegate_canary_certificate_expiry_timestamp_seconds"), None);
}

#[test]
fn metrics_that_cannot_be_written_are_a_failure() {
    let scene = Scene::new();
    let output = output_of(scene.plain().args(["--textfile", "/nowhere/canary.prom"]), b"");
    assert_eq!(steps(&output), ["connect", "device", "token"]);
    assert!(failure(&output).contains("/nowhere/canary.prom cannot be written"), "{}", failure(&output));
}

#[test]
fn the_token_may_come_from_a_file_and_one_of_systemds_is_not_warned_of() {
    let scene = Scene::new();
    let file = scene.folder().join("token");
    std::fs::write(&file, format!("{}\n", scene.site.token)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).unwrap();
    let run = |folder: Option<&Path>| {
        let mut command = scene.plain();
        command.env_remove("SLUICEGATE_TOKEN").arg("--token-file").arg(&file);
        command.envs(folder.map(|folder| ("CREDENTIALS_DIRECTORY", folder)));
        output_of(&mut command, b"")
    };
    assert!(String::from_utf8_lossy(&run(None).stderr).contains("warning: "));
    let output = run(Some(scene.folder()));
    assert_done(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
