//! Images of the applied state: taken in chunks, complete or not, and a log that begins after one.
#![allow(clippy::single_range_in_vec_init, reason = "what is missing is a list of ranges")]

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::merkle;
use concordat::certificate::{Entry, Kind};
use concordat::core::Write;
use concordat::ids::{LogIndex, Term};
use concordat::limits::SNAPSHOT_CHUNK;
use concordat::storage::{CommitError, ReadError, SnapshotError, Store};
use model::{Driver, append, base, certificate, copy, entries, image, take, tree, unproposed, vote};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    (temp, dir)
}

/// The history that the cluster agreed on: 700 entries, a change of members among them.
fn history() -> Vec<Arc<Entry>> {
    let mut log = vec![unproposed(1, 1, Kind::Noop)];
    log.extend(entries(2, 298, 1, 0, 30));
    log.extend([unproposed(300, 2, Kind::Noop), unproposed(301, 2, Kind::Epoch), unproposed(302, 2, Kind::EpochFinal)]);
    log.extend(entries(303, 398, 2, 0, 30));
    log
}

/// A store with an old log of its own, whose end is not part of the history.
fn stale(dir: &std::path::Path, log: &[Arc<Entry>]) -> Driver {
    let mut driver = Driver::create(dir);
    driver.write(Write { hard: Some(vote(1, 1)), ..append(log[..200].to_vec()) }).unwrap();
    driver.write(Write { certificate: Some(certificate(&log[..150])), ..Write::default() }).unwrap();
    driver.store.archive(&log[..150]).unwrap();
    driver.write(append(entries(201, 700, 1, 9, 200))).unwrap();
    driver
}

/// Everything that a store must say whose log begins after entry 600 and holds the rest of the history.
fn check_installed(store: &Store, log: &[Arc<Entry>]) {
    assert_eq!((store.base(), store.first_index(), store.last_index()), (LogIndex(600), LogIndex(601), LogIndex(700)));
    assert_eq!(store.headers_from(), LogIndex(513));
    assert_eq!(store.read(LogIndex(601), LogIndex(700), usize::MAX).unwrap(), log[600..]);
    let refused = store.read(LogIndex(600), LogIndex(700), usize::MAX);
    assert!(matches!(refused, Err(ReadError::Compacted { index: LogIndex(600), base: LogIndex(600) })), "{refused:?}");
    // Changes of members came with it; bodies of others did not.
    assert_eq!(store.entry(LogIndex(301)).unwrap().as_ref(), Some(&log[300]));
    assert!(matches!(store.entry(LogIndex(599)), Err(ReadError::Compacted { .. })));
    assert_eq!(store.record(LogIndex(599)).unwrap(), Some((log[598].header.clone(), None)));
    assert_eq!(store.header(LogIndex(513)).unwrap().as_ref(), Some(&log[512].header));
    let gone = store.header(LogIndex(512));
    assert!(matches!(gone, Err(ReadError::NotHere { index: LogIndex(512), from: LogIndex(513) })), "{gone:?}");
    store.archive(&log[..700]).unwrap();
    assert_eq!(store.root_at(700).unwrap(), tree(log).root());
    for leaf in [600, 601, 650, 699, 512, 599] {
        let path = store.inclusion_path(leaf, 700).unwrap();
        let hash = log[leaf as usize].header.leaf_hash();
        assert_eq!(merkle::root_from_path(hash, leaf, 700, &path), Some(tree(log).root()), "{leaf}");
    }
    assert!(matches!(store.inclusion_path(300, 700), Err(ReadError::NotHere { .. })));
    let id = log[599].header.proposal_id.unwrap();
    assert_eq!(store.index_of(&id).unwrap(), Some(LogIndex(600)), "in the unfinished tile");
}

