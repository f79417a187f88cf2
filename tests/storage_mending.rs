//! Records that went bad are mended when certificates prove what belongs there, and only then.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::{Entry, Kind};
use concordat::core::Write;
use concordat::ids::LogIndex;
use concordat::limits::SNAPSHOT_CHUNK;
use concordat::storage::{Loss, MendError, Mending, OpenError, Store, Wound};
use model::{Driver, append, certificate, copy, entries, image, take, unproposed, vote};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

fn history() -> Vec<Arc<Entry>> {
    let mut log = vec![unproposed(1, 1, Kind::Noop)];
    log.extend(entries(2, 298, 1, 0, 30));
    log.extend([unproposed(300, 2, Kind::Noop), unproposed(301, 2, Kind::Epoch), unproposed(302, 2, Kind::EpochFinal)]);
    log.extend(entries(303, 398, 2, 0, 30));
    log
}

/// Closed: 700 entries in blocks of ten, certified up to 690, and compacted up to 300 if asked.
fn filled(compacted: bool) -> (TempDir, PathBuf, Vec<Arc<Entry>>) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let log = history();
    let mut driver = Driver::create(&dir);
    driver.write(Write { hard: Some(vote(2, 1)), ..append(log[..10].to_vec()) }).unwrap();
    for block in log[10..].chunks(10) {
        driver.write(append(block.to_vec())).unwrap();
    }
    for size in [300, 690] {
        driver.write(Write { certificate: Some(certificate(&log[..size])), ..Write::default() }).unwrap();
    }
    driver.store.archive(&log[..690]).unwrap();
    if compacted {
        take(&driver.store, &image(&log[..600], 2 * SNAPSHOT_CHUNK));
        while driver.store.compact(LogIndex(600)).unwrap().more {}
    }
    driver.close();
    (temp, dir, log)
}

/// Changes one record behind the store's back.
fn change(dir: &Path, tree: &str, key: &[u8], change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
    let db = model::raw(dir);
    let tree = db.open_tree(tree).unwrap();
    let old = tree.get(key).unwrap().expect("the record is there").to_vec();
    match change(old) {
        Some(new) => tree.insert(key, new).unwrap(),
        None => tree.remove(key).unwrap(),
    };
    db.flush().unwrap();
}

fn flip(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Some(bytes)
}

fn number(n: u64) -> [u8; 8] {
    n.to_be_bytes()
}

fn wounds(dir: &Path) -> Vec<Wound> {
    match Store::open(dir) {
        Err(OpenError::Mendable { wounds, .. }) => wounds,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it opened"),
    }
}

fn gap(first: u64, last: u64) -> Wound {
    Wound::Entries { first: LogIndex(first), last: LogIndex(last) }
}

fn give(mending: &mut Mending, log: &[Arc<Entry>], first: u64, last: u64) -> Result<(), MendError> {
    mending.give_entries(LogIndex(first), log[first as usize - 1..last as usize].to_vec())
}

/// It opens, and holds what it held.
fn check(dir: &Path, log: &[Arc<Entry>]) {
    let (driver, found) = Driver::open(dir);
    assert_eq!((found.last_index, found.restored.hard.clone()), (LogIndex(700), vote(2, 1)));
    let base = driver.store.base();
    assert_eq!(driver.store.read(base.next(), LogIndex(700), usize::MAX).unwrap(), log[base.0 as usize..]);
    driver.close();
}

#[test]
fn blocks_that_certificates_cover_are_put_back() {
    for gone in [false, true] {
        let (_temp, dir, log) = filled(false);
        for at in [1, 211, 221, 401] {
            change(&dir, "log", &number(at), |old| if gone { None } else { flip(old) });
        }
        let found = wounds(&dir);
        assert_eq!(found, [gap(1, 10), gap(211, 230), gap(401, 410)]);
        let refused = Store::open(&dir).err().unwrap().to_string();
        assert!(refused.contains("entries 211 to 230") && refused.contains("concordat serve"), "{refused}");
        let mut mending = Mending::begin(&dir).unwrap();
        assert_eq!(mending.wounds(), found);
        for (first, last) in [(1, 10), (211, 230), (401, 410)] {
            give(&mut mending, &log, first, last).unwrap();
        }
        mending.finish().unwrap();
        drop(mending);
        check(&dir, &log);
    }
}

#[test]
fn other_entries_are_refused_and_nothing_is_written() {
    let (_temp, dir, log) = filled(false);
    change(&dir, "log", &number(211), flip);
    let mut mending = Mending::begin(&dir).unwrap();
    assert!(matches!(give(&mut mending, &log, 211, 219), Err(MendError::Unproved { .. })), "too few");
    assert!(matches!(mending.give_entries(LogIndex(211), log[300..310].to_vec()), Err(MendError::Unproved { .. })));
    mending.give_entries(LogIndex(211), entries(211, 10, 1, 7, 30)).unwrap();
    let refused = mending.finish();
    assert!(matches!(&refused, Err(MendError::Unproved { wound }) if *wound == gap(211, 220)), "{refused:?}");
    drop(mending);
    assert_eq!(wounds(&dir), [gap(211, 220)], "as it was");
    let mut mending = Mending::begin(&dir).unwrap();
    give(&mut mending, &log, 211, 220).unwrap();
    mending.finish().unwrap();
    drop(mending);
    check(&dir, &log);
}

