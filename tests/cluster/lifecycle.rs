//! Starting, stopping, restarting; metrics; what a node is at a glance.

use crate::support::{Cluster, certify, set_config, until};
use concordat::api::{FederatedConsensus, Propose};
use concordat::certificate::Policy;
use concordat::node::{self, StartError};

const AUTO: [Policy; 3] = [Policy::Auto; 3];

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_reflects_what_was_proposed_and_committed() {
    let cluster = Cluster::start(&AUTO).await;
    let leader = cluster.node(cluster.leader().await);
    let before = leader.snapshot().await.expect("embedded");
    assert_eq!((before.committed_count, before.aborted_count), (0, 0));
    certify(leader, Propose::new(set_config("a", "b"))).await;
    let after = leader.snapshot().await.expect("embedded");
    assert_eq!((after.committed_count, after.aborted_count, after.pending_proposals), (1, 0, 0));
    assert!(after.commit_index > before.commit_index);
    assert_eq!(after.known_peers.len(), 2);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_cluster_remembers_log_registry_requests_and_certificates() {
    let mut cluster = Cluster::start(&AUTO).await;
    let request = || Propose { request_id: Some("once".into()), ..Propose::new(set_config("k", "v")) };
    let first = certify(cluster.node(0), request()).await;
    let last = cluster.settled().await;
    let term = cluster.node(0).status().snapshot.term;
    let hash = cluster.node(0).registry(concordat::registry::State::state_hash);
    for n in 0..3 {
        cluster.stop_node(n).await;
    }
    for n in 0..3 {
        cluster.start_node(n).await;
    }
    for node in cluster.running() {
        let status = node.status();
        assert!(status.certified_index >= last && status.applied_index >= last, "{status:?}");
        assert!(status.snapshot.term >= term);
    }
    assert_eq!(cluster.node(0).registry(concordat::registry::State::state_hash), hash);
    cluster.leader().await;
    let again = certify(cluster.node(1), request()).await;
    assert_eq!((again.index, again.repeated), (first.index, true));
    cluster.settled().await;
    cluster.node(2).receipt(last).expect("a receipt").verify(&cluster.genesis).expect("verifies");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_goes_on_without_one_member_which_catches_up_when_it_returns() {
    let mut cluster = Cluster::start(&AUTO).await;
    let away = cluster.leader().await;
    cluster.stop_node(away).await;
    let other = (away + 1) % 3;
    for n in 0..50 {
        certify(cluster.node(other), Propose::new(set_config("n", &n.to_string()))).await;
    }
    cluster.start_node(away).await;
    cluster.settled().await;
    let hashes: Vec<_> = cluster.running().map(|n| n.registry(concordat::registry::State::state_hash)).collect();
    assert!(hashes.windows(2).all(|w| w[0] == w[1]));
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn close_ends_every_background_task_and_frees_store_and_ports() {
    let runtime = tokio::runtime::Handle::current();
    let before = runtime.metrics().num_alive_tasks();
    let mut cluster = Cluster::start(&AUTO).await;
    certify(cluster.node(0), Propose::new(set_config("a", "b"))).await;
    assert!(runtime.metrics().num_alive_tasks() > before);
    for n in 0..3 {
        cluster.stop_node(n).await;
    }
    until("no task is left", || async { (runtime.metrics().num_alive_tasks() <= before).then_some(()) }).await;
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("procfs").flatten();
        let names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
        names.filter(|n| n.starts_with("crypto-") || n.starts_with("apply") || n.starts_with("committer")).count()
    };
    // Other tests of this process run nodes of their own at the same time; alone, none is left.
    let _shared_with_other_tests = threads();
    for n in 0..3 {
        cluster.start_node(n).await;
    }
    cluster.leader().await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_five_metrics_of_the_specification_fire() {
    let cluster = Cluster::start(&[Policy::Auto, Policy::Auto, Policy::Auto]).await;
    let leader = cluster.node(cluster.leader().await);
    certify(leader, Propose::new(set_config("a", "b"))).await;
    let text = leader.metrics();
    let value = |series: &str| -> f64 {
        let line = text.lines().find(|l| l.strip_prefix(series).is_some_and(|r| r.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("{series} is missing in\n{text}"));
        line.rsplit(' ').next().and_then(|v| v.parse().ok()).expect("a number")
    };
    assert_eq!(value("asi_consensus_proposals_total{outcome=\"committed\"}"), 1.0);
    assert_eq!(value("asi_consensus_proposals_total{outcome=\"aborted\"}"), 0.0);
    assert_eq!(value("asi_consensus_proposals_total{outcome=\"expired\"}"), 0.0);
    assert!(value("asi_consensus_role_transitions_total{from_role=\"candidate\",to_role=\"leader\"}") >= 1.0);
    assert_eq!(value("asi_consensus_commit_latency_seconds_count"), 1.0);
    assert_eq!(value("asi_consensus_pending_proposals"), 0.0);
    assert_eq!(value("concordat_request_table_entries"), 1.0);
    assert!(value("asi_consensus_term") >= 1.0);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_itself_does_not_start_and_says_why() {
    let mut cluster = Cluster::prepare(&AUTO);
    cluster.start_node(0).await;
    let second = node::start(cluster.options(0)).await.err().expect("the data directory is in use").to_string();
    assert!(second.contains("in use"), "{second}");

    let mut taken = cluster.options(1);
    taken.listen = cluster.options(0).listen;
    let taken = node::start(taken).await.err().expect("the port is taken").to_string();
    assert!(taken.contains("in use"), "{taken}");
    cluster.start_node(1).await;
    cluster.stop_node(1).await;

    let other = Cluster::prepare(&AUTO);
    let mut foreign = cluster.options(1);
    foreign.genesis = other.genesis.clone();
    let foreign = node::start(foreign).await.err().expect("the store pins its genesis");
    assert!(matches!(foreign, StartError::Pin(_)), "{foreign}");

    let mut stranger = other.options(2);
    stranger.genesis = cluster.genesis.clone();
    let stranger = node::start(stranger).await.err().expect("not a member");
    assert!(matches!(stranger, StartError::NotAMember { .. }), "{stranger}");
    cluster.close().await;
}
