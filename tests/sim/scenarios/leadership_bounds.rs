//! What keeps a leader, who is believed to lead, and who is asked to lead next, at the edges that a storm rarely meets.

use super::cluster;
use crate::members::{id_of, secret_of};
use crate::world::World;
use concordat::certificate::{Bitmap, ElectionCertificate, ElectionClaim, Half};
use concordat::core::{Crypto, Effect, Input, Message, Role, Transfer};
use concordat::ids::{Epoch, LogIndex, Term};
use std::sync::Arc;

fn ready(nodes: usize, seed: u64) -> (World, usize, usize) {
    let mut world = cluster(nodes, seed);
    let leader = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let follower = world.follower();
    (world, leader, follower)
}

fn third(leader: usize, follower: usize) -> usize {
    (0..3).find(|n| ![leader, follower].contains(n)).expect("three nodes")
}

/// The last heartbeat that `from` sent to `to`.
fn heartbeat(world: &World, from: usize, to: usize) -> Message {
    let beats = world.sent().filter(|s| (s.0, s.1) == (from, to) && matches!(s.2, Message::Heartbeat { .. }));
    beats.last().expect("a heartbeat").2.clone()
}

#[test]
fn a_leader_grants_no_pre_vote() {
    let (mut world, leader, follower) = ready(3, 1);
    let term = world.core(leader).term();
    let question = Message::PreVote {
        term: term.next(),
        last_index: LogIndex(1_000),
        last_term: term,
        epoch: Epoch::ZERO,
        keys: vec![secret_of(leader).public()],
    };
    world.inject(follower, leader, question);
    world.run(1);
    let granted = world.sent().any(|s| s.0 == leader && matches!(s.2, Message::PreVoteReply { granted: true, .. }));
    assert!(
        !granted,
        "with it whoever comes back after a while would depose a leader that is in contact with a quorum"
    );
}

#[test]
fn a_leader_that_nobody_hears_follows_the_next_at_its_first_word() {
    let mut seen = false;
    for seed in 0..20 {
        let (mut world, old, _) = ready(3, seed);
        for to in (0..3).filter(|n| *n != old) {
            world.mute(old, to);
        }
        // Nothing but the word of the new leader reaches it: refusals and answers would free it as well.
        world.drop_if(move |_, to, m| to == old && !matches!(m, Message::Heartbeat { .. } | Message::Append { .. }));
        assert!(world.run_while_not(5_000, |w| w.leader().is_some_and(|l| l != old)));
        let new = world.leader().expect("just seen");
        let heard = |w: &World| w.sent().any(|s| s.0 == new && s.1 == old && matches!(s.2, Message::Append { .. }));
        let still_led = world.core(old).role() == Role::Leader;
        assert!(world.run_while_not(100, heard));
        world.run(20);
        if still_led {
            seen = true;
            assert_ne!(world.core(old).role(), Role::Leader, "seed {seed}");
            assert_eq!(world.core(old).term(), world.core(new).term());
        }
    }
    assert!(seen, "one still led when it heard of the next");
}

#[test]
fn nobody_follows_a_second_leader_of_a_term_whose_leader_is_proved() {
    let (mut world, leader, follower) = ready(3, 2);
    let other = third(leader, follower);
    world.run(100);
    let beat = heartbeat(&world, leader, follower);
    world.isolate(leader);
    world.inject(other, follower, beat);
    assert_eq!(world.leader_of(follower), Some(leader));
}

#[test]
fn a_proof_shown_by_anyone_but_the_elected_is_not_looked_at() {
    let (mut world, leader, follower) = ready(3, 3);
    let other = third(leader, follower);
    let proof = world.sent().find_map(|(_, _, m)| match m {
        Message::Append { election: Some(e), .. } => Some(e.clone()),
        _ => None,
    });
    world.run(100);
    let Message::Heartbeat { term, session, to_keys, round, commit, committed, sign_point, wall, .. } =
        heartbeat(&world, leader, follower)
    else {
        unreachable!()
    };
    world.isolate(follower);
    for (term, from) in [(term, other), (term.next(), leader)] {
        world.crash(follower);
        world.start(follower);
        let (before, to_keys) = (world.recorded.len(), to_keys.clone());
        let election = proof.clone();
        let beat = Message::Heartbeat { term, session, to_keys, round, commit, committed, sign_point, wall, election };
        world.inject(from, follower, beat);
        let since = || world.recorded[before..].iter().filter(|r| r.1 == follower).map(|r| &r.2);
        assert!(since().any(|e| matches!(e, Effect::Send { message: Message::ProofWanted { .. }, .. })));
        assert!(!since().any(|e| matches!(e, Effect::Crypto(Crypto::VerifyElectionCertificate { .. }))));
    }
}

