//! The process that is recorded: it writes to a store, and notes what it does and what was answered.

use crate::history::{History, Step};
use crate::model::{DID, Dice, Driver, append, certificate, entries, image, key, take, tree, vote};
use concordat::certificate::Entry;
use concordat::core::Write;
use concordat::ids::LogIndex;
use concordat::storage::{Rotation, RotationStep, Store};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// What the parent asks for, by environment variables.
pub(crate) struct Task {
    pub(crate) dir: PathBuf,
    pub(crate) seed: u64,
    /// Steps to take, and whether to die by a signal afterwards instead of closing.
    pub(crate) steps: u64,
    pub(crate) abort: bool,
    /// Wait for each answer, so that every step is a group of its own.
    pub(crate) single: bool,
    /// Take snapshots, compact the log below them, begin it anew after some, and move to a fresh database.
    pub(crate) compact: bool,
    /// Nothing of all that: fill a store, note it, and compact its log.
    pub(crate) once: bool,
}

/// Notes survive the simulated power loss: they are read from the recording, not from the disk.
fn note(mut notes: &File, line: &str) {
    notes.write_all(line.as_bytes()).unwrap();
}

pub(crate) fn run(task: &Task) {
    if task.once {
        return compact_once(task);
    }
    let dir = task.dir.join("store");
    let notes = Arc::new(OpenOptions::new().append(true).create(true).open(task.dir.join("notes")).unwrap());
    if !dir.exists() {
        Store::create(&dir, DID, &key()).unwrap();
        note(&notes, "C\n");
    }
    let (store, found) = match Store::open(&dir) {
        Ok(opened) => opened,
        Err(e) => return note(&notes, &format!("E {e}\n")),
    };
    let told = std::fs::read_to_string(task.dir.join("notes")).unwrap();
    let mut log = History::read(&told).log_in(&store).unwrap();
    let hard = &found.restored.hard;
    let candidate = hard.vote.map_or(0, |v| v.candidate.0[0]);
    note(&notes, &format!("O {} {} {} {candidate}\n", log.len(), tree(&log).root(), hard.term));
    let mut writer = Writer {
        dice: Dice(task.seed),
        seq: task.seed << 32,
        term: hard.term.0,
        certified: found.restored.certificate.map_or(0, |c| c.head.size).max(store.base().0),
        compact: task.compact,
    };
    let (tell, answers) = channel();
    let answered = notes.clone();
    let committer = store.start(move |answer| {
        match &answer {
            Ok(seq) => note(&answered, &format!("A {seq}\n")),
            Err(e) => note(&answered, &format!("E {e}\n")),
        }
        // The other end is gone once the writer has seen a failure.
        tell.send(answer.is_ok()).unwrap_or_default();
    });
    let mut waiting = 0;
    let mut rotation = None;
    for _ in 0..task.steps {
        if task.compact {
            rotate(&store, &mut rotation, &mut writer.dice, &notes);
        }
        let step = writer.next(&log);
        note(&notes, &step.note());
        let write = step.write(&mut log);
        if step.install > 0 {
            take(&store, &image(&log, 150_000));
        }
        if committer.submit(step.seq, write).is_err() {
            note(&notes, "X\n");
            break;
        }
        waiting += 1;
        if step.certificate > 0 && writer.dice.below(3) == 0 {
            archive(&store, &log[..writer.certified as usize]);
            if task.compact {
                compact(&store, &log, &mut writer.dice);
            }
        }
        if task.single || waiting > 8 || writer.dice.below(3) == 0 {
            let Ok(true) = answers.recv() else { break };
            waiting = 0;
        }
    }
    if task.abort {
        std::process::abort();
    }
    committer.close();
}

/// Begins to move to a fresh database now and then, and takes some steps of it.
fn rotate(store: &Store, rotation: &mut Option<Rotation>, dice: &mut Dice, notes: &File) {
    if rotation.is_none() && dice.below(8) == 0 {
        *rotation = store.rotate().inspect_err(|e| note(notes, &format!("R {e}\n"))).ok();
    }
    for _ in 0..dice.below(12) {
        let Some(under_way) = rotation else { return };
        match under_way.step(|| Duration::ZERO) {
            Ok(RotationStep::Done(_)) => note(notes, "R done\n"),
            Ok(_) => continue,
            Err(e) => note(notes, &format!("R {e}\n")),
        }
        *rotation = None;
    }
}

