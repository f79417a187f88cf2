//! What the log rests on: everything that must be known of the entries below it.
//!
//! It is written in parts, and comes into force by one record of fixed length that names them by hash. So at any instant
//! the store rests wholly on the old ground or wholly on the new one.

use super::disk::{Disk, Trees};
use super::error::{DurabilityError, ReadError};
use super::layout::{BASES, BaseRecord, META, META_BASE, part_key, read_part_key};
use crate::certificate::{Edge, FormatError, Reader, Writer};
use crate::core::Base;
use crate::ids::{LogIndex, Term};
use crate::limits::{SNAPSHOT_CHUNK, TILE};
use sha2::{Digest as _, Sha256};

const VERSION: u8 = 1;
/// Bytes of one part.
const PART: usize = SNAPSHOT_CHUNK;
/// Bytes of parts written before they are made durable.
const UNSYNCED: usize = 1024 * 1024;

/// See [`Base`]; the entries that changed the members are named here and kept elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ground {
    /// The right edge of the tree below the log.
    pub(super) edge: Edge,
    /// Where terms begin, ascending.
    pub(super) terms: Vec<(LogIndex, Term)>,
    /// `proposed_at` of the last entry below the log.
    pub(super) proposed_at: u64,
    /// The `Epoch` and `EpochFinal` entries, ascending.
    pub(super) epochs: Vec<LogIndex>,
    /// The first entry whose header is here; where a tile begins.
    pub(super) from: LogIndex,
}

impl Default for Ground {
    fn default() -> Self {
        Self { edge: Edge::default(), terms: Vec::new(), proposed_at: 0, epochs: Vec::new(), from: LogIndex(1) }
    }
}

impl Ground {
    /// The ground that an installed snapshot brings: of what lies before it, only the edge is here.
    pub(super) fn installed(base: &Base) -> Self {
        let size = base.edge.size();
        Self {
            edge: base.edge.clone(),
            terms: base.terms.clone(),
            proposed_at: base.proposed_at,
            epochs: base.epochs.iter().map(|e| e.index()).collect(),
            from: LogIndex(size - size % TILE + 1),
        }
    }

    /// The last entry below the log.
    pub(super) fn index(&self) -> LogIndex {
        LogIndex(self.edge.size())
    }

    /// Its term.
    pub(super) fn last_term(&self) -> Term {
        self.terms.last().map_or(Term::ZERO, |(_, term)| *term)
    }

    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION);
        self.edge.write(&mut w);
        w.u32(u32::try_from(self.terms.len()).expect("fewer terms than 2^32"));
        for (first, term) in &self.terms {
            w.u64(first.0).u64(term.0);
        }
        w.u64(self.proposed_at);
        w.u32(u32::try_from(self.epochs.len()).expect("fewer changes of members than 2^32"));
        for index in &self.epochs {
            w.u64(index.0);
        }
        w.0
    }

    fn decode(bytes: &[u8], from: LogIndex) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        match r.u8("base.version")? {
            VERSION => {}
            version => return Err(FormatError::Version { what: "base", version }),
        }
        let edge = Edge::read(&mut r)?;
        let count = r.u32("base.terms")?;
        let pair = |r: &mut Reader<'_>| Ok((LogIndex(r.u64("base.terms")?), Term(r.u64("base.terms")?)));
        let terms = (0..count).map(|_| pair(&mut r)).collect::<Result<Vec<_>, FormatError>>()?;
        let proposed_at = r.u64("base.proposed_at")?;
        let count = r.u32("base.epochs")?;
        let epochs = (0..count).map(|_| r.u64("base.epochs").map(LogIndex)).collect::<Result<Vec<_>, _>>()?;
        r.finish("base")?;
        Ok(Self { edge, terms, proposed_at, epochs, from })
    }

    fn record(&self, parts: &[u8], wipe: bool) -> BaseRecord {
        BaseRecord {
            index: self.index(),
            from: self.from,
            wipe,
            length: u32::try_from(parts.len()).expect("edge, terms and changes of members take less than 4 GiB"),
            sum: Sha256::digest(parts).into(),
        }
    }

    /// Comes into force durably. Its index is another than that of the ground in force, whose parts go afterwards.
    pub(super) fn put(&self, disk: &Disk, wipe: bool) -> Result<(), DurabilityError> {
        let bytes = self.encode();
        let mut unsynced = 0;
        for (number, part) in (0..).zip(bytes.chunks(PART)) {
            disk.insert(&disk.trees.bases, &part_key(self.index(), number), part)?;
            unsynced += part.len();
            if unsynced >= UNSYNCED {
                disk.make_durable()?;
                unsynced = 0;
            }
        }
        disk.insert(&disk.trees.meta, META_BASE.as_bytes(), &self.record(&bytes, wipe).encode())?;
        disk.make_durable()
    }

    /// Written into a store that has none, not durably yet. It must be a small one.
    pub(super) fn put_first(&self, trees: &Trees<sled::Tree>) -> sled::Result<()> {
        let bytes = self.encode();
        for (number, part) in (0..).zip(bytes.chunks(PART)) {
            trees.bases.insert(part_key(self.index(), number), part)?;
        }
        trees.meta.insert(META_BASE, self.record(&bytes, false).encode())?;
        Ok(())
    }

    /// Says that nothing is left of the log that was replaced; durable with whatever is written next.
    pub(super) fn wiped(&self, disk: &Disk) -> Result<(), DurabilityError> {
        disk.insert(&disk.trees.meta, META_BASE.as_bytes(), &self.record(&self.encode(), false).encode())
    }

    /// Says durably that headers begin earlier than they did; nothing else of it has changed.
    pub(super) fn put_from(&self, disk: &Disk) -> Result<(), DurabilityError> {
        self.wiped(disk)?;
        disk.make_durable()
    }

    /// What is in force, and whether a replaced log is still to be wiped.
    pub(super) fn load(disk: &Disk) -> Result<Option<(Self, bool)>, ReadError> {
        let wrong = |tree| move |source| ReadError::Record { tree, source };
        let Some(value) = disk.trees.meta.get(META_BASE)? else { return Ok(None) };
        let record = BaseRecord::decode(&value).map_err(wrong(META))?;
        let mut bytes = Vec::new();
        for number in 0..record.length.div_ceil(PART as u32) {
            match disk.trees.bases.get(part_key(record.index, number))? {
                Some(part) => bytes.extend_from_slice(&part),
                None => return Err(wrong(BASES)(FormatError::Truncated { field: "base" })),
            }
        }
        if bytes.len() != record.length as usize || Sha256::digest(&bytes)[..] != record.sum {
            return Err(wrong(BASES)(FormatError::Value { field: "checksum" }));
        }
        let ground = Self::decode(&bytes, record.from).map_err(wrong(BASES))?;
        if ground.index() != record.index {
            return Err(wrong(BASES)(FormatError::Value { field: "base.index" }));
        }
        Ok(Some((ground, record.wipe)))
    }

    /// Deletes the parts of grounds that are not in force.
    pub(super) fn tidy(&self, disk: &Disk) -> Result<(), ReadError> {
        for row in disk.trees.bases.iter() {
            let (key, _) = row?;
            let (index, _) = read_part_key(&key).map_err(|source| ReadError::Record { tree: BASES, source })?;
            if index != self.index() {
                disk.remove(&disk.trees.bases, &key)?;
            }
        }
        Ok(())
    }
}
