//! Compaction: the log begins later, and everything that auditors come for stays.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::merkle;
use concordat::certificate::{Entry, Kind};
use concordat::core::Write;
use concordat::ids::{LogIndex, Term};
use concordat::storage::{CompactError, Damage, Keep, OpenError, ReadError, RestoreError, Store};
use model::{Driver, append, certificate, copy, entries, image, take, tree, unproposed, vote};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    (temp, dir)
}

fn history() -> Vec<Arc<Entry>> {
    let mut log = vec![unproposed(1, 1, Kind::Noop)];
    log.extend(entries(2, 298, 1, 0, 30));
    log.extend([unproposed(300, 2, Kind::Noop), unproposed(301, 2, Kind::Epoch), unproposed(302, 2, Kind::EpochFinal)]);
    log.extend(entries(303, 398, 2, 0, 30));
    log
}

/// The whole history in blocks of ten, certified up to 690, with a snapshot at 650.
fn filled(dir: &Path) -> (Driver, Vec<Arc<Entry>>) {
    let log = history();
    let mut driver = Driver::create(dir);
    driver.write(Write { hard: Some(vote(2, 1)), ..append(log[..10].to_vec()) }).unwrap();
    for block in log[10..].chunks(10) {
        driver.write(append(block.to_vec())).unwrap();
    }
    for size in [300, 690] {
        driver.write(Write { certificate: Some(certificate(&log[..size])), ..Write::default() }).unwrap();
    }
    driver.store.archive(&log[..690]).unwrap();
    take(&driver.store, &image(&log[..650], 1000));
    (driver, log)
}

fn compact(store: &Store, upto: u64) -> LogIndex {
    loop {
        let done = store.compact(LogIndex(upto)).unwrap();
        if !done.more {
            return done.base;
        }
    }
}

/// What must hold whatever the log's base is.
fn check(store: &Store, log: &[Arc<Entry>]) {
    let base = store.base();
    assert_eq!(store.last_index(), LogIndex(700));
    assert_eq!(store.read(base.next(), LogIndex(700), usize::MAX).unwrap(), log[base.0 as usize..]);
    for entry in log {
        let index = entry.index();
        assert_eq!(store.header(index).unwrap().as_ref(), Some(&entry.header), "{index}");
        let (header, body) = store.record(index).unwrap().unwrap();
        let pruned = index <= base && entry.header.kind == Kind::Proposal;
        assert_eq!((header, body), (entry.header.clone(), (!pruned).then(|| entry.body.clone())), "{index}");
        match store.entry(index) {
            Ok(found) => assert_eq!((found.as_ref(), pruned), (Some(entry), false)),
            Err(ReadError::Compacted { .. }) => assert!(pruned, "{index}"),
            Err(e) => panic!("{index}: {e}"),
        }
        if let Some(id) = entry.header.proposal_id.filter(|_| index.0 <= 690) {
            assert_eq!(store.index_of(&id).unwrap(), Some(index));
        }
    }
    for (leaf, size) in [(0, 690), (255, 300), (299, 690), (600, 690), (689, 690), (10, 300)] {
        let path = store.inclusion_path(leaf, size).unwrap();
        let root = tree(&log[..size as usize]).root();
        assert_eq!(merkle::root_from_path(log[leaf as usize].header.leaf_hash(), leaf, size, &path), Some(root));
    }
    let sizes: Vec<u64> = store.certificates(0, 9).unwrap().iter().map(|c| c.head.size).collect();
    assert_eq!(sizes, [300, 690]);
}

