//! Membership changes at the edges: entries that no honest leader sends, certificates of the change before, rotations
//! that everybody is needed for.

use super::cluster;
use super::membership::make;
use crate::members::secret_of;
use crate::world::{Config, World};
use concordat::certificate::{Bitmap, Body, Entry, Half, Head, HeadCertificate, Header, Kind, Role, payload_hash};
use concordat::core::{ChangeRefusal, Effect, Message, Role as Standing};
use concordat::ids::{Digest, Epoch, LogIndex};
use concordat::limits::MAX_PROMOTION_LAG;
use std::sync::Arc;

fn entry(world: &World, node: usize, place: u64, kind: Kind, epoch: u64, payload: &[u8]) -> Arc<Entry> {
    let core = world.core(node);
    let header = Header {
        index: LogIndex(core.last_index().0 + place),
        term: core.term(),
        epoch: Epoch(epoch),
        kind,
        proposal_id: None,
        request_digest: Digest::ZERO,
        proposed_at: core.log_time() + place,
        required_quorum: 0,
        abort_reason: None,
        tally: None,
        payload_len: u32::try_from(payload.len()).expect("short"),
        payload_hash: payload_hash(&[0; 16], payload),
    };
    Arc::new(Entry::new(header, Body { payload: payload.to_vec(), ..Body::default() }).expect("hashed"))
}

/// What looks like a certificate over so many entries.
fn joint(size: u64, halves: usize) -> Vec<u8> {
    let half = Half {
        epoch: Epoch(0),
        epoch_hash: Digest::ZERO,
        signers: Bitmap::of(3, [0, 1]),
        aggregate: secret_of(0).sign(b"anything"),
    };
    let head = Head { term: concordat::ids::Term(1), size, root: Digest::ZERO };
    HeadCertificate { head, halves: vec![half; halves] }.encode()
}

#[test]
fn entries_out_of_the_order_of_changes_are_refused_and_reported() {
    let mut world = cluster(3, 1);
    let leader = world.settle();
    world.run(300);
    let follower = world.follower();
    let (term, last) = (world.core(leader).term(), world.core(follower).last_index());
    let table = world.genesis_table.table.encode();
    let at = |place, kind, epoch, payload: &[u8]| entry(&world, follower, place, kind, epoch, payload);
    let opened = || at(1, Kind::Epoch, 0, &table);
    let closed = |certificate: &[u8], epoch| at(2, Kind::EpochFinal, epoch, certificate);
    let (first, second) = (last.0 + 1, last.0 + 2);
    let wrong = [
        ("a no-op without the proof of its term", vec![at(1, Kind::Noop, 0, b"no proof")]),
        ("an entry of an epoch to come", vec![at(1, Kind::SnapshotMark, 1, b"")]),
        ("a change under an epoch to come", vec![at(1, Kind::Epoch, 1, &table)]),
        ("a change to no table", vec![at(1, Kind::Epoch, 0, b"no table")]),
        ("a change in a change", vec![opened(), at(2, Kind::Epoch, 0, &table)]),
        ("the end of no change", vec![at(1, Kind::EpochFinal, 1, &joint(last.0, 2))]),
        ("an end without a certificate", vec![opened(), closed(b"none", 1)]),
        ("an end by one half", vec![opened(), closed(&joint(first, 1), 1)]),
        ("an end by a head before the change", vec![opened(), closed(&joint(last.0, 2), 1)]),
        ("an end by a head that covers itself", vec![opened(), closed(&joint(second, 2), 1)]),
        ("an end under the epoch before", vec![opened(), closed(&joint(first, 2), 0)]),
        ("an epoch that goes on", vec![opened(), closed(&joint(first, 2), 1), at(3, Kind::SnapshotMark, 0, b"")]),
    ];
    for (i, (what, entries)) in wrong.into_iter().enumerate() {
        let append = Message::Append {
            term,
            session: 1,
            to_keys: vec![secret_of(follower).public()],
            prev_index: last,
            prev_term: term,
            prev_root: None,
            entries,
            commit: last,
            sign_point: LogIndex::ZERO,
            election: None,
        };
        world.inject(leader, follower, append);
        assert_eq!(world.core(follower).last_index(), last, "{what}");
        assert_eq!(world.nodes[follower].alarms.len(), i + 1, "{what}");
    }
}

