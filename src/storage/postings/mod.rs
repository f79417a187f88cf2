//! The auditors' index: which entries bear a [`Word`].
//!
//! A log-structured inverted index. The postings of every span of 256 entries are written at once, ordered by word, as a
//! *run*; sixteen neighbouring runs are merged into one of the next level, a bounded piece at a time while entries are
//! archived, so that a lookup reads one place in each of O(log n) runs. Runs cover disjoint stretches of the log: results
//! come in the order of the log without any merging.
//!
//! Rules:
//! - A run counts from its head on; the head is written after its rows. Runs that a merged one stands for are deleted only
//!   after it is durable, and their rows only when no reader holds them. So whatever a crash leaves is found at open: rows
//!   without a head are deleted, a run within another one is deleted, a head whose rows are not all there is.
//! - Above the log's base everything is derived again at open where it is missing. Below, words of headers are; those of
//!   pruned bodies are not, and every run says from where on it has them. So they are durable before the base rises.
//! - The last span is in memory, and is written in part when the base rises into it.

mod lookup;
mod merge;
mod open;
mod rows;
mod words;

pub use lookup::{Found, Lookup};
pub use words::{Word, deadline_of, key_of};

use super::Store;
use super::disk::Disk;
use super::error::{DurabilityError, ReadError};
use super::layout::POSTINGS;
use super::read::guarded;
use crate::certificate::{Body, FormatError, Header};
use crate::ids::LogIndex;
use crate::limits::TILE;
use merge::Merge;
use rows::{ROWS, RowWriter, Run, Stretch, row_key, sorted};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use words::{Posting, of_body, of_header};

/// Runs that are merged into one of the next level.
const FAN: u64 = 16;
/// Stretches merged per span, in relation to those that the span has: each is merged once per level, and there are fewer
/// levels than this whatever the log's length.
const PACE: usize = 20;
/// Stretches merged per span at least.
const LEAST_STEP: usize = 2_048;
/// Rows of superseded runs deleted per span.
const DELETE: usize = 64;

const _: () = assert!(TILE.ilog2() + FAN.ilog2() * PACE as u32 > u64::BITS);

/// The index up to some entry.
#[derive(Debug)]
pub(super) struct Postings {
    /// By the first entry that they cover; disjoint.
    runs: BTreeMap<u64, Arc<Run>>,
    span: Span,
    /// Where the log's headers began when the index was opened: nothing is waited for below.
    floor: u64,
    next_id: u64,
    merges: BTreeMap<(u8, u64), Merge>,
    /// Runs that others stand for, once those are durable.
    superseded: Vec<Arc<Run>>,
    /// Runs whose rows are to be deleted.
    dying: VecDeque<Dying>,
    /// Runs written since it was opened that did not come of merging.
    pub(super) written: u64,
}

/// Rows that no head names.
#[derive(Debug)]
struct Dying {
    id: u64,
    /// Readers hold it, too.
    run: Option<Arc<Run>>,
}

/// The unfinished span.
#[derive(Debug)]
struct Span {
    postings: Vec<Posting>,
    first: u64,
    /// The last entry that it has.
    last: u64,
    bodies_from: u64,
}

impl Span {
    fn at(first: u64) -> Self {
        Self { postings: Vec::new(), first, last: first - 1, bodies_from: first }
    }
}

/// How many entries a run of a level covers at most.
fn width(level: u8) -> u64 {
    FAN.checked_pow(level.into()).and_then(|runs| runs.checked_mul(TILE)).unwrap_or(u64::MAX)
}

/// The number of the run of a level in which an entry lies, and the first and the last entry there.
fn group(level: u8, index: u64) -> (u64, u64, u64) {
    let width = width(level);
    let number = (index - 1) / width;
    (number, number * width + 1, (number * width).saturating_add(width))
}

impl Postings {
    /// An index that has nothing but the headers of the unfinished tile, the first of which is that of entry `first`.
    pub(super) fn over(floor: LogIndex, first: u64, headers: &[Header]) -> Self {
        let mut postings = Self {
            runs: BTreeMap::new(),
            span: Span::at(first),
            floor: floor.0,
            next_id: 0,
            merges: BTreeMap::new(),
            superseded: Vec::new(),
            dying: VecDeque::new(),
            written: 0,
        };
        headers.iter().for_each(|header| postings.note(header, None));
        postings
    }

