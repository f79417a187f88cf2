//! What the writer tells in its notes, and whether a store found after a crash is one it may have become.

use crate::model::{base, cast, certificate, entries, tree, vote};
use concordat::certificate::Entry;
use concordat::core::{HardState, Write};
use concordat::ids::{Digest, LogIndex};
use concordat::storage::{OpenError, Store};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// One write in numbers, as the notes tell it; zero stands for "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) seq: u64,
    pub(crate) term: u64,
    pub(crate) candidate: u64,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) payload: u64,
    pub(crate) cast: u64,
    pub(crate) certificate: u64,
    /// 1: the entries are not appended; the log begins after them, and a snapshot stands for all.
    pub(crate) install: u64,
}

impl Step {
    pub(crate) fn note(&self) -> String {
        let Self { seq, term, candidate, first, count, payload, cast, certificate, install } = self;
        format!("S {seq} {term} {candidate} {first} {count} {payload} {cast} {certificate} {install}\n")
    }

    fn read(fields: &[u64]) -> Self {
        let &[seq, term, candidate, first, count, payload, cast, certificate, install] = fields else {
            panic!("a step has nine numbers: {fields:?}");
        };
        Self { seq, term, candidate, first, count, payload, cast, certificate, install }
    }

    /// The write, and `log` as it is afterwards.
    pub(crate) fn write(&self, log: &mut Vec<Arc<Entry>>) -> Write {
        let new = entries(self.first, self.count, self.term, self.seq, self.payload as usize);
        if self.count > 0 {
            log.truncate(self.first as usize - 1);
            log.extend(new.iter().cloned());
        }
        Write {
            hard: (self.candidate > 0).then(|| vote(self.term, self.candidate as u8)),
            base: (self.install > 0).then(|| base(log)),
            entries: if self.install > 0 { Vec::new() } else { new },
            cast: (self.cast > 0).then(|| cast(self.cast)),
            certificate: (self.certificate > 0).then(|| certificate(&log[..self.certificate as usize])),
        }
    }
}

/// What the store was after some step.
#[derive(Clone, Default)]
struct State {
    hard: HardState,
    log: Vec<Arc<Entry>>,
    casts: Vec<u64>,
    certificates: Vec<u64>,
}

/// All that the notes tell up to a crash.
#[derive(Default)]
pub(crate) struct History {
    created: bool,
    start: State,
    steps: Vec<Step>,
    /// How many of `steps` were answered.
    pub(crate) acknowledged: usize,
}