/// What `compact_once` fills its store with: blocks of ten.
pub(crate) fn once() -> Vec<Arc<Entry>> {
    entries(1, 600, 1, 0, 100)
}

fn compact_once(task: &Task) {
    let log = once();
    let notes = OpenOptions::new().append(true).create(true).open(task.dir.join("notes")).unwrap();
    let mut driver = Driver::create(&task.dir.join("store"));
    driver.write(Write { hard: Some(vote(1, 1)), ..append(log[..10].to_vec()) }).unwrap();
    log[10..].chunks(10).for_each(|block| driver.write(append(block.to_vec())).unwrap());
    driver.write(Write { certificate: Some(certificate(&log)), ..Write::default() }).unwrap();
    driver.store.archive(&log).unwrap();
    take(&driver.store, &image(&log, 1000));
    note(&notes, "B\n");
    let done = driver.store.compact(LogIndex(500));
    note(&notes, if done.is_ok() { "D\n" } else { "E\n" });
    // As it is: closing would write more.
    std::process::abort();
}

fn archive(store: &Store, certified: &[Arc<Entry>]) {
    store.archive(&certified[store.archived() as usize..]).unwrap();
}

/// A snapshot of what is certified and archived, and some steps of compaction below it.
fn compact(store: &Store, log: &[Arc<Entry>], dice: &mut Dice) {
    let certified = store.latest_certificate().map_or(0, |c| c.head.size).min(store.archived());
    if certified <= store.base().0 || certified > store.last_index().0 {
        return;
    }
    take(store, &image(&log[..certified as usize], 100_000));
    while store.compact(LogIndex(certified)).unwrap().more && dice.below(4) > 0 {}
    if dice.below(2) == 0 {
        store.drop_snapshots_below(LogIndex(certified)).unwrap();
    }
}

struct Writer {
    compact: bool,
    dice: Dice,
    seq: u64,
    term: u64,
    certified: u64,
}

impl Writer {
    /// Mostly appends; now and then a new term (with or without a cut), a ballot answer, a certificate.
    fn next(&mut self, log: &[Arc<Entry>]) -> Step {
        self.seq += 1;
        let last = log.len() as u64;
        let mut step = Step { seq: self.seq, term: self.term, ..Step::default() };
        match self.dice.below(20) {
            0..=2 => self.new_term(&mut step),
            3..=5 => {
                self.new_term(&mut step);
                let most = (last - self.certified).min(300) as usize;
                step.first = last + 1 - self.dice.below(most + 1) as u64;
                self.fill(&mut step);
            }
            6 if self.compact && self.certified > 0 => {
                // What the others agreed on goes on from what is certified here.
                self.new_term(&mut step);
                step.first = self.certified + 1;
                self.fill(&mut step);
                step.install = 1;
                self.certified += step.count;
            }
            6 | 7 => step.cast = self.seq,
            8 | 9 if last > self.certified => {
                step.certificate = last;
                self.certified = last;
            }
            _ => {
                if self.term == 0 {
                    self.new_term(&mut step);
                }
                step.first = last + 1;
                self.fill(&mut step);
            }
        }
        step
    }

    fn new_term(&mut self, step: &mut Step) {
        self.term += 1;
        step.term = self.term;
        step.candidate = 1 + self.dice.below(5) as u64;
    }

    fn fill(&mut self, step: &mut Step) {
        (step.count, step.payload) = match self.dice.below(12) {
            0 => (1 + self.dice.below(4) as u64, 60_000),
            1 | 2 => (1 + self.dice.below(300) as u64, 256),
            _ => (1 + self.dice.below(20) as u64, self.dice.below(1500) as u64),
        };
    }
}

/// The path of the library that records, compiled on first use.
pub(crate) fn recorder(dir: &Path) -> PathBuf {
    let library = dir.join("record.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crash/record.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = std::process::Command::new(compiler);
    let done = command.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(done.expect("a C compiler, which building this crate needs too").success());
    library
}