#[test]
fn payloads_go_and_headers_certificates_and_other_bodies_stay() {
    let (_temp, dir) = place();
    let (mut driver, log) = filled(&dir);
    for (upto, base) in [(9, 0), (10, 10), (255, 250), (300, 300), (301, 300), (649, 640), (650, 650)] {
        assert_eq!(compact(&driver.store, upto), LogIndex(base), "up to {upto}");
        check(&driver.store, &log);
        driver.close();
        let (again, found) = Driver::open(&dir);
        assert_eq!((found.report.base, found.report.entries), (LogIndex(base), 700 - base));
        assert_eq!(found.report.derived, 0, "nothing had to be made again");
        assert_eq!(
            (found.restored.compacted, &found.restored.frontier),
            (LogIndex(base), &tree(&log[..base as usize]))
        );
        assert_eq!([&found.restored.epochs[..], &[]].concat().len(), if base > 301 { 2 } else { 0 });
        assert_eq!(found.restored.tail, log[base as usize..]);
        let terms = [(LogIndex(1), Term(1)), (LogIndex(300), Term(2))];
        let known = if base == 0 {
            0
        } else if base < 300 {
            1
        } else {
            2
        };
        assert_eq!(found.restored.terms, terms[..known]);
        driver = again;
        check(&driver.store, &log);
    }
    // The log goes on, is cut, and certified.
    let mut log = log;
    log.truncate(695);
    log.extend(entries(696, 5, 3, 1, 30));
    driver.write(Write { hard: Some(vote(3, 1)), ..append(log[695..].to_vec()) }).unwrap();
    check(&driver.store, &log);
    driver.close();
    let (driver, _) = Driver::open(&dir);
    check(&driver.store, &log);
}

#[test]
fn nothing_goes_that_no_snapshot_and_certificate_stands_for() {
    let (_temp, dir) = place();
    let (driver, log) = filled(&dir);
    let refused = driver.store.compact(LogIndex(651));
    assert!(matches!(refused, Err(CompactError::NoSnapshot { upto: LogIndex(651) })), "{refused:?}");
    take(&driver.store, &image(&log[..695], 10));
    let refused = driver.store.compact(LogIndex(695));
    assert!(matches!(refused, Err(CompactError::NotCertified { certified: LogIndex(690), .. })), "{refused:?}");
    take(&driver.store, &image(&log, 10));
    driver.store.stage(&image(&log[..698], 10).0).unwrap();
    assert_eq!(driver.store.drop_snapshots_below(LogIndex(999)).unwrap(), 3);
    assert_eq!(compact(&driver.store, 650), LogIndex(650));
    check(&driver.store, &log);
}

#[test]
fn a_log_that_was_compacted_is_cut_without_what_went() {
    let (_temp, dir) = place();
    let (mut driver, mut log) = filled(&dir);
    compact(&driver.store, 650);
    // By the committer that has known the log from its beginning.
    log.truncate(695);
    log.extend(entries(696, 5, 3, 1, 30));
    driver.write(Write { hard: Some(vote(3, 1)), ..append(log[695..].to_vec()) }).unwrap();
    check(&driver.store, &log);
    driver.close();
    let (driver, found) = Driver::open(&dir);
    assert_eq!(found.restored.tail, log[650..]);
    check(&driver.store, &log);
}

