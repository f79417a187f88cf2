//! The membership changes that are applied here: which table an entry is read under, and the proofs that lead from the
//! genesis to it.

use super::queries::{QueryError, not_found};
use crate::certificate::{Entry, EpochChain, EpochStep, Genesis, HeadCertificate, Kind, MemberTable, TableInForce};
use crate::ids::{Digest, Epoch, LogIndex, NodeId};
use crate::storage::Store;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One change.
struct Step {
    /// The `Epoch` entry.
    entry: Entry,
    table: Arc<TableInForce>,
    /// What its `EpochFinal` carries, once that is applied.
    joint: Option<HeadCertificate>,
    /// That entry.
    close: Option<Arc<Entry>>,
    /// Where the entry stands below the joint head, when it was told with the change: the hashes that lead there may not
    /// be in this node's store.
    path: Option<Vec<Digest>>,
}

/// All changes since the genesis.
pub(super) struct Epochs {
    genesis: Arc<TableInForce>,
    steps: Vec<Step>,
}

impl Epochs {
    pub(super) fn new(genesis: &Genesis) -> Self {
        Self { genesis: Arc::new(genesis.in_force()), steps: Vec::new() }
    }

    /// As a snapshot left them.
    pub(super) fn proved_by(genesis: &Genesis, chain: EpochChain, finals: Vec<Arc<Entry>>) -> Self {
        let mut epochs = Self::new(genesis);
        for (step, close) in chain.steps.into_iter().zip(finals) {
            epochs.apply(&Arc::new(step.entry));
            epochs.apply(&close);
            if let Some(last) = epochs.steps.last_mut() {
                last.path = Some(step.path);
            }
        }
        epochs
    }

    /// The `EpochFinal` entries of all proved changes, ascending.
    pub(super) fn finals(&self) -> Vec<Arc<Entry>> {
        self.steps.iter().filter_map(|s| s.close.clone()).collect()
    }

    /// Takes notice of a committed entry. What is malformed was appended by a faulty leader against every follower's
    /// check; it changes nothing here.
    pub(super) fn apply(&mut self, entry: &Arc<Entry>) {
        match entry.header.kind {
            Kind::Epoch => {
                let Ok(table) = MemberTable::decode_granted(&entry.body.payload) else { return };
                let before = self.newest();
                let (epoch, rule) = (before.epoch.next(), before.rule);
                let table = TableInForce { epoch, epoch_hash: entry.header.leaf_hash(), table, rule };
                let entry = (**entry).clone();
                self.steps.push(Step { entry, table: Arc::new(table), joint: None, close: None, path: None });
            }
            Kind::EpochFinal => {
                if let Some(step) = self.steps.last_mut() {
                    step.joint = HeadCertificate::decode(&entry.body.payload).ok();
                    step.close = Some(entry.clone());
                }
            }
            _ => {}
        }
    }

    fn newest(&self) -> &Arc<TableInForce> {
        self.steps.last().map_or(&self.genesis, |s| &s.table)
    }

    /// The table of an epoch.
    pub(super) fn table(&self, epoch: Epoch) -> Option<&Arc<TableInForce>> {
        match epoch.0.checked_sub(1) {
            None => Some(&self.genesis),
            Some(at) => self.steps.get(usize::try_from(at).ok()?).map(|s| &s.table),
        }
    }

    /// Everyone who ever was a member, with the last address known.
    pub(super) fn addresses(&self) -> BTreeMap<NodeId, String> {
        let tables = std::iter::once(&self.genesis).chain(self.steps.iter().map(|s| &s.table));
        tables.flat_map(|t| t.table.members()).map(|m| (m.did, m.address.clone())).collect()
    }

    /// The joint certificate that closed an epoch. Its first half is signed by the table of that epoch.
    pub(super) fn closing(&self, epoch: Epoch) -> Option<&HeadCertificate> {
        self.steps.get(usize::try_from(epoch.0).ok()?)?.joint.as_ref()
    }

    /// The entry that opened the change of the members of an epoch.
    pub(super) fn opened(&self, epoch: Epoch) -> Option<LogIndex> {
        self.steps.get(usize::try_from(epoch.0).ok()?).map(|s| s.entry.index())
    }

    /// The changes above an epoch up to another, without the paths that prove where their entries stand; `open` serves
    /// the last one if its own joint certificate is not known yet.
    fn outline(&self, above: Epoch, upto: Epoch, open: Option<&HeadCertificate>) -> Vec<Outlined> {
        let number = |epoch: Epoch| usize::try_from(epoch.0).unwrap_or(usize::MAX).min(self.steps.len());
        let steps = self.steps.get(number(above)..number(upto)).unwrap_or_default();
        let outlined = |s: &Step| Some((s.entry.clone(), s.joint.as_ref().or(open)?.clone(), s.path.clone()));
        steps.iter().map_while(outlined).collect()
    }
}

/// Parts of a chain, read under the replica's lock; the store adds the paths without it.
pub(super) struct Outline(Vec<Outlined>);

type Outlined = (Entry, HeadCertificate, Option<Vec<Digest>>);

impl Epochs {
    /// See [`Outline::prove`].
    pub(super) fn chain(&self, above: Epoch, upto: Epoch, open: Option<&HeadCertificate>) -> Outline {
        Outline(self.outline(above, upto, open))
    }

    /// The newest epoch for which a joint certificate is known.
    pub(super) fn proved(&self) -> Epoch {
        Epoch(self.steps.iter().filter(|s| s.joint.is_some()).count() as u64)
    }
}

impl Outline {
    /// The chain, as much of it as takes at most `bytes` (at least one step, if there is any). Blocking.
    pub(super) fn prove(self, store: &Store, bytes: usize) -> Result<EpochChain, QueryError> {
        let mut chain = EpochChain::default();
        let mut weight = 0;
        for (entry, joint, path) in self.0 {
            weight += entry.body.payload.len() + 4096;
            if weight > bytes && !chain.steps.is_empty() {
                break;
            }
            let (index, size) = (entry.index(), joint.head.size);
            let first = index.0.checked_sub(1).ok_or_else(|| not_found(format!("entry {index}")))?;
            let path = match path {
                Some(path) => path,
                None => store.inclusion_path(first, size)?,
            };
            chain.steps.push(EpochStep { entry, joint, path });
        }
        Ok(chain)
    }
}

/// Where the certificate's tables are found: the numbers that its halves bear.
pub(super) fn epoch_of(certificate: &HeadCertificate) -> Epoch {
    certificate.halves.first().map(|h| h.epoch).unwrap_or_default()
}
