//! Rotation: the records move to a fresh database while they are read and written, and the disk gets room back.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::Entry;
use concordat::core::Write;
use concordat::ids::LogIndex;
use concordat::node::clock::Clock;
use concordat::storage::{Damage, OpenError, RotateError, Rotated, Rotation, RotationStep, Store};
use model::{DID, Driver, append, base, cast, certificate, copy, entries, image, key, take, tree, vote};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    (temp, dir)
}

fn step(rotation: &mut Rotation) -> Result<RotationStep, RotateError> {
    rotation.step(|| Duration::ZERO)
}

fn finish(mut rotation: Rotation) -> Rotated {
    loop {
        if let RotationStep::Done(rotated) = step(&mut rotation).unwrap() {
            return rotated;
        }
    }
}

fn rotate(store: &Store) -> Rotated {
    finish(store.rotate().unwrap())
}

/// What lies in the store's directory, without the cache that the database writes when it likes.
fn files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|n| !n.starts_with("snap.")).collect();
    names.sort();
    names
}

const FIRST: [&str; 5] = ["blobs", "conf", "db", "lock", "watermark"];

fn nth(number: u64) -> Vec<String> {
    vec!["current".into(), format!("database-{number}"), "lock".into(), "watermark".into()]
}

/// Entries of a kilobyte in blocks of ten, certified up to the last but ten, and a snapshot thirty before the end.
fn filled(dir: &Path, count: u64) -> (Driver, Vec<Arc<Entry>>) {
    let log = entries(1, count, 1, 0, 1000);
    let mut driver = Driver::create(dir);
    driver.write(Write { hard: Some(vote(1, 1)), cast: Some(cast(5)), ..append(log[..10].to_vec()) }).unwrap();
    for block in log[10..].chunks(10) {
        driver.submit(append(block.to_vec()));
    }
    let certified = &log[..log.len() - 10];
    driver.write(Write { certificate: Some(certificate(certified)), ..Write::default() }).unwrap();
    driver.store.archive(certified).unwrap();
    take(&driver.store, &image(&log[..log.len() - 30], 200_000));
    (driver, log)
}

fn compact(store: &Store, upto: usize) {
    while store.compact(LogIndex(upto as u64)).unwrap().more {}
}

/// What every store here must hold, whatever its base is.
fn check(store: &Store, log: &[Arc<Entry>]) {
    let base = store.base();
    assert_eq!(store.last_index().0, log.len() as u64);
    assert_eq!(store.read(base.next(), store.last_index(), usize::MAX).unwrap(), log[base.0 as usize..]);
    for entry in log {
        assert_eq!(store.header(entry.index()).unwrap().as_ref(), Some(&entry.header));
    }
    let newest = store.latest_certificate().unwrap();
    assert_eq!(newest.head.root, tree(&log[..newest.head.size as usize]).root());
    assert_eq!(store.root_at(newest.head.size).unwrap(), newest.head.root);
    assert_eq!(store.cast_vote(&cast(5).request_key, &cast(5).content).unwrap(), Some(cast(5)));
    let manifest = store.snapshots().pop().unwrap();
    assert_eq!(
        std::io::copy(&mut store.snapshot_reader(manifest.index).unwrap(), &mut std::io::sink()).unwrap(),
        manifest.bytes
    );
}

#[test]
fn the_disk_gets_back_what_pruned_entries_took() {
    let (_temp, dir) = place();
    let (driver, log) = filled(&dir, 20_000);
    compact(&driver.store, log.len() - 30);
    let before = driver.store.space().unwrap();
    let rotated = rotate(&driver.store);
    let after = driver.store.space().unwrap();
    assert_eq!((rotated.before, rotated.after), (before.file, after.file));
    assert!(before.file > 20 << 20 && after.file < before.file / 2, "{before:?} {after:?}");
    assert_eq!((before.live, files(&dir)), (None, nth(1)));
    let mut scale = driver.store.weigh();
    while scale.step().unwrap() {}
    drop(scale);
    let weighed = driver.store.space().unwrap().live;
    assert_eq!(after.live, weighed, "it is known what is in it");
    check(&driver.store, &log);
    driver.close();
    let (driver, found) = Driver::open(&dir);
    assert_eq!((found.report.derived, found.report.base), (0, driver.store.base()));
    check(&driver.store, &log);
    // And again, from there.
    assert!(rotate(&driver.store).after <= after.file * 2);
    assert_eq!(files(&dir), nth(2));
    driver.close();
    check(&Driver::open(&dir).0.store, &log);
}

