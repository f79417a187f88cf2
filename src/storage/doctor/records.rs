//! Every record by itself: does it decode, and does it stand where it belongs?

use super::finding::{Flaw, Noted};
use crate::certificate::{Entry, FormatError, Header, Kind};
use crate::ids::LogIndex;
use crate::storage::block::{self, Block};
use crate::storage::error::{Damage, ReadError};
use crate::storage::layout::{
    self, BASES, CASTS, CERTIFICATES, COMMITS, HARD, HARD_STATE, HEADER_RUN, HEADERS, KEPT, LOG, META, META_BASE,
    META_BLS, META_DID, META_GENESIS, META_NEXT_BLS, META_RETIRED, META_SCHEMA, PROPOSALS, SNAPSHOTS, TILES,
};
use crate::storage::{kept, read};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one pass over all records remembers.
pub(super) struct Records {
    base: LogIndex,
    /// Where the log must go on, while it is known.
    next: Option<LogIndex>,
    /// The changes of members, by place.
    pub(super) epochs: BTreeMap<LogIndex, Arc<Entry>>,
}

impl Records {
    /// `base` is the last entry below the log.
    pub(super) fn over(base: LogIndex) -> Self {
        Self { base, next: Some(base.next()), epochs: BTreeMap::new() }
    }

    /// Judges one record of a tree; they come in order.
    pub(super) fn judge(&mut self, tree: &'static str, key: &[u8], value: &[u8]) -> Result<(), Noted> {
        let wrong = |source| Damage::Record { tree, source };
        let derived = |source| Flaw::Derived { tree, source };
        match tree {
            LOG => self.judge_block(key, value)?,
            KEPT => self.judge_kept(key, value)?,
            META => known(
                tree,
                key,
                &[META_SCHEMA, META_DID, META_BLS, META_NEXT_BLS, META_GENESIS, META_BASE, META_RETIRED],
            )?,
            HARD => known(tree, key, &[HARD_STATE, COMMITS])?,
            CERTIFICATES => drop(read::certificate(key, value).map_err(wrong)?),
            CASTS => layout::read_cast(key, value).map(|_| ()).map_err(wrong)?,
            BASES => drop(layout::read_part_key(key).map_err(wrong)?),
            SNAPSHOTS if key.len() == 8 => layout::read_snapshot(key, value).map(|_| ()).map_err(wrong)?,
            // Chunks are judged with their image.
            SNAPSHOTS => layout::read_part_key(key).map(|_| ()).map_err(derived)?,
            HEADERS => self.judge_headers(key, value)?,
            TILES => drop(layout::read_tile(value).map_err(derived)?),
            PROPOSALS => drop(layout::read_bucket(value).map_err(derived)?),
            _ => {}
        }
        Ok(())
    }

    fn judge_block(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        let first = LogIndex(layout::read_number_key(key).unwrap_or_default());
        let wrong = |source| Damage::Block { first, source };
        // A block that does not read is one finding, not also a gap.
        let expected = self.next.take();
        let block = Block::read(key, value).map_err(wrong)?;
        if block.end() <= self.base.next() {
            // What compaction has not deleted yet.
            self.next = expected;
            return Ok(());
        }
        for (index, bytes) in block.raw_from(first) {
            let entry = block::decode(index, bytes).map_err(wrong)?;
            self.note_change(&entry);
        }
        self.next = Some(block.end());
        match expected {
            Some(expected) if expected != first => Err(Damage::NotContiguous { expected, found: first }),
            _ => Ok(()),
        }
    }

    fn judge_kept(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        let index = LogIndex(layout::read_number_key(key).unwrap_or_default());
        let entry = kept::decode(key, value).map_err(|_: ReadError| Damage::Kept { index })?;
        self.note_change(&entry);
        Ok(())
    }

    fn note_change(&mut self, entry: &Arc<Entry>) {
        if matches!(entry.header.kind, Kind::Epoch | Kind::EpochFinal) {
            self.epochs.insert(entry.index(), entry.clone());
        }
    }

    fn judge_headers(&self, key: &[u8], value: &[u8]) -> Result<(), Noted> {
        let first = layout::read_number_key(key).unwrap_or_default();
        match read_headers(first, value) {
            Ok(()) => Ok(()),
            Err(_) if first <= self.base.0 => {
                let last = LogIndex(first.saturating_add(HEADER_RUN - 1));
                Err(Damage::Headers { first: LogIndex(first), last }.into())
            }
            Err(source) => Err(Flaw::Derived { tree: HEADERS, source }.into()),
        }
    }
}

fn read_headers(first: u64, value: &[u8]) -> Result<(), FormatError> {
    if first % HEADER_RUN != 1 {
        return Err(FormatError::Value { field: "header run" });
    }
    for (index, bytes) in (first..).zip(layout::read_whole_run(value)?) {
        if Header::decode(bytes)?.index != LogIndex(index) {
            return Err(FormatError::Value { field: "header.index" });
        }
    }
    Ok(())
}

fn known(tree: &'static str, key: &[u8], names: &[&str]) -> Result<(), Flaw> {
    if names.iter().any(|name| name.as_bytes() == key) { Ok(()) } else { Err(Flaw::Stray { tree }) }
}
