//! What `make compare` plans, what it makes of its runs, and of the file that names further peers.

use crate::peers::{Peer, Places};
use crate::plan::{Extent, Plan, closed_of};
use crate::record::{Cost, Latency, Load, Run};
use crate::report::figures::Verdict;
use crate::report::standing::{Measure, Spread};
use crate::report::{Entrant, Failure, LeftOut, Machine, Part, Report, ReportError, Settings};
use crate::works::{Direction, Pace, Work};

const BULK: Work = Work::Bulk { direction: Direction::Down, streams: 32 };
const EXCHANGE: Work = Work::Exchange { bytes: 128, connections: 1, pace: Pace::Closed };
const IDLE: Work = Work::Idle { sessions: 1_000 };

#[test]
fn the_middle_run_counts_and_the_outermost_are_told() {
    let odd = Spread::of([3.0, 1.0, 10.0]).unwrap();
    let even = Spread::of([4.0, 1.0, 2.0, 100.0]).unwrap();

    assert_eq!(odd, Spread { median: 3.0, min: 1.0, max: 10.0 });
    assert_eq!(even, Spread { median: 3.0, min: 1.0, max: 100.0 });
    assert_eq!(Spread::of([]), None);
}

#[test]
fn a_ratio_is_of_medians_and_by_round_of_runs_side_by_side() {
    let report = report(vec![
        bulk("sluicegate", 0, 3.0, 1.0),
        bulk("sluicegate", 1, 4.0, 1.0),
        bulk("sluicegate", 2, 8.0, 1.0),
        bulk("nginx", 0, 1.0, 1.0),
        bulk("nginx", 1, 2.0, 1.0),
        bulk("nginx", 2, 2.0, 1.0),
    ]);

    assert_eq!(report.ratio(BULK, Measure::GigabytesPerSecond, "nginx"), Some(2.0));
    let by_round = report.ratio_by_round(BULK, Measure::GigabytesPerSecond, "nginx").unwrap();
    assert_eq!(by_round, Spread { median: 3.0, min: 2.0, max: 4.0 });
    assert_eq!(report.ratio(BULK, Measure::GigabytesPerSecond, "socat"), None);
}

#[test]
fn a_figure_is_met_missed_or_not_measured() {
    let report = report(vec![
        bulk("sluicegate", 0, 3.3, 1.0),
        bulk("haproxy-splice", 0, 2.0, 1.0),
        bulk("nginx", 0, 9.0, 1.0),
    ]);

    assert_eq!(verdict(&report, BULK, Measure::GigabytesPerSecond), Verdict::Met);
    assert_eq!(verdict(&report, BULK, Measure::CpuPerGigabyte), Verdict::Missed);
    assert_eq!(verdict(&report, IDLE, Measure::RssKibPerSession), Verdict::NotMeasured);
}

#[test]
fn the_best_haproxy_is_the_one_to_beat() {
    let report = report(vec![
        bulk("sluicegate", 0, 3.3, 1.0),
        bulk("haproxy-splice", 0, 2.0, 1.0),
        bulk("haproxy-newest", 0, 3.0, 1.0),
    ]);

    assert_eq!(verdict(&report, BULK, Measure::GigabytesPerSecond), Verdict::Missed);
}

#[test]
fn busy_polling_is_set_beside_busy_polling_only() {
    let report = report(vec![
        exchange("sluicegate", 42.0),
        exchange("haproxy-splice", 100.0),
        exchange("haproxy-busy-polling", 40.0),
    ]);

    let ratios: Vec<_> = report
        .figures()
        .into_iter()
        .filter(|figure| figure.work == EXCHANGE)
        .map(|figure| (figure.value().unwrap(), figure.verdict()))
        .collect();
    assert_eq!(ratios, [(0.42, Verdict::Met), (1.05, Verdict::Met)]);
}

#[test]
fn an_idle_session_is_held_to_its_kibibytes_by_itself() {
    let report = report(vec![idle("sluicegate", 0.61, 0.002)]);

    assert_eq!(verdict(&report, IDLE, Measure::RssKibPerSession), Verdict::Missed);
    assert_eq!(verdict(&report, IDLE, Measure::IdleCpuPercent), Verdict::Met);
}

#[test]
fn a_failure_or_an_error_of_ours_fails_the_comparison_and_one_of_a_peer_does_not() {
    let mut report = report(vec![bulk("sluicegate", 0, 3.0, 1.0)]);
    assert!(!report.sluicegate_failed());

    report.failures.push(failure("socat"));
    assert!(!report.sluicegate_failed());

    report.failures.push(failure("sluicegate-copy"));
    assert!(report.sluicegate_failed());

    report.failures.clear();
    report.runs[0].load.errors = 1;
    assert!(report.sluicegate_failed());
}