#[test]
fn whatever_is_written_meanwhile_is_in_the_new_database() {
    let (_temp, dir) = place();
    let (mut driver, mut log) = filled(&dir, 4_000);
    let mut rotation = driver.store.rotate().unwrap();
    let (mut round, mut hard) = (0, vote(1, 1));
    while !matches!(step(&mut rotation).unwrap(), RotationStep::Done(_)) {
        round += 1;
        let last = log.len() as u64;
        match round % 6 {
            1 => {
                // Entries, a vote, and other entries in place of some.
                hard = vote(1 + round, 2);
                log.extend(entries(last + 1, 6, 1 + round, 0, 900));
                driver.write(Write { hard: Some(hard.clone()), ..append(log[last as usize..].to_vec()) }).unwrap();
                log.truncate(last as usize + 3);
                log.extend(entries(last + 4, 9, 1 + round, 1, 900));
                driver.write(append(log[last as usize + 3..].to_vec())).unwrap();
            }
            2 => driver.write(Write { cast: Some(cast(round)), ..Write::default() }).unwrap(),
            3 => {
                let archived = driver.store.archived() as usize;
                driver.write(Write { certificate: Some(certificate(&log)), ..Write::default() }).unwrap();
                driver.store.archive(&log[archived..]).unwrap();
            }
            4 => take(&driver.store, &image(&log[..driver.store.archived() as usize], 70_000)),
            5 => drop(driver.store.compact(driver.store.snapshots().pop().unwrap().index).unwrap()),
            _ => drop(driver.store.drop_snapshots_below(driver.store.last_index()).unwrap()),
        }
    }
    drop(rotation);
    assert!(round > 12, "{round} rounds of writes");
    let last = log.len() as u64;
    log.extend(entries(last + 1, 3, hard.term.0, round, 10));
    driver.write(append(log[last as usize..].to_vec())).unwrap();
    for reopened in [false, true] {
        if reopened {
            driver.close();
            let (again, found) = Driver::open(&dir);
            assert_eq!((found.report.derived, &found.restored.hard), (0, &hard));
            driver = again;
        }
        check(&driver.store, &log);
        for n in (2..=round).step_by(6) {
            assert_eq!(driver.store.cast_vote(&cast(n).request_key, &cast(n).content).unwrap(), Some(cast(n)));
        }
    }
}

#[test]
fn a_log_that_begins_anew_meanwhile_does_so_in_the_new_database() {
    let (_temp, dir) = place();
    let (mut driver, log) = filled(&dir, 3_000);
    let mut other = log[..2_990].to_vec();
    other.extend(entries(2_991, 500, 2, 9, 1000));
    let mut rotation = driver.store.rotate().unwrap();
    step(&mut rotation).unwrap();
    take(&driver.store, &image(&other, 100_000));
    driver.write(Write { hard: Some(vote(2, 1)), base: Some(base(&other)), ..Write::default() }).unwrap();
    finish(rotation);
    driver.close();
    let (driver, found) = Driver::open(&dir);
    assert_eq!((found.report.base, found.report.entries, found.last_index.0), (LogIndex(3_490), 0, 3_490));
    assert_eq!(driver.store.headers_from(), LogIndex(3_329));
}