    /// Takes what is stored over from the index of the log that a snapshot replaces: all of it is of committed entries.
    pub(super) fn inherit(&mut self, old: Self) {
        let Self { span, floor, .. } = std::mem::replace(self, old);
        (self.span, self.floor) = (span, floor);
    }

    fn note(&mut self, header: &Header, body: Option<&Body>) {
        of_header(header, &mut self.span.postings);
        self.span.last = header.index.0;
        match body {
            Some(body) => of_body(header, body, &mut self.span.postings),
            None => self.span.bodies_from = header.index.0 + 1,
        }
    }

    /// Takes the next entry, and works a little on what is due. Returns how many bytes were written.
    pub(super) fn take(&mut self, disk: &Disk, header: &Header, body: Option<&Body>) -> Result<usize, ReadError> {
        self.note(header, body);
        if !header.index.0.is_multiple_of(TILE) {
            return Ok(0);
        }
        let span = std::mem::replace(&mut self.span, Span::at(header.index.0 + 1));
        let mut bytes = 0;
        if !self.covers(span.first, span.last) {
            bytes += self.put_span(disk, &span)?;
            self.written += 1;
        }
        bytes += self.work(disk, (span.postings.len() * PACE).max(LEAST_STEP))?;
        Ok(bytes)
    }

    /// Whether one run has all entries from one to another.
    fn covers(&self, first: u64, last: u64) -> bool {
        self.covering(first).is_some_and(|run| run.last >= last)
    }

    /// Writes a span as a run of the lowest level, in the place of those that have parts of it: bodies that are pruned since
    /// are known from them alone.
    fn put_span(&mut self, disk: &Disk, span: &Span) -> Result<usize, ReadError> {
        let (mut postings, mut bodies_from) = (span.postings.clone(), span.bodies_from.min(span.last + 1));
        let within: Vec<Arc<Run>> = self.runs.range(span.first..=span.last).map(|(_, run)| run.clone()).collect();
        for run in within.iter().rev() {
            for s in run.all(disk)? {
                postings.extend((s.first..=s.last).map(|index| Posting { code: s.code, index, note: s.note }));
            }
            if (run.bodies_from..=run.last + 1).contains(&bodies_from) {
                bodies_from = run.bodies_from;
            }
        }
        let id = self.fresh_id();
        let mut writer = RowWriter::new(id, span.first);
        let mut bytes = 0;
        for stretch in sorted(postings) {
            if let Some(row) = writer.push(stretch) {
                bytes += put_row(disk, &row)?;
            }
        }
        let (row, rows, sum) = writer.finish();
        if let Some(row) = row {
            bytes += put_row(disk, &row)?;
        }
        let run = Run { level: 0, id, first: span.first, last: span.last, bodies_from, rows, sum };
        Ok(bytes + self.put_run(disk, run)?)
    }

