//! The auditors' index says what a naive one would, through merges, restarts, compaction and damage; and where it cannot
//! know, it says from where on it does.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::{Bitmap, Body, Entry, Header, Kind, Request, Signature, Tally, TallySide, payload_hash};
use concordat::core::Write;
use concordat::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use concordat::registry::Key;
use concordat::storage::{Found, ReadError, Store, Word, deadline_of, key_of};
use model::{Dice, Driver, append, base, certificate, image, take, unproposed, vote};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    (temp, dir)
}

fn side(dice: &mut Dice) -> TallySide {
    let members = Bitmap::of(5, (0..5).filter(|_| dice.below(3) == 0));
    let aggregate = (members.count() > 0).then_some(Signature([7; 96]));
    TallySide { members, aggregate }
}

/// Some entry or other at this index; the same one for the same index.
fn entry(index: u64) -> Arc<Entry> {
    let mut dice = Dice(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    if index == 1 || dice.below(40) == 0 {
        return unproposed(index, 1, Kind::Noop);
    }
    let aborted = dice.below(9) == 0;
    let payload = match dice.below(4) {
        0 => format!(r#"{{"op":"set_config","key":"k{}","value":1}}"#, dice.below(7)),
        1 => format!(r#"{{"op":"deregister","agent_id":"k{}"}}"#, dice.below(7)),
        2 => format!(r#"{{"op":"set_config","key":"once{index}","value":1}}"#),
        _ => r#"{"op":"unknown"}"#.to_owned(),
    };
    let request = Request {
        client: "c".into(),
        request_id: format!("r{}", if dice.below(5) == 0 { index / 50 } else { index }),
        deadline_ms: if dice.below(9) == 0 { u64::MAX } else { 1_000_000_000 + index * 3 },
    };
    let salt = if aborted { [0; 16] } else { [4; 16] };
    let header = Header {
        index: LogIndex(index),
        term: Term(1),
        epoch: Epoch(index / 1_000),
        kind: if aborted { Kind::Aborted } else { Kind::Proposal },
        proposal_id: Some(ProposalId { term: Term(1), seq: index, origin: NodeId([dice.below(3) as u8; 32]) }),
        request_digest: request.digest(),
        proposed_at: 1_000_000_000 + index,
        required_quorum: 1,
        abort_reason: aborted.then_some(concordat::certificate::AbortReason::Rejected),
        tally: (dice.below(2) == 0).then(|| Tally { grants: side(&mut dice), denials: side(&mut dice) }),
        payload_len: payload.len() as u32,
        payload_hash: payload_hash(&salt, payload.as_bytes()),
    };
    let payload = if aborted { Vec::new() } else { payload.into_bytes() };
    Arc::new(Entry::new(header, Body { salt, request: Some(request), payload }).unwrap())
}

fn entries(first: u64, last: u64) -> Vec<Arc<Entry>> {
    (first..=last).map(entry).collect()
}

fn bears(entry: &Entry, word: &Word) -> bool {
    let (header, body) = (&entry.header, &entry.body);
    let in_tally = |epoch: &Epoch, voter: &u8, pick: fn(&Tally) -> &TallySide| {
        let set = header.tally.as_ref().map(|t| pick(t).members.as_bytes().to_vec()).unwrap_or_default();
        *epoch == header.epoch && set.first().is_some_and(|byte| *voter < 5 && byte >> voter & 1 == 1)
    };
    match word {
        Word::Kind(kind) => header.kind == *kind,
        Word::Origin(did) => header.proposal_id.is_some_and(|id| id.origin == *did),
        Word::Granted(epoch, voter) => in_tally(epoch, voter, |t| &t.grants),
        Word::Denied(epoch, voter) => in_tally(epoch, voter, |t| &t.denials),
        Word::Request(key) => body.request.as_ref().is_some_and(|r| r.key() == *key),
        Word::Key(key) => key_of(header, body).as_ref() == Some(key),
    }
}

fn request(id: u64) -> Word {
    let request = Request { client: "c".into(), request_id: format!("r{id}"), deadline_ms: 0 };
    Word::Request(request.key())
}

/// Words that stand often, seldom, once and nowhere.
fn words(size: u64) -> Vec<Word> {
    let mut words = vec![
        Word::Kind(Kind::Noop),
        Word::Kind(Kind::Proposal),
        Word::Kind(Kind::Epoch),
        Word::Origin(NodeId([1; 32])),
        Word::Origin(NodeId([9; 32])),
        Word::Granted(Epoch(0), 2),
        Word::Granted(Epoch(size / 1_000), 4),
        Word::Denied(Epoch(1), 0),
        Word::Denied(Epoch(1), 77),
        Word::Key(Key::Config("k3".into())),
        Word::Key(Key::Agent("k3".into())),
        Word::Key(Key::Config("none".into())),
    ];
    words.extend([1, 3, size / 2, size - 1, size].map(request));
    words.extend([2, size / 3, size - 2].map(|i| Word::Key(Key::Config(format!("once{i}")))));
    words
}

fn spread(found: Found) -> impl DoubleEndedIterator<Item = u64> {
    found.first.0..=found.last.0
}

fn ascending(store: &Store, word: &Word, from: u64, to: u64) -> Vec<u64> {
    let mut lookup = store.lookup(word, LogIndex(from), LogIndex(to));
    let (mut all, mut at) = (Vec::new(), LogIndex(from));
    while let Some(found) = lookup.next_from(at).unwrap() {
        all.extend(spread(found));
        at = found.last.next();
    }
    all
}

fn descending(store: &Store, word: &Word, from: u64, to: u64) -> Vec<u64> {
    let mut lookup = store.lookup(word, LogIndex(from), LogIndex(to));
    let (mut all, mut at) = (Vec::new(), LogIndex(to));
    while let Some(found) = lookup.last_upto(at).unwrap() {
        all.extend(spread(found).rev());
        if found.first.0 <= 1 {
            break;
        }
        at = found.first.prev();
    }
    all
}

/// Compares everything that the index says of entries from `from` on with the log itself; words of bodies from `bodies` on.
#[track_caller]
fn check(store: &Store, log: &[Arc<Entry>], from: u64, bodies: u64) {
    let size = store.archived();
    for word in words(size) {
        let known = if word.is_of_header() { from } else { bodies };
        assert_eq!(store.indexed_from(&word), LogIndex(known), "{word:?}");
        for (first, last) in [(known, size), (known + 100, size - 70), (size - 3, size), (size, size)] {
            let here = |e: &&Arc<Entry>| (first..=last).contains(&e.index().0) && bears(e, &word);
            let expected: Vec<u64> = log.iter().filter(here).map(|e| e.index().0).collect();
            assert_eq!(ascending(store, &word, first, last), expected, "{word:?} from {first} to {last}");
            let found: Vec<u64> = descending(store, &word, first, last).into_iter().rev().collect();
            assert_eq!(found, expected, "{word:?} from {first} to {last}, backwards");
        }
    }
}

/// A store of these entries, certified, archived in uneven pieces.
fn filled(dir: &Path, log: &[Arc<Entry>]) -> Driver {
    let mut driver = create(dir);
    grow(&mut driver, log);
    driver
}

fn create(dir: &Path) -> Driver {
    let mut driver = Driver::create(dir);
    driver.write(Write { hard: Some(vote(1, 1)), ..Write::default() }).unwrap();
    driver
}

fn grow(driver: &mut Driver, log: &[Arc<Entry>]) {
    for block in log[driver.store.last_index().0 as usize..].chunks(50) {
        driver.write(append(block.to_vec())).unwrap();
    }
    driver.write(Write { certificate: Some(certificate(log)), ..Write::default() }).unwrap();
    for part in log[driver.store.archived() as usize..].chunks(777) {
        driver.store.archive(part).unwrap();
    }
}

fn compact(store: &Store, log: &[Arc<Entry>], upto: u64) -> u64 {
    if store.snapshots().iter().all(|m| m.index.0 < upto) {
        take(store, &image(&log[..upto as usize], 10));
    }
    loop {
        let done = store.compact(LogIndex(upto)).unwrap();
        if !done.more {
            return done.base.0;
        }
    }
}

fn raw(dir: &Path) -> (sled::Db, sled::Tree) {
    let db = model::raw(dir);
    let tree = db.open_tree("postings").unwrap();
    (db, tree)
}

fn heads(dir: &Path) -> Vec<(u8, u64)> {
    let (_db, tree) = raw(dir);
    let key = |key: sled::IVec| (key[1], u64::from_be_bytes(key[2..].try_into().unwrap()));
    tree.range([0]..[1]).keys().map(|k| key(k.unwrap())).collect()
}

#[test]
fn every_word_is_found_where_it_stands_through_merges_and_restarts() {
    let (_temp, dir) = place();
    let log = entries(1, 9_000);
    let mut driver = create(&dir);
    for size in [200, 255, 256, 1_000, 4_095, 4_500, 9_000] {
        grow(&mut driver, &log[..size]);
        check(&driver.store, &log[..size], 1, 1);
        driver.close();
        let (again, found) = Driver::open(&dir);
        assert_eq!((found.report.derived, found.report.searchable), (0, LogIndex(1)), "at {size}");
        check(&again.store, &log[..size], 1, 1);
        driver = again;
    }
    driver.close();
    let heads = heads(&dir);
    let levels = |level| heads.iter().filter(|(l, _)| *l == level).count();
    assert_eq!(levels(1), 2, "{heads:?}");
    assert!(levels(0) < 16 + 3, "{heads:?}");
}

#[test]
fn a_long_log_is_a_few_runs_and_what_they_stand_for_is_deleted() {
    let (_temp, dir) = place();
    let log = entries(1, 70_000);
    let driver = filled(&dir, &log);
    for word in words(70_000).into_iter().step_by(3) {
        let expected: Vec<u64> = log.iter().filter(|e| bears(e, &word)).map(|e| e.index().0).collect();
        assert_eq!(ascending(&driver.store, &word, 1, 70_000), expected, "{word:?}");
    }
    let once = log[40_000..].iter().find(|e| e.body.request.as_ref().is_some_and(|r| r.request_id.len() == 6)).unwrap();
    let asked = once.body.request.as_ref().unwrap();
    let mut lookup = driver.store.lookup(&Word::Request(asked.key()), LogIndex(1), LogIndex(70_000));
    let found = lookup.next_from(LogIndex(1)).unwrap().unwrap();
    assert_eq!((found.first, found.last), (once.index(), once.index()));
    assert_eq!(deadline_of(found.note, once.header.proposed_at), asked.deadline_ms);
    assert!(lookup.reads() <= 2, "{} rows read within one run", lookup.reads());
    drop(lookup);
    driver.close();
    let (db, tree) = raw(&dir);
    assert!(tree.range([0]..[1]).count() < 2 * 16 + 3, "{} runs", tree.range([0]..[1]).count());
    let rows: Vec<usize> = tree.range([1]..).map(|row| row.unwrap().1.len()).collect();
    let bytes = rows.iter().sum::<usize>();
    assert!(bytes < 30 * 70_000, "{} bytes in {} rows", bytes, rows.len());
    drop((db, tree));
    let (driver, found) = Driver::open(&dir);
    assert_eq!(found.report.derived, 0);
    check(&driver.store, &log, 1, 1);
}

#[test]
fn a_lookup_goes_on_while_the_log_grows_and_is_merged_and_compacted() {
    let (_temp, dir) = place();
    let log = entries(1, 9_000);
    let mut driver = filled(&dir, &log[..4_000]);
    let word = Word::Key(Key::Config("k3".into()));
    let mut lookup = driver.store.lookup(&word, LogIndex(1), LogIndex(4_000));
    let mut at = lookup.next_from(LogIndex(1)).unwrap().unwrap().last.next();
    grow(&mut driver, &log);
    compact(&driver.store, &log, 8_000);
    let mut rest = BTreeSet::new();
    while let Some(found) = lookup.next_from(at).unwrap() {
        rest.extend(spread(found));
        at = found.last.next();
    }
    let expected: Vec<u64> = log[..4_000].iter().filter(|e| bears(e, &word)).map(|e| e.index().0).collect();
    assert_eq!(rest.into_iter().collect::<Vec<_>>(), expected[1..]);
}

#[test]
fn words_of_pruned_bodies_are_kept_for_ever() {
    let (_temp, dir) = place();
    let log = entries(1, 5_000);
    let mut driver = filled(&dir, &log[..700]);
    for (size, upto) in [(700, 300), (700, 650), (701, 690), (800, 701), (1_100, 1_090), (5_000, 4_990)] {
        grow(&mut driver, &log[..size]);
        let base = compact(&driver.store, &log[..size], upto);
        assert!(base + 50 > upto, "{base}");
        check(&driver.store, &log[..size], 1, 1);
        driver.close();
        let (again, found) = Driver::open(&dir);
        assert_eq!((found.report.base.0, found.report.searchable), (base, LogIndex(1)));
        check(&again.store, &log[..size], 1, 1);
        driver = again;
    }
}

#[test]
fn a_missing_index_is_made_again_and_says_what_it_cannot_know() {
    let (_temp, dir) = place();
    let log = entries(1, 5_000);
    let driver = filled(&dir, &log);
    driver.close();
    raw(&dir).1.clear().unwrap();
    let (driver, found) = Driver::open(&dir);
    assert_eq!((found.report.derived, found.report.searchable), (5_000 / 256, LogIndex(1)));
    check(&driver.store, &log, 1, 1);
    let base = compact(&driver.store, &log, 4_444);
    driver.close();
    raw(&dir).1.clear().unwrap();
    let (mut driver, found) = Driver::open(&dir);
    assert_eq!(found.report.searchable, LogIndex(base + 1));
    check(&driver.store, &log, 1, base + 1);
    // It stays so, and what comes after is whole.
    let log = entries(1, 9_000);
    grow(&mut driver, &log);
    check(&driver.store, &log, 1, base + 1);
    let later = compact(&driver.store, &log, 8_000);
    driver.close();
    let (driver, found) = Driver::open(&dir);
    assert_eq!((found.report.base.0, found.report.searchable), (later, LogIndex(base + 1)));
    check(&driver.store, &log, 1, base + 1);
}

#[test]
fn a_change_of_any_record_is_found_and_made_good_as_far_as_headers_and_log_reach() {
    let (temp, dir) = place();
    let log = entries(1, 4_700);
    let driver = filled(&dir, &log);
    let base = compact(&driver.store, &log, 4_500);
    driver.close();
    let mut rows: Vec<_> = raw(&dir).1.iter().map(|row| row.unwrap()).collect();
    // Rows of merged runs that are still to be deleted are nobody's loss.
    let live: Vec<_> = rows.iter().filter(|(key, _)| key[0] == 0).map(|(_, value)| value[5..13].to_vec()).collect();
    rows.retain(|(key, _)| key[0] == 0 || live.iter().any(|id| *id == key[1..9]));
    let mut dice = Dice(3);
    for n in 0..24 {
        let bad = temp.path().join(format!("bad{n}"));
        model::copy(&dir, &bad);
        let (key, value) = &rows[if n < 6 { n % rows.len() } else { dice.below(rows.len()) }];
        let head = key[0] == 0;
        {
            let (_db, tree) = raw(&bad);
            let mut changed = value.to_vec();
            let at = dice.below(changed.len());
            changed[at] ^= 1 << dice.below(8);
            match n % 3 {
                0 => drop(tree.remove(key).unwrap()),
                _ => drop(tree.insert(key, changed).unwrap()),
            }
        }
        let (driver, found) = Driver::open(&bad);
        assert!(found.report.derived > 0, "record {key:?} was changed ({head})");
        let searchable = found.report.searchable.0;
        assert!(searchable <= base + 1, "{searchable}");
        check(&driver.store, &log, 1, searchable);
        driver.close();
        let (driver, again) = Driver::open(&bad);
        assert_eq!((again.report.derived, again.report.searchable), (0, found.report.searchable));
        check(&driver.store, &log, 1, searchable);
    }
}

#[test]
fn what_an_interrupted_merge_left_is_deleted() {
    let (temp, dir) = place();
    let log = entries(1, 4_400);
    let driver = filled(&dir, &log[..4_090]);
    driver.close();
    let before = temp.path().join("before");
    model::copy(&dir, &before);
    let (mut driver, _) = Driver::open(&dir);
    grow(&mut driver, &log);
    driver.close();
    // The merged run is there, and so are those that it stands for; and rows that nothing names.
    let old: Vec<_> = raw(&before).1.iter().map(|row| row.unwrap()).collect();
    {
        let (_db, tree) = raw(&dir);
        old.iter().for_each(|(key, value)| drop(tree.insert(key, value).unwrap()));
        let mut key = [1; 33];
        key[1..9].copy_from_slice(&77_u64.to_be_bytes());
        tree.insert(key, b"left").unwrap();
    }
    let (mut driver, found) = Driver::open(&dir);
    assert_eq!((found.report.derived, found.report.searchable), (0, LogIndex(1)));
    check(&driver.store, &log, 1, 1);
    let log = entries(1, 5_200);
    grow(&mut driver, &log);
    check(&driver.store, &log, 1, 1);
    driver.close();
    let (_db, tree) = raw(&dir);
    for (key, _) in &old {
        assert_eq!(tree.get(key).unwrap(), None, "{key:?}");
    }
    assert!(tree.range([1, 0, 0, 0, 0, 0, 0, 0, 77]..[1, 0, 0, 0, 0, 0, 0, 0, 78]).next().is_none());
}

#[test]
fn after_a_snapshot_the_index_begins_there_and_old_headers_are_filled_in_in_any_order() {
    let (_temp, dir) = place();
    let log = entries(1, 9_000);
    let mut driver = filled(&dir, &log[..300]);
    take(&driver.store, &image(&log[..5_000], 10));
    driver.write(Write { base: Some(base(&log[..5_000])), ..Write::default() }).unwrap();
    let from = 5_000 - 5_000 % 256 + 1;
    assert_eq!(driver.store.headers_from(), LogIndex(from));
    grow(&mut driver, &log[..9_000]);
    check(&driver.store, &log, from, 5_001);
    driver.close();
    let (driver, found) = Driver::open(&dir);
    assert_eq!(found.report.searchable, LogIndex(5_001));
    check(&driver.store, &log, from, 5_001);

    let headers: Vec<Header> = log.iter().map(|e| e.header.clone()).collect();
    let refused = driver.store.index_headers(&headers[256..500]);
    assert!(matches!(refused, Err(ReadError::Gap { .. })), "{refused:?}");
    let refused = driver.store.index_headers(&headers[100..356]);
    assert!(matches!(refused, Err(ReadError::Gap { .. })), "{refused:?}");
    let tiles: Vec<&[Header]> = headers[..from as usize - 1].chunks(256).collect();
    for tile in tiles[10..].iter().rev().chain(&tiles[..9]).chain(&tiles[..10]) {
        driver.store.index_headers(tile).unwrap();
    }
    check(&driver.store, &log, 1, 5_001);
    driver.close();
    let (driver, _) = Driver::open(&dir);
    check(&driver.store, &log, 1, 5_001);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Grow(usize),
    Compact,
    Reopen,
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..1_500).prop_map(Step::Grow),
        2 => Just(Step::Compact),
        3 => Just(Step::Reopen),
        1 => Just(Step::Lose),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_index_is_that_of_the_log(steps in proptest::collection::vec(step(), 4..12)) {
        let (_temp, dir) = place();
        let all = entries(1, 20_000);
        let mut size = 150;
        let (mut driver, mut searchable) = (filled(&dir, &all[..size]), 1);
        for step in steps {
            match step {
                Step::Grow(by) => {
                    size += by;
                    grow(&mut driver, &all[..size]);
                }
                Step::Compact => drop(compact(&driver.store, &all[..size], size as u64 - 20)),
                Step::Reopen | Step::Lose => {
                    driver.close();
                    if matches!(step, Step::Lose) {
                        raw(&dir).1.clear().unwrap();
                    }
                    let (again, found) = Driver::open(&dir);
                    if matches!(step, Step::Lose) {
                        searchable = found.report.base.0 + 1;
                    }
                    driver = again;
                }
            }
            check(&driver.store, &all[..size], 1, searchable);
        }
    }
}

/// No digest is that of a request.
#[test]
fn a_word_that_nothing_bears_is_found_nowhere() {
    let (_temp, dir) = place();
    let driver = filled(&dir, &entries(1, 600));
    assert_eq!(ascending(&driver.store, &Word::Request(Digest::ZERO), 1, 600), [0_u64; 0]);
    assert_eq!(
        driver.store.lookup(&Word::Kind(Kind::Noop), LogIndex(9), LogIndex(3)).next_from(LogIndex(1)).unwrap(),
        None
    );
}