#[test]
fn a_crash_at_any_step_leaves_a_store_with_everything() {
    let (temp, dir) = place();
    let (mut driver, mut log) = filled(&dir, 3_000);
    compact(&driver.store, 1_500);
    let mut rotation = driver.store.rotate().unwrap();
    let mut generations = [0, 0];
    for round in 0.. {
        let done = matches!(step(&mut rotation).unwrap(), RotationStep::Done(_));
        let last = log.len() as u64;
        log.extend(entries(last + 1, 3, 1, round, 500));
        driver.write(append(log[last as usize..].to_vec())).unwrap();
        let crashed = temp.path().join("crashed");
        copy(&dir, &crashed);
        let (found, _) = Driver::open(&crashed);
        check(&found.store, &log);
        found.close();
        generations[usize::from(files(&crashed) == nth(1))] += 1;
        assert!([FIRST.map(String::from).to_vec(), nth(1)].contains(&files(&crashed)), "{:?}", files(&crashed));
        std::fs::remove_dir_all(&crashed).unwrap();
        if done {
            break;
        }
    }
    assert!(generations[0] > 5 && generations[1] > 0, "{generations:?}");
}

#[test]
fn a_rotation_that_is_given_up_leaves_nothing_behind() {
    let (_temp, dir) = place();
    let (mut driver, mut log) = filled(&dir, 2_000);
    for steps in [0, 1, 4, 7] {
        let mut rotation = driver.store.rotate().unwrap();
        assert!(matches!(driver.store.rotate(), Err(RotateError::UnderWay)));
        for _ in 0..steps {
            step(&mut rotation).unwrap();
        }
        assert_eq!(files(&dir).len(), FIRST.len() + 1);
        drop(rotation);
        assert_eq!(files(&dir), FIRST);
        let last = log.len() as u64;
        log.extend(entries(last + 1, 3, 1, 7, 500));
        driver.write(append(log[last as usize..].to_vec())).unwrap();
    }
    driver.close();
    let (driver, _) = Driver::open(&dir);
    check(&driver.store, &log);
    rotate(&driver.store);
    check(&driver.store, &log);
}

#[test]
fn a_database_in_force_that_is_damaged_or_missing_is_damage_and_never_an_older_or_an_empty_one() {
    let (temp, dir) = place();
    let (driver, _) = filled(&dir, 500);
    driver.close();
    let old = temp.path().join("old");
    copy(&dir, &old);
    let (driver, _) = Driver::open(&dir);
    rotate(&driver.store);
    driver.close();
    let damaged = |change: &dyn Fn(&Path)| {
        let bad = temp.path().join("bad");
        drop(std::fs::remove_dir_all(&bad));
        // With the old database in its place, as before it was removed.
        copy(&old, &bad);
        copy(&dir, &bad);
        change(&bad);
        let before = files(&bad);
        let found = match Store::open(&bad) {
            Err(OpenError::Damaged { damage, .. }) => damage,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it opened"),
        };
        assert_eq!(files(&bad), before, "left as it was found: {found}");
        found
    };
    let flip = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[12] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    assert!(matches!(damaged(&|bad| flip(bad.join("current"))), Damage::Pointer(_)));
    assert!(matches!(damaged(&|bad| std::fs::write(bad.join("current"), "").unwrap()), Damage::Pointer(_)));
    let gone = damaged(&|bad| std::fs::remove_dir_all(bad.join("database-1")).unwrap());
    assert!(matches!(gone, Damage::MissingDatabase { number: 1 }));
    for file in ["db", "conf"] {
        let gone = damaged(&|bad| std::fs::remove_file(bad.join("database-1").join(file)).unwrap());
        assert!(matches!(gone, Damage::MissingFile(of) if of == file));
    }
    let blob = damaged(&|bad| std::fs::write(bad.join("database-1/blobs/7"), "x").unwrap());
    assert!(matches!(blob, Damage::Blobs));
    let gone = damaged(&|bad| std::fs::remove_file(bad.join("lock")).unwrap());
    assert!(matches!(gone, Damage::MissingFile("lock")));
}

