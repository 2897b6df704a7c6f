//! What is shipped for Prometheus and Grafana, against a real Prometheus that scrapes a real relay.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Authority, Device, Relay, Request, Running, Site, V4, tools_or_skip, wait_for};
use serde_json::Value;

/// Where the Debian package has the runbook.
const RUNBOOK: &str = "file:///usr/share/doc/sluicegate/monitoring/OPERATIONS.md";

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(shipped(name)).unwrap()
}

/// The names of all alerts, in order.
fn alerts() -> Vec<String> {
    let rules = text("alerts.yml");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

/// Every query of the dashboard, with the variables as Grafana would fill them in.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&text("grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    queries.map(|query| query.replace("$instance", ".*").replace("$__rate_interval", "1m")).collect()
}

/// Words in `text` that look like a metric of ours.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let is_metric = |word: &&str| word.starts_with("sluicegate_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}

/// The metrics that `relay` has, by the names of their families' samples.
fn metrics_of(relay: &Relay) -> BTreeSet<String> {
    let text = relay.admin_get("/metrics");
    let family = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some(if kind == "histogram" { format!("{name}_bucket") } else { name.to_owned() })
    };
    text.lines().filter_map(family).collect()
}

/// A Prometheus with our rules that scrapes `relay` every second.
struct Prometheus {
    address: SocketAddr,
    _process: Running,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(relay: &Relay) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n  - job_name: sluicegate\n    static_configs: [{{ targets: ['{}'] }}]\n",
            shipped("alerts.yml").display(),
            relay.admin(),
        );
        fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let address = crate::support::free_address();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}")).stdout(Stdio::null()).stderr(Stdio::null());
        Self { address, _process: Running::start(&mut command), _folder: folder }
    }

    /// The series that `query` returns now; `None` where there are none, or no answer yet.
    fn series(&self, query: &str) -> Option<Vec<Value>> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--get", "--data-urlencode", &format!("query={query}")]);
        let output = command.arg(format!("http://{}/api/v1/query", self.address)).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().filter(|series| !series.is_empty()).cloned()
    }
}

/// A tunnel by the second listener, which ends at once.
fn tunnel_by_tls(site: &Site, relay: &Relay) {
    let device = Device::http(b"by TLS");
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--proxy-insecure", "--proxytunnel", "--proxy"]);
    curl.arg(format!("https://{}", relay.addresses()[1]))
        .arg("--proxy-user")
        .arg(format!("x:{}", site.token));
    let output =
        curl.arg(format!("http://{}.balena:{}/", crate::support::DEVICE, device.port())).output().unwrap();
    assert!(output.stdout.ends_with(b"by TLS"), "{output:?}");
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    if !tools_or_skip("alerts_fire_when_they_should_and_not_before", &["promtool"]) {
        return;
    }
    for arguments in [["check", "rules"], ["test", "rules"]] {
        let file = if arguments[0] == "check" { "alerts.yml" } else { "alerts.test.yml" };
        let mut command = Command::new("promtool");
        let output = command.args(arguments).arg(file).current_dir(shipped("")).output().unwrap();
        let message = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&message));
    }
    // Each has a case of its own.
    let cases = text("alerts.test.yml");
    for alert in alerts() {
        assert!(cases.contains(&format!("alertname: {alert}\n        exp_alerts:\n")), "{alert} has no case");
    }
}

#[test]
fn every_alert_has_its_section_in_the_runbook() {
    let runbook = text("OPERATIONS.md");
    let rules = text("alerts.yml");
    let sections: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut alerts = alerts();
    for alert in &alerts {
        let link = format!("runbook_url: {RUNBOOK}#{}\n", alert.to_lowercase());
        assert!(rules.contains(&link), "{alert} does not link to its section");
        let section = runbook.split(&format!("## {alert}\n")).nth(1).unwrap_or_default();
        let section = section.split("\n## ").next().unwrap();
        for part in ["**Means.**", "**Look at.**", "**Do.**"] {
            assert!(section.contains(part), "{alert}: {part}");
        }
    }
    alerts.sort();
    let mut sections: Vec<&str> =
        sections.into_iter().filter(|name| name.starts_with("Sluicegate")).collect();
    sections.sort_unstable();
    assert_eq!(alerts, sections);
}

#[test]
fn every_query_finds_what_a_running_relay_tells() {
    if !tools_or_skip("every_query_finds_what_a_running_relay_tells", &["prometheus", "curl"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "root");
    let (chain, key) = authority.issue("relay", &["relay.example"]).write(folder.path(), "relay");
    let site = Site::new(&format!(
        "probe.interval = '1s'\nlisten = [{{ address = '127.0.0.1:0' }}, {{ address = '127.0.0.1:0', tls = {{
         certificates = [{{ chain = '{}', key = '{}' }}] }} }}]",
        chain.display(),
        key.display(),
    ));
    let relay = site.start();
    let prometheus = Prometheus::start(&relay);
    assert!(wait_for(|| prometheus.series("sluicegate_build_info")).is_some(), "nothing was scraped");
    // Some of everything that a rate is asked of, so that there is a history to ask about.
    let device = Device::echo(V4);
    tunnel_by_tls(&site, &relay);
    let tunnel = site.request(&device).send(relay.address()).opened();
    let refused = Request::to(crate::support::DEVICE, 22).send(relay.address());
    assert_eq!(refused.status, 407);
    drop(tunnel);
    let is_counted = "increase(sluicegate_tunnels_closed_total[1m]) > 0";
    assert!(wait_for(|| prometheus.series(is_counted)).is_some());
    assert!(wait_for(|| prometheus.series("sluicegate_probe_success == 1")).is_some());

    let queries = queries();
    assert!(queries.len() > 20, "{queries:?}");
    for query in &queries {
        // What counts nothing yet has no series; a second one makes a rate.
        let found = wait_for(|| {
            tunnel_by_tls(&site, &relay);
            prometheus.series(query)
        });
        assert!(found.is_some(), "the dashboard's {query} finds nothing");
    }
    // And nothing is measured that nobody is shown.
    let shown: BTreeSet<String> = queries.iter().flat_map(|query| metrics_in(query)).collect();
    let shown: BTreeSet<String> = shown.union(&metrics_in(&text("alerts.yml"))).cloned().collect();
    let unused: Vec<String> = metrics_of(&relay).difference(&shown).cloned().collect();
    assert_eq!(unused, Vec::<String>::new(), "neither the dashboard nor an alert asks for them");
    // An alert's query finds nothing where all is well; what it asks about has to be there all the same.
    // The canary's metrics are not a relay's; the test module `canary` checks them.
    for metric in
        metrics_in(&text("alerts.yml")).iter().filter(|name| !name.starts_with("sluicegate_canary_"))
    {
        assert!(prometheus.series(metric).is_some(), "the alerts' {metric} is not there");
    }
    let firing = prometheus.series("ALERTS{alertstate='firing'}");
    assert_eq!(firing, None);
}
