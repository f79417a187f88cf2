use super::cluster;
use crate::members::{id_of, secret_of};
use crate::net::Network;
use crate::world::{Config, World};
use concordat::certificate::ElectionClaim;
use concordat::core::{Effect, Message, Role};
use concordat::ids::{Digest, Epoch, LogIndex, Term};

fn leaders(world: &World) -> usize {
    (0..world.size()).filter(|n| world.core(*n).role() == Role::Leader).count()
}

#[test]
fn five_followers_elect_exactly_one_leader_within_half_a_second() {
    let (mut soon, mut latest) = (0, 0);
    for seed in 0..1000 {
        let mut world = World::new(Config::new(5, seed));
        assert!(world.config.network.delay_us.1 * 2 <= 5_000);
        assert!(world.run_while_not(2_000, |w| w.leader().is_some()), "seed {seed}: no leader within two seconds");
        latest = latest.max(world.now);
        if world.now <= 500_000 {
            world.run_until(500_000);
            soon += usize::from(leaders(&world) == 1);
        }
    }
    println!("{soon} of 1000 within 500 ms, the latest after {} ms", latest / 1000);
    assert!(soon >= 980, "{soon} of 1000");
}

#[test]
fn one_to_seven_members_elect_a_leader() {
    for nodes in 1..=7 {
        let mut world = World::new(Config::new(nodes, nodes as u64));
        world.settle();
        assert_eq!(leaders(&world), 1);
        assert!(world.run_while_not(1_000, World::converged));
    }
}

#[test]
fn a_forced_split_vote_resolves() {
    for seed in 0..50 {
        let mut world = cluster(4, seed);
        // In the first term nobody is heard beyond its half: two votes of four elect nobody.
        world.drop_if(|from, to, m| {
            matches!(m, Message::RequestVote { claim, .. } if claim.term == Term(1)) && (from < 2) != (to < 2)
        });
        assert!(world.run_while_not(5_000, |w| w.leader().is_some()), "seed {seed}");
        assert!(world.core(world.leader().unwrap()).term() > Term(1));
        let stood =
            world.sent().any(|(_, _, m)| matches!(m, Message::RequestVote { claim, .. } if claim.term == Term(1)));
        assert!(stood);
    }
}

fn claim(term: u64, candidate: usize, last_term: u64, last_size: u64) -> ElectionClaim {
    let last_root = Digest([9; 32]);
    ElectionClaim { term: Term(term), candidate: id_of(candidate), last_term: Term(last_term), last_size, last_root }
}

#[test]
fn a_stale_vote_request_is_dropped_and_the_term_is_unchanged() {
    let mut world = cluster(3, 1);
    let leader = world.settle();
    let follower = world.follower();
    for node in [leader, follower] {
        let (term, from) = (world.core(node).term(), (0..3).find(|n| *n != node).unwrap());
        let before = world.recorded.len();
        world.inject(from, node, world.vote_wanted(node, claim(term.0 - 1, from, term.0, 1_000)));
        assert_eq!(world.core(node).term(), term);
        let answered = world.recorded[before..].iter().any(|r| matches!(r.2, Effect::Send { .. }));
        assert!(!answered, "a stale request gets no answer");
    }
}

#[test]
fn a_vote_for_a_shorter_log_is_refused() {
    let mut world = cluster(3, 2);
    let leader = world.settle();
    world.propose(leader, "a");
    world.run(200);
    world.isolate(0);
    world.isolate(1);
    world.run(2_000);
    let (term, last) = (world.core(0).term(), world.core(0).last_index());
    let last_term = world.nodes[0].memory.last_term();
    let before = world.recorded.len();
    world.inject(1, 0, world.vote_wanted(0, claim(term.0 + 1, 1, last_term.0, last.0 - 1)));
    world.run(20);
    let granted = |w: &World, from: usize| {
        w.recorded[from..].iter().any(|r| {
            r.1 == 0 && matches!(&r.2, Effect::Send { message: Message::RequestVoteReply { granted: true, .. }, .. })
        })
    };
    assert!(!granted(&world, before));
    world.inject(1, 0, world.vote_wanted(0, claim(term.0 + 2, 1, last_term.0, last.0)));
    world.run(20);
    assert!(granted(&world, before), "an equal log gets the vote");
}

