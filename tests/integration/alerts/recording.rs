//! Scrapes of relays, as series that `promtool test rules` reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::Relay;

/// One target of Prometheus at one minute.
pub struct Scrape {
    instance: &'static str,
    job: &'static str,
    /// The metrics. `None` where the target does not answer.
    text: Option<String>,
}

/// Series of one value for each minute; `None` where a scrape lacks the series.
#[derive(Default)]
pub struct Recording {
    minutes: usize,
    series: BTreeMap<String, Vec<Option<f64>>>,
}

impl Scrape {
    pub fn of(instance: &'static str, relay: &Relay) -> Self {
        Self { instance, job: "sluicegate", text: Some(relay.admin_get("/metrics")) }
    }

    /// A relay that does not answer.
    pub fn failed(instance: &'static str) -> Self {
        Self { instance, job: "sluicegate", text: None }
    }

    /// Reads the file that node_exporter serves.
    pub fn of_file(instance: &'static str, path: &Path) -> Self {
        Self { instance, job: "node", text: Some(std::fs::read_to_string(path).unwrap()) }
    }
}

impl Recording {
    /// The number of minutes so far.
    pub fn minutes(&self) -> usize {
        self.minutes
    }

    /// Adds a minute with what `scrapes` gave.
    pub fn minute(&mut self, scrapes: &[Scrape]) {
        for Scrape { instance, job, text } in scrapes {
            let target = format!("instance=\"{instance}\",job=\"{job}\"");
            self.set(format!("up{{{target}}}"), f64::from(u8::from(text.is_some())));
            for line in text.iter().flat_map(|text| text.lines()).filter(|line| is_of_a_rule(line)) {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let series = match sample.split_once('{') {
                    Some((name, labels)) => format!("{name}{{{target},{labels}"),
                    None => format!("{sample}{{{target}}}"),
                };
                let value: f64 = value.parse().unwrap();
                let is_time = series.contains("_timestamp_seconds{");
                self.set(series, if is_time { self.in_recorded_time(value) } else { value });
            }
        }
        self.minutes += 1;
        for values in self.series.values_mut() {
            values.resize(self.minutes, None);
        }
    }

    /// Adds a minute that is like the one before.
    pub fn repeat(&mut self) {
        self.minutes += 1;
        for values in self.series.values_mut() {
            values.extend(values.last().copied());
        }
    }

    /// Evaluates the shipped rules, and then each query at the last minute: its one value, or `None` where it is to
    /// find nothing.
    #[track_caller]
    pub fn evaluate(&self, queries: &[(&str, Option<f64>)]) {
        let folder = tempfile::tempdir().unwrap();
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/alerts.yml");
        let mut test = format!(
            "rule_files: ['{}']\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n",
            rules.display()
        );
        for (series, values) in &self.series {
            let _written = writeln!(test, "      - {{ series: '{series}', values: '{}' }}", notation(values));
        }
        test += "    promql_expr_test:\n";
        for (query, value) in queries {
            let samples =
                value.map(|value| format!("{{ labels: '{{}}', value: {value} }}")).unwrap_or_default();
            let _written = writeln!(
                test,
                "      - {{ expr: '{query}', eval_time: {}m, exp_samples: [{samples}] }}",
                self.minutes - 1
            );
        }
        let file = folder.path().join("recorded.test.yml");
        std::fs::write(&file, test).unwrap();
        let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output().unwrap();
        let message = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{message}");
    }

    fn set(&mut self, series: String, value: f64) {
        let values = self.series.entry(series).or_default();
        values.resize(self.minutes, None);
        values.push(Some(value));
    }

    /// A time of today as one in the recording, which begins at 0.
    fn in_recorded_time(&self, seconds: f64) -> f64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        self.minutes as f64 * 60.0 + seconds - now
    }
}

/// True for a sample that some rule asks for; a recording of all others would only take time.
fn is_of_a_rule(line: &str) -> bool {
    use std::sync::LazyLock;
    static ASKED: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/alerts.yml");
        let rules = std::fs::read_to_string(rules).unwrap();
        let words = rules.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let is_metric = |word: &&str| word.starts_with("sluicegate_") || word.starts_with("process_");
        words.filter(is_metric).map(str::to_owned).collect()
    });
    let name = line.split([' ', '{']).next().unwrap_or_default();
    ASKED.contains(name)
}

/// Values as promtool writes them: equal ones in a row as one word.
fn notation(values: &[Option<f64>]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut rest = values;
    let mut before = None;
    while let Some(&first) = rest.first() {
        let count = rest.iter().take_while(|value| **value == first).count();
        match first {
            Some(value) => words.push(format!("{value}+0x{}", count - 1)),
            // Prometheus marks a series that a scrape lacks.
            None if before.is_some() => {
                words.push("stale".to_owned());
                words.extend((count > 1).then(|| format!("_x{}", count - 1)));
            }
            None => words.push(format!("_x{count}")),
        }
        before = first;
        rest = &rest[count..];
    }
    words.join(" ")
}

#[test]
fn values_are_written_as_promtool_reads_them() {
    let values = [None, None, Some(1.0), Some(1.0), Some(2.5), None, None, Some(0.0), None];
    assert_eq!(notation(&values), "_x2 1+0x1 2.5+0x0 stale _x1 0+0x0 stale");
}
