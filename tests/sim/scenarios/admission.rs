use super::cluster;
use crate::members::id_of;
use crate::world::{Config, World};
use concordat::certificate::Policy;
use concordat::core::{Admission, Message, Options, Role};
use concordat::ids::LogIndex;
use concordat::limits::{MAX_PAYLOAD, MAX_REQUEST_ID};

#[test]
fn ten_concurrent_proposals_are_ordered_and_gap_free() {
    let mut world = cluster(3, 1);
    let leader = world.settle();
    let first = world.core(leader).last_index().next();
    let indexes: Vec<u64> = (0..10)
        .map(|i| match world.propose(leader, &i.to_string()) {
            Admission::Appended { index, .. } => index.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(indexes, (first.0..first.0 + 10).collect::<Vec<_>>());
    assert!(world.run_while_not(1_000, World::converged));
    for node in 0..3 {
        let applied: Vec<_> = (0..10).map(|i| world.outcome_at(node, &i.to_string()).unwrap().index.0).collect();
        assert_eq!(applied, indexes, "node {node}");
    }
}

#[test]
fn a_follower_names_the_leader() {
    let mut world = World::new(Config { forward: false, ..Config::new(3, 2) });
    let leader = world.settle();
    let follower = world.follower();
    let admission = world.propose(follower, "a");
    assert_eq!(world.id_index(&admission), leader);
}

#[test]
fn the_queue_is_bounded_and_takes_again_once_it_drains() {
    let options = Options { max_pending: 8, ..Options::default() };
    let mut world = World::new(Config { options, ..Config::new(3, 3) });
    let leader = world.settle();
    for i in 0..8 {
        assert!(matches!(world.propose(leader, &i.to_string()), Admission::Appended { .. }), "{i}");
    }
    assert_eq!(world.propose(leader, "one more"), Admission::Backpressure);
    world.run(100);
    assert!(matches!(world.propose(leader, "one more"), Admission::Appended { .. }));
}

#[test]
fn uncommitted_bytes_are_bounded_from_the_first_entry_on() {
    let options = Options { max_uncommitted_bytes: 100_000, ..Options::default() };
    let mut world = World::new(Config { options, ..Config::new(3, 4) });
    let leader = world.settle();
    world.run(100);
    for i in 0..2 {
        let submission = world.submission(&i.to_string(), &[1; 60_000]);
        assert!(matches!(world.submit(leader, submission), Admission::Appended { .. }));
    }
    let submission = world.submission("3", b"small");
    assert_eq!(world.submit(leader, submission), Admission::Backpressure);
    // After a restart at the certificate nothing of the window is committed but what lies before it.
    world.run(200);
    let submission = world.submission("3", b"small");
    assert!(matches!(world.submit(leader, submission), Admission::Appended { .. }));
}

#[test]
fn a_repeated_request_is_recognised_and_its_id_protects_its_payload() {
    let mut world = cluster(3, 5);
    let leader = world.settle();
    let Admission::Appended { id, .. } = world.propose(leader, "a") else { panic!("appended") };
    assert_eq!(world.propose(leader, "a"), Admission::Duplicate { id });
    let other = world.submission("a", b"another payload");
    assert_eq!(world.submit(leader, other), Admission::RequestIdReused);
}

#[test]
fn a_request_in_the_log_of_a_fallen_leader_is_recognised_by_the_next() {
    for seed in 0..10 {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        world.run(200);
        world.drop_if(|_, _, m| matches!(m, Message::AppendReply { .. } | Message::HeadShare { .. }));
        let Admission::Appended { id, .. } = world.propose(leader, "a") else { panic!("appended") };
        world.run(30);
        world.crash(leader);
        assert!(world.run_while_not(5_000, |w| w.leader().is_some()));
        let next = world.leader().unwrap();
        assert_eq!(world.propose(next, "a"), Admission::Duplicate { id }, "seed {seed}");
        let other = world.submission("a", b"another payload");
        assert_eq!(world.submit(next, other), Admission::RequestIdReused);
        world.filter = None;
        world.start(leader);
        assert!(world.run_while_not(5_000, World::converged));
        assert_eq!(world.outcome_at(leader, "a").map(|o| o.id), Some(id));
    }
}

#[test]
fn a_request_lost_with_its_leader_is_free_to_be_submitted_again() {
    let mut world = cluster(3, 6);
    let leader = world.settle();
    world.run(200);
    world.isolate(leader);
    let Admission::Appended { id, .. } = world.propose(leader, "a") else { panic!("appended") };
    world.run(2_000);
    let next = world.leader().unwrap();
    assert_ne!(next, leader);
    let Admission::Appended { id: second, .. } = world.propose(next, "a") else { panic!("appended") };
    assert_ne!(id, second);
    world.heal();
    assert!(world.run_while_not(5_000, World::converged));
    for node in 0..3 {
        assert_eq!(world.outcome_at(node, "a").map(|o| o.id), Some(second));
    }
}

#[test]
fn a_request_past_its_deadline_is_refused() {
    let mut world = cluster(3, 7);
    let leader = world.settle();
    let mut submission = world.submission("a", b"a");
    submission.request.deadline_ms = world.wall() - 1_000;
    assert_eq!(world.submit(leader, submission), Admission::RequestExpired);
}

#[test]
fn the_required_quorum_is_raised_but_never_lowered() {
    let mut world = cluster(3, 8);
    let leader = world.settle();
    for (required, fine) in [(0, false), (1, false), (2, true), (3, true), (4, false), (u16::MAX, false)] {
        let mut submission = world.submission(&required.to_string(), b"x");
        submission.required_quorum = Some(required);
        let admission = world.submit(leader, submission);
        assert_eq!(admission == Admission::InvalidQuorum { least: 2, most: 3 }, !fine, "{required}: {admission:?}");
    }
}

#[test]
fn what_is_out_of_bounds_is_refused_by_what_is_wrong_with_it() {
    let mut world = cluster(3, 8);
    let leader = world.settle();
    let large = vec![b'x'; MAX_PAYLOAD + 1];
    let too_large = world.submission("a", &large);
    assert_eq!(world.submit(leader, too_large), Admission::PayloadTooLarge { size: MAX_PAYLOAD + 1 });
    let largest = world.submission("a", &large[1..]);
    assert!(matches!(world.submit(leader, largest), Admission::Appended { .. }));
    for name in [String::new(), "x".repeat(MAX_REQUEST_ID + 1)] {
        let unnamed = world.submission(&name, b"b");
        assert_eq!(world.submit(leader, unnamed), Admission::InvalidRequestId);
    }
}

#[test]
fn ids_name_term_counter_and_origin() {
    let mut world = cluster(3, 9);
    let leader = world.settle();
    let term = world.core(leader).term();
    for seq in 1..=3 {
        let mut submission = world.submission(&seq.to_string(), b"x");
        submission.ttl_ms = u64::MAX;
        let Admission::Appended { id, index } = world.submit(leader, submission) else { panic!("appended") };
        assert_eq!((id.term, id.seq, id.origin), (term, seq, id_of(leader)));
        assert!(index > LogIndex::ZERO);
    }
}

/// Lets only this node become the next leader.
fn lead_again(world: &mut World, node: usize) {
    assert!(world.run_while_not(5_000, World::converged));
    world.drop_if(move |from, _, m| from != node && matches!(m, Message::PreVote { .. }));
    for n in (0..3).filter(|n| *n != node) {
        if world.core(n).role() == Role::Leader {
            world.crash(n);
            world.start(n);
        }
    }
    assert!(world.run_while_not(10_000, |w| w.core(node).role() == Role::Leader));
    world.run(300);
}

#[test]
fn a_leader_that_returns_remembers_no_request_that_its_log_lost() {
    let mut world = cluster(3, 10);
    let leader = world.settle();
    world.run(200);
    world.isolate(leader);
    for i in 0..5 {
        let submission = world.named(&i.to_string());
        let other = (leader + 1) % 3;
        assert!(matches!(world.forward(other, leader, submission), Admission::Appended { .. }));
    }
    world.run(2_000);
    world.heal();
    lead_again(&mut world, leader);
    assert!(matches!(world.propose(leader, "4"), Admission::Appended { .. }));
    assert!(world.run_while_not(5_000, World::converged));
}

#[test]
fn a_leader_that_returns_opens_a_lost_ballot_anew() {
    let mut world = World::new(Config { policies: vec![Policy::Manual; 3], ..Config::new(3, 11) });
    let leader = world.settle();
    let submission = world.named("a");
    assert!(matches!(world.forward((leader + 1) % 3, leader, submission), Admission::Balloted { .. }));
    world.isolate(leader);
    world.run(2_000);
    world.heal();
    lead_again(&mut world, leader);
    assert!(matches!(world.propose(leader, "a"), Admission::Balloted { .. }));
}
