use super::cluster;
use crate::members::id_of;
use crate::world::World;
use concordat::certificate::ElectionClaim;
use concordat::core::{AppendResult, Effect, Message, Role};
use concordat::ids::{Digest, LogIndex, Term};

fn sent_by(world: &World, node: usize, from: usize) -> impl Iterator<Item = &Message> {
    world.recorded[from..].iter().filter_map(move |r| match &r.2 {
        Effect::Send { message, .. } if r.1 == node => Some(message),
        _ => None,
    })
}

#[test]
fn no_vote_leaves_before_the_disk_has_it() {
    let mut world = cluster(3, 1);
    for n in 0..3 {
        world.isolate(n);
    }
    world.stall(0);
    let claim = ElectionClaim {
        term: Term(1),
        candidate: id_of(1),
        last_term: Term(0),
        last_size: 0,
        last_root: Digest([0; 32]),
    };
    world.inject(1, 0, world.vote_wanted(0, claim));
    world.run(200);
    assert_eq!(world.core(0).vote(), Some(&claim));
    assert_eq!(sent_by(&world, 0, 0).count(), 0, "nothing leaves while the disk hangs");
    assert!(!world.recorded.iter().any(|r| r.1 == 0 && matches!(r.2, Effect::Crypto(_))), "nor is anything signed");
    world.unstall(0);
    world.run(10);
    assert!(sent_by(&world, 0, 0).any(|m| matches!(m, Message::RequestVoteReply { granted: true, .. })));
}

#[test]
fn a_candidate_asks_nobody_before_its_own_vote_is_durable() {
    let mut world = cluster(3, 2);
    (0..3).for_each(|n| world.stall(n));
    world.run(3_000);
    assert!(world.sent().any(|s| matches!(s.2, Message::PreVote { .. })));
    assert!(!world.sent().any(|s| matches!(s.2, Message::RequestVote { .. })));
    (0..3).for_each(|n| world.unstall(n));
    world.settle();
}

#[test]
fn no_acknowledgement_leaves_before_the_disk_has_the_entries() {
    let mut world = cluster(3, 3);
    let leader = world.settle();
    world.run(200);
    let follower = world.follower();
    let before = world.recorded.len();
    let durable = world.core(follower).durable();
    world.stall(follower);
    world.propose(leader, "a");
    world.run(1_000);
    assert!(world.core(follower).last_index() > durable);
    let promised = |w: &World| {
        sent_by(w, follower, before).any(|m| {
            matches!(m, Message::AppendReply { result: AppendResult::Durable(upto), .. } if *upto > durable)
                || matches!(m, Message::HeadShare { head, .. } if head.size > durable.0)
        })
    };
    assert!(!promised(&world));
    let alive = sent_by(&world, follower, before).any(|m| matches!(m, Message::HeartbeatReply { .. }));
    assert!(alive, "a slow disk does not make a follower look dead");
    world.unstall(follower);
    world.run(100);
    assert!(promised(&world));
}

#[test]
fn a_leader_commits_by_its_followers_disks_while_its_own_hangs_and_delivers_nothing() {
    let mut world = cluster(3, 4);
    let leader = world.settle();
    world.run(200);
    let (durable, delivered) = (world.core(leader).durable(), world.nodes[leader].delivered);
    world.stall(leader);
    world.propose(leader, "a");
    world.run(100);
    assert_eq!(world.core(leader).committed(), durable.next());
    assert_eq!(world.nodes[leader].delivered, delivered, "nothing is applied that a power loss could take back");
    assert!(world.outcome_at(world.follower(), "a").is_some());
    world.unstall(leader);
    world.run(100);
    assert!(world.outcome_at(leader, "a").is_some());
}

#[test]
fn the_leaders_own_disk_alone_commits_nothing() {
    let mut world = cluster(3, 5);
    let leader = world.settle();
    world.run(200);
    let committed = world.core(leader).committed();
    for n in (0..3).filter(|n| *n != leader) {
        world.stall(n);
    }
    world.propose(leader, "a");
    world.run(2_000);
    assert_eq!(world.core(leader).committed(), committed);
    assert_eq!(world.core(leader).role(), Role::Leader);
    assert!(world.core(leader).durable() > LogIndex(committed.0));
}

#[test]
fn a_single_node_acknowledges_nothing_before_its_disk() {
    let mut world = cluster(1, 6);
    world.settle();
    world.run(100);
    let committed = world.core(0).committed();
    world.stall(0);
    world.propose(0, "a");
    world.run(500);
    assert_eq!(world.core(0).committed(), committed);
    world.unstall(0);
    world.run(50);
    assert!(world.outcome_at(0, "a").is_some());
}

#[test]
fn held_promises_of_a_hanging_disk_do_not_pile_up() {
    let mut world = cluster(3, 7);
    let leader = world.settle();
    world.run(200);
    let follower = world.follower();
    world.stall(follower);
    world.propose(leader, "a");
    world.run(20_000);
    let before = world.recorded.len();
    world.unstall(follower);
    world.run(1);
    let acks = sent_by(&world, follower, before).filter(|m| matches!(m, Message::AppendReply { .. })).count();
    assert!(acks <= 4, "{acks} acknowledgements were held over 400 heartbeats");
}

#[test]
fn an_acknowledgement_is_void_once_the_term_changed() {
    let mut world = cluster(3, 8);
    let leader = world.settle();
    world.run(200);
    let (follower, term) = (world.follower(), world.core(leader).term());
    world.stall(follower);
    world.propose(leader, "a");
    world.run(20);
    let before = world.recorded.len();
    let news = Message::HeartbeatReply { term: term.next(), session: 0, round: 0, wall: world.wall(), certified: 0 };
    world.inject(leader, follower, news);
    world.unstall(follower);
    world.run(200);
    let old =
        sent_by(&world, follower, before).any(|m| matches!(m, Message::AppendReply { term: t, .. } if *t == term));
    assert!(!old);
}