#[test]
fn the_certificate_of_the_change_before_closes_none() {
    let mut world = World::new(Config { spares: 2, record: true, ..Config::new(3, 2) });
    let leader = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let mut rows = world.rows(leader);
    rows.push(world.fresh_learner(3));
    world.start(3);
    let change = world.change(leader, &rows);
    let closed = |w: &World| w.core(leader).tables().current().epoch == Epoch(1);
    assert!(world.run_while_not(2_000, closed));
    // The end of the change is committed, and nothing is certified from here on.
    world.drop_if(|_, _, m| matches!(m, Message::HeadShare { .. }));
    assert!(world.run_while_not(2_000, |w| w.changes[change].outcome.is_some()));
    rows.push(world.fresh_learner(4));
    let next = world.change(leader, &rows);
    world.run(1_000);
    assert!(world.core(leader).tables().is_joint() && world.changes[next].outcome.is_none());
    world.filter = None;
    assert!(world.run_while_not(2_000, |w| w.changes[next].outcome == Some(Ok(Epoch(2)))), "{}", world.standings());
}

#[test]
fn the_entry_of_a_change_records_who_granted_it() {
    let mut world = World::new(Config { spares: 1, record: true, ..Config::new(3, 3) });
    let leader = world.settle();
    let mut rows = world.rows(leader);
    rows.push(world.fresh_learner(3));
    make(&mut world, &rows);
    let is_change = |e: &&Arc<Entry>| e.header.kind == Kind::Epoch;
    let links = world.nodes[leader].memory.links();
    let change = links.iter().map(|l| &l.entry).find(is_change).expect("the change");
    let tally = change.header.tally.as_ref().expect("who granted");
    assert!(tally.grants.members.count() >= 2);
}

#[test]
fn a_learner_far_behind_is_not_promoted_though_it_answers() {
    let mut world = World::new(Config { spares: 1, ..Config::new(3, 4) });
    let leader = world.settle();
    let mut rows = world.rows(leader);
    rows.push(world.fresh_learner(3));
    world.start(3);
    make(&mut world, &rows);
    assert!(world.run_while_not(2_000, World::converged));
    world.stall(3);
    let from = world.core(leader).last_index().0;
    while world.core(leader).last_index().0 <= from + MAX_PROMOTION_LAG {
        for i in 0..50 {
            let name = format!("{} {i}", world.core(leader).last_index().0);
            world.propose(leader, &name);
        }
        world.run(20);
    }
    rows[3].role = Role::Voter;
    let change = world.change(leader, &rows);
    let behind = matches!(&world.changes[change].outcome, Some(Err(ChangeRefusal::NotCaughtUp { .. })));
    assert!(behind, "{:?}", world.changes[change].outcome);
    world.unstall(3);
    assert!(world.run_while_not(5_000, World::caught_up));
    make(&mut world, &rows);
}

#[test]
fn a_key_is_rotated_though_its_member_is_needed_in_both_tables() {
    let mut world = cluster(3, 5);
    let leader = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let (rotated, mut rows) = (world.follower(), world.rows(leader));
    let other = (0..3).find(|n| ![leader, rotated].contains(n)).expect("three");
    world.crash(other);
    rows[rotated].generation = world.new_key(rotated);
    make(&mut world, &rows);
    assert!(world.run_while_not(1_000, World::caught_up));
}

#[test]
fn a_member_between_two_keys_helps_to_elect() {
    let mut world = cluster(3, 6);
    let leader = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let (rotated, mut rows) = (world.follower(), world.rows(leader));
    let other = (0..3).find(|n| ![leader, rotated].contains(n)).expect("three");
    rows[rotated].generation = world.new_key(rotated);
    // The change stays open, and only the third node ever asks to be elected.
    world.drop_if(move |from, _, m| {
        matches!(m, Message::HeadShare { .. }) || (from == rotated && matches!(m, Message::PreVote { .. }))
    });
    world.change(leader, &rows);
    let open = |w: &World| w.core(other).tables().is_joint() && w.core(rotated).tables().is_joint();
    assert!(world.run_while_not(2_000, open));
    world.run(200);
    world.crash(leader);
    assert!(world.run_while_not(10_000, |w| w.core(other).role() == Standing::Leader));
}

