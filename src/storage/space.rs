//! How much room the database takes, and how much of it is needed.

use super::error::ReadError;
use super::read::guarded;
use super::{Shared, Store};
use std::ops::Bound;
use std::sync::Arc;

/// Bytes of records that one step of weighing reads.
const STEP: usize = 4 * 1024 * 1024;

/// What the database takes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that its files take.
    pub file: u64,
    /// Bytes of the keys and values in it, about; unknown until [`Store::weigh`] or [`Store::rotate`] came to its end.
    pub live: Option<u64>,
}

impl Store {
    /// What the database takes of the disk.
    ///
    /// # Errors
    /// [`ReadError::Io`].
    pub fn space(&self) -> Result<Space, ReadError> {
        let disk = &self.shared.disk;
        Ok(Space { file: disk.place().bytes().map_err(ReadError::Io)?, live: disk.live() })
    }

    /// Begins to weigh the records: a read of the whole database, in steps. What is written meanwhile may be counted
    /// twice or not at all; what is written afterwards is followed.
    #[must_use]
    pub fn weigh(&self) -> Weighing {
        let grown = self.shared.disk.grown();
        Weighing { shared: self.shared.clone(), grown, tree: 0, after: None, bytes: 0 }
    }
}

/// See [`Store::weigh`].
#[derive(Debug)]
pub struct Weighing {
    shared: Arc<Shared>,
    grown: i64,
    tree: usize,
    /// The last key read of that tree.
    after: Option<Vec<u8>>,
    bytes: u64,
}

impl Weighing {
    /// Reads a few megabytes; says whether there is more to read.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn step(&mut self) -> Result<bool, ReadError> {
        guarded(|| {
            let disk = &self.shared.disk;
            let all = disk.trees.all();
            let Some((_, tree)) = all.get(self.tree) else {
                disk.set_weight(self.bytes, self.grown);
                return Ok(false);
            };
            let from = self.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut step = 0;
            for row in tree.range::<&[u8]>((from, Bound::Unbounded)) {
                let (key, value) = row?;
                step += key.len() + value.len();
                if step >= STEP {
                    self.after = Some(key.to_vec());
                    self.bytes += step as u64;
                    return Ok(true);
                }
            }
            self.bytes += step as u64;
            (self.tree, self.after) = (self.tree + 1, None);
            Ok(true)
        })
    }
}
