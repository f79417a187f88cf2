//! A store that is damaged or has lost its memory says so: it never panics and never opens shorter.

#[path = "crash/model.rs"]
mod model;

use concordat::certificate::Entry;
use concordat::core::Write;
use concordat::ids::LogIndex;
use concordat::storage::{Damage, Loss, OpenError, Recovered, Store};
use model::{Dice, Driver, append, certificate, entries, vote};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    (temp, dir)
}

/// A closed store with some of everything, and its log.
fn filled(dir: &Path) -> Vec<Arc<Entry>> {
    let log = entries(1, 400, 2, 0, 300);
    let mut driver = Driver::create(dir);
    driver.write(Write { hard: Some(vote(2, 1)), ..append(log[..10].to_vec()) }).unwrap();
    for block in log[10..].chunks(30) {
        driver.write(append(block.to_vec())).unwrap();
    }
    driver.write(Write { certificate: Some(certificate(&log[..390])), ..Write::default() }).unwrap();
    driver.close();
    log
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn open_error(dir: &Path) -> OpenError {
    match Store::open(dir) {
        Ok(_) => panic!("it opened"),
        Err(e) => e,
    }
}

fn damage(dir: &Path) -> Damage {
    match open_error(dir) {
        OpenError::Damaged { damage, .. } => damage,
        other => panic!("{other}"),
    }
}

fn loss(dir: &Path) -> Loss {
    let error = open_error(dir);
    assert!(error.to_string().contains("fresh key"), "it says what to do: {error}");
    match error {
        OpenError::Quarantined { loss, .. } => loss,
        other => panic!("{other}"),
    }
}

#[test]
fn a_flipped_bit_anywhere_is_an_error_or_without_effect() {
    let (temp, dir) = place();
    let log = filled(&dir);
    let flips = std::env::var("STORAGE_FLIPS").map_or(40, |n| n.parse().unwrap());
    // Where sled has written: zeros between are not worth a flip.
    let bytes = fs::read(dir.join("db")).unwrap();
    let written: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] != 0).collect();
    let (mut dice, mut found) = (Dice(7), 0);
    for n in 0..flips {
        let at = written[dice.below(written.len())];
        let bad = temp.path().join(format!("flip{n}"));
        copy(&dir, &bad);
        let flipped = bytes[at] ^ 1 << dice.below(8);
        fs::File::options().write(true).open(bad.join("db")).unwrap().write_all_at(&[flipped], at as u64).unwrap();
        match Store::open(&bad) {
            Err(OpenError::Damaged { .. } | OpenError::Quarantined { .. }) => found += 1,
            Err(other) => panic!("flip at {at}: {other}"),
            Ok((_, Recovered { restored, .. })) => {
                assert_eq!(restored.tail, log, "flip at {at}: opened with another log");
                assert_eq!(restored.hard, vote(2, 1), "flip at {at}: opened with another vote");
                assert_eq!(restored.certificate, Some(certificate(&log[..390])), "flip at {at}");
            }
        }
        fs::remove_dir_all(&bad).unwrap();
    }
    assert!(found * 2 > flips, "only {found} of {flips} flips hit anything that is read: the test looks elsewhere");
}

#[test]
fn a_data_file_cut_short_anywhere_is_an_error() {
    let (temp, dir) = place();
    filled(&dir);
    let length = fs::read(dir.join("db")).unwrap().iter().rposition(|&b| b != 0).unwrap() as u64;
    for n in 0..8 {
        let bad = temp.path().join(format!("cut{n}"));
        copy(&dir, &bad);
        fs::File::options().write(true).open(bad.join("db")).unwrap().set_len(length * n / 8).unwrap();
        match open_error(&bad) {
            OpenError::Damaged { .. } | OpenError::Quarantined { .. } => {}
            other => panic!("cut to {n}/8: {other}"),
        }
    }
}

#[test]
fn a_store_behind_its_watermark_has_lost_its_memory() {
    let (temp, dir) = place();
    let old = temp.path().join("old");
    let mut driver = Driver::create(&dir);
    driver.write(Write { hard: Some(vote(3, 1)), ..append(entries(1, 20, 3, 0, 10)) }).unwrap();
    driver.close();
    copy(&dir, &old);
    let (mut driver, _) = Driver::open(&dir);
    driver.write(append(entries(21, 5, 3, 0, 10))).unwrap();
    driver.close();
    fs::copy(dir.join("watermark"), old.join("watermark")).unwrap();
    assert_eq!(loss(&old), Loss::Entries { found: LogIndex(20), promised: LogIndex(25) });

    // Other entries at the end: same length, another history.
    copy(&dir, &temp.path().join("kept"));
    let (mut driver, _) = Driver::open(&dir);
    driver.write(Write { hard: Some(vote(4, 1)), ..append(entries(22, 6, 4, 0, 10)) }).unwrap();
    driver.close();
    let kept = temp.path().join("kept");
    let (mut driver, _) = Driver::open(&kept);
    driver.write(Write { hard: Some(vote(4, 1)), ..append(entries(22, 6, 4, 7, 10)) }).unwrap();
    driver.close();
    fs::copy(dir.join("watermark"), kept.join("watermark")).unwrap();
    assert_eq!(loss(&kept), Loss::History { index: LogIndex(27) });
}

