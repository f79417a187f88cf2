//! Every head certificate against the tree and, by the member tables that the log itself proves, its signatures.

use super::Doctor;
use super::finding::Flaw;
use super::records::Records;
use crate::certificate::{Entry, Genesis, HeadCertificate, Kind, MemberTable, TableInForce};
use crate::ids::{Digest, LogIndex};
use crate::storage::archive::Archive;
use crate::storage::below;
use crate::storage::disk::Disk;
use crate::storage::failure::Failure;
use crate::storage::read;
use std::collections::btree_map::Iter;
use std::sync::Arc;

impl Doctor<'_> {
    pub(super) fn certificates(
        &mut self,
        disk: &Disk,
        archive: &Archive,
        genesis: Option<&Genesis>,
        records: &Records,
        quick: bool,
    ) -> Result<(), Failure> {
        let mut tables = genesis.filter(|_| !quick).map(|genesis| Tables::from(genesis, records));
        let mut count = 0;
        for row in disk.trees.certificates.iter() {
            let (key, value) = row?;
            // One that does not decode was found before.
            let Ok(certificate) = read::certificate(&key, &value) else { continue };
            count += 1;
            self.tell("head certificates", count);
            if certificate.head.size <= archive.size() {
                self.compare(disk, archive, &certificate);
            }
            let Some(known) = &mut tables else { continue };
            if let Err(flaw) = known.pass(certificate.head.size) {
                self.flaw(flaw);
                self.note(format!("signatures from size {} on were not verified", certificate.head.size));
                tables = None;
                continue;
            }
            match known.verify(&certificate) {
                Ok(()) => self.seen.verified += 1,
                Err(flaw) => self.flaw(flaw),
            }
        }
        if genesis.is_none() && count > 0 && !quick {
            self.flaw(Flaw::NoGenesis { certificates: count });
        }
        if quick {
            self.note(format!("the signatures of {count} head certificates were not verified, as asked"));
        }
        Ok(())
    }

    fn compare(&mut self, disk: &Disk, archive: &Archive, certificate: &HeadCertificate) {
        let root = self.part(|_| Ok(below::root_of(disk, archive, certificate)?)).flatten();
        let (size, certified) = (certificate.head.size, certificate.head.root);
        if let Some(computed) = root.filter(|root| *root != certified) {
            self.flaw(Flaw::Root { size, certified, computed });
        }
    }
}

/// The member tables in force along the log.
struct Tables<'a> {
    genesis: Digest,
    current: TableInForce,
    next: Option<TableInForce>,
    changes: std::iter::Peekable<Iter<'a, LogIndex, Arc<Entry>>>,
}

impl<'a> Tables<'a> {
    fn from(genesis: &Genesis, records: &'a Records) -> Self {
        Self {
            genesis: genesis.id(),
            current: genesis.in_force(),
            next: None,
            changes: records.epochs.iter().peekable(),
        }
    }

    /// Goes past the changes of members up to this size.
    fn pass(&mut self, size: u64) -> Result<(), Flaw> {
        while let Some((index, entry)) = self.changes.next_if(|(index, _)| index.0 <= size) {
            let unproved = |why: String| Flaw::Change { index: *index, why };
            let payload = &entry.body.payload;
            if entry.header.kind == Kind::Epoch {
                let table = MemberTable::decode(payload).map_err(|source| Flaw::Table { index: *index, source })?;
                let (epoch, epoch_hash) = (self.current.epoch.next(), entry.header.leaf_hash());
                self.next = Some(TableInForce { epoch, epoch_hash, table, rule: self.current.rule });
                continue;
            }
            let next = self.next.take().ok_or_else(|| unproved("it was never begun".into()))?;
            let joint = HeadCertificate::decode(payload).map_err(|e| unproved(e.to_string()))?;
            let proved = joint.verify(&self.genesis, &self.current, Some(&next));
            proved.map_err(|e| unproved(e.to_string()))?;
            self.current = next;
        }
        Ok(())
    }

    fn verify(&self, certificate: &HeadCertificate) -> Result<(), Flaw> {
        let verified = certificate.verify(&self.genesis, &self.current, self.next.as_ref());
        verified.map_err(|source| Flaw::Signature { size: certificate.head.size, source })
    }
}
