//! The epoch chain: from the genesis to the table in force, one `Epoch` entry and its joint certificate a step.

use super::bytes::{FormatError, Reader, Writer};
use super::head::{CertificateError, HeadCertificate, MAX_CERTIFICATE};
use super::header::{Entry, EntryError, Header, Kind};
use super::merkle::{MAX_PATH, root_from_path};
use super::outcome::OutcomeError;
use super::table::{Genesis, MemberTable, TableError, TableInForce};
use crate::ids::{Digest, Epoch, NodeId};
use crate::limits::MAX_ENTRY;
use std::collections::BTreeSet;

const CHAIN_TAG: &[u8; 16] = b"concordat:chain1";

/// One membership change, proved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EpochStep {
    /// The `Epoch` entry (its payload is the next table).
    pub entry: Entry,
    /// The joint certificate that its `EpochFinal` carries, or any other that covers the entry with two halves.
    pub joint: HeadCertificate,
    /// Inclusion of the `Epoch` entry in the joint head.
    pub path: Vec<Digest>,
}

/// All changes since the genesis, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EpochChain {
    /// The steps; empty while the genesis table is in force.
    pub steps: Vec<EpochStep>,
}

/// Why one step of an epoch chain does not follow from the one before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Not an `Epoch` entry.
    #[error("a {0:?} entry changes no member table")]
    Kind(Kind),
    /// It was appended under another epoch.
    #[error("its entry was appended in epoch {0}")]
    Epoch(Epoch),
    /// It lies, by index, term or time, before the change that it follows.
    #[error("its entry does not lie behind the change before it")]
    Order,
    /// Its payload is no member table.
    #[error("member table: {0}")]
    Table(#[from] TableError),
    /// A key that was retired, or that is another member's.
    #[error("{0} brings a BLS key that was retired or belongs to another member; every store makes its own key")]
    OldKey(NodeId),
    /// The votes it records do not support it.
    #[error(transparent)]
    Outcome(#[from] OutcomeError),
    /// The path does not lead to the joint root.
    #[error("its entry is not in the tree of its joint certificate")]
    Inclusion,
    /// The joint certificate does not verify.
    #[error("joint certificate: {0}")]
    Joint(Box<CertificateError>),
}

impl EpochStep {
    /// Whether a header can lie behind this change: an entry of the next epoch does.
    pub(super) fn precedes(&self, header: &Header) -> bool {
        header.index.0 > self.joint.head.size
            && header.term >= self.joint.head.term
            && header.proposed_at >= self.entry.header.proposed_at
    }

    /// The table that this step sets after `current`.
    fn follow(&self, genesis_id: &Digest, current: &TableInForce) -> Result<TableInForce, StepError> {
        let header = &self.entry.header;
        if header.kind != Kind::Epoch {
            return Err(StepError::Kind(header.kind));
        }
        if header.epoch != current.epoch {
            return Err(StepError::Epoch(header.epoch));
        }
        if header.term > self.joint.head.term {
            return Err(StepError::Order);
        }
        let leaf = header.leaf_hash();
        let root = leaf_root(leaf, header.index.0, self.joint.head.size, &self.path);
        if root != Some(self.joint.head.root) {
            return Err(StepError::Inclusion);
        }
        header.verify_outcome(genesis_id, current)?;
        let table = MemberTable::decode(&self.entry.body.payload)?;
        let next = TableInForce { epoch: current.epoch.next(), epoch_hash: leaf, table, rule: current.rule };
        let joint = self.joint.verify(genesis_id, current, Some(&next));
        joint.map_err(|e| StepError::Joint(Box::new(e)))?;
        Ok(next)
    }
}

/// The root that entry number `index` (from 1) and its path lead to.
pub(super) fn leaf_root(leaf: Digest, index: u64, size: u64, path: &[Digest]) -> Option<Digest> {
    root_from_path(leaf, index.checked_sub(1)?, size, path)
}

impl EpochChain {
    /// Walks the chain from the genesis and returns every table it proves, epoch 0 first.
    ///
    /// # Errors
    /// [`CertificateError::Step`] at the first step that does not follow.
    pub fn verify(&self, genesis: &Genesis) -> Result<Vec<TableInForce>, CertificateError> {
        self.follow(&genesis.id(), genesis.in_force())
    }

    /// Walks a part of a chain that begins at a table known to be proved, and returns that table and every further one.
    /// Keys retired before that table are not known here; the whole chain from the genesis tells them.
    ///
    /// # Errors
    /// As [`EpochChain::verify`].
    pub fn follow(&self, genesis_id: &Digest, from: TableInForce) -> Result<Vec<TableInForce>, CertificateError> {
        let mut tables = vec![from];
        let mut seen = Seen::new();
        let mut before: Option<&EpochStep> = None;
        for step in &self.steps {
            let current = tables.last().expect("begins with a table");
            let wrong = |flaw| CertificateError::Step { epoch: current.epoch.next(), flaw: Box::new(flaw) };
            // `EpochFinal` lies between two changes.
            if before.is_some_and(|b| !b.precedes(&step.entry.header)) {
                return Err(wrong(StepError::Order));
            }
            let next = step.follow(genesis_id, current).map_err(wrong)?;
            seen.extend(current.table.members().iter().map(|m| m.bls_key.x_coordinate()));
            check_keys(&seen, current, &next).map_err(wrong)?;
            before = Some(step);
            tables.push(next);
        }
        Ok(tables)
    }

    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::tagged(CHAIN_TAG);
        self.write(&mut w);
        w.0
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let mut r = Reader::new(bytes);
        r.tag(CHAIN_TAG, "epoch chain")?;
        let chain = Self::read(&mut r)?;
        r.finish("epoch chain")?;
        if chain.encode() != bytes {
            return Err(FormatError::NotCanonical { what: "epoch chain" }.into());
        }
        Ok(chain)
    }

    /// A 16-bit count and the steps.
    pub(super) fn write(&self, w: &mut Writer) {
        w.u16(u16::try_from(self.steps.len()).expect("fewer than 65,536 membership changes"));
        for step in &self.steps {
            w.long(&step.entry.encode()).short(&step.joint.encode());
            write_path(w, &step.path);
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, EntryError> {
        let count = r.u16("chain.count")?;
        let step = |_| {
            Ok(EpochStep {
                entry: Entry::decode(r.long(MAX_ENTRY, "chain.entry")?)?,
                joint: HeadCertificate::decode(r.short(MAX_CERTIFICATE, "chain.joint")?)?,
                path: read_path(r)?,
            })
        };
        Ok(Self { steps: (0..count).map(step).collect::<Result<_, EntryError>>()? })
    }
}

/// A count (one byte) and that many hashes.
pub(super) fn write_path(w: &mut Writer, path: &[Digest]) {
    w.u8(u8::try_from(path.len()).expect("a path has at most MAX_PATH hashes"));
    for hash in path {
        w.digest(hash);
    }
}

pub(super) fn read_path(r: &mut Reader<'_>) -> Result<Vec<Digest>, FormatError> {
    let (field, length) = ("path", usize::from(r.u8("path.count")?));
    if length > MAX_PATH {
        return Err(FormatError::TooLong { field, length, bound: MAX_PATH });
    }
    (0..length).map(|_| r.digest(field)).collect()
}

/// Every key that was ever in force, by what equal and opposite keys share.
type Seen = BTreeSet<[u8; 48]>;

/// A key is a store's memory of what it signed. One that comes back after it was retired belongs to a store that missed
/// what happened since, and one that moves to another member to a store that was cloned.
fn check_keys(seen: &Seen, current: &TableInForce, next: &TableInForce) -> Result<(), StepError> {
    let known = |did: &NodeId| current.table.get(did).map(|m| m.bls_key);
    let old = next
        .table
        .members()
        .iter()
        .find(|m| known(&m.did) != Some(m.bls_key) && seen.contains(&m.bls_key.x_coordinate()));
    old.map_or(Ok(()), |m| Err(StepError::OldKey(m.did)))
}