#[test]
fn an_image_is_taken_in_any_order_and_goes_on_after_a_restart() {
    let (_temp, dir) = place();
    let (manifest, chunks) = image(&history(), 4 * SNAPSHOT_CHUNK + 9);
    let driver = Driver::create(&dir);
    assert_eq!(driver.store.stage(&manifest).unwrap(), [0..5]);
    for number in [3, 1] {
        driver.store.put_chunk(&manifest, number, &chunks[number as usize]).unwrap();
    }
    assert!(driver.store.snapshots().is_empty() && driver.store.snapshot_reader(manifest.index).is_none());
    let Err(SnapshotError::Missing { chunks: missing, .. }) = driver.store.complete(&manifest) else {
        panic!("complete")
    };
    assert_eq!(missing, [0, 2, 4]);
    driver.close();

    let (driver, _) = Driver::open(&dir);
    assert_eq!(driver.store.stage(&manifest).unwrap(), [0..1, 2..3, 4..5]);
    for number in [4, 0, 2] {
        driver.store.put_chunk(&manifest, number, &chunks[number as usize]).unwrap();
    }
    driver.store.complete(&manifest).unwrap();
    assert!(driver.store.stage(&manifest).unwrap().is_empty(), "nothing is missing");
    driver.close();
    let (driver, _) = Driver::open(&dir);
    assert_eq!(driver.store.snapshots(), std::slice::from_ref(&manifest));
    let mut all = Vec::new();
    driver.store.snapshot_reader(manifest.index).unwrap().read_to_end(&mut all).unwrap();
    assert_eq!(all, chunks.concat());
    for (number, chunk) in (0..).zip(&chunks) {
        let (bytes, path) = driver.store.chunk(manifest.index, number).unwrap().unwrap();
        assert!(bytes == *chunk && manifest.proves(number, &bytes, &path), "{number}");
    }
    assert_eq!(driver.store.chunk(manifest.index, 5).unwrap(), None);
}

#[test]
fn wrong_chunks_are_never_complete() {
    let (_temp, dir) = place();
    let (manifest, mut chunks) = image(&history(), 2 * SNAPSHOT_CHUNK);
    let driver = Driver::create(&dir);
    let store = &driver.store;
    assert!(matches!(store.put_chunk(&manifest, 0, &chunks[0]), Err(SnapshotError::NotStaged { .. })));
    store.stage(&manifest).unwrap();
    let short = store.put_chunk(&manifest, 0, &chunks[0][1..]);
    assert!(matches!(short, Err(SnapshotError::Length { number: 0, .. })), "{short:?}");
    assert!(matches!(store.put_chunk(&manifest, 2, &chunks[0]), Err(SnapshotError::Length { expected: 0, .. })));
    chunks[1][7] ^= 1;
    for (number, chunk) in (0..).zip(&chunks) {
        store.put_chunk(&manifest, number, chunk).unwrap();
    }
    assert!(matches!(store.complete(&manifest), Err(SnapshotError::Wrong { .. })));
    assert_eq!(store.stage(&manifest).unwrap(), [0..2], "all of it is fetched again");
    assert!(store.snapshots().is_empty());
}

#[test]
fn one_unfinished_image_gives_way_to_another_and_complete_ones_stay() {
    let (_temp, dir) = place();
    let log = history();
    let driver = Driver::create(&dir);
    let (kept, unfinished, next) = (image(&log[..100], 100), image(&log[..200], 3 * SNAPSHOT_CHUNK), image(&log, 100));
    take(&driver.store, &kept);
    driver.store.stage(&unfinished.0).unwrap();
    driver.store.put_chunk(&unfinished.0, 0, &unfinished.1[0]).unwrap();
    driver.store.stage(&next.0).unwrap();
    assert!(matches!(driver.store.complete(&unfinished.0), Err(SnapshotError::NotStaged { .. })));
    assert_eq!(driver.store.stage(&unfinished.0).unwrap(), [0..3], "its chunks are gone");
    let mut other = kept.0.clone();
    other.state.0[0] ^= 1;
    assert!(matches!(driver.store.stage(&other), Err(SnapshotError::Other { .. })));
    assert_eq!(driver.store.snapshots(), [kept.0]);
}

#[test]
fn images_below_are_dropped_but_never_the_last_one_to_start_from() {
    let (_temp, dir) = place();
    let log = history();
    let mut driver = Driver::create(&dir);
    driver.write(Write { hard: Some(vote(2, 1)), ..append(log.clone()) }).unwrap();
    let images: Vec<_> = [100, 200, 300].map(|at| image(&log[..at], 70_000)).into();
    images.iter().for_each(|i| take(&driver.store, i));
    assert_eq!(driver.store.drop_snapshots_below(LogIndex(200)).unwrap(), 1);
    assert_eq!(driver.store.drop_snapshots_below(LogIndex(700)).unwrap(), 1);
    assert_eq!(driver.store.snapshots(), [images[2].0.clone()]);
    driver.close();
    let (driver, found) = Driver::open(&dir);
    assert_eq!(found.snapshot.as_ref(), Some(&images[2].0));
    assert_eq!(driver.store.snapshots(), [images[2].0.clone()]);
}