#[test]
fn a_forgotten_term_or_vote_is_a_lost_memory() {
    for later in [vote(4, 1), vote(3, 2)] {
        let (temp, dir) = place();
        let old = temp.path().join("old");
        let mut driver = Driver::create(&dir);
        let first = concordat::core::HardState { vote: None, ..vote(3, 1) };
        driver.write(Write { hard: Some(first), ..Write::default() }).unwrap();
        driver.close();
        copy(&dir, &old);
        let (mut driver, _) = Driver::open(&dir);
        driver.write(Write { hard: Some(later), ..Write::default() }).unwrap();
        driver.close();
        fs::copy(dir.join("watermark"), old.join("watermark")).unwrap();
        assert!(matches!(loss(&old), Loss::Vote { .. }));
        // The other way round is a crash between store and watermark, and no loss.
        fs::copy(old.join("watermark"), temp.path().join("unused")).unwrap();
        assert!(Store::open(&dir).is_ok());
    }
}

#[test]
fn a_watermark_behind_its_store_is_raised_at_open() {
    let (temp, dir) = place();
    let mut driver = Driver::create(&dir);
    let before = fs::read(dir.join("watermark")).unwrap();
    driver.write(Write { hard: Some(vote(1, 1)), ..append(entries(1, 5, 1, 0, 10)) }).unwrap();
    driver.close();
    let after = fs::read(dir.join("watermark")).unwrap();
    assert_ne!(before, after);
    fs::write(dir.join("watermark"), &before).unwrap();
    drop(Store::open(&dir).unwrap());
    assert_eq!(fs::read(dir.join("watermark")).unwrap(), after);
    drop(temp);
}

#[test]
fn every_missing_file_is_named() {
    for file in ["db", "conf", "lock"] {
        let (_temp, dir) = place();
        filled(&dir);
        fs::remove_file(dir.join(file)).unwrap();
        assert!(matches!(damage(&dir), Damage::MissingFile(missing) if missing == file));
        assert!(!dir.join(file).exists(), "nothing is put in its place");
    }
    let (_temp, dir) = place();
    filled(&dir);
    fs::remove_file(dir.join("watermark")).unwrap();
    assert!(matches!(damage(&dir), Damage::Watermark(_)));
}

#[test]
fn a_damaged_or_foreign_watermark_is_refused() {
    let (temp, dir) = place();
    filled(&dir);
    let good = fs::read(dir.join("watermark")).unwrap();
    for at in [0, 20, 60, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(dir.join("watermark"), bad).unwrap();
        assert!(matches!(damage(&dir), Damage::Watermark(_)), "byte {at}");
    }
    let other = temp.path().join("other");
    Store::create(&other, concordat::ids::NodeId([5; 32]), &model::key()).unwrap();
    fs::copy(other.join("watermark"), dir.join("watermark")).unwrap();
    assert!(matches!(damage(&dir), Damage::ForeignWatermark { .. }));
}

#[test]
fn a_newer_store_is_refused_untouched() {
    let (_temp, dir) = place();
    filled(&dir);
    let mut mark = fs::read(dir.join("watermark")).unwrap();
    mark[8..10].copy_from_slice(&7u16.to_be_bytes());
    fs::write(dir.join("watermark"), &mark).unwrap();
    // Things that opening would tidy away.
    fs::write(dir.join("snap.0001.generating"), b"torn").unwrap();
    let contents = || {
        let mut files: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
        files.sort();
        files
            .into_iter()
            .map(|p| (fs::read(&p).unwrap(), fs::metadata(&p).unwrap().modified().unwrap(), p))
            .collect::<Vec<_>>()
    };
    let before = contents();
    let refused = open_error(&dir);
    assert!(matches!(refused, OpenError::Newer { found: 7, .. }), "{refused}");
    assert_eq!(contents(), before);
}

#[test]
fn a_torn_snapshot_of_the_database_is_removed() {
    let (_temp, dir) = place();
    let log = filled(&dir);
    fs::write(dir.join("snap.00000000DEADBEEF.generating"), b"torn").unwrap();
    let (_, found) = Store::open(&dir).unwrap();
    assert_eq!((found.report.torn_snapshots, found.restored.tail.len()), (1, log.len()));
}

#[test]
fn a_value_outside_the_data_file_is_refused() {
    let (_temp, dir) = place();
    filled(&dir);
    fs::write(dir.join("blobs").join("12345"), b"not durable").unwrap();
    assert!(matches!(damage(&dir), Damage::Blobs));
}
