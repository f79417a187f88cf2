//! Merging runs, a bounded piece at a time.

use super::rows::{RowWriter, Run, Stretch, read_row, read_row_key, row_key};
use super::words::Code;
use super::{put_row, wrong};
use crate::storage::disk::Disk;
use crate::storage::error::ReadError;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// Several adjoining runs on their way to become one. Lost with the process, and begun again.
#[derive(Debug)]
pub(super) struct Merge {
    level: u8,
    id: u64,
    first: u64,
    last: u64,
    bodies_from: u64,
    inputs: Vec<Input>,
    /// The next stretch of each input that has one. Runs are disjoint: word and first index tell them apart.
    heads: BinaryHeap<Reverse<(Code, u64, usize)>>,
    begun: bool,
    writer: Option<RowWriter>,
    done: Option<Run>,
}

#[derive(Debug)]
struct Input {
    run: Arc<Run>,
    read: VecDeque<Stretch>,
    /// The last row read.
    at: Option<sled::IVec>,
}

impl Input {
    /// The next stretch, left where it is.
    fn peek(&mut self, disk: &Disk) -> Result<Option<Stretch>, ReadError> {
        if self.read.is_empty() {
            let start = row_key(self.run.id, Code::default(), 0);
            let from = self.at.as_ref().map_or(Bound::Included(&start[..]), |at| Bound::Excluded(&at[..]));
            let end = row_key(self.run.id + 1, Code::default(), 0);
            let Some(row) = disk.trees.postings.range::<&[u8]>((from, Bound::Excluded(&end[..]))).next() else {
                return Ok(None);
            };
            let (key, value) = row?;
            self.read = read_row(self.run.first, &key, &value).map_err(wrong)?.into();
            debug_assert_eq!(read_row_key(&key).map(|k| k.0), Ok(self.run.id));
            self.at = Some(key);
        }
        Ok(self.read.front().copied())
    }
}

impl Merge {
    /// Of at least one run; ascending and adjoining.
    pub(super) fn of(level: u8, id: u64, runs: Vec<Arc<Run>>) -> Self {
        let (first, last) = (runs.first().map_or(0, |r| r.first), runs.last().map_or(0, |r| r.last));
        let mut bodies_from = last + 1;
        for run in runs.iter().rev() {
            bodies_from = run.bodies_from;
            if bodies_from > run.first {
                break;
            }
        }
        Self {
            level,
            id,
            first,
            last,
            bodies_from,
            inputs: runs.into_iter().map(|run| Input { run, read: VecDeque::new(), at: None }).collect(),
            heads: BinaryHeap::new(),
            begun: false,
            writer: Some(RowWriter::new(id, first)),
            done: None,
        }
    }

    fn queue(&mut self, disk: &Disk, input: usize) -> Result<(), ReadError> {
        if let Some(next) = self.inputs[input].peek(disk)? {
            self.heads.push(Reverse((next.code, next.first, input)));
        }
        Ok(())
    }

    /// Merges as many stretches as are left; returns how many bytes were written.
    pub(super) fn step(&mut self, disk: &Disk, left: &mut usize) -> Result<usize, ReadError> {
        if !self.begun {
            (0..self.inputs.len()).try_for_each(|input| self.queue(disk, input))?;
            self.begun = true;
        }
        let mut bytes = 0;
        while *left > 0 {
            let Some(Reverse((_, _, input))) = self.heads.pop() else {
                return Ok(bytes + self.finish(disk, left)?);
            };
            let next = self.inputs[input].read.pop_front();
            if let Some(row) = next.and_then(|next| self.writer.as_mut()?.push(next)) {
                bytes += put_row(disk, &row)?;
            }
            self.queue(disk, input)?;
            *left -= 1;
        }
        Ok(bytes)
    }

    fn finish(&mut self, disk: &Disk, left: &mut usize) -> Result<usize, ReadError> {
        *left -= 1;
        let Some(writer) = self.writer.take() else { return Ok(0) };
        let (row, rows, sum) = writer.finish();
        let bytes = row.map_or(Ok(0), |row| put_row(disk, &row))?;
        let Self { level, id, first, last, bodies_from, .. } = *self;
        self.done = Some(Run { level, id, first, last, bodies_from, rows, sum });
        Ok(bytes)
    }

    /// What it is made of.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &Run> {
        self.inputs.iter().map(|input| &*input.run)
    }

    /// The run that came of it, once it is whole.
    pub(super) fn finished(&mut self) -> Option<Run> {
        self.done.take()
    }
}