#[test]
fn leadership_is_never_handed_to_a_silent_voter() {
    for silent in 1..3 {
        let (mut world, leader, _) = ready(3, 4);
        let silent = (leader + silent) % 3;
        world.crash(silent);
        world.run(1_500);
        let transfer = world.transfer(leader, None);
        world.run(200);
        assert_eq!(world.transfers[transfer].outcome, Some(Transfer::Done), "n{silent}");
    }
}

#[test]
fn a_transfer_whose_leader_loses_its_quorum_is_not_called_done() {
    let mut fell = 0;
    for seed in 0..20 {
        let (mut world, leader, follower) = ready(3, seed);
        world.isolate(leader);
        world.run(400 + seed * 20);
        if world.core(leader).role() != Role::Leader {
            continue;
        }
        let transfer = world.transfer(leader, Some(follower));
        world.run(450);
        let outcome = world.transfers[transfer].outcome;
        assert_ne!(outcome, Some(Transfer::Done), "seed {seed}: nobody took over");
        fell += usize::from(outcome == Some(Transfer::NotLeader));
    }
    assert!(fell > 0, "one stepped down before the transfer was given up");
}

#[test]
fn the_target_of_a_transfer_is_told_again_with_heartbeats_only() {
    let (mut world, leader, target) = ready(3, 5);
    world.drop_if(|_, _, m| matches!(m, Message::TimeoutNow { .. }));
    world.transfer(leader, Some(target));
    world.run(400);
    let told = world.sent().filter(|s| matches!(s.2, Message::TimeoutNow { .. })).count();
    assert!((2..=10).contains(&told), "{told} times in eight heartbeats");
}

#[test]
fn a_refusal_of_a_higher_term_brings_its_term_along() {
    let (mut world, leader, follower) = ready(3, 6);
    let other = third(leader, follower);
    world.isolate(follower);
    let term = world.core(follower).term();
    for (ahead, after) in [(0, 0), (3, 3)] {
        let refusal = Message::PreVoteReply { term: Term(term.0 + ahead), granted: false, wall: world.wall() };
        world.inject(other, follower, refusal);
        assert_eq!(world.core(follower).term(), Term(term.0 + after));
    }
}

#[test]
fn a_pre_vote_of_an_earlier_round_elects_nobody() {
    let (mut world, leader, follower) = ready(3, 7);
    let other = third(leader, follower);
    world.isolate(follower);
    // It asks in vain for the next term again and again.
    world.run(1_500);
    let term = world.core(follower).term();
    let grant = |term: Term| Message::PreVoteReply { term, granted: true, wall: world.wall() };
    let (stale, right) = (grant(term), grant(term.next()));
    world.inject(other, follower, stale);
    assert_eq!((world.core(follower).role(), world.core(follower).term()), (Role::Follower, term));
    world.inject(other, follower, right);
    assert_eq!((world.core(follower).role(), world.core(follower).term()), (Role::Candidate, term.next()));
}

#[test]
fn a_refused_pre_vote_of_the_same_term_does_not_end_the_round() {
    let (mut world, leader, follower) = ready(5, 8);
    let others: Vec<usize> = (0..5).filter(|n| ![leader, follower].contains(n)).collect();
    world.isolate(follower);
    world.run(1_500);
    let term = world.core(follower).term();
    let (wall, refused, granted) = (world.wall(), false, true);
    world.inject(leader, follower, Message::PreVoteReply { term, granted: refused, wall });
    for other in &others[..2] {
        world.inject(*other, follower, Message::PreVoteReply { term: term.next(), granted, wall });
    }
    assert_eq!(world.core(follower).role(), Role::Candidate, "three of five are for it");
}