    /// Brings a run into force in the place of those within it.
    fn put_run(&mut self, disk: &Disk, run: Run) -> Result<usize, ReadError> {
        let (key, value) = (run.key(), run.encode());
        disk.insert(&disk.trees.postings, &key, &value)?;
        let within: Vec<u64> = self.runs.range(run.first..=run.last).map(|(first, _)| *first).collect();
        self.superseded.extend(within.iter().filter_map(|first| self.runs.remove(first)));
        let (level, first) = (run.level, run.first);
        self.runs.insert(run.first, Arc::new(run));
        self.look(level, first);
        self.look(level + 1, first);
        Ok(value.len())
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Begins to merge the runs of a group if all of them are there.
    fn look(&mut self, level: u8, index: u64) {
        let (number, first, last) = group(level, index);
        if level == 0 || self.merges.contains_key(&(level, number)) {
            return;
        }
        // From the last one down to where they end.
        let (mut below, mut within) = (last.saturating_add(1), Vec::new());
        for run in self.runs.range(..=last).rev().map(|(_, run)| run) {
            if run.last + 1 < below || below <= first {
                break;
            }
            below = run.first;
            if first <= run.first && run.last <= last && run.level <= level {
                within.push(run.clone());
            }
        }
        let whole = below <= first || below == self.floor;
        let adjoining = within.windows(2).all(|pair| pair[1].last + 1 == pair[0].first);
        if whole && adjoining && within.len() > 1 {
            within.reverse();
            let id = self.fresh_id();
            self.merges.insert((level, number), Merge::of(level, id, within));
        }
    }

    /// A bounded step of merging, the smallest merges first, and of deleting.
    fn work(&mut self, disk: &Disk, mut stretches: usize) -> Result<usize, ReadError> {
        let mut bytes = 0;
        while stretches > 0
            && let Some((&group, merge)) = self.merges.iter_mut().next()
        {
            bytes += merge.step(disk, &mut stretches)?;
            let Some(run) = merge.finished() else { continue };
            let Some(merge) = self.merges.remove(&group) else { break };
            if merge.inputs().all(|input| self.runs.get(&input.first).is_some_and(|run| run.id == input.id)) {
                bytes += self.put_run(disk, run)?;
            } else {
                // Headers from far below were filled in meanwhile, and what it was made of is part of others now.
                self.dying.push_back(Dying { id: run.id, run: None });
                self.look(group.0, run.first);
            }
        }
        Ok(bytes + self.delete(disk, DELETE)?)
    }

    /// Deletes rows of runs that nobody needs any more.
    fn delete(&mut self, disk: &Disk, mut rows: usize) -> Result<usize, ReadError> {
        let mut bytes = 0;
        for _ in 0..self.dying.len() {
            let Some(dying) = self.dying.pop_front() else { break };
            if dying.run.as_ref().is_some_and(|run| Arc::strong_count(run) > 1) {
                self.dying.push_back(dying);
                continue;
            }
            let range = row_key(dying.id, words::Code::default(), 0)..row_key(dying.id + 1, words::Code::default(), 0);
            for row in disk.trees.postings.range(range).take(rows) {
                let (key, value) = row?;
                disk.remove(&disk.trees.postings, &key)?;
                bytes += value.len();
                rows -= 1;
            }
            if rows == 0 {
                self.dying.push_front(dying);
                break;
            }
        }
        Ok(bytes)
    }

    /// Everything written so far is durable: what merged runs stand for may go.
    pub(super) fn durable(&mut self, disk: &Disk) -> Result<(), DurabilityError> {
        for run in std::mem::take(&mut self.superseded) {
            // One that was written anew has its head in the same place.
            let key = run.key();
            disk.remove_if(&disk.trees.postings, &key, &run.encode())?;
            self.dying.push_back(Dying { id: run.id, run: Some(run) });
        }
        Ok(())
    }

    /// Writes what is known of the unfinished span, because entries of it are about to lose their bodies.
    pub(super) fn settle(&mut self, disk: &Disk, base: LogIndex) -> Result<(), ReadError> {
        if base.0 < self.span.first || self.covers(self.span.first, base.0) {
            return Ok(());
        }
        let next = Span::at(self.span.first);
        let span = std::mem::replace(&mut self.span, next);
        let done = self.put_span(disk, &span);
        self.span = span;
        done.map(drop)
    }

    /// Takes the headers of a whole span far below. Their bodies are unknown.
    pub(super) fn take_old(&mut self, disk: &Disk, headers: &[Header]) -> Result<usize, ReadError> {
        let Some(first) = headers.first().map(|h| h.index.0) else { return Ok(0) };
        let last = first + headers.len() as u64 - 1;
        let mut span = Span { last, bodies_from: last + 1, ..Span::at(first) };
        if self.covers(first, last) || last >= self.span.first {
            return Ok(0);
        }
        headers.iter().for_each(|header| of_header(header, &mut span.postings));
        let bytes = self.put_span(disk, &span)?;
        Ok(bytes + self.work(disk, (span.postings.len() * PACE).max(LEAST_STEP))?)
    }

    /// The run that has an entry.
    fn covering(&self, index: u64) -> Option<&Arc<Run>> {
        self.runs.range(..=index).next_back().map(|(_, run)| run).filter(|run| index <= run.last)
    }

    /// The first entry from which on a word is indexed without a gap up to `size`.
    pub(super) fn complete_from(&self, word: &Word, size: u64) -> LogIndex {
        let mut below = size + 1;
        while below > 1 {
            let (first, bodies_from) = match self.covering(below - 1) {
                Some(run) => (run.first, run.bodies_from),
                None if (self.span.first..=self.span.last).contains(&(below - 1)) => {
                    let run = self.runs.range(..below).next_back();
                    (run.map_or(0, |(_, run)| run.last + 1).max(self.span.first), self.span.bodies_from)
                }
                None => break,
            };
            if !word.is_of_header() && bodies_from > first {
                return LogIndex(bodies_from.min(below));
            }
            below = first;
        }
        LogIndex(below)
    }
}

fn put_row(disk: &Disk, (key, value): &rows::Row) -> Result<usize, DurabilityError> {
    disk.insert(&disk.trees.postings, key, value)?;
    Ok(key.len() + value.len())
}

fn wrong(source: FormatError) -> ReadError {
    ReadError::Record { tree: POSTINGS, source }
}

impl Run {
    /// All that it holds.
    fn all(&self, disk: &Disk) -> Result<Vec<Stretch>, ReadError> {
        let mut all = Vec::new();
        for row in disk.trees.postings.range(row_key(self.id, words::Code::default(), 0)..) {
            let (key, value) = row?;
            if rows::read_row_key(&key).map_err(wrong)?.0 != self.id {
                break;
            }
            all.extend(rows::read_row(self.first, &key, &value).map_err(wrong)?);
        }
        Ok(all)
    }
}

impl Store {
    /// Where entries from `from` to `to` bear a word, as far as [`Store::archive`] was given them.
    #[must_use]
    pub fn lookup(&self, word: &Word, from: LogIndex, to: LogIndex) -> Lookup {
        let archive = self.shared.archive();
        lookup::Lookup::of(self, &archive.postings, word, from, to.min(LogIndex(archive.size())))
    }