fn votes_of(world: &World, node: usize) -> Vec<(usize, Message)> {
    let is_vote = |m: &Message| matches!(m, Message::RequestVoteReply { .. });
    world.sent().filter(|s| s.0 == node && is_vote(s.2)).map(|(_, to, m)| (to, m.clone())).collect()
}

#[test]
fn a_restarted_voter_answers_the_same_claim_alike_and_no_other() {
    let mut world = cluster(3, 3);
    for n in 0..3 {
        world.isolate(n);
    }
    let vote = claim(1, 1, 0, 0);
    world.inject(1, 0, world.vote_wanted(0, vote));
    world.run(10);
    world.crash(0);
    world.start(0);
    for again in [claim(1, 2, 0, 0), vote, claim(1, 1, 1, 7), vote] {
        let from = if again.candidate == id_of(2) { 2 } else { 1 };
        world.inject(from, 0, world.vote_wanted(0, again));
        world.run(10);
    }
    let votes = votes_of(&world, 0);
    let granted = |m: &Message| matches!(m, Message::RequestVoteReply { granted: true, .. });
    assert_eq!(votes.iter().map(|v| granted(&v.1)).collect::<Vec<_>>(), [true, false, true, false, true]);
    assert_eq!(votes[0], votes[2], "the same signature");
    assert_eq!(votes[0], votes[4]);
}

#[test]
fn a_leader_without_contact_to_a_quorum_steps_down() {
    let mut world = cluster(5, 4);
    let old = world.settle();
    let rest: Vec<usize> = (0..5).filter(|n| *n != old).collect();
    world.partition(&[old, rest[0]], &rest[1..]);
    world.run(1_500);
    assert_ne!(world.core(old).role(), Role::Leader);
    let new = world.leader().expect("the majority's leader");
    assert!(rest[1..].contains(&new));
}

#[test]
fn a_rejoining_node_disrupts_nobody() {
    let mut world = cluster(3, 5);
    let leader = world.settle();
    let (term, away) = (world.core(leader).term(), world.follower());
    world.isolate(away);
    world.run(5_000);
    assert_eq!(world.core(away).term(), term, "a pre-vote changes no term");
    world.heal();
    world.run(2_000);
    assert_eq!(world.leader(), Some(leader));
    assert_eq!(world.core(leader).term(), term);
    assert!(world.converged());
}

#[test]
fn a_node_of_a_higher_term_is_freed() {
    for seed in 0..20 {
        let mut world = cluster(3, seed);
        world.settle();
        let stuck = world.follower();
        world.crash(stuck);
        world.nodes[stuck].disk.hard.term.0 += 5;
        world.nodes[stuck].disk.hard.vote = None;
        world.start(stuck);
        assert!(world.run_while_not(5_000, World::converged), "seed {seed}");
        assert!(world.core(stuck).term() >= world.nodes[stuck].disk.hard.term);
    }
}

fn commits_something(world: &mut World, name: &str) {
    let settled = world.run_while_not(5_000, |w| w.leader().is_some_and(|l| w.core(l).leader().is_some()));
    assert!(settled);
    let name = name.to_string();
    let submission = world.named(&name);
    let call = world.start_call(submission);
    assert!(world.run_while_not(10_000, |w| w.calls[call].outcome.is_some()), "{name}");
}

#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    for seed in 0..10 {
        let mut world = cluster(3, seed);
        let deaf = world.settle();
        for n in (0..3).filter(|n| *n != deaf) {
            world.mute(n, deaf);
        }
        world.run(3_000);
        let new = world.leader().expect("a leader that hears");
        assert_ne!(new, deaf);
        let term = world.core(new).term();
        world.run(3_000);
        assert_eq!(world.core(new).term(), term, "the deaf node disrupts nobody");
        commits_something(&mut world, "under a deaf node");
    }
}

#[test]
fn a_leader_whom_nobody_hears_is_replaced() {
    for seed in 0..10 {
        let mut world = cluster(3, seed);
        let dumb = world.settle();
        for n in (0..3).filter(|n| *n != dumb) {
            world.mute(dumb, n);
        }
        world.run(3_000);
        assert_ne!(world.leader(), Some(dumb));
        commits_something(&mut world, "under a dumb node");
    }
}