#[test]
fn a_log_begins_after_an_installed_snapshot() {
    let (_temp, dir) = place();
    let log = history();
    let mut driver = stale(&dir, &log);
    take(&driver.store, &image(&log[..600], 200_000));
    let install = Write { hard: Some(vote(2, 1)), base: Some(base(&log[..600])), ..append(log[600..650].to_vec()) };
    driver.write(install).unwrap();
    driver.write(Write { certificate: Some(certificate(&log[..650])), ..append(log[650..].to_vec()) }).unwrap();
    check_installed(&driver.store, &log);
    driver.close();
    for _ in 0..2 {
        let (driver, found) = Driver::open(&dir);
        assert_eq!((found.restored.compacted, found.last_index), (LogIndex(600), LogIndex(700)));
        assert_eq!(found.restored.frontier, tree(&log[..600]));
        assert_eq!(found.restored.tail, log[600..]);
        assert_eq!(found.restored.terms, [(LogIndex(1), Term(1)), (LogIndex(300), Term(2))]);
        assert_eq!(found.restored.epochs, log[300..302]);
        assert_eq!(found.restored.last_proposed_at, log[599].header.proposed_at);
        assert_eq!(found.snapshot.unwrap().index, LogIndex(600));
        check_installed(&driver.store, &log);
        let sizes: Vec<u64> = driver.store.certificates(0, 9).unwrap().iter().map(|c| c.head.size).collect();
        assert_eq!(sizes, [150, 650], "certificates below stay");
        driver.close();
    }
}

#[test]
fn a_log_that_is_empty_after_an_install_opens_and_grows() {
    let (_temp, dir) = place();
    let log = history();
    let mut driver = stale(&dir, &log);
    take(&driver.store, &image(&log[..600], 100));
    driver.write(Write { hard: Some(vote(2, 1)), base: Some(base(&log[..600])), ..Write::default() }).unwrap();
    driver.close();
    let (mut driver, found) = Driver::open(&dir);
    assert_eq!(
        (found.last_index, found.report.base, found.report.watermark),
        (LogIndex(600), LogIndex(600), LogIndex(600))
    );
    assert!(found.restored.tail.is_empty() && found.restored.frontier == tree(&log[..600]));
    // A cut back to the very base, and a later one.
    driver.write(append(entries(601, 5, 2, 7, 10))).unwrap();
    driver.write(append(log[600..].to_vec())).unwrap();
    check_installed(&driver.store, &log);
    driver.close();
    let (driver, found) = Driver::open(&dir);
    assert_eq!(found.restored.tail, log[600..]);
    check_installed(&driver.store, &log);
}

#[test]
fn nothing_that_a_snapshot_stands_for_is_replaced() {
    let log = history();
    for reopen in [false, true] {
        let (_temp, dir) = place();
        let mut driver = stale(&dir, &log);
        take(&driver.store, &image(&log[..600], 100));
        driver
            .write(Write { hard: Some(vote(2, 1)), base: Some(base(&log[..600])), ..append(log[600..].to_vec()) })
            .unwrap();
        if reopen {
            driver.close();
            driver = Driver::open(&dir).0;
        }
        let refused = driver.write(append(entries(600, 5, 2, 5, 5))).unwrap_err();
        assert!(
            matches!(refused, CommitError::Committed { index: LogIndex(600), committed: LogIndex(600) }),
            "{reopen}: {refused}"
        );
    }
}

#[test]
fn only_a_complete_snapshot_of_the_same_history_is_installed() {
    let log = history();
    let refused = |prepare: &dyn Fn(&Store), with: Arc<concordat::core::Base>| {
        let (_temp, dir) = place();
        let mut driver = stale(&dir, &log);
        prepare(&driver.store);
        let error = driver.write(Write { base: Some(with), ..Write::default() }).unwrap_err();
        driver.close();
        let (driver, found) = Driver::open(&dir);
        assert_eq!((driver.store.base(), found.last_index), (LogIndex(0), LogIndex(900)), "{error}");
        error
    };
    let whole = image(&log[..600], 100);
    let error = refused(&|_| {}, base(&log[..600]));
    assert!(matches!(error, CommitError::NoSnapshot { index: LogIndex(600) }), "{error}");
    let staged = |store: &Store| drop(store.stage(&whole.0).unwrap());
    let error = refused(&staged, base(&log[..600]));
    assert!(matches!(error, CommitError::NoSnapshot { index: LogIndex(600) }), "{error}");
    let mut other = log.clone();
    other[5] = entries(6, 1, 1, 3, 3).pop().unwrap();
    let error = refused(&|store| take(store, &whole), base(&other[..600]));
    assert!(matches!(error, CommitError::OtherSnapshot { what: "tree root", .. }), "{error}");
    let error = refused(&|store| take(store, &image(&log[..100], 100)), base(&log[..100]));
    assert!(matches!(error, CommitError::Committed { index: LogIndex(101), committed: LogIndex(150) }), "{error}");
}