    /// The first entry from which on [`Store::lookup`] knows all entries that bear this word. Before it, the node began with
    /// a snapshot, or the index was damaged after bodies had been pruned.
    #[must_use]
    pub fn indexed_from(&self, word: &Word) -> LogIndex {
        let archive = self.shared.archive();
        archive.postings.complete_from(word, archive.size())
    }

    /// Takes the headers of a whole tile (256 of them, the first one after a multiple of 256) that lie below those that
    /// were archived, for the words that follow from headers. Tiles may come in any order; one that is indexed already is
    /// passed over. Made durable with whatever is archived next.
    ///
    /// # Errors
    /// [`ReadError::Gap`] when they are no whole tile, and failures of the disk.
    pub fn index_headers(&self, headers: &[Header]) -> Result<(), ReadError> {
        let first = headers.first().map_or(LogIndex::ZERO, |h| h.index);
        let mut expected = LogIndex(first.0.saturating_sub(1) / TILE * TILE + 1);
        for index in headers.iter().map(|h| h.index) {
            if index != expected {
                return Err(ReadError::Gap { expected, found: index });
            }
            expected = expected.next();
        }
        if headers.len() as u64 != TILE {
            return Err(ReadError::Gap { expected, found: first });
        }
        guarded(|| {
            let mut archive = self.shared.archive();
            let bytes = archive.postings.take_old(&self.shared.disk, headers)?;
            archive.wrote(&self.shared.disk, bytes)
        })
    }
}

/// Ids of all rows, each once.
fn row_ids(disk: &Disk) -> Result<BTreeSet<u64>, ReadError> {
    let (mut ids, mut from) = (BTreeSet::new(), vec![ROWS]);
    while let Some(row) = disk.trees.postings.range(from..).next() {
        let (id, ..) = rows::read_row_key(&row?.0).map_err(wrong)?;
        ids.insert(id);
        let Some(next) = id.checked_add(1) else { break };
        from = row_key(next, words::Code::default(), 0).to_vec();
    }
    Ok(ids)
}