impl History {
    /// Reads notes; the last line may be torn.
    pub(crate) fn read(notes: &str) -> Self {
        let mut h = Self::default();
        for line in notes.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')) {
            let (kind, rest) = line.split_at(1);
            let words: Vec<&str> = rest.split_whitespace().collect();
            let numbers = || words.iter().map(|w| w.parse().unwrap()).collect::<Vec<u64>>();
            match kind {
                "C" => h.created = true,
                "S" => h.steps.push(Step::read(&numbers())),
                "A" => {
                    let seq = numbers()[0];
                    h.acknowledged = h.steps.iter().position(|s| s.seq == seq).expect("a step answered was noted") + 1;
                }
                "O" => h.reopened(words[0].parse().unwrap(), Digest::from_str(words[1]).unwrap(), words[2], words[3]),
                // A failure and a refusal: nothing was acknowledged. And how a rotation ended, which changes nothing.
                "E" | "X" | "R" => {}
                _ => panic!("a note: {line:?}"),
            }
        }
        h
    }

    /// The step that a line of notes tells.
    pub(crate) fn step(line: &str) -> Step {
        let numbers: Vec<u64> = line.split_whitespace().skip(1).map(|w| w.parse().unwrap()).collect();
        Step::read(&numbers)
    }

    fn states(&self) -> Vec<State> {
        let mut state = self.start.clone();
        let mut states = vec![state.clone()];
        for step in &self.steps {
            let write = step.write(&mut state.log);
            state.hard = write.hard.unwrap_or(state.hard);
            state.casts.extend(Some(step.cast).filter(|&c| c > 0));
            state.certificates.extend(Some(step.certificate).filter(|&c| c > 0));
            states.push(state.clone());
        }
        states.split_off(self.acknowledged)
    }

    /// What the store's log is, with what it begins after: that much of a log that was written, if its root is the store's.
    pub(crate) fn log_in(&self, store: &Store) -> Result<Vec<Arc<Entry>>, String> {
        let base = store.base();
        let above = store.read(base.next(), store.last_index(), usize::MAX).map_err(|e| e.to_string())?;
        let root = store.root_at(base.0).map_err(|e| e.to_string())?;
        let states = self.states();
        let below = states.iter().filter_map(|s| s.log.get(..base.0 as usize)).find(|l| tree(l).root() == root);
        let below = below.ok_or_else(|| format!("the log begins after {base} entries that were never written"))?;
        Ok([below, &above].concat())
    }

    /// The store was opened again and said what it found: from then on that is what it must keep.
    fn reopened(&mut self, last: usize, root: Digest, term: &str, candidate: &str) {
        let mut states = self.states();
        let logs = states.iter().map(|s| s.log.get(..last));
        let log = logs.flatten().find(|l| tree(l).root() == root).expect("a log that was written").to_vec();
        let candidate: u8 = candidate.parse().unwrap();
        let hard = if candidate == 0 { HardState::default() } else { vote(term.parse().unwrap(), candidate) };
        assert!(states.iter().any(|s| s.hard == hard), "a term and vote that were written");
        // What else was found is not noted: what was answered before must still be there.
        let State { casts, certificates, .. } = states.swap_remove(0);
        *self = Self { created: true, start: State { hard, log, casts, certificates }, ..Self::default() };
    }

    /// Opens what a crash left and says what is wrong with it.
    pub(crate) fn judge(&self, dir: &Path) -> Result<(), String> {
        let (store, found) = match Store::open(dir) {
            Ok(opened) => opened,
            Err(OpenError::Missing { .. }) if !self.created => return Ok(()),
            Err(e) => return Err(e.to_string()),
        };
        let states = self.states();
        let sure = &states[0];
        let log = self.log_in(&store)?;
        for index in store.headers_from().0..=store.base().0 {
            let header = store.header(LogIndex(index)).map_err(|e| e.to_string())?;
            if header.as_ref() != Some(&log[index as usize - 1].header) {
                return Err(format!("another header of entry {index}, below the log"));
            }
        }
        // Entries that a later step replaces may be gone already.
        let cuts = self.steps[self.acknowledged..].iter().filter(|s| s.count > 0).map(|s| s.first as usize - 1);
        let keep = cuts.min().unwrap_or(usize::MAX).min(sure.log.len());
        if log.len() < keep || log[..keep] != sure.log[..keep] {
            return Err(format!("of {keep} acknowledged entries, {} are there or others", log.len()));
        }
        if !states.iter().any(|s| s.log.starts_with(&log)) {
            return Err(format!("a log of {} entries that was never written", log.len()));
        }
        if !states.iter().any(|s| s.hard == found.restored.hard) {
            return Err(format!(
                "term {} and its vote: older than acknowledged, or never written",
                found.restored.hard.term
            ));
        }
        for &n in &sure.casts {
            let given = cast(n);
            match store.cast_vote(&given.request_key, &given.content) {
                Ok(Some(kept)) if kept == given => {}
                other => return Err(format!("the acknowledged answer {n}: {other:?}")),
            }
        }
        for &size in &sure.certificates {
            let kept = store.certificates(size - 1, 1).map_err(|e| e.to_string())?;
            if kept.first() != Some(&certificate(&sure.log[..size as usize])) {
                return Err(format!("the acknowledged certificate of size {size}"));
            }
        }
        Ok(())
    }
}
