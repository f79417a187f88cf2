//! What `/metrics` exposes, to the letter: dashboards and alerts are built on it.

use concordat::core::{Alarm, Role};
use concordat::ids::{NodeId, Term};
use concordat::telemetry::{Outcome, Position, Telemetry};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

const PEER: NodeId = NodeId([7; 32]);
const BOUNDS: [&str; 16] = [
    "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5",
    "10", "+Inf",
];

fn line<'a>(text: &'a str, series: &str) -> &'a str {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = values.next().unwrap_or_else(|| panic!("no series {series} in\n{text}"));
    assert_eq!(values.next(), None, "{series} is exposed twice");
    value
}

fn histogram(name: &str, help: &str) -> String {
    let mut text = format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
    for bound in BOUNDS {
        writeln!(text, "{name}_bucket{{le=\"{bound}\"}} 0").unwrap();
    }
    text + &format!("{name}_sum 0\n{name}_count 0\n")
}

#[test]
fn everything_is_exposed_from_the_start_with_its_name_labels_type_and_help() {
    let commit_latency = histogram(
        "asi_consensus_commit_latency_seconds",
        "Wall time from propose to commit of proposals that came in at this node.",
    );
    let persist = histogram(
        "concordat_persist_seconds",
        "Time from handing a write to the store until it is durable, waiting for earlier writes included.",
    );
    let expected = format!(
        r#"{commit_latency}# HELP asi_consensus_pending_proposals Proposals that came in at this node and are not decided.
# TYPE asi_consensus_pending_proposals gauge
asi_consensus_pending_proposals 0
# HELP asi_consensus_proposals_total Proposals that came in at this node, by how they ended: committed, aborted (rejected by votes) or expired.
# TYPE asi_consensus_proposals_total counter
asi_consensus_proposals_total{{outcome="aborted"}} 0
asi_consensus_proposals_total{{outcome="committed"}} 0
asi_consensus_proposals_total{{outcome="expired"}} 0
# HELP asi_consensus_role_transitions_total Changes of this node's role; to_role=leader counts elections it won.
# TYPE asi_consensus_role_transitions_total counter
asi_consensus_role_transitions_total{{from_role="candidate",to_role="follower"}} 0
asi_consensus_role_transitions_total{{from_role="candidate",to_role="leader"}} 0
asi_consensus_role_transitions_total{{from_role="follower",to_role="candidate"}} 0
asi_consensus_role_transitions_total{{from_role="follower",to_role="leader"}} 0
asi_consensus_role_transitions_total{{from_role="leader",to_role="candidate"}} 0
asi_consensus_role_transitions_total{{from_role="leader",to_role="follower"}} 0
# HELP asi_consensus_term This node's term.
# TYPE asi_consensus_term gauge
asi_consensus_term 0
# HELP concordat_alarms_total Alarms raised by this node; see its log.
# TYPE concordat_alarms_total counter
concordat_alarms_total{{kind="clock_out_of_bound"}} 0
concordat_alarms_total{{kind="false_leader"}} 0
concordat_alarms_total{{kind="malformed_append"}} 0
concordat_alarms_total{{kind="snapshot_denied"}} 0
concordat_alarms_total{{kind="snapshot_failed"}} 0
# HELP concordat_database_bytes Bytes that the files of this node's database take.
# TYPE concordat_database_bytes gauge
concordat_database_bytes 0
# HELP concordat_database_rotation_pause_seconds How long writers were held up when the database last moved.
# TYPE concordat_database_rotation_pause_seconds gauge
concordat_database_rotation_pause_seconds 0
# HELP concordat_database_rotations_total Moves of the database to a fresh one, by how they ended: done, or abandoned (see the log).
# TYPE concordat_database_rotations_total counter
concordat_database_rotations_total{{outcome="abandoned"}} 0
concordat_database_rotations_total{{outcome="done"}} 0
# HELP concordat_history_complete 1 when nothing is missing from the first entry on; 0 while what lies before an installed snapshot is filled in.
# TYPE concordat_history_complete gauge
concordat_history_complete 1
# HELP concordat_history_from The first entry whose header, certificates and receipt are held here.
# TYPE concordat_history_from gauge
concordat_history_from 1
# HELP concordat_log_index Positions in this node's log: last appended, durable here, committed, applied, certified.
# TYPE concordat_log_index gauge
concordat_log_index{{position="applied"}} 0
concordat_log_index{{position="certified"}} 0
concordat_log_index{{position="committed"}} 0
concordat_log_index{{position="durable"}} 0
concordat_log_index{{position="last"}} 0
# HELP concordat_mended_total Damaged records of this node's store that were put back from other members when it started.
# TYPE concordat_mended_total counter
concordat_mended_total{{kind="chunk"}} 0
concordat_mended_total{{kind="entries"}} 0
concordat_mended_total{{kind="headers"}} 0
concordat_mended_total{{kind="kept"}} 0
concordat_mended_total{{kind="tile"}} 0
# HELP concordat_peer_connected 1 while a connection to the member stands.
# TYPE concordat_peer_connected gauge
concordat_peer_connected{{peer="{PEER}"}} 0
{persist}# HELP concordat_request_table_entries Requests remembered until their deadline, so that a retry is applied once.
# TYPE concordat_request_table_entries gauge
concordat_request_table_entries 0
# HELP concordat_request_table_limit Most requests that are remembered; at this bound every proposal is refused with backpressure.
# TYPE concordat_request_table_limit gauge
concordat_request_table_limit 1000000
# HELP concordat_role 1 for the role this node has, 0 for the others.
# TYPE concordat_role gauge
concordat_role{{role="candidate"}} 0
concordat_role{{role="follower"}} 1
concordat_role{{role="leader"}} 0
"#
    );
    assert_eq!(Telemetry::new([PEER]).render(), expected);
}

