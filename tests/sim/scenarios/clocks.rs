use super::cluster;
use concordat::core::{Admission, Alarm, Role};

#[test]
fn a_leader_whose_clock_jumps_out_of_bound_alarms_and_gives_way() {
    for (seed, jump) in [(1, 5_000), (2, -5_000), (3, 700)] {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        world.run(500);
        world.nodes[leader].skew_ms += jump;
        assert_eq!(world.propose(leader, "at once"), Admission::ClockOutOfBound, "it stamps nothing by such a clock");
        world.run(3_000);
        assert!(world.nodes[leader].alarms.iter().any(|a| matches!(a, Alarm::ClockOutOfBound { .. })));
        let next = world.leader().expect("another leads");
        assert_ne!(next, leader);
        world.run(5_000);
        assert_eq!(world.leader(), Some(next), "it does not stand while its clock is off");
        // Once set right it may lead again.
        world.nodes[leader].skew_ms -= jump;
        world.run(500);
        world.crash(next);
        world.run(3_000);
        assert!(world.leader().is_some());
    }
}

#[test]
fn clocks_within_the_bound_disturb_nobody() {
    let mut world = cluster(3, 4);
    world.nodes[0].skew_ms = 200;
    world.nodes[1].skew_ms = -200;
    let leader = world.settle();
    let term = world.core(leader).term();
    world.run(5_000);
    assert_eq!((world.leader(), world.core(leader).term()), (Some(leader), term));
    assert!((0..3).all(|n| world.nodes[n].alarms.is_empty()));
}

#[test]
fn time_along_the_log_never_runs_backwards() {
    let mut world = cluster(3, 5);
    for round in 0..6 {
        let leader = world.settle();
        world.propose(leader, &round.to_string());
        world.run(50);
        // Each next leader's clock is behind the one before, within the bound.
        for n in 0..3 {
            world.nodes[n].skew_ms = if n == leader { 300 } else { -100 };
        }
        world.run(300);
        world.propose(leader, &format!("{round} at the later time"));
        world.run(20);
        world.crash(leader);
        world.run(100);
        world.start(leader);
    }
    world.settle();
    world.run(500);
    let ledger = world.invariants.committed.ledger.links();
    assert!(ledger.windows(2).all(|w| w[0].entry.header.proposed_at <= w[1].entry.header.proposed_at));
    assert!(ledger.len() >= 12);
    assert!((0..3).any(|n| world.core(n).role() == Role::Leader));
}