#[test]
fn one_dead_direction_between_leader_and_one_follower_keeps_the_leader() {
    for seed in 0..10 {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        let (term, follower) = (world.core(leader).term(), world.follower());
        if seed % 2 == 0 {
            world.mute(leader, follower);
        } else {
            world.mute(follower, leader);
        }
        world.run(4_000);
        assert_eq!(world.leader(), Some(leader));
        for node in 0..3 {
            assert_eq!(world.core(node).term(), term, "whoever hears the leader grants nobody even a pre-vote");
        }
        world.propose(leader, "a");
        world.run(100);
        assert!(world.outcome_at(leader, "a").is_some());
    }
}

#[test]
fn a_leader_claimed_without_a_certificate_is_not_followed() {
    let mut world = cluster(3, 6);
    let leader = world.settle();
    let (follower, term) = (world.follower(), world.core(leader).term().next());
    let other = (0..3).find(|n| ![leader, follower].contains(n)).unwrap();
    let to_keys = vec![secret_of(follower).public()];
    let beat = Message::Heartbeat {
        term,
        session: 1,
        to_keys: to_keys.clone(),
        round: 0,
        commit: LogIndex::ZERO,
        committed: LogIndex(0),
        sign_point: LogIndex::ZERO,
        wall: world.wall(),
        election: None,
    };
    world.inject(other, follower, beat.clone());
    assert_eq!(world.leader_of(follower), Some(leader));
    assert!(world.core(follower).term() < term);
    // With somebody else's certificate neither.
    let proof = world.sent().find_map(|(_, _, m)| match m {
        Message::Append { election: Some(e), .. } => Some(e.clone()),
        _ => None,
    });
    let mut forged = (*proof.expect("the leader sent its proof")).clone();
    forged.claim.candidate = id_of(other);
    forged.claim.term = term;
    let Message::Heartbeat { session, commit, sign_point, wall, .. } = beat else { unreachable!() };
    let election = Some(std::sync::Arc::new(forged));
    world.inject(
        other,
        follower,
        Message::Heartbeat {
            term,
            session,
            to_keys,
            round: 0,
            commit,
            committed: LogIndex(0),
            sign_point,
            wall,
            election,
        },
    );
    world.run(20);
    assert_eq!(world.leader_of(follower), Some(leader));
    assert!(!world.nodes[follower].alarms.is_empty(), "a false leader is reported");
}

#[test]
fn a_restarted_follower_asks_for_the_proof_and_follows_again() {
    let mut world = cluster(3, 7);
    let leader = world.settle();
    let (follower, term) = (world.follower(), world.core(leader).term());
    world.run(200);
    world.crash(follower);
    world.start(follower);
    world.run(150);
    assert_eq!(world.leader_of(follower), Some(leader));
    assert_eq!(world.core(leader).term(), term);
    assert!(world.sent().any(|(_, _, m)| matches!(m, Message::ProofWanted { .. })));
}

#[test]
fn a_message_of_an_absurd_term_is_ignored() {
    let mut world = cluster(3, 8);
    let leader = world.settle();
    let term = world.core(leader).term();
    for node in 0..3 {
        let from = (node + 1) % 3;
        let far = Term(u64::MAX);
        world.inject(from, node, world.vote_wanted(node, claim(u64::MAX, from, u64::MAX, u64::MAX)));
        world.inject(
            from,
            node,
            Message::PreVote { term: far, last_index: LogIndex(9), last_term: far, epoch: Epoch(0), keys: Vec::new() },
        );
        world.inject(from, node, Message::PreVoteReply { term: far, granted: false, wall: 0 });
        world.inject(
            from,
            node,
            Message::HeartbeatReply { term: far, session: 1, round: 0, wall: world.wall(), certified: 0 },
        );
    }
    world.run(1_000);
    assert_eq!(world.core(leader).term(), term);
}

#[test]
fn elections_succeed_on_slow_and_lossy_links() {
    for seed in 0..50 {
        let mut config = Config::new(5, seed);
        config.network = Network { delay_us: (5_000, 30_000), loss: 100, duplicate: 50, straggle: 0 };
        let mut world = World::new(config);
        assert!(world.run_while_not(10_000, |w| w.leader().is_some()), "seed {seed}");
    }
}