#[test]
fn a_proof_under_way_when_the_term_rises_holds_up_no_other() {
    for seed in 0..20 {
        let (mut world, old, follower) = ready(3, seed);
        let next = third(old, follower);
        world.run(100);
        world.crash(follower);
        world.start(follower);
        // The old leader's proof is being verified here when its successor asks for a vote.
        let verifying = |w: &World| {
            let verifies = |e: &Effect| matches!(e, Effect::Crypto(Crypto::VerifyElectionCertificate { .. }));
            w.recorded.iter().rev().take(20).any(|r| r.1 == follower && verifies(&r.2))
        };
        assert!(world.run_while_not(1_000, verifying));
        let higher = Term(world.core(old).term().0 + 1);
        world.inject(old, follower, Message::PreVoteReply { term: higher, granted: false, wall: world.wall() });
        world.crash(old);
        assert!(world.run_while_not(10_000, |w| w.leader().is_some()));
        let leader = world.leader().expect("just seen");
        assert!([next, follower].contains(&leader));
        assert!(world.run_while_not(2_000, |w| w.leader_of(follower) == Some(leader)), "seed {seed}");
    }
}

#[test]
fn signatures_that_nobody_asked_for_are_not_looked_at() {
    let (mut world, leader, follower) = ready(3, 9);
    world.drop_if(|_, _, m| matches!(m, Message::HeadShare { .. }));
    world.propose(leader, "a");
    world.run(50);
    let share = world.sent().filter(|s| s.0 == follower).find_map(|(_, _, m)| match m {
        Message::HeadShare { head, signatures } if head.size == world.core(leader).last_index().0 => {
            Some((*head, signatures.clone()))
        }
        _ => None,
    });
    let (head, mut signatures) = share.expect("a share of the newest head");
    let right = signatures.clone();
    signatures[0].0.epoch = Epoch(7);
    let verified = |w: &World| {
        let verifies = |r: &&(u64, usize, Effect)| matches!(r.2, Effect::Crypto(Crypto::VerifyShare { .. }));
        w.recorded.iter().filter(verifies).count()
    };
    let before = verified(&world);
    for signatures in [Vec::new(), signatures, [right.clone(), right.clone()].concat()] {
        world.inject(follower, leader, Message::HeadShare { head, signatures });
    }
    assert_eq!(verified(&world), before);
    world.inject(follower, leader, Message::HeadShare { head, signatures: right });
    assert_eq!(verified(&world), before + 1);
}

/// Has an isolated node stand in the next term: somebody grants its pre-vote, and nobody hears of its candidacy.
fn stands(world: &mut World, node: usize, granter: usize) -> ElectionClaim {
    let term = world.core(node).term().next();
    // It asks by itself sooner or later, and takes no other answer before.
    for _ in 0..100 {
        let wall = world.wall();
        world.inject(granter, node, Message::PreVoteReply { term, granted: true, wall });
        if world.core(node).term() == term {
            break;
        }
        world.run(20);
    }
    assert_eq!((world.core(node).role(), world.core(node).term()), (Role::Candidate, term));
    world.run(20);
    world.nodes[node].disk.hard.vote.expect("its own vote")
}

#[test]
fn a_lost_candidate_keeps_the_vote_it_gave_itself() {
    let (mut world, leader, follower) = ready(3, 10);
    let other = third(leader, follower);
    world.isolate(follower);
    let claim = stands(&mut world, follower, other);
    for from in [leader, other] {
        let denied = Message::RequestVoteReply { term: claim.term, granted: false, signatures: Vec::new() };
        world.inject(from, follower, denied);
    }
    assert_eq!((world.core(follower).role(), world.core(follower).term()), (Role::Follower, claim.term));
    let before = world.recorded.len();
    let theirs = ElectionClaim { candidate: id_of(other), last_size: claim.last_size + 9, ..claim };
    world.inject(other, follower, world.vote_wanted(follower, theirs));
    world.run(50);
    assert_eq!(world.nodes[follower].disk.hard.vote, Some(claim));
    let grants =
        |e: &Effect| matches!(e, Effect::Send { message: Message::RequestVoteReply { granted: true, .. }, .. });
    let granted = world.recorded[before..].iter().any(|r| r.1 == follower && grants(&r.2));
    assert!(!granted, "one vote a term, whatever became of it");
}