#[test]
fn a_log_that_rests_on_no_snapshot_is_refused() {
    let (temp, dir) = place();
    let (driver, _) = filled(&dir);
    compact(&driver.store, 650);
    driver.close();
    let damaged = |tree: &str, key: &[u8], change: &dyn Fn(Vec<u8>) -> Option<Vec<u8>>| {
        let bad = temp.path().join("bad");
        drop(std::fs::remove_dir_all(&bad));
        copy(&dir, &bad);
        {
            let db = model::raw(&bad);
            let tree = db.open_tree(tree).unwrap();
            let old = tree.get(key).unwrap().expect("the record is there").to_vec();
            match change(old) {
                Some(new) => tree.insert(key, new).unwrap(),
                None => tree.remove(key).unwrap(),
            };
            db.flush().unwrap();
        }
        match Store::open(&bad) {
            Err(OpenError::Damaged { damage, .. }) => damage,
            Err(OpenError::Mendable { damage, .. }) => *damage,
            Ok(_) => panic!("it opened"),
            Err(other) => panic!("{other}"),
        }
    };
    let flip = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(bytes)
    };
    let number = |n: u64| n.to_be_bytes();
    let part = |n: u64| [&n.to_be_bytes()[..], &[0; 4]].concat();
    let found = damaged("snapshots", &part(650), &flip);
    assert!(matches!(found, Damage::NoSnapshot { base: LogIndex(650) }), "{found}");
    assert!(matches!(damaged("snapshots", &part(650), &|_| None), Damage::NoSnapshot { .. }));
    assert!(matches!(damaged("snapshots", &number(650), &flip), Damage::Record { tree: "snapshots", .. }));
    assert!(matches!(damaged("kept", &number(300), &flip), Damage::Kept { index: LogIndex(300) }));
    assert!(matches!(damaged("kept", &number(301), &|_| None), Damage::Kept { index: LogIndex(301) }));
    assert!(matches!(damaged("bases", &part(650), &flip), Damage::Record { tree: "bases", .. }));
    assert!(matches!(damaged("bases", &part(650), &|_| None), Damage::Record { tree: "bases", .. }));
    assert!(matches!(damaged("meta", b"base", &flip), Damage::Record { tree: "meta", .. }));
    assert!(matches!(damaged("meta", b"base", &|_| None), Damage::MissingRecord { record: "base", .. }));
    // Others that are whole: only the tree tells.
    let sealed = |_: Vec<u8>| {
        let body = unproposed(300, 1, Kind::Noop).encode();
        let mut sum = crc32fast::Hasher::new();
        sum.update(&number(300));
        sum.update(&body);
        Some([&sum.finalize().to_be_bytes()[..], &body].concat())
    };
    assert!(matches!(damaged("kept", &number(300), &sealed), Damage::Kept { index: LogIndex(300) }));
    let others = |_: Vec<u8>| {
        let headers = entries(65, 64, 1, 8, 30).iter().map(|e| e.header.encode()).collect::<Vec<_>>();
        Some(headers.iter().flat_map(|h| [&(h.len() as u16).to_be_bytes()[..], h].concat()).collect())
    };
    let found = damaged("headers", &number(65), &others);
    assert!(matches!(found, Damage::Headers { first: LogIndex(1), last: LogIndex(650) }), "{found}");
    let found = damaged("headers", &number(65), &flip);
    assert!(matches!(found, Damage::Headers { .. }), "{found}");
    let found = damaged("headers", &number(129), &|_| None);
    assert!(matches!(found, Damage::Headers { first: LogIndex(129), last: LogIndex(192) }), "{found}");
}

#[test]
fn tree_hashes_below_the_log_are_made_again_from_headers() {
    let (_temp, dir) = place();
    let (driver, log) = filled(&dir);
    compact(&driver.store, 650);
    driver.close();
    {
        let db = model::raw(&dir);
        db.open_tree("tiles").unwrap().clear().unwrap();
        db.flush().unwrap();
    }
    let (driver, found) = Driver::open(&dir);
    assert_eq!(found.report.derived, 2);
    check(&driver.store, &log);
}

#[test]
fn retention_by_bytes_and_age_keeps_at_least_what_it_says() {
    let (_temp, dir) = place();
    let (driver, log) = filled(&dir);
    let prunable = |bytes, age_ms| driver.store.prunable(Keep { bytes, age_ms }).unwrap().0;
    // With what a block of ten adds, or a little more.
    let bytes = |from: usize| log[from..].iter().map(|e| e.encode().len() as u64 + 8).sum::<u64>();
    for base in [0, 400] {
        compact(&driver.store, base);
        assert_eq!(prunable(None, None), 700);
        // By bytes: whole blocks of ten, and no more of them than it takes.
        assert_eq!(prunable(Some(1), None), 690);
        for from in [100, 450, 650] {
            let upto = prunable(Some(bytes(from)), None);
            let from = (from as u64).max(base);
            assert!(upto <= from && upto + 20 > from, "{from}: {upto}");
        }
        assert_eq!(prunable(Some(u64::MAX), None), base, "all of it is less");
        // By age, against the newest entry: terms are a million seconds apart, indexes a millisecond.
        assert_eq!(prunable(None, Some(0)), 699);
        assert_eq!(prunable(None, Some(100)), 599);
        assert_eq!(prunable(None, Some(700)), 299.max(base), "not one of the term before");
        assert_eq!(prunable(None, Some(1_000_000_000 + 500)), 199.max(base));
        assert_eq!(prunable(None, Some(u64::MAX)), base);
        // The lower of the two counts.
        assert_eq!(prunable(Some(1), Some(100)), 599);
        assert_eq!(prunable(Some(u64::MAX), Some(0)), base);
    }
}

