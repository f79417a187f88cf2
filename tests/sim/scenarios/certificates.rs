use super::cluster;
use crate::world::{Config, World};
use concordat::certificate::Signature;
use concordat::certificate::SignedFor;
use concordat::core::{Crypto, Effect, Input, Message, Role};
use concordat::ids::{LogIndex, NodeId};

fn real(nodes: usize, seed: u64) -> World {
    World::new(Config { real_crypto: true, record: true, ..Config::new(nodes, seed) })
}

#[test]
fn a_commit_is_certified_by_two_of_three_and_verifies_against_the_genesis() {
    let mut world = real(3, 1);
    let leader = world.settle();
    let down = world.follower();
    world.crash(down);
    world.propose(leader, "a");
    world.run(500);
    let index = world.outcome_at(leader, "a").expect("committed").index;
    let up: Vec<usize> = (0..3).filter(|n| *n != down).collect();
    for node in up.iter().copied() {
        let certificate = world.core(node).certificate().expect("certified").clone();
        assert!(certificate.head.size >= index.0);
        let table = world.genesis.in_force();
        certificate.verify(&world.genesis.id(), &table, None).expect("verifies");
        let signers = certificate.signers(&table);
        assert_eq!(signers.iter().map(crate::members::index_of).collect::<Vec<_>>(), up);
    }
}

