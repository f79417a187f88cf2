//! Snapshots at the edges: what must hold before entries go, before a mark is made, before an image is begun with.

use super::snapshots::{fill, one_left_behind, snapshot, with_spares};
use crate::members::id_of;
use crate::world::World;
use concordat::core::{Alarm, Base, Effect, Input, MarkRefusal, Message, Role, SnapshotOffer};
use concordat::ids::{Digest, LogIndex};
use concordat::node::executor::Mail;
use concordat::node::image::Image;
use std::sync::Arc;

#[test]
fn no_entry_goes_before_its_snapshot_is_certified() {
    let mut world = with_spares(3, 0, 1);
    let leader = world.settle();
    fill(&mut world, 20, 10);
    assert!(world.run_while_not(2_000, World::converged));
    world.drop_if(|_, _, m| matches!(m, Message::HeadShare { .. }));
    let index = world.mark(leader).try_recv().expect("answered at once").expect("marked");
    let taken = |w: &World| (0..3).all(|n| w.core(n).snapshot_taken().is_some_and(|t| t.index == index));
    assert!(world.run_while_not(3_000, taken), "{}", world.standings());
    // The manifest is committed soon, and nobody can prove it.
    world.run(1_000);
    assert!(world.core(leader).committed() > index);
    assert!((0..3).all(|n| world.core(n).compacted() == LogIndex::ZERO && world.core(n).snapshot_offer().is_none()));
    world.filter = None;
    assert!(world.run_while_not(2_000, |w| (0..3).all(|n| w.core(n).compacted() == index)), "{}", world.standings());
}

#[test]
fn a_leader_marks_nothing_before_it_has_committed_in_its_own_term() {
    let mut world = with_spares(3, 0, 2);
    let old = world.settle();
    fill(&mut world, 2, 10);
    world.crash(old);
    world.drop_if(|_, _, m| matches!(m, Message::AppendReply { .. }));
    assert!(world.run_while_not(5_000, |w| w.leader().is_some_and(|l| l != old)));
    let leader = world.leader().expect("just seen");
    assert_eq!(world.mark(leader).try_recv().expect("at once"), Err(MarkRefusal::NotSettled));
    world.filter = None;
    world.settle();
    fill(&mut world, 1, 10);
    let leader = world.leader().expect("settled");
    assert!(world.mark(leader).try_recv().expect("at once").is_ok());
}

/// A member that catches up by a snapshot whose offers never reach it, and what it is to be offered.
fn unoffered(seed: u64) -> (World, usize, SnapshotOffer) {
    let (mut world, _) = one_left_behind(seed, 8_000);
    let leader = world.leader().expect("a leader");
    let offer = (**world.core(leader).snapshot_offer().expect("certified")).clone();
    world.drop_if(|_, _, m| matches!(m, Message::SnapshotOffer { .. }));
    world.start(2);
    assert!(world.run_while_not(2_000, |w| w.core(2).leader() == Some(id_of(leader))));
    (world, leader, offer)
}

#[test]
fn an_offer_whose_parts_do_not_speak_of_each_other_is_refused_and_reported() {
    let (mut world, leader, right) = unoffered(14);
    let (term, to_keys) = (world.core(leader).term(), world.public_keys(2));
    let mut wrong = vec![right.clone(); 4];
    wrong[0].manifest.state = Digest([9; 32]);
    wrong[1].path.pop();
    wrong[2].entry = world.nodes[leader].memory.links().first().expect("entries").entry.clone();
    wrong[3].manifest.index = LogIndex(right.entry.index().0 + 1);
    for (i, offer) in wrong.into_iter().enumerate() {
        let (to_keys, offer) = (to_keys.clone(), Arc::new(offer));
        world.inject(leader, 2, Message::SnapshotOffer { term, session: 1, to_keys, offer, election: None });
        let malformed = |a: &&Alarm| matches!(a, Alarm::MalformedAppend { .. });
        assert_eq!(world.nodes[2].alarms.iter().filter(malformed).count(), i + 1);
        assert!(world.core(2).installing().is_none());
    }
    world.filter = None;
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
}

#[test]
fn a_chunk_is_here_once_it_is_stored_and_an_image_is_begun_with_once_it_is_what_its_manifest_says() {
    let (mut world, index) = one_left_behind(15, 8_000);
    world.drop_if(|_, to, m| to == 2 && matches!(m, Message::SnapshotChunk { .. }));
    world.start(2);
    let wanted = |w: &World| w.sent().any(|s| s.1 == 2 && matches!(s.2, Message::SnapshotChunk { .. }));
    assert!(world.run_while_not(5_000, wanted), "{}", world.standings());
    let leader = world.leader().expect("a leader");
    let chunk = world.sent().find(|s| s.1 == 2 && matches!(s.2, Message::SnapshotChunk { .. }));
    let chunk = chunk.expect("just seen").2.clone();
    world.config.disk_us = (200_000, 200_000);
    let here = |w: &World| w.core(2).installing().expect("under way").1;
    world.inject(leader, 2, chunk);
    assert_eq!(here(&world), 0);
    world.run(250);
    assert_eq!(here(&world), 1);
    world.filter = None;
    let completing = |w: &World| {
        let completes = |e: &Effect| matches!(e, Effect::CompleteSnapshot { .. });
        w.recorded.iter().any(|r| r.1 == 2 && completes(&r.2))
    };
    assert!(world.run_while_not(20_000, completing), "{}", world.standings());
    let held = world.core(2).last_index();
    world.input_later(2, 1, Input::SnapshotReady { index, base: Some(Arc::new(Base::default())) });
    world.run(5);
    let failed = |a: &Alarm| matches!(a, Alarm::SnapshotFailed { index: i, .. } if *i == index);
    assert!(world.nodes[2].alarms.iter().any(failed));
    assert_eq!((world.core(2).last_index(), world.core(2).compacted()), (held, LogIndex::ZERO));
    // It is offered and fetched again.
    world.config.disk_us = (100, 1_000);
    assert!(world.run_while_not(20_000, World::converged), "{}", world.standings());
}

