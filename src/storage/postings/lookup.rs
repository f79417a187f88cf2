//! Reading the index: where a word is, from a place on, in either direction.

use super::rows::{Run, Stretch, read_row, row_key};
use super::words::Code;
use super::{Postings, Word, wrong};
use crate::ids::LogIndex;
use crate::storage::Store;
use crate::storage::error::ReadError;
use crate::storage::read::guarded;
use std::ops::Bound;
use std::sync::Arc;

/// Consecutive entries that bear a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The first one.
    pub first: LogIndex,
    /// The last one.
    pub last: LogIndex,
    /// What was noted with it, for a request: see [`super::deadline_of`].
    pub note: u64,
}

/// The entries within bounds that bear a word. It goes on giving what was there when it was made, however the log grows,
/// is merged or compacted meanwhile.
#[derive(Debug)]
pub struct Lookup {
    store: Store,
    code: Code,
    from: u64,
    to: u64,
    parts: Vec<Part>,
    /// The row read last: its run, and what it has of this word.
    row: Option<(u64, Vec<Stretch>)>,
    reads: usize,
}

/// Where postings come from; ascending and disjoint.
#[derive(Debug)]
struct Part {
    first: u64,
    last: u64,
    from: Source,
}

#[derive(Debug)]
enum Source {
    Run(Arc<Run>),
    Memory(Vec<Stretch>),
}

impl Lookup {
    pub(super) fn of(store: &Store, postings: &Postings, word: &Word, from: LogIndex, to: LogIndex) -> Self {
        let code = word.code();
        let mut parts = Vec::new();
        let mut end = 0;
        for run in postings.runs.values() {
            end = run.last;
            let (first, last) = (run.first.max(from.0), run.last.min(to.0));
            if first <= last {
                parts.push(Part { first, last, from: Source::Run(run.clone()) });
            }
        }
        let (first, last) = (postings.span.first.max(end + 1).max(from.0), postings.span.last.min(to.0));
        if first <= last {
            let here = postings.span.postings.iter().filter(|p| p.code == code && (first..=last).contains(&p.index));
            let stretch = here.map(|p| Stretch { code, first: p.index, last: p.index, note: p.note });
            parts.push(Part { first, last, from: Source::Memory(stretch.collect()) });
        }
        Self { store: store.clone(), code, from: from.0, to: to.0, parts, row: None, reads: 0 }
    }

    /// How many rows it has read.
    #[must_use]
    pub fn reads(&self) -> usize {
        self.reads
    }

    /// The first entries at or after `at`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn next_from(&mut self, at: LogIndex) -> Result<Option<Found>, ReadError> {
        guarded(|| {
            let mut at = at.0.max(self.from);
            let begin = self.parts.partition_point(|part| part.last < at);
            for part in begin..self.parts.len() {
                at = at.max(self.parts[part].first);
                if let Some(found) = self.after(part, at)? {
                    return Ok(self.clip(found, at, self.parts[part].last));
                }
            }
            Ok(None)
        })
    }

    /// The last entries at or before `at`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn last_upto(&mut self, at: LogIndex) -> Result<Option<Found>, ReadError> {
        guarded(|| {
            let mut at = at.0.min(self.to);
            let end = self.parts.partition_point(|part| part.first <= at);
            for part in (0..end).rev() {
                at = at.min(self.parts[part].last);
                if let Some(found) = self.before(part, at)? {
                    return Ok(self.clip(found, self.parts[part].first, at));
                }
            }
            Ok(None)
        })
    }

    fn clip(&self, s: Stretch, from: u64, to: u64) -> Option<Found> {
        debug_assert_eq!(s.code, self.code);
        Some(Found { first: LogIndex(s.first.max(from)), last: LogIndex(s.last.min(to)), note: s.note })
    }

    /// The first stretch of a part that reaches `at`.
    fn after(&mut self, part: usize, at: u64) -> Result<Option<Stretch>, ReadError> {
        let last = self.parts[part].last;
        let pick = |all: &[Stretch]| all.get(all.partition_point(|s| s.last < at)).copied().filter(|s| s.first <= last);
        let run = match &self.parts[part].from {
            Source::Memory(all) => return Ok(pick(all)),
            Source::Run(run) => run.clone(),
        };
        if !self.holds(run.id, at) {
            self.row_upto(&run, at)?;
            if self.row.as_ref().is_some_and(|(_, all)| all.last().is_none_or(|s| s.last < at)) {
                // The row that begins next may go on with the word.
                self.row_after(&run, at)?;
            }
        }
        Ok(self.row.as_ref().and_then(|(_, all)| pick(all)))
    }

    /// The last stretch of a part that begins at or before `at`.
    fn before(&mut self, part: usize, at: u64) -> Result<Option<Stretch>, ReadError> {
        let first = self.parts[part].first;
        let pick = |all: &[Stretch]| {
            let end = all.partition_point(|s| s.first <= at);
            all.get(end.checked_sub(1)?).copied().filter(|s| s.last >= first)
        };
        let run = match &self.parts[part].from {
            Source::Memory(all) => return Ok(pick(all)),
            Source::Run(run) => run.clone(),
        };
        if !self.holds(run.id, at) {
            self.row_upto(&run, at)?;
        }
        Ok(self.row.as_ref().and_then(|(_, all)| pick(all)))
    }

    /// Whether the row read last tells about `at`.
    fn holds(&self, run: u64, at: u64) -> bool {
        self.row.as_ref().is_some_and(|(of, all)| {
            *of == run && all.first().is_some_and(|s| s.first <= at) && all.last().is_some_and(|s| at <= s.last)
        })
    }

    /// Reads the row in which the word stands at `at`, or last before.
    fn row_upto(&mut self, run: &Run, at: u64) -> Result<(), ReadError> {
        let (start, end) = (row_key(run.id, Code::default(), 0), row_key(run.id, self.code, at));
        let row = self.store.shared.disk.trees.postings.range(start..=end).next_back().transpose()?;
        self.read(run, row)
    }

    /// Reads the row that begins with the word after `at`.
    fn row_after(&mut self, run: &Run, at: u64) -> Result<(), ReadError> {
        let (start, end) = (row_key(run.id, self.code, at), row_key(run.id, self.code, u64::MAX));
        let range = (Bound::Excluded(&start[..]), Bound::Included(&end[..]));
        let row = self.store.shared.disk.trees.postings.range::<&[u8]>(range).next().transpose()?;
        self.read(run, row)
    }

    fn read(&mut self, run: &Run, row: Option<(sled::IVec, sled::IVec)>) -> Result<(), ReadError> {
        self.reads += 1;
        let mut all = match row {
            None => Vec::new(),
            Some((key, value)) => read_row(run.first, &key, &value).map_err(wrong)?,
        };
        all.retain(|s| s.code == self.code);
        self.row = Some((run.id, all));
        Ok(())
    }
}