#[test]
fn a_watermark_of_the_old_log_over_the_new_one_is_a_lost_memory() {
    let (temp, dir) = place();
    let log = history();
    let driver = stale(&dir, &log);
    take(&driver.store, &image(&log[..600], 100));
    driver.close();
    let before = temp.path().join("before");
    copy(&dir, &before);
    let (mut driver, _) = Driver::open(&dir);
    driver.write(Write { hard: Some(vote(2, 1)), base: Some(base(&log[..600])), ..Write::default() }).unwrap();
    driver.close();
    // The old watermark over the new store, as when the power fails before it is raised.
    std::fs::copy(before.join("watermark"), dir.join("watermark")).unwrap();
    let error = Store::open(&dir).err().expect("the old one promises more");
    assert!(error.to_string().contains("its log ends at 600"), "which is why it is lowered first: {error}");
}

#[test]
fn nothing_that_a_snapshot_is_about_to_replace_is_shown() {
    let (_temp, dir) = place();
    let log = history();
    let driver = stale(&dir, &log);
    take(&driver.store, &image(&log[..600], 100));
    driver.close();
    let (store, _) = Store::open(&dir).unwrap();
    let (answer, answered) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    let committer = store.start(move |result| {
        answer.send(result.unwrap()).unwrap();
        // The thread stands still until it is told to go on.
        wait.recv().unwrap();
    });
    committer.submit(1, Write::default()).unwrap();
    assert_eq!((answered.recv().unwrap(), store.last_index()), (1, LogIndex(900)));
    let install = Write { hard: Some(vote(2, 1)), base: Some(base(&log[..600])), ..append(log[600..610].to_vec()) };
    committer.submit(2, install).unwrap();
    assert_eq!(store.last_index(), LogIndex(150), "what is certified is surely the snapshot's history, and no more");
    assert_eq!(store.read(LogIndex(149), LogIndex(900), usize::MAX).unwrap(), log[148..150]);
    go_on.send(()).unwrap();
    assert_eq!((answered.recv().unwrap(), store.last_index()), (2, LogIndex(610)));
    go_on.send(()).unwrap();
    committer.close();
}

#[test]
fn a_log_that_was_replaced_and_is_still_there_is_wiped_when_the_store_is_opened() {
    let (temp, dir) = place();
    let log = history();
    let driver = stale(&dir, &log);
    take(&driver.store, &image(&log[..600], 100));
    driver.close();
    let before = temp.path().join("before");
    copy(&dir, &before);
    let (mut driver, _) = Driver::open(&dir);
    driver.write(Write { hard: Some(vote(2, 1)), base: Some(base(&log[..600])), ..Write::default() }).unwrap();
    driver.close();
    {
        // As when the power fails before the first of the replaced blocks is deleted.
        let tree = |dir: &std::path::Path, name: &str| {
            let db = model::raw(dir);
            (db.open_tree(name).unwrap(), db)
        };
        let replaced: Vec<_> = tree(&before, "log").0.iter().map(Result::unwrap).collect();
        assert!(replaced.len() > 1);
        let (blocks, db) = tree(&dir, "log");
        replaced.into_iter().for_each(|(key, block)| drop(blocks.insert(key, block).unwrap()));
        let meta = db.open_tree("meta").unwrap();
        let mut record = meta.get("base").unwrap().unwrap().to_vec();
        let sum = record.len() - 4;
        record[17] = 1;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(b"base");
        hasher.update(&record[..sum]);
        record[sum..].copy_from_slice(&hasher.finalize().to_be_bytes());
        meta.insert("base", record).unwrap();
        db.flush().unwrap();
    }
    let (mut driver, found) = Driver::open(&dir);
    assert_eq!((found.report.base, found.report.entries, found.last_index), (LogIndex(600), 0, LogIndex(600)));
    driver.write(append(log[600..].to_vec())).unwrap();
    check_installed(&driver.store, &log);
    driver.close();
    assert_eq!(Driver::open(&dir).1.restored.tail, log[600..]);
}