#[test]
fn what_comes_late_of_an_earlier_election_elects_nobody() {
    let (mut world, leader, follower) = ready(3, 11);
    let other = third(leader, follower);
    world.isolate(follower);
    let early = stands(&mut world, follower, other);
    let claim = stands(&mut world, follower, other);
    assert!(claim.term > early.term);
    let under = world.genesis_table.signed_for(&world.genesis_id);
    let signature = secret_of(other).sign(&early.signed_bytes(&under));
    let vote = Input::VoteVerified { from: id_of(other), claim: early, signatures: vec![(under, signature)] };
    let signers = Bitmap::of(3, [0, 1]);
    let halves = vec![Half { epoch: under.epoch, epoch_hash: under.epoch_hash, signers, aggregate: signature }];
    let certificate = Arc::new(ElectionCertificate { claim: early, halves });
    world.input_later(follower, 1, vote);
    world.input_later(follower, 2, Input::ElectionCertified { certificate });
    world.run(10);
    assert_eq!((world.core(follower).role(), world.core(follower).term()), (Role::Candidate, claim.term));
    let counts = |r: &(u64, usize, Effect)| matches!(r.2, Effect::Crypto(Crypto::CertifyElection { .. }));
    assert!(!world.recorded.iter().any(|r| r.1 == follower && counts(r)));
}

#[test]
fn the_word_of_a_false_leader_is_verified_once() {
    let (mut world, leader, follower) = ready(3, 12);
    let other = third(leader, follower);
    let proof = world.sent().find_map(|(_, _, m)| match m {
        Message::Append { election: Some(e), .. } => Some((**e).clone()),
        _ => None,
    });
    world.run(100);
    let Message::Heartbeat { term, session, to_keys, round, commit, committed, sign_point, wall, .. } =
        heartbeat(&world, leader, follower)
    else {
        unreachable!()
    };
    let mut forged = proof.expect("the leader showed it");
    let term = term.next();
    (forged.claim.candidate, forged.claim.term) = (id_of(other), term);
    let election = Some(Arc::new(forged));
    let before = world.recorded.len();
    let beat = Message::Heartbeat { term, session, to_keys, round, commit, committed, sign_point, wall, election };
    world.inject(other, follower, beat);
    world.run(500);
    let verifies = |e: &Effect| matches!(e, Effect::Crypto(Crypto::VerifyElectionCertificate { .. }));
    let count = world.recorded[before..].iter().filter(|r| r.1 == follower && verifies(&r.2)).count();
    assert_eq!((count, world.leader_of(follower)), (1, Some(leader)));
}

#[test]
fn a_pre_vote_is_asked_of_two_keys_at_most() {
    let (mut world, leader, follower) = ready(3, 13);
    world.crash(leader);
    world.isolate(follower);
    world.run(300);
    let other = third(leader, follower);
    let (own, foreign) = (secret_of(follower).public(), secret_of(other).public());
    for (keys, granted) in [
        (vec![own], true),
        (vec![foreign, own], true),
        (vec![foreign, foreign, own], false),
        (vec![foreign], false),
        (Vec::new(), false),
    ] {
        let before = world.recorded.len();
        let term = Term(world.core(follower).term().0 + 1);
        let (last_index, last_term) = (LogIndex(1_000), world.core(follower).term());
        world.inject(other, follower, Message::PreVote { term, last_index, last_term, epoch: Epoch::ZERO, keys });
        let answers = |e: &Effect| match e {
            Effect::Send { message: Message::PreVoteReply { granted, .. }, .. } => Some(*granted),
            _ => None,
        };
        let told: Vec<bool> = world.recorded[before..].iter().filter_map(|r| answers(&r.2)).collect();
        assert_eq!(told, [granted]);
    }
}

#[test]
fn votes_that_nobody_asked_for_are_not_looked_at_and_others_once() {
    let (mut world, leader, follower) = ready(3, 14);
    let other = third(leader, follower);
    world.isolate(follower);
    let claim = stands(&mut world, follower, other);
    let under = world.genesis_table.signed_for(&world.genesis_id);
    let right = vec![(under, secret_of(other).sign(&claim.signed_bytes(&under)))];
    let mut wrong = right.clone();
    wrong[0].0.epoch = Epoch(7);
    let verified = |w: &World| {
        let verifies = |r: &&(u64, usize, Effect)| matches!(r.2, Effect::Crypto(Crypto::VerifyElection { .. }));
        w.recorded.iter().filter(verifies).count()
    };
    let before = verified(&world);
    for (signatures, count) in [(wrong, 0), (Vec::new(), 0), (right.clone(), 1), (right, 1)] {
        let vote = Message::RequestVoteReply { term: claim.term, granted: true, signatures };
        world.inject(other, follower, vote);
        assert_eq!(verified(&world), before + count);
    }
}