fn exercised() -> Telemetry {
    let telemetry = Telemetry::new([PEER]);
    telemetry.proposal(Outcome::Committed);
    telemetry.proposal(Outcome::Committed);
    telemetry.proposal(Outcome::Aborted);
    telemetry.proposal(Outcome::Expired);
    telemetry.role_transition(Role::Follower, Role::Candidate);
    telemetry.role_transition(Role::Candidate, Role::Leader);
    telemetry.role_transition(Role::Leader, Role::Leader);
    telemetry.commit_latency(0.0003);
    telemetry.commit_latency(0.05);
    telemetry.commit_latency(60.0);
    telemetry.set_pending(4);
    telemetry.set_pending(3);
    telemetry.set_request_entries(17);
    telemetry.set_term(9);
    telemetry.set_log_index(Position::Certified, 41);
    telemetry.set_peer_connected(PEER, true);
    telemetry.persist(0.002);
    telemetry.alarm(&Alarm::FalseLeader { claimant: PEER, term: Term(8) });
    telemetry
}

#[test]
fn all_five_metrics_of_the_specification_fire() {
    let text = exercised().render();
    for (series, value) in [
        (r#"asi_consensus_proposals_total{outcome="committed"}"#, "2"),
        (r#"asi_consensus_proposals_total{outcome="aborted"}"#, "1"),
        (r#"asi_consensus_proposals_total{outcome="expired"}"#, "1"),
        (r#"asi_consensus_role_transitions_total{from_role="follower",to_role="candidate"}"#, "1"),
        (r#"asi_consensus_role_transitions_total{from_role="candidate",to_role="leader"}"#, "1"),
        (r#"asi_consensus_role_transitions_total{from_role="leader",to_role="follower"}"#, "0"),
        (r#"asi_consensus_commit_latency_seconds_bucket{le="0.00025"}"#, "0"),
        (r#"asi_consensus_commit_latency_seconds_bucket{le="0.0005"}"#, "1"),
        (r#"asi_consensus_commit_latency_seconds_bucket{le="0.05"}"#, "2"),
        (r#"asi_consensus_commit_latency_seconds_bucket{le="10"}"#, "2"),
        (r#"asi_consensus_commit_latency_seconds_bucket{le="+Inf"}"#, "3"),
        ("asi_consensus_commit_latency_seconds_count", "3"),
        ("asi_consensus_pending_proposals", "3"),
        ("asi_consensus_term", "9"),
    ] {
        assert_eq!(line(&text, series), value, "{series}");
    }
}

#[test]
fn operational_metrics_follow_their_calls() {
    let text = exercised().render();
    for (series, value) in [
        (r#"concordat_role{role="leader"}"#, "1"),
        (r#"concordat_role{role="candidate"}"#, "0"),
        (r#"concordat_role{role="follower"}"#, "0"),
        (r#"concordat_log_index{position="certified"}"#, "41"),
        ("concordat_request_table_entries", "17"),
        ("concordat_request_table_limit", "1000000"),
        (&format!("concordat_peer_connected{{peer=\"{PEER}\"}}"), "1"),
        (r#"concordat_alarms_total{kind="false_leader"}"#, "1"),
        ("concordat_persist_seconds_count", "1"),
    ] {
        assert_eq!(line(&text, series), value, "{series}");
    }
}

#[test]
fn observing_changes_values_and_never_the_set_of_series() {
    let series = |text: String| -> BTreeSet<String> {
        text.lines().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).filter(|l| !l.starts_with('#')).collect()
    };
    assert_eq!(series(Telemetry::new([PEER]).render()), series(exercised().render()));
}

#[test]
fn two_nodes_in_one_process_do_not_mix() {
    let (one, other) = (Telemetry::new([]), Telemetry::new([]));
    one.set_term(3);
    assert_eq!((line(&one.render(), "asi_consensus_term"), line(&other.render(), "asi_consensus_term")), ("3", "0"));
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    for telemetry in [Telemetry::new([PEER]), exercised()] {
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool runs; it is in the Debian package `prometheus`, and .ci/run installs it");
        promtool.stdin.take().unwrap().write_all(telemetry.render().as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.is_empty(), "promtool check metrics says\n{said}");
    }
}

/// Names of metrics in the alert rules that no node exposes.
fn unknown_metrics(rules: &str, exposed: &str) -> BTreeSet<String> {
    let types: BTreeSet<&str> =
        exposed.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let words = rules.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(|line| {
        // Colons belong to the names of recorded rules, which are not exposed.
        line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
    });
    let metrics = words.filter(|word| word.starts_with("asi_consensus_") || word.starts_with("concordat_"));
    let metrics = metrics.map(|word| word.trim_end_matches("_bucket"));
    metrics.filter(|name| !types.contains(name)).map(str::to_owned).collect()
}

#[test]
fn alerts_are_built_on_metrics_that_exist() {
    let rules = include_str!("../ops/prometheus/alerts.yml");
    let exposed = Telemetry::new([PEER]).render();
    assert_eq!(unknown_metrics(rules, &exposed), BTreeSet::new());
    let planted = "expr: rate(concordat_fsyncs_total[5m]) > job:concordat_x:rate5m + asi_consensus_term";
    assert_eq!(unknown_metrics(planted, &exposed), BTreeSet::from(["concordat_fsyncs_total".to_owned()]));
}
