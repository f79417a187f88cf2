//! Receipts of what a run certified, put together as a node does and verified as an auditor does: offline, from the
//! genesis alone, by the library's verifier. Only real signatures can be.

use crate::membership::{Leaves, proofs};
use crate::world::World;
use concordat::certificate::merkle::inclusion_path;
use concordat::certificate::{HeadCertificate, Kind, Receipt};
use concordat::ids::{Digest, Epoch, LogIndex};

/// Entries of each kind of head whose receipts are looked at in a run.
const SAMPLES: usize = 8;

impl World {
    /// Receipts of entries sampled under heads of one table, and under heads of a joint phase.
    pub(crate) fn receipts_verify(&mut self) {
        if !self.config.real_crypto {
            return;
        }
        let (joint, single): (Vec<_>, Vec<_>) = self.certificates.values().cloned().partition(|c| c.halves.len() > 1);
        for (certificates, kind) in [(single, "under a head of one table"), (joint, "under a head of a joint phase")] {
            for _ in 0..SAMPLES.min(certificates.len()) {
                let certificate = certificates[self.rng.below(certificates.len())].clone();
                let before = self.certificates.range(..certificate.head.size).next_back().map_or(0, |c| *c.0);
                let index = LogIndex(self.rng.within((before + 1, certificate.head.size)));
                self.receipt_verifies(index, &certificate);
                self.coverage.count("receipt", kind);
            }
        }
    }

    fn receipt_verifies(&mut self, index: LogIndex, certificate: &HeadCertificate) {
        let log = &self.invariants.committed.ledger;
        let size = certificate.head.size;
        let at = |index| &log.get(index).expect("certified entries are committed").entry;
        let path = |index: LogIndex| -> Vec<Digest> {
            let Ok(path) = inclusion_path(&Leaves(log), index.0 - 1, size);
            path
        };
        let (entry, last) = (at(index), at(LogIndex(size)));
        let steps = last.header.epoch.0 + u64::from(certificate.halves.len() > 1);
        let receipt = Receipt {
            header: entry.header.clone(),
            body: Some(entry.body.clone()),
            path: path(index),
            certificate: certificate.clone(),
            last_header: last.header.clone(),
            last_path: path(LogIndex(size)),
            chain: proofs(log, Epoch::ZERO, usize::try_from(steps).expect("few")),
        };
        // An entry on the fast path is granted by the head's signers, who must be of its own epoch.
        let by_signing = entry.header.kind == Kind::Proposal && entry.header.tally.is_none();
        let later = by_signing && entry.header.epoch != last.header.epoch;
        let file = receipt.encode();
        let verified = Receipt::read(&file).expect("its own encoding").verify(&self.genesis);
        match verified {
            Ok(verified) => {
                assert!(!later, "a head of a later epoch grants nothing");
                assert_eq!(verified.header, entry.header);
                assert_eq!(verified.certificate.committed_at, last.header.proposed_at);
                self.coverage.count("receipt", "verified");
            }
            Err(why) => {
                assert!(later, "the receipt of entry {index} under {:?} does not verify: {why}", certificate.head);
                self.coverage.count("receipt", "refused under a head of a later epoch");
            }
        }
        let mut altered = receipt;
        altered.header.proposed_at ^= 1;
        altered.body = None;
        assert!(altered.verify(&self.genesis).is_err(), "an altered receipt proves nothing");
    }
}