#[test]
fn an_image_that_the_log_overtakes_in_the_same_moment_is_not_begun_with() {
    let (mut world, index) = one_left_behind(17, 10);
    let leader = world.leader().expect("a leader");
    world.start(2);
    world.config.disk_us = (200_000, 200_000);
    let completing = |w: &World| {
        let completes = |e: &Effect| matches!(e, Effect::CompleteSnapshot { .. });
        w.recorded.iter().any(|r| r.1 == 2 && completes(&r.2))
    };
    assert!(world.run_while_not(20_000, completing), "{}", world.standings());
    let (last, term) = (world.core(2).last_index(), world.core(leader).term());
    let links = world.nodes[leader].memory.links();
    let lacking = links.iter().map(|l| l.entry.clone()).filter(|e| e.index() > last && e.index() <= index.next());
    let append = Message::Append {
        term,
        session: 1,
        to_keys: world.public_keys(2),
        prev_index: last,
        prev_term: links[usize::try_from(last.0).expect("small") - 1].entry.term(),
        prev_root: None,
        entries: lacking.collect(),
        commit: index,
        sign_point: LogIndex::ZERO,
        election: None,
    };
    let (_, bytes) = &world.nodes[leader].disk.images.complete[&index];
    let base = Some(Arc::new(Image::decode(bytes).expect("the leader's own").base()));
    let inputs = vec![Input::Receive { from: id_of(leader), message: append }, Input::SnapshotReady { index, base }];
    world.mail(2, Mail { inputs, ..Mail::default() });
    world.run(1);
    assert_eq!((world.core(2).last_index(), world.core(2).compacted()), (index.next(), LogIndex::ZERO));
    assert!(world.core(2).installing().is_none());
    world.config.disk_us = (100, 1_000);
    assert!(world.run_while_not(20_000, World::converged), "{}", world.standings());
}

#[test]
fn a_leader_is_asked_for_chunks_by_its_own_followers_only_and_for_a_few_at_a_time() {
    let mut world = with_spares(3, 0, 16);
    let leader = world.settle();
    fill(&mut world, 20, 10);
    let index = snapshot(&mut world);
    let follower = world.follower();
    let (term, session) = world
        .sent()
        .filter_map(|(from, to, m)| match m {
            Message::Append { term, session, .. } if (from, to) == (leader, follower) => Some((*term, *session)),
            _ => None,
        })
        .last()
        .expect("an append");
    let fetches = |w: &World| {
        let fetch = |r: &&(u64, usize, Effect)| r.1 == leader && matches!(r.2, Effect::FetchChunk { .. });
        w.recorded.iter().filter(fetch).count()
    };
    let before = fetches(&world);
    for wrong in [
        Message::SnapshotWanted { term, session: session + 1, index, chunk: 0 },
        Message::SnapshotWanted { term: concordat::ids::Term(term.0 - 1), session, index, chunk: 0 },
        Message::SnapshotWanted { term, session, index: LogIndex(index.0 + 1), chunk: 0 },
    ] {
        world.inject(follower, leader, wrong);
    }
    assert_eq!(fetches(&world), before);
    let most = concordat::limits::MAX_CHUNKS_ASKED;
    for chunk in 0..most + 5 {
        let chunk = u32::try_from(chunk).expect("small");
        world.inject(follower, leader, Message::SnapshotWanted { term, session, index, chunk });
    }
    assert_eq!(fetches(&world), before + most);
    assert_eq!(world.core(leader).role(), Role::Leader);
}

#[test]
fn a_restart_behind_a_snapshot_takes_all_that_it_stands_for_as_committed() {
    let (mut world, index) = one_left_behind(18, 10);
    // No certificate that covers the snapshot reaches its disk before it goes down.
    world.drop_if(|_, to, m| to == 2 && matches!(m, Message::Certificate(_)));
    world.start(2);
    let begun = |w: &World| w.core(2).compacted() == index && w.core(2).durable() >= index;
    assert!(world.run_while_not(5_000, begun), "{}", world.standings());
    world.crash(2);
    world.start(2);
    assert!(world.core(2).certificate().is_none_or(|c| c.head.size < index.0));
    assert!(world.core(2).committed() >= index);
    world.filter = None;
    assert!(world.run_while_not(5_000, World::converged), "{}", world.standings());
}