#[test]
fn a_report_comes_back_from_json_as_it_was() {
    let mut report = report(vec![bulk("sluicegate", 0, 3.0, 1.0), idle("sluicegate", 0.5, 0.001)]);
    report.failures.push(failure("nginx"));

    let back = Report::from_json(&report.to_json().unwrap()).unwrap();

    assert_eq!(back, report);
}

#[test]
fn a_written_report_tells_figures_failures_and_who_was_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut report = report(vec![bulk("sluicegate", 0, 3.3, 1.0), bulk("haproxy-splice", 0, 2.0, 2.0)]);
    report.failures.push(failure("nginx"));

    report.write(folder.path()).unwrap();

    let text = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
    assert!(text.contains("| bulk down, 32 streams | GB/s ≥ 1.6 × HAProxy | 1.65 |"), "{text}");
    assert!(text.contains("- nginx failed in round 1: no such module"), "{text}");
    assert!(text.contains("- socat: not installed"), "{text}");
    assert!(text.contains("![Bulk down](bulk-down.svg)"), "{text}");
    let plot = std::fs::read_to_string(folder.path().join("bulk-down.svg")).unwrap();
    assert!(plot.contains("haproxy-splice"), "{plot}");
    assert!(folder.path().join("report.json").exists());
}

#[test]
fn numbers_show_three_digits_that_count() {
    let shown = [0.27, 1.5, 99.99, 999.6, 1_234_567.8, 0.0].map(crate::report::number);

    assert_eq!(shown, ["0.270", "1.50", "100", "1,000", "1,234,568", "0"]);
}