#[test]
fn the_end_of_the_change_before_is_not_taken_for_the_end_of_the_next() {
    let mut world = World::new(Config { spares: 2, record: true, ..Config::new(3, 7) });
    let first = world.settle();
    assert!(world.run_while_not(2_000, World::converged));
    let mut rows = world.rows(first);
    rows.push(world.fresh_learner(3));
    // The change outlives the leader that began it, so that the next one closes it and may begin another at once.
    world.drop_if(|_, _, m| matches!(m, Message::HeadShare { .. }));
    world.change(first, &rows);
    let open = |w: &World| w.core(first).tables().is_joint() && w.core(first).committed() == w.core(first).last_index();
    assert!(world.run_while_not(2_000, open), "{}", world.standings());
    world.crash(first);
    let second = world.settle();
    world.run(300);
    world.filter = None;
    let closed = |w: &World| w.core(second).role() == Standing::Leader && !w.core(second).tables().is_joint();
    assert!(world.run_while_not(2_000, closed), "{}", world.standings());
    world.drop_if(move |_, to, m| to == second && matches!(m, Message::AppendReply { .. } | Message::HeadShare { .. }));
    world.run(20);
    assert!(world.core(second).committed() < world.core(second).last_index(), "the end is not committed");
    rows.push(world.fresh_learner(4));
    let next = world.change(second, &rows);
    world.run(50);
    world.filter = None;
    assert!(world.run_while_not(3_000, |w| w.changes[next].outcome.is_some()), "{}", world.standings());
    assert_eq!(world.changes[next].outcome, Some(Ok(Epoch(2))));
}

/// A member that holds the end of a change that leaves it out, and does not know that it is committed; and what it asked
/// the others since.
fn left_out_unawares(role: Role, foreign_key: bool, seed: u64) -> (World, usize, usize) {
    let mut world = World::new(Config { spares: 1, record: true, ..Config::new(3, seed) });
    let leader = world.settle();
    let mut rows = world.rows(leader);
    rows.push(world.fresh_learner(3));
    world.start(3);
    make(&mut world, &rows);
    assert!(world.run_while_not(2_000, World::converged));
    if role == Role::Voter {
        rows[3].role = Role::Voter;
        make(&mut world, &rows);
        assert!(world.run_while_not(2_000, World::converged));
    }
    let epoch = world.core(leader).tables().current().epoch;
    world.change(leader, &rows[..3]);
    let holds = move |w: &World| w.core(3).tables().current().epoch > epoch;
    assert!(world.run_while_not(2_000, holds), "{}", world.standings());
    (0..3).for_each(|n| world.crash(n));
    assert!(world.core(3).in_force().epoch <= epoch, "it does not know that it is left out");
    if foreign_key {
        world.input_later(3, 1, concordat::core::Input::Keys(Vec::new()));
    }
    let before = world.recorded.len();
    world.run(2_000);
    (world, 3, before)
}

#[test]
fn only_a_voter_by_a_key_that_it_holds_stands_on_its_way_out() {
    for (role, foreign_key, stands) in
        [(Role::Voter, false, true), (Role::Voter, true, false), (Role::Learner, false, false)]
    {
        let (world, node, before) = left_out_unawares(role, foreign_key, 8);
        let asks = |r: &(u64, usize, Effect)| {
            r.1 == node && matches!(r.2, Effect::Send { message: Message::PreVote { .. }, .. })
        };
        assert_eq!(world.recorded[before..].iter().any(asks), stands, "{role:?} {foreign_key}");
    }
}

#[test]
fn a_leader_does_not_count_its_own_disk_by_a_key_that_it_lost() {
    let mut seen = 0;
    for seed in 0..10 {
        let mut world = cluster(3, seed);
        let leader = world.settle();
        assert!(world.run_while_not(2_000, World::converged));
        let mut rows = world.rows(leader);
        rows[leader].generation = world.new_key(leader);
        world.drop_if(|_, _, m| matches!(m, Message::HeadShare { .. }));
        world.change(leader, &rows);
        let open =
            |w: &World| w.core(leader).tables().is_joint() && w.core(leader).committed() == w.core(leader).last_index();
        assert!(world.run_while_not(2_000, open), "{}", world.standings());
        let silent = (0..3).rfind(|n| *n != leader).expect("three");
        world.crash(silent);
        world.input_later(leader, 1, concordat::core::Input::Keys(vec![secret_of(leader).public()]));
        world.run(2);
        let before = world.core(leader).committed();
        world.propose(leader, "by one disk of the next table");
        world.run(60);
        assert_eq!(world.core(leader).committed(), before);
        let core = world.core(leader);
        seen += usize::from(core.role() == Standing::Leader && core.last_index() > before);
    }
    assert!(seen > 0, "by the table before it leads until it next counts who is in contact");
}
