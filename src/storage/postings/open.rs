//! Opening the index: what is there is checked, what is missing is derived again as far as headers and log reach.

use super::rows::{HEAD, ROWS, Run, read_row, row_key};
use super::words::Code;
use super::{Dying, Postings, Span, group, row_ids, width, wrong};
use crate::certificate::Header;
use crate::ids::LogIndex;
use crate::limits::TILE;
use crate::storage::disk::Disk;
use crate::storage::error::ReadError;
use crate::storage::layout::{self, HEADER_RUN, HEADERS, number_key};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes written before they are made durable.
const UNSYNCED: usize = 1024 * 1024;

impl Postings {
    /// Reads what is stored, and derives what is missing of the entries up to the log's base. What lies above is derived by
    /// whoever reads the log.
    pub(in crate::storage) fn load(&mut self, disk: &Disk, base: LogIndex) -> Result<(), ReadError> {
        let mut found = Vec::new();
        for row in disk.trees.postings.range([HEAD]..[ROWS]) {
            let (key, value) = row?;
            match Run::decode(&key, &value) {
                Ok(run) if run.is_whole(disk)? => found.push(run),
                _ => disk.remove(&disk.trees.postings, &key)?,
            }
        }
        found.sort_unstable_by_key(|run| Reverse((run.level, run.id)));
        for run in found {
            let before = self.runs.range(..=run.last).next_back();
            if before.is_some_and(|(_, other)| run.first <= other.last) {
                // It was merged into that one.
                disk.remove(&disk.trees.postings, &run.key())?;
            } else {
                self.runs.insert(run.first, Arc::new(run));
            }
        }
        let live: BTreeSet<u64> = self.runs.values().map(|run| run.id).collect();
        let ids = row_ids(disk)?;
        self.next_id = ids.last().max(live.last()).copied().unwrap_or(0);
        self.dying.extend(ids.difference(&live).map(|id| Dying { id: *id, run: None }));
        let runs: Vec<(u8, u64)> = self.runs.values().map(|run| (run.level, run.first)).collect();
        for (level, first) in runs {
            self.look(level, first);
            self.look(level + 1, first);
        }
        self.fill(disk, base)
    }

    /// Derives from headers what is missing of the full spans up to the base.
    fn fill(&mut self, disk: &Disk, base: LogIndex) -> Result<(), ReadError> {
        let (mut at, end) = (self.floor, base.0 - base.0 % TILE);
        let mut unsynced = 0;
        while at <= end {
            if let Some(run) = self.covering(at) {
                at = run.last + 1;
                continue;
            }
            let next = self.runs.range(at..).next().map_or(u64::MAX, |(first, _)| *first);
            let last = group(0, at).2.min(next - 1);
            let mut span = Span { last, bodies_from: last + 1, ..Span::at(at) };
            for header in tile_headers(disk, at)?.iter().filter(|h| (at..=last).contains(&h.index.0)) {
                super::of_header(header, &mut span.postings);
            }
            unsynced +=
                self.put_span(disk, &span)? + self.work(disk, super::LEAST_STEP + span.postings.len() * super::PACE)?;
            self.written += 1;
            if unsynced >= UNSYNCED {
                disk.make_durable()?;
                self.durable(disk)?;
                unsynced = 0;
            }
            at = last + 1;
        }
        Ok(())
    }
}

/// The headers of the tile in which an entry lies.
fn tile_headers(disk: &Disk, index: u64) -> Result<Vec<Header>, ReadError> {
    let first = group(0, index).1;
    let mut headers = Vec::with_capacity(TILE as usize);
    for run in (first..first + width(0)).step_by(HEADER_RUN as usize) {
        let wrong = |source| ReadError::Record { tree: HEADERS, source };
        let value = disk.trees.headers.get(number_key(run))?.ok_or(ReadError::Hole { index: LogIndex(run) })?;
        for bytes in layout::read_whole_run(&value).map_err(wrong)? {
            headers.push(Header::decode(bytes).map_err(wrong)?);
        }
    }
    Ok(headers)
}

impl Run {
    /// Whether every row is there as it was written.
    fn is_whole(&self, disk: &Disk) -> Result<bool, ReadError> {
        let (mut rows, mut sum) = (0, crc32fast::Hasher::new());
        let Some(end) = self.id.checked_add(1) else { return Ok(false) };
        let range = row_key(self.id, Code::default(), 0)..row_key(end, Code::default(), 0);
        for row in disk.trees.postings.range(range) {
            let (key, value) = row?;
            if read_row(self.first, &key, &value).map_err(wrong).is_err() {
                return Ok(false);
            }
            sum.update(value.first_chunk::<4>().map_or(&[], |sum| &sum[..]));
            rows += 1;
        }
        Ok(rows == self.rows && sum.finalize() == self.sum)
    }
}