#[test]
fn the_same_signers_on_the_same_head_give_the_same_bytes() {
    let mut world = real(3, 2);
    let leader = world.settle();
    world.propose(leader, "a");
    world.run(500);
    let certificate = world.core(leader).certificate().unwrap().clone();
    let head = certificate.head;
    let table = world.genesis.in_force();
    let under = [table.signed_for(&world.genesis.id())];
    let tables = world.core(leader).tables().clone();
    let signers: Vec<NodeId> = certificate.signers(&table);
    let mut shares: Vec<(NodeId, Signature)> = signers
        .iter()
        .map(|id| {
            let job = Crypto::SignHead { head, under: vec![(under[0], table.table.get(id).unwrap().bls_key)] };
            match world.nodes[crate::members::index_of(id)].pool.execute(job) {
                Some(Input::HeadSigned { signatures, .. }) => (*id, signatures[0].1),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    let mut certify = |node: usize| -> Vec<u8> {
        shares.reverse();
        let signatures: Vec<(SignedFor, Vec<(NodeId, Signature)>)> = vec![(under[0], shares.clone())];
        match world.nodes[node].pool.execute(Crypto::CertifyHead { head, signatures, tables: tables.clone() }) {
            Some(Input::HeadCertified { certificate }) => certificate.encode(),
            other => panic!("{other:?}"),
        }
    };
    for node in 0..3 {
        assert_eq!(certify(node), certificate.encode(), "made by node {node}");
    }
}

#[test]
fn every_entry_comes_to_be_certified_on_every_node() {
    let mut world = cluster(5, 3);
    let leader = world.settle();
    for i in 0..50 {
        world.propose(leader, &i.to_string());
        world.run(1);
    }
    assert!(world.run_while_not(2_000, World::converged));
    let made = world.recorded.iter().filter(|r| matches!(r.2, Effect::Crypto(Crypto::CertifyHead { .. }))).count();
    assert!(made < 50, "one certificate covers many entries: {made}");
}

#[test]
fn a_share_is_not_released_after_the_term_changed() {
    let mut world = cluster(3, 4);
    let leader = world.settle();
    world.run(500);
    let (follower, term) = (world.follower(), world.core(leader).term());
    // The share is under way for so long that another leader is followed when it is done.
    world.config.crypto_us = (3_000_000, 3_000_000);
    world.propose(leader, "a");
    let before = world.recorded.len();
    let signing = move |w: &World| {
        w.recorded[before..].iter().any(|r| r.1 == follower && matches!(r.2, Effect::Crypto(Crypto::SignHead { .. })))
    };
    assert!(world.run_while_not(100, signing));
    world.config.crypto_us = (50, 1_000);
    world.crash(leader);
    world.run(2_500);
    let followed = world.leader().expect("another leader");
    let third = (0..3).find(|n| ![leader, followed].contains(n)).unwrap();
    assert_eq!(world.leader_of(third), Some(followed));
    world.run(1_000);
    let released = world.recorded[before..].iter().any(|r| {
        matches!(&r.2, Effect::Send { message: Message::HeadShare { head, .. }, .. } if head.term == term)
            && r.0 > 2_000_000
    });
    assert!(!released);
}

#[test]
fn a_certificate_waits_until_what_it_covers_is_durable_here() {
    let mut world = cluster(3, 5);
    let leader = world.settle();
    world.run(500);
    let follower = world.follower();
    world.stall(follower);
    world.propose(leader, "a");
    world.run(200);
    let certificate = world.core(leader).certificate().unwrap().clone();
    let size = certificate.head.size;
    assert!(world.core(follower).last_index().0 >= size && world.core(follower).durable().0 < size);
    world.inject(leader, follower, Message::Certificate(certificate));
    world.run(100);
    assert!(world.core(follower).certificate().unwrap().head.size < size);
    world.unstall(follower);
    world.run(200);
    assert_eq!(world.core(follower).certificate().unwrap().head.size, size);
}

#[test]
fn a_lost_share_and_a_lost_certificate_are_sent_again() {
    for seed in 0..10 {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        world.run(300);
        let size = |w: &World| w.core(leader).certificate().map_or(0, |c| c.head.size);
        let before = size(&world);
        world.drop_if(|_, _, m| matches!(m, Message::HeadShare { .. } | Message::Certificate(_)));
        world.propose(leader, "a");
        world.run(300);
        assert!(world.outcome_at(leader, "a").is_some(), "certification never holds up a commit");
        assert_eq!(size(&world), before);
        world.drop_if(|_, _, m| matches!(m, Message::Certificate(_)));
        world.run(300);
        assert!(size(&world) > before);
        world.filter = None;
        assert!(world.run_while_not(500, World::converged), "seed {seed}");
    }
}

#[test]
fn a_certificate_that_does_not_verify_is_not_taken_over() {
    let mut world = cluster(3, 6);
    let leader = world.settle();
    world.run(300);
    let follower = world.follower();
    let mut forged = (**world.core(leader).certificate().unwrap()).clone();
    forged.head.size += 1;
    world.inject(leader, follower, Message::Certificate(std::sync::Arc::new(forged)));
    world.propose(leader, "a");
    assert!(world.run_while_not(1_000, World::converged), "and does not stand in the way of a true one");
}

#[test]
fn a_head_is_certified_once_while_the_leaders_own_disk_hangs() {
    let mut world = cluster(5, 7);
    let leader = world.settle();
    world.run(500);
    world.stall(leader);
    world.propose(leader, "a");
    let before = world.recorded.len();
    world.run(2_000);
    assert_eq!(world.core(leader).role(), Role::Leader);
    assert!(world.core(leader).durable() < world.core(leader).last_index());
    let made =
        world.recorded[before..].iter().filter(|r| matches!(r.2, Effect::Crypto(Crypto::CertifyHead { .. }))).count();
    assert_eq!(made, 1);
    world.unstall(leader);
    assert!(world.run_while_not(500, World::converged));
}

#[test]
fn a_restart_resumes_at_the_certificate_and_delivers_no_entry_twice_or_never() {
    let mut world = cluster(3, 8);
    let leader = world.settle();
    for i in 0..20 {
        world.propose(leader, &i.to_string());
        world.run(10);
    }
    world.run(500);
    for node in 0..3 {
        world.crash(node);
        world.start(node);
        let certified = world.core(node).certificate().expect("kept").head.size;
        assert_eq!(world.core(node).committed(), LogIndex(certified));
    }
    assert!(world.run_while_not(3_000, World::converged));
    assert!((0..20).all(|i| (0..3).all(|n| world.outcome_at(n, &i.to_string()).is_some())));
}

#[test]
fn a_sign_point_of_a_log_that_was_cut_holds_up_no_later_one() {
    let mut world = cluster(5, 21);
    let old = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let member = world.follower();
    let rest: Vec<usize> = (0..5).filter(|n| ![old, member].contains(n)).collect();
    world.partition(&[old, member], &rest);
    for i in 0..40 {
        world.propose(old, &format!("lost {i}"));
    }
    world.run(150);
    assert!(world.core(member).last_index() > world.core(member).committed());
    world.crash(old);
    world.heal();
    // A follower still, so that it keeps what the leader before told it.
    assert!(world.run_while_not(5_000, |w| w.leader().is_some()));
    assert!(world.run_while_not(5_000, World::caught_up), "{}", world.standings());
    let leader = world.leader().expect("just seen");
    let silent = rest.iter().copied().find(|n| *n != leader).expect("two others");
    world.crash(silent);
    world.propose(leader, "a");
    let certified = |w: &World| {
        let core = w.core(leader);
        core.certificate().is_some_and(|c| c.head.size == core.last_index().0)
    };
    assert!(world.run_while_not(2_000, certified), "{}", world.standings());
}