#[test]
fn in_each_round_everybody_runs_once_and_another_one_begins() {
    let rounds: Vec<Vec<usize>> = (0..4).map(|round| crate::plan::order(3, round).collect()).collect();

    assert_eq!(rounds, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
}

#[test]
fn an_open_loop_comes_after_the_closed_one_that_sets_its_rate() {
    let mut plan = Plan::new(Extent::Full);
    plan.keep(&["128 B exchanges, 1 connection, open at 80 %".to_owned()]);

    let [closed, open] = plan.works[..] else { panic!("{:?}", plan.works) };
    assert_eq!((closed, closed_of(open)), (EXCHANGE, Some(EXCHANGE)));
}

#[test]
fn the_quick_plan_measures_every_figure() {
    let measured = |figures: Vec<crate::report::figures::Figure>| {
        figures.into_iter().map(|figure| figure.work).collect::<std::collections::HashSet<_>>()
    };
    let needed = measured(report(Vec::new()).figures());

    let quick = Plan::new(Extent::Quick).works.into_iter().collect();

    assert_eq!(needed, quick);
}

#[test]
fn a_peer_gets_ports_and_host_in_its_command() {
    let peers = read_peers(
        r#"
        [[peer]]
        name = "realm"
        command = ["realm", "-l", "127.0.0.1:{listen_port}", "-r", "{backend_host}:{backend_port}"]
        works = ["bulk", "128 B"]
        "#,
    );

    let peer = &peers.unwrap()[0];
    let places = Places { listen_port: 7001, backend_host: "127.0.0.1".to_owned(), backend_port: 7002 };
    assert_eq!(peer.command(&places)[2..], ["127.0.0.1:7001", "-r", "127.0.0.1:7002"]);
    assert!(peer.joins(BULK) && peer.joins(EXCHANGE) && !peer.joins(IDLE));
}

#[test]
fn a_wrong_peer_is_told_with_its_line() {
    let misspelt = "[[peer]]\nname = \"a\"\ncommand = [\"a\"]\nprot = 1\n";
    let deaf = "\n\n[[peer]]\nname = \"a\"\ncommand = [\"a\", \"{backend_port}\"]\n";
    let aimless = "[[peer]]\nname = \"a\"\nport = 80\ncommand = [\"a\"]\n";
    let taken = "[[peer]]\nname = \"nginx\"\nport = 80\ncommand = [\"a\", \"{backend_port}\"]\n";
    let empty = "[[peer]]\nname = \"a\"\ncommand = []\n";
    let spaced = "[[peer]]\nname = \"a b\"\ncommand = [\"a\"]\n";

    let message = [misspelt, deaf, aimless, taken, empty, spaced].map(|text| read_peers(text).unwrap_err());

    let expected = [
        ":4: unknown field `prot`",
        ":3: `a` listens nowhere: set `port`, or use {listen_port}",
        ":1: `a` forwards nowhere: use {backend_port}",
        ":1: there is a contender `nginx` already",
        ":1: the command of `a` is empty",
        ":1: `a b` is no name",
    ];
    for (message, expected) in message.iter().zip(expected) {
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
}

fn read_peers(text: &str) -> Result<Vec<Peer>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers.toml");
    std::fs::write(&path, text).unwrap();
    Peer::read(&path, &["nginx".to_owned()]).map_err(|error| error.to_string())
}

fn verdict(report: &Report, work: Work, measure: Measure) -> Verdict {
    let figures = report.figures();
    let figure = figures.iter().find(|figure| figure.work == work && figure.measure == measure);
    figure.unwrap().verdict()
}

#[test]
fn reports_of_different_works_become_one() {
    let first = Report { settings: settings("bulk"), ..report(vec![bulk("nginx", 0, 1.0, 1.0)]) };
    let second = Report { settings: settings("idle"), ..report(vec![idle("nginx", 9.5, 0.0)]) };

    let whole = together(&[&first, &second]).unwrap();

    assert_eq!(whole.runs, [first.runs, second.runs].concat());
    let arguments: Vec<_> = whole.settings.parts.iter().map(|part| part.arguments[0].as_str()).collect();
    assert_eq!(arguments, ["bulk", "idle"]);
}

#[test]
fn reports_that_do_not_belong_together_are_not_put_together() {
    let first = report(vec![bulk("nginx", 0, 1.0, 1.0)]);
    let other_machine = Machine { kernel: "another".to_owned(), ..Machine::default() };
    let elsewhere = Report { machine: other_machine, ..report(vec![idle("nginx", 9.5, 0.0)]) };
    let longer = Settings { measure_seconds: 9.0, ..first.settings.clone() };
    let longer = Report { settings: longer, ..report(vec![idle("nginx", 9.5, 0.0)]) };
    let others = report(vec![idle("haproxy-splice", 3.3, 0.0)]);

    let differing = |report| match together(&[&first, report]) {
        Err(ReportError::Differs { what, .. }) => what,
        other => panic!("{other:?}"),
    };

    assert_eq!(differing(&elsewhere), "machines");
    assert_eq!(differing(&longer), "settings");
    assert_eq!(differing(&others), "contenders");
    assert!(matches!(together(&[&first, &first]), Err(ReportError::Twice { work: BULK, .. })));
}

/// Writes the reports, and reads them as one.
fn together(reports: &[&Report]) -> Result<Report, ReportError> {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> =
        (0..reports.len()).map(|number| folder.path().join(format!("{number}.json"))).collect();
    for (path, report) in paths.iter().zip(reports) {
        std::fs::write(path, report.to_json().unwrap()).unwrap();
    }
    Report::read_together(&paths).map(|whole| whole.expect("there are reports"))
}

fn settings(argument: &str) -> Settings {
    let part = Part { arguments: vec![argument.to_owned()], started_at: String::new() };
    Settings { parts: vec![part], rounds: 3, complete: true, ..Settings::default() }
}

fn report(runs: Vec<Run>) -> Report {
    let mut names: Vec<String> = runs.iter().map(|run| run.contender.clone()).collect();
    names.push("nginx".to_owned());
    names.sort();
    names.dedup();
    let entrant = |name| Entrant { name, version: "1.0".to_owned(), settings: String::new() };
    Report {
        machine: Machine::default(),
        settings: Settings { rounds: 3, complete: true, ..Settings::default() },
        contenders: names.into_iter().map(entrant).collect(),
        left_out: vec![LeftOut { contender: "socat".to_owned(), reason: "not installed".to_owned() }],
        runs,
        failures: Vec::new(),
    }
}

fn failure(contender: &str) -> Failure {
    Failure { contender: contender.to_owned(), work: BULK, round: 0, reason: "no such module".to_owned() }
}

/// A second in which `gigabytes` came and the relay used `cpu_seconds`.
fn bulk(contender: &str, round: usize, gigabytes: f64, cpu_seconds: f64) -> Run {
    let load = Load { seconds: 1.0, bytes: (gigabytes * 1e9) as u64, ..Load::default() };
    let cost = Cost { cpu_system_seconds: cpu_seconds, ..no_cost() };
    Run { contender: contender.to_owned(), work: BULK, round, load, cost: Some(cost) }
}

fn exchange(contender: &str, p50: f64) -> Run {
    let latency = Latency { p50, p90: p50, p99: p50, p999: p50, max: p50 };
    let load = Load { seconds: 1.0, exchanges: 10_000, latency_us: Some(latency), ..Load::default() };
    Run { contender: contender.to_owned(), work: EXCHANGE, round: 0, load, cost: Some(no_cost()) }
}

fn idle(contender: &str, rss_kib_per_session: f64, idle_cpu_share: f64) -> Run {
    let cost = Cost {
        rss_kib_per_session: Some(rss_kib_per_session),
        idle_cpu_share: Some(idle_cpu_share),
        ..no_cost()
    };
    let load = Load { seconds: 1.0, ..Load::default() };
    Run { contender: contender.to_owned(), work: IDLE, round: 0, load, cost: Some(cost) }
}

fn no_cost() -> Cost {
    Cost {
        cpu_user_seconds: 0.0,
        cpu_system_seconds: 0.0,
        switches_voluntary: 0,
        switches_involuntary: 0,
        rss_kib: 1024,
        rss_kib_per_session: None,
        idle_cpu_share: None,
    }
}