#[test]
fn what_is_not_in_force_goes_when_the_store_is_opened() {
    let (temp, dir) = place();
    let (driver, log) = filled(&dir, 500);
    driver.close();
    let old = temp.path().join("old");
    copy(&dir, &old);
    // A half-made next one, and half of an announcement.
    std::fs::create_dir_all(dir.join("database-1/blobs")).unwrap();
    std::fs::write(dir.join("database-1/db"), "half").unwrap();
    std::fs::write(dir.join("current.next"), "half").unwrap();
    let (driver, _) = Driver::open(&dir);
    assert_eq!(files(&dir), FIRST);
    rotate(&driver.store);
    driver.close();
    // The old one, not yet removed.
    for file in ["db", "conf"] {
        std::fs::copy(old.join(file), dir.join(file)).unwrap();
    }
    std::fs::create_dir_all(dir.join("blobs")).unwrap();
    let (driver, _) = Driver::open(&dir);
    assert_eq!(files(&dir), nth(1));
    check(&driver.store, &log);
}

#[test]
fn a_rotated_store_is_one_store_with_one_lock() {
    let (_temp, dir) = place();
    let (driver, _) = filled(&dir, 300);
    rotate(&driver.store);
    assert!(matches!(Store::open(&dir), Err(OpenError::InUse { .. })));
    assert!(Store::create(&dir, DID, &key()).is_err());
}

/// `ROTATION_ENTRIES=300000` for the figures in `benches/README.md`.
#[test]
fn a_writer_commits_while_the_database_moves() {
    let count = std::env::var("ROTATION_ENTRIES").map_or(30_000, |n| n.parse().unwrap());
    let (_temp, dir) = place();
    let mut driver = Driver::create(&dir);
    let log = entries(1, count, 1, 0, 256);
    driver.write(Write { hard: Some(vote(1, 1)), ..append(log[..100].to_vec()) }).unwrap();
    for block in log[100..].chunks(100) {
        driver.submit(append(block.to_vec()));
    }
    driver.write(Write { certificate: Some(certificate(&log)), ..Write::default() }).unwrap();
    driver.store.archive(&log).unwrap();
    take(&driver.store, &image(&log, 200_000));
    compact(&driver.store, log.len() - 1_000);
    let store = driver.store.clone();
    let clock = Clock::start();
    let quiet = longest(&mut driver, count, &clock, |n| n < 300);
    let moved = AtomicBool::new(false);
    let (rotated, (writes, busy)) = std::thread::scope(|scope| {
        let rotating = scope.spawn(|| {
            let mut rotation = store.rotate().unwrap();
            let rotated = loop {
                if let RotationStep::Done(rotated) = rotation.step(|| clock.elapsed()).unwrap() {
                    break rotated;
                }
            };
            moved.store(true, Ordering::Release);
            rotated
        });
        let busy = longest(&mut driver, count + 300, &clock, |_| !moved.load(Ordering::Acquire));
        (rotating.join().unwrap(), busy)
    });
    println!("{count} entries: {rotated:?}; longest of {writes} writes {busy:?}, of 300 before {:?}", quiet.1);
    drop(store);
    driver.close();
    let (_, found) = Driver::open(&dir);
    assert_eq!(found.last_index.0, count + 300 + writes);
    assert!(writes > 0 && rotated.after < rotated.before);
}

/// Appends one entry after the other while it may: how many, and the longest wait for one.
fn longest(driver: &mut Driver, last: u64, clock: &Clock, go_on: impl Fn(u64) -> bool) -> (u64, Duration) {
    let (mut writes, mut longest) = (0, Duration::ZERO);
    while go_on(writes) {
        writes += 1;
        let began = clock.elapsed();
        driver.write(append(entries(last + writes, 1, 1, 0, 256))).unwrap();
        longest = longest.max(clock.elapsed() - began);
    }
    (writes, longest)
}
