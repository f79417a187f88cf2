//! A disk: writes become durable in order after a latency; a crash takes a suffix of what was under way.

use crate::chain::Chain;
use crate::rng::Rng;
use concordat::certificate::merkle::Frontier;
use concordat::certificate::{Entry, HeadCertificate, Kind, PublicKey};
use concordat::core::{CastVote, HardState, Restored, Write};
use concordat::ids::{LogIndex, Term};
use concordat::node::executor::Subject;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub(crate) fn changes_members(entry: &Entry) -> bool {
    matches!(entry.header.kind, Kind::Epoch | Kind::EpochFinal)
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    pub(crate) log: Chain,
    pub(crate) certificate: Option<Arc<HeadCertificate>>,
    pub(crate) casts: BTreeMap<Subject, CastVote>,
    pub(crate) pending: VecDeque<(u64, Write)>,
    /// Generations of the keys that this store holds; kept at once and for good.
    pub(crate) keys: Vec<u8>,
    /// Counts the disks that this node lost.
    pub(crate) store: usize,
    /// When the newest write under way completes, microseconds.
    pub(crate) busy_until: u64,
    /// Writes issued while stalled never complete.
    pub(crate) stalled: bool,
}

impl Disk {
    /// Makes everything up to `seq` durable; tells the newest sequence number that became durable.
    pub(crate) fn complete(&mut self, seq: u64) -> Option<u64> {
        let mut newest = None;
        while let Some((s, write)) = self.pending.pop_front_if(|w| w.0 <= seq) {
            self.apply(write);
            newest = Some(s);
        }
        newest
    }

    fn apply(&mut self, write: Write) {
        if let Some(hard) = write.hard {
            self.hard = hard;
        }
        self.log.write(&write.entries);
        if let Some(cast) = write.cast {
            let granted = cast.granted;
            let earlier = self.casts.insert((cast.request_key, cast.content), cast);
            assert!(earlier.is_none_or(|e| e.granted == granted), "an answer on record is never replaced by another");
        }
        if write.certificate.is_some() {
            self.certificate = write.certificate;
        }
    }

    /// Power loss: of the writes under way a prefix may have reached the medium without anyone having been told.
    /// Returns (writes lost, writes kept untold).
    pub(crate) fn crash(&mut self, rng: &mut Rng) -> (usize, usize) {
        let kept = rng.below(self.pending.len() + 1);
        for _ in 0..kept {
            let (_, write) = self.pending.pop_front().expect("counted");
            self.apply(write);
        }
        let lost = self.pending.len();
        self.pending.clear();
        self.busy_until = 0;
        (lost, kept)
    }

    pub(crate) fn certified(&self) -> LogIndex {
        LogIndex(self.certificate.as_ref().map_or(0, |c| c.head.size))
    }

    /// What a shell gives back after a restart, with the first `base` entries known by their terms and tree only.
    pub(crate) fn restore(&self, base: LogIndex, keys: Vec<PublicKey>) -> Restored {
        assert!(base <= self.certified());
        let mut frontier = Frontier::default();
        let mut terms: Vec<(LogIndex, Term)> = Vec::new();
        let (before, after) = self.log.links().split_at(usize::try_from(base.0).expect("small logs"));
        for link in before {
            frontier.push(link.entry.header.leaf_hash());
            if terms.last().is_none_or(|t| t.1 < link.entry.term()) {
                terms.push((link.entry.index(), link.entry.term()));
            }
        }
        Restored {
            hard: self.hard.clone(),
            certificate: self.certificate.clone(),
            frontier,
            terms,
            last_proposed_at: before.last().map_or(0, |l| l.entry.header.proposed_at),
            tail: after.iter().map(|l| l.entry.clone()).collect(),
            epochs: before.iter().map(|l| l.entry.clone()).filter(|e| changes_members(e)).collect(),
            keys,
        }
    }
}
