//! A block: the entries of one group commit as one sled value.
//!
//! Every block carries the tree root before its first entry. A block that survived from another history (a delete that
//! did not reach the disk, a page that came back) has the right numbers but not the right root, and is found at open.

use super::layout::checksum;
use crate::certificate::{Entry, EntryError, FormatError, Reader, Writer};
use crate::ids::{Digest, LogIndex};
use crate::limits::{MAX_ENTRY, MAX_STORED_VALUE};
use std::sync::Arc;

const VERSION: u8 = 1;
/// Version, count, root before.
const PREFIX: usize = 1 + 2 + 32;
const CHECKSUM: usize = 4;
/// Bytes that an entry takes beyond its own.
const PER_ENTRY: usize = 4;

const _: () = assert!(PREFIX + PER_ENTRY + MAX_ENTRY + CHECKSUM <= MAX_STORED_VALUE);

/// Why a stored block is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The bytes are no block.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The checksum is another.
    #[error("its checksum does not match its bytes")]
    Checksum,
    /// An entry in it does not decode.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// An entry bears another index than its place.
    #[error("entry {expected} bears the index {found}")]
    Index {
        /// By its place.
        expected: LogIndex,
        /// In its header.
        found: LogIndex,
    },
}

/// A key and a value of the `log` tree.
pub(super) type Row = ([u8; 8], Vec<u8>);

/// Collects entries until they are a block.
#[derive(Debug)]
pub(super) struct Builder {
    first: LogIndex,
    root_before: Digest,
    count: u16,
    entries: Writer,
}

impl Builder {
    /// A block that will begin with entry `first`, over a log whose root before it is `root_before`.
    pub(super) fn new(first: LogIndex, root_before: Digest) -> Self {
        Self { first, root_before, count: 0, entries: Writer::default() }
    }

    /// Whether an encoded entry of this length still fits.
    pub(super) fn has_room_for(&self, length: usize) -> bool {
        self.count < u16::MAX && PREFIX + self.entries.0.len() + PER_ENTRY + length + CHECKSUM <= MAX_STORED_VALUE
    }

    /// Adds one encoded entry.
    pub(super) fn push(&mut self, entry: &[u8]) {
        debug_assert!(self.has_room_for(entry.len()));
        self.entries.long(entry);
        self.count += 1;
    }

    /// The key and the value.
    pub(super) fn finish(self) -> Row {
        let key = super::layout::number_key(self.first.0);
        let mut w = Writer::default();
        w.u8(VERSION).u16(self.count).digest(&self.root_before).fixed(&self.entries.0);
        let sum = checksum(&key, &w.0);
        w.u32(sum);
        (key, w.0)
    }
}

/// A stored block whose checksum and framing are right; entries are decoded when asked for.
#[derive(Debug)]
pub(super) struct Block<'a> {
    /// The index of its first entry.
    pub(super) first: LogIndex,
    /// The root over everything before.
    pub(super) root_before: Digest,
    entries: Vec<&'a [u8]>,
}

impl<'a> Block<'a> {
    /// Reads a value of the `log` tree.
    pub(super) fn read(key: &[u8], value: &'a [u8]) -> Result<Self, BlockError> {
        let first = LogIndex(super::layout::read_number_key(key)?);
        let (body, sum) = value.split_last_chunk::<CHECKSUM>().ok_or(FormatError::Truncated { field: "block" })?;
        if checksum(key, body) != u32::from_be_bytes(*sum) {
            return Err(BlockError::Checksum);
        }
        let mut r = Reader::new(body);
        let version = r.u8("block.version")?;
        if version != VERSION {
            return Err(FormatError::Version { what: "block", version }.into());
        }
        let count = r.u16("block.count")?;
        let root_before = r.digest("block.root_before")?;
        let entries = (0..count).map(|_| r.long(MAX_ENTRY, "block.entry")).collect::<Result<Vec<_>, _>>()?;
        r.finish("block")?;
        if first == LogIndex::ZERO || entries.is_empty() || first.0.checked_add(entries.len() as u64).is_none() {
            return Err(FormatError::Value { field: "block.first" }.into());
        }
        Ok(Self { first, root_before, entries })
    }

    /// The index after its last entry.
    pub(super) fn end(&self) -> LogIndex {
        LogIndex(self.first.0 + self.entries.len() as u64)
    }

    /// The encoded entries from `from` on (all, when it lies before), each with its index.
    pub(super) fn raw_from(&self, from: LogIndex) -> impl Iterator<Item = (LogIndex, &'a [u8])> + '_ {
        let skip = usize::try_from(from.0.saturating_sub(self.first.0)).unwrap_or(usize::MAX);
        (self.first.0..).map(LogIndex).zip(self.entries.iter().copied()).skip(skip)
    }
}

/// Decodes one entry of a block and checks that it stands where it belongs.
pub(super) fn decode(index: LogIndex, bytes: &[u8]) -> Result<Arc<Entry>, BlockError> {
    let entry = Entry::decode(bytes)?;
    if entry.index() != index {
        return Err(BlockError::Index { expected: index, found: entry.index() });
    }
    Ok(Arc::new(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first: u64, entries: &[&[u8]]) -> ([u8; 8], Vec<u8>) {
        let mut b = Builder::new(LogIndex(first), Digest([7; 32]));
        for e in entries {
            b.push(e);
        }
        b.finish()
    }

    #[test]
    fn a_block_reads_back() {
        let (key, value) = block(5, &[b"one", b"", b"three"]);
        let read = Block::read(&key, &value).unwrap();
        assert_eq!((read.first, read.end(), read.root_before), (LogIndex(5), LogIndex(8), Digest([7; 32])));
        let all: Vec<_> = read.raw_from(LogIndex(0)).collect();
        assert_eq!(all, [(LogIndex(5), &b"one"[..]), (LogIndex(6), b""), (LogIndex(7), b"three")]);
        assert_eq!(read.raw_from(LogIndex(7)).collect::<Vec<_>>(), all[2..]);
        assert_eq!(read.raw_from(LogIndex(8)).count(), 0);
    }

    #[test]
    fn any_changed_bit_and_any_other_key_is_found() {
        let (key, value) = block(5, &[b"one", b"two"]);
        for at in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(Block::read(&key, &bad).is_err(), "bit {at}");
        }
        for length in 0..value.len() {
            assert!(Block::read(&key, &value[..length]).is_err(), "cut to {length}");
        }
        assert_eq!(Block::read(&super::super::layout::number_key(6), &value).unwrap_err(), BlockError::Checksum);
    }

    #[test]
    fn a_block_keeps_within_the_durable_value_size() {
        let entry = vec![1; MAX_ENTRY];
        let mut b = Builder::new(LogIndex(1), Digest::ZERO);
        assert!(b.has_room_for(entry.len()));
        b.push(&entry);
        assert!(!b.has_room_for(entry.len()));
        while b.has_room_for(100) {
            b.push(&entry[..100]);
        }
        assert!(b.finish().1.len() <= MAX_STORED_VALUE);
    }
}