#[test]
fn a_log_that_was_mended_in_part_is_mended_in_the_end() {
    let (temp, dir, log) = filled(false);
    let intact = temp.path().join("intact");
    copy(&dir, &intact);
    let db = model::raw(&intact);
    let block = db.open_tree("log").unwrap().get(number(211)).unwrap().unwrap().to_vec();
    drop(db);
    for at in [211, 221, 401] {
        change(&dir, "log", &number(at), flip);
    }
    // The first of three was durable when the process was gone.
    change(&dir, "log", &number(211), |_| Some(block));
    assert_eq!(wounds(&dir), [gap(221, 230), gap(401, 410)]);
    let mut mending = Mending::begin(&dir).unwrap();
    give(&mut mending, &log, 221, 230).unwrap();
    give(&mut mending, &log, 401, 410).unwrap();
    mending.finish().unwrap();
    drop(mending);
    check(&dir, &log);
}

#[test]
fn what_no_certificate_covers_is_not_mended() {
    let damaged = |prepare: &dyn Fn(&Path)| {
        let (_temp, dir, _) = filled(false);
        prepare(&dir);
        match Store::open(&dir) {
            Err(OpenError::Damaged { .. }) => {}
            Err(OpenError::Quarantined { loss, .. }) => assert!(matches!(loss, Loss::Entries { .. }), "{loss}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it opened"),
        }
        assert!(Mending::begin(&dir).map_or(true, |mending| mending.wounds().is_empty()));
    };
    damaged(&|dir| change(dir, "log", &number(691), flip));
    damaged(&|dir| change(dir, "log", &number(691), |_| None));
    // Below the end of the log, but above what is certified.
    damaged(&|dir| {
        change(dir, "certificates", &number(690), |_| None);
        change(dir, "log", &number(401), flip);
    });
    // One block too many that nothing proves, beside one that is proved.
    damaged(&|dir| {
        change(dir, "log", &number(211), flip);
        change(dir, "log", &number(691), flip);
    });
    // A certificate of something else.
    let (_temp, dir, log) = filled(false);
    change(&dir, "certificates", &number(690), |_| {
        let other = [&log[..680], &entries(681, 10, 2, 5, 30)[..]].concat();
        Some(certificate(&other).encode())
    });
    change(&dir, "log", &number(211), flip);
    let mut mending = Mending::begin(&dir).unwrap();
    give(&mut mending, &log, 211, 220).unwrap();
    assert!(matches!(mending.finish(), Err(MendError::Other)));
}

#[test]
fn votes_terms_and_the_watermark_are_never_mended() {
    for (tree, key) in [("hard", &b"state"[..]), ("hard", b"commits"), ("meta", b"bls"), ("meta", b"base")] {
        let (_temp, dir, _) = filled(false);
        change(&dir, tree, key, |_| None);
        change(&dir, "log", &number(211), flip);
        assert!(matches!(Store::open(&dir), Err(OpenError::Damaged { .. } | OpenError::Quarantined { .. })));
    }
    let (_temp, dir, log) = filled(false);
    let mark = std::fs::read(dir.join("watermark")).unwrap();
    change(&dir, "log", &number(211), flip);
    let mut mending = Mending::begin(&dir).unwrap();
    give(&mut mending, &log, 211, 220).unwrap();
    mending.finish().unwrap();
    drop(mending);
    assert_eq!(std::fs::read(dir.join("watermark")).unwrap(), mark);
}

#[test]
fn records_below_the_log_are_put_back() {
    let (temp, dir, log) = filled(true);
    let chunk = [&number(600)[..], &[0, 0, 0, 1]].concat();
    change(&dir, "kept", &number(300), flip);
    change(&dir, "kept", &number(301), |_| None);
    change(&dir, "headers", &number(65), flip);
    change(&dir, "snapshots", &chunk, flip);
    change(&dir, "tiles", &[&[0][..], &number(0)].concat(), |_| None);
    let first = wounds(&dir);
    let expected = [
        Wound::Headers { first: LogIndex(1) },
        Wound::Kept { index: LogIndex(300) },
        Wound::Kept { index: LogIndex(301) },
        Wound::Chunk { snapshot: LogIndex(600), number: 1 },
    ];
    assert_eq!(first, expected);
    let mut mending = Mending::begin(&dir).unwrap();
    let headers: Vec<Vec<u8>> = log[..256].iter().map(|e| e.header.encode()).collect();
    let mut other = headers.clone();
    other.swap(0, 1);
    assert!(matches!(mending.give_headers(LogIndex(1), &other), Err(MendError::Unproved { .. })));
    assert!(matches!(mending.give_headers(LogIndex(257), &headers), Err(MendError::Unproved { .. })));
    mending.give_headers(LogIndex(1), &headers).unwrap();
    assert!(matches!(mending.give_kept(&unproposed(300, 1, Kind::Noop)), Err(MendError::Unproved { .. })));
    mending.give_kept(&log[299]).unwrap();
    mending.give_kept(&log[300]).unwrap();
    let (manifest, chunks) = image(&log[..600], 2 * SNAPSHOT_CHUNK);
    let path = {
        let (proved, found) = (temp.path().join("proved"), Driver::create(&temp.path().join("proved")));
        take(&found.store, &(manifest, chunks.clone()));
        drop(proved);
        found.store.chunk(LogIndex(600), 1).unwrap().unwrap().1
    };
    assert!(matches!(mending.give_chunk(LogIndex(600), 1, &chunks[0], &path), Err(MendError::Unproved { .. })));
    mending.give_chunk(LogIndex(600), 1, &chunks[1], &path).unwrap();
    mending.finish().unwrap();
    drop(mending);
    check(&dir, &log);
    let (driver, _) = Driver::open(&dir);
    for entry in &log {
        assert_eq!(driver.store.header(entry.index()).unwrap().as_ref(), Some(&entry.header));
    }
    assert_eq!(driver.store.entry(LogIndex(301)).unwrap().as_ref(), Some(&log[300]));
}
