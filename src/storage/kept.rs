//! Entries below the log's base whose bodies are kept for ever: all but proposals and aborts.

use super::disk::Disk;
use super::error::{DurabilityError, ReadError};
use super::layout::{KEPT, number_key, read_number_key, seal, unseal};
use crate::certificate::{Entry, FormatError, Kind};
use crate::ids::LogIndex;
use std::sync::Arc;

/// Whether the body of such an entry outlives the log.
pub(super) fn is_kept(kind: Kind) -> bool {
    !matches!(kind, Kind::Proposal | Kind::Aborted)
}

/// Writes one, and returns how many bytes that took.
pub(super) fn put(disk: &Disk, entry: &Entry) -> Result<usize, DurabilityError> {
    let key = number_key(entry.index().0);
    let value = seal(&key, &entry.encode());
    disk.insert(&disk.trees.kept, &key, &value)?;
    Ok(value.len())
}

/// Reads the one at `index`.
pub(super) fn read(disk: &Disk, index: LogIndex) -> Result<Option<Arc<Entry>>, ReadError> {
    let key = number_key(index.0);
    let Some(value) = disk.trees.kept.get(key)? else { return Ok(None) };
    decode(&key, &value).map(Some)
}

/// Reads a row.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Arc<Entry>, ReadError> {
    let record = |source| ReadError::Record { tree: KEPT, source };
    let index = LogIndex(read_number_key(key).map_err(record)?);
    let entry =
        Entry::decode(unseal(key, value).map_err(record)?).map_err(|source| ReadError::Kept { index, source })?;
    if entry.index() == index && is_kept(entry.header.kind) {
        Ok(Arc::new(entry))
    } else {
        Err(record(FormatError::Value { field: "kept.index" }))
    }
}