#[test]
fn a_reader_that_holds_the_log_loses_nothing_of_it_until_it_lets_go() {
    let (_temp, dir) = place();
    let (driver, log) = filled(&dir);
    let store = &driver.store;
    assert_eq!(compact(store, 100), LogIndex(100));
    let (first, second) = (store.hold(), store.hold());
    assert_eq!((first.base(), first.terms()), (LogIndex(100), &[(LogIndex(1), Term(1))][..]));
    assert_eq!(first.snapshots().iter().map(|m| m.index).collect::<Vec<_>>(), [LogIndex(650)]);
    take(store, &image(&log[..670], 1000));
    assert_eq!(compact(store, 650), LogIndex(100), "nothing goes that a reader may still read");
    store.drop_snapshots_below(LogIndex(670)).unwrap();
    assert!(store.snapshot_reader(LogIndex(650)).is_some(), "nor a snapshot");
    check(store, &log);
    drop(first);
    assert_eq!(compact(store, 650), LogIndex(100), "while another one reads");
    drop(second);
    assert_eq!(compact(store, 650), LogIndex(650), "and then it does");
    store.drop_snapshots_below(LogIndex(670)).unwrap();
    assert!(store.snapshot_reader(LogIndex(650)).is_none());
    check(store, &log);
    driver.close();
}

#[test]
fn a_fresh_store_is_filled_with_what_compaction_would_have_left_and_a_used_one_never() {
    let (_temp, dir) = place();
    let (driver, log) = filled(&dir);
    let used = driver.store.fill(Default::default(), Vec::new(), 0);
    assert!(matches!(used, Err(RestoreError::NotFresh { last: LogIndex(700), .. })), "{used:?}");
    drop(used);
    driver.close();

    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    Store::create(&dir, model::DID, &model::key()).unwrap();
    let (store, _) = Store::open(&dir).unwrap();
    take(&store, &image(&log[..650], 1000));
    let mut filling = store.fill(Default::default(), Vec::new(), 0).unwrap();
    let gap = filling.entry(&log[1].header, Some(&log[1]));
    assert!(matches!(gap, Err(RestoreError::Gap { expected: LogIndex(1), .. })));
    for entry in &log[..650] {
        filling.entry(&entry.header, Some(entry)).unwrap();
        if entry.index() == LogIndex(300) {
            filling.certificate(&certificate(&log[..300])).unwrap();
        }
    }
    assert_eq!((filling.last(), filling.root()), (LogIndex(650), tree(&log[..650]).root()));
    filling.finish().unwrap();
    drop(store);
    let (mut driver, found) = Driver::open(&dir);
    assert_eq!((found.report.base, found.restored.hard.term, found.restored.hard.vote), (LogIndex(650), Term(2), None));
    driver.write(append(log[650..].to_vec())).unwrap();
    driver.write(Write { certificate: Some(certificate(&log[..690])), ..Write::default() }).unwrap();
    driver.store.archive(&log[650..690]).unwrap();
    check(&driver.store, &log);
    driver.close();
    let (driver, found) = Driver::open(&dir);
    assert_eq!((found.report.base, found.report.derived), (LogIndex(650), 0));
    check(&driver.store, &log);
    driver.close();
}
