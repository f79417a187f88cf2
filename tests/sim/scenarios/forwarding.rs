//! Proposals that come in anywhere: routed to the leader, again when they or it are lost, until their time is over.

use super::cluster;
use crate::world::World;
use concordat::api::ProposeError;
use concordat::core::Message;

#[test]
fn a_followers_proposal_is_taken_by_the_leader_and_its_client_is_told() {
    let mut world = cluster(3, 1);
    let leader = world.settle();
    let (follower, submission) = (world.follower(), world.named("a"));
    let call = world.ask(follower, submission);
    assert_eq!(world.told(call), None, "a follower takes nothing itself");
    world.run(100);
    let id = world.told(call).expect("told").expect("taken");
    assert_eq!(id.term, world.core(leader).term());
    for node in 0..3 {
        assert_eq!(world.outcome_at(node, "a").map(|o| o.id), Some(id));
    }
}

#[test]
fn a_proposal_lost_on_its_way_is_sent_again_and_so_is_a_lost_answer() {
    for lost_is_the_answer in [false, true] {
        let mut world = cluster(3, 2);
        let leader = world.settle();
        let (follower, submission) = (world.follower(), world.named("a"));
        let (from, to) = if lost_is_the_answer { (leader, follower) } else { (follower, leader) };
        world.run(100);
        world.mute(from, to);
        let call = world.ask(follower, submission);
        world.run(20);
        assert_eq!(world.told(call), None);
        world.heal();
        world.run(400);
        let id = world.told(call).expect("told").expect("taken");
        for node in 0..3 {
            assert_eq!(world.outcome_at(node, "a").map(|o| o.id), Some(id));
        }
    }
}

#[test]
fn a_proposal_that_fell_with_its_leader_is_taken_to_the_next_one() {
    let mut world = cluster(3, 3);
    let leader = world.settle();
    world.run(200);
    world.drop_if(|_, _, m| matches!(m, Message::Append { .. }));
    let (follower, submission) = (world.follower(), world.named("a"));
    let call = world.ask(follower, submission);
    world.run(20);
    let first = world.told(call).expect("told").expect("taken");
    world.crash(leader);
    world.filter = None;
    assert!(world.run_while_not(3_000, |w| w.outcome_at(follower, "a").is_some()), "without its client's doing");
    assert_ne!(world.outcome_at(follower, "a").unwrap().id, first);
    world.start(leader);
    assert!(world.run_while_not(5_000, World::converged));
}

#[test]
fn a_proposal_that_no_leader_takes_in_its_time_is_given_up() {
    let mut world = cluster(3, 4);
    world.settle();
    let follower = world.follower();
    world.isolate(follower);
    let mut submission = world.named("a");
    submission.ttl_ms = 1_000;
    let call = world.ask(follower, submission);
    world.run(900);
    assert_eq!(world.told(call), None);
    world.run(200);
    assert_eq!(world.told(call), Some(Err(ProposeError::Unavailable)));
    world.heal();
    world.run(3_000);
    assert!((0..3).all(|n| world.outcome_at(n, "a").is_none()), "what was given up is not sent any more");
}
