//! Nodes that are asked to close.

use super::cluster;
use crate::world::World;
use concordat::core::Role;
use concordat::node::Ended;
use concordat::node::executor;

#[test]
fn a_leader_that_is_asked_to_close_hands_leadership_over_first() {
    for seed in 0..10 {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        assert!(world.run_while_not(2_000, World::converged));
        let (term, asked) = (world.core(leader).term(), world.now);
        world.event(leader, executor::Event::Close);
        assert!(world.is_up(leader), "it stays until another leads");
        let took_over = |w: &World| w.leader().is_some_and(|l| l != leader && w.core(l).role() == Role::Leader);
        assert!(world.run_while_not(150, |w| took_over(w) && !w.is_up(leader)), "no election timeout is waited for");
        assert_eq!(world.nodes[leader].ended, Some(Ended::Closed));
        let next = world.leader().expect("just seen");
        assert_eq!(world.core(next).term(), term.next());
        assert!(world.now - asked < 150_000);
        world.propose(next, "afterwards");
        assert!(world.run_while_not(200, |w| w.outcome_at(next, "afterwards").is_some()));
        // It can come back at once.
        world.start(leader);
        assert!(world.run_while_not(2_000, World::converged));
    }
}

#[test]
fn a_leader_that_reaches_nobody_closes_all_the_same() {
    for seed in 0..5 {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        assert!(world.run_while_not(2_000, World::converged));
        world.isolate(leader);
        world.event(leader, executor::Event::Close);
        world.run(50);
        assert!(world.is_up(leader), "it tries to hand over");
        assert!(world.run_while_not(1_050, |w| !w.is_up(leader)), "within about a second");
        assert_eq!(world.nodes[leader].ended, Some(Ended::Closed));
    }
}

#[test]
fn a_follower_closes_at_once() {
    let mut world = cluster(3, 1);
    let leader = world.settle();
    let follower = world.follower();
    world.event(follower, executor::Event::Close);
    assert!(!world.is_up(follower));
    assert_eq!(world.nodes[follower].ended, Some(Ended::Closed));
    world.propose(leader, "a");
    assert!(world.run_while_not(200, |w| w.outcome_at(leader, "a").is_some()), "two of three go on");
}
