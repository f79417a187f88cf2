//! A disk: groups of writes become durable in order after a latency. What can happen to it: power loss takes a suffix of
//! what was under way and may tear the first group that it takes; an fsync fails; it is full; it is slow or stalls; what
//! was durable rots, or a disk that lied about an fsync comes back without it.
//!
//! As in the real store, a group counts whole or not at all (its checksum says so), and a watermark that is written after
//! the groups tells whether something acknowledged is gone. A store that is not what it was is never opened again.

use crate::chain::Chain;
use crate::machine::Machine;
use crate::rng::Rng;
use crate::snapshots::Images;
use concordat::certificate::merkle::Frontier;
use concordat::certificate::{Entry, HeadCertificate, Kind, PublicKey};
use concordat::core::{CastVote, HardState, Restored, Write};
use concordat::ids::{LogIndex, Term};
use concordat::node::executor::Subject;
use concordat::registry::State;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub(crate) fn changes_members(entry: &Entry) -> bool {
    matches!(entry.header.kind, Kind::Epoch | Kind::EpochFinal)
}

/// What the certified entries amount to. They never change, so each restart goes on where the one before stopped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Covered {
    frontier: Frontier,
    terms: Vec<(LogIndex, Term)>,
    last_proposed_at: u64,
    epochs: Vec<Arc<Entry>>,
    pub(crate) machine: Machine,
    pub(crate) state: State,
}

impl Covered {
    fn advance(&mut self, log: &Chain, upto: LogIndex) {
        while self.machine.applied < upto {
            let entry = &log.get(self.machine.applied.next()).expect("a certificate covers the log").entry;
            self.frontier.push(entry.header.leaf_hash());
            if self.terms.last().is_none_or(|t| t.1 < entry.term()) {
                self.terms.push((entry.index(), entry.term()));
            }
            self.last_proposed_at = entry.header.proposed_at;
            if changes_members(entry) {
                self.epochs.push(entry.clone());
            }
            self.machine.apply(entry);
            self.state.apply(entry);
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) covered: Covered,
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
    pub(crate) images: Images,
    /// Writes issued while stalled never complete.
    pub(crate) stalled: bool,
    /// Until when every write takes much longer, microseconds.
    pub(crate) slow_until: u64,
    /// The next fsync fails; after it this store makes nothing durable any more, until it is opened again.
    pub(crate) fails: bool,
    pub(crate) failed: bool,
    /// Takes no more writes.
    pub(crate) full: bool,
    /// Behind the last whole group, a part of the next one.
    pub(crate) torn: bool,
    /// Term and last index that are known to have been durable once; the index now and then only.
    pub(crate) watermark: (Term, LogIndex),
    pub(crate) rot: Option<Rot>,
    /// The log that was durable before a disk that had lied lost some of it: for the checkers.
    pub(crate) before: Option<Chain>,
}

/// What rotted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rot {
    Entry(LogIndex),
    /// The answers to ballots on record.
    Answers,
}

/// The watermark's index is told anew after so many entries.
const WATERMARK_EVERY: u64 = 8;

/// What became of the writes under way at power loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    /// Groups lost.
    pub(crate) lost: usize,
    /// Groups that were kept though nobody had been told.
    pub(crate) kept: usize,
    /// Whether a part of the first group lost is on the medium.
    pub(crate) torn: bool,
}

impl Disk {
    /// Makes everything up to `seq` durable; tells the newest sequence number that became durable.
    ///
    /// # Errors
    /// The fsync failed: nothing is known of any group under way.
    pub(crate) fn complete(&mut self, seq: u64) -> Result<Option<u64>, &'static str> {
        if std::mem::take(&mut self.fails) {
            self.failed = true;
            return Err("fsync failed");
        }
        let mut newest = None;
        if self.failed {
            return Ok(newest);
        }
        while let Some((s, write)) = self.pending.pop_front_if(|w| w.0 <= seq) {
            self.apply(write);
            newest = Some(s);
        }
        Ok(newest)
    }

    fn apply(&mut self, write: Write) {
        if let Some(hard) = write.hard {
            self.watermark.0 = hard.term;
            self.hard = hard;
        }
        if let Some(base) = write.base {
            // Begun anew: whatever was there is replaced by what the snapshot stands for.
            let index = base.index();
            self.watermark.1 = self.watermark.1.min(index);
            self.log = self.images.history.remove(&index).expect("written down when it was handed over");
            self.images.compacted = index;
        }
        if let Some(first) = write.entries.first() {
            // Lowered before anything is cut off.
            self.watermark.1 = self.watermark.1.min(first.index().prev());
        }
        self.log.write(&write.entries);
        if self.log.last().0 >= self.watermark.1.0 + WATERMARK_EVERY {
            self.watermark.1 = self.log.last();
        }
        if let Some(cast) = write.cast {
            let granted = cast.granted;
            let earlier = self.casts.insert((cast.request_key, cast.content), cast);
            assert!(earlier.is_none_or(|e| e.granted == granted), "an answer on record is never replaced by another");
        }
        if write.certificate.is_some() {
            self.certificate = write.certificate;
        }
    }

    /// Power loss (or the end of the process): of the groups under way a prefix may have reached the medium without
    /// anyone having been told, and of the next one a part.
    pub(crate) fn crash(&mut self, rng: &mut Rng) -> Loss {
        let kept = rng.below(self.pending.len() + 1);
        for _ in 0..kept {
            let (_, write) = self.pending.pop_front().expect("counted");
            self.apply(write);
        }
        let lost = self.pending.len();
        self.torn = lost > 0 && rng.chance(500);
        self.pending.clear();
        self.images.crash(|| rng.chance(300));
        self.images.history.clear();
        self.busy_until = 0;
        (self.fails, self.failed) = (false, false);
        Loss { lost, kept, torn: self.torn }
    }

    /// A disk that had lied: of what was acknowledged, everything from some entry below the watermark on is gone. Tells
    /// whether there was anything to lose.
    pub(crate) fn forget_acknowledged(&mut self, rng: &mut Rng) -> bool {
        let Ok(known) = usize::try_from(self.watermark.1.0) else { return false };
        if known == 0 || self.before.is_some() {
            return false;
        }
        self.before = Some(self.log.clone());
        self.log.cut(LogIndex(rng.below(known) as u64));
        self.torn = false;
        true
    }

    /// Checks the medium, as a store is when it is opened: a torn group is dropped. Tells whether there was one.
    ///
    /// # Errors
    /// What was acknowledged is not all there: this store has lost its memory and must not vote again.
    pub(crate) fn open(&mut self) -> Result<bool, &'static str> {
        if self.rot.is_some() {
            return Err("rot found when the store was opened");
        }
        if self.log.last() < self.watermark.1 || self.hard.term < self.watermark.0 {
            return Err("store behind its watermark");
        }
        Ok(std::mem::take(&mut self.torn))
    }

    /// What this store holds or held durably, for the checkers: whether a quorum had an entry does not depend on what
    /// happened to their disks since.
    pub(crate) fn vouched(&self) -> &Chain {
        self.before.as_ref().unwrap_or(&self.log)
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.rot.is_some() || self.before.is_some()
    }

    pub(crate) fn certified(&self) -> LogIndex {
        LogIndex(self.certificate.as_ref().map_or(0, |c| c.head.size))
    }

    /// What a shell gives back after a restart: what is certified by its terms and tree only, or the log from its start.
    pub(crate) fn restore(&mut self, from_start: bool, keys: Vec<PublicKey>) -> Restored {
        let certified = self.certified().max(self.images.compacted);
        self.covered.advance(&self.log, certified);
        let base = if from_start && self.images.compacted == LogIndex::ZERO {
            Covered::default()
        } else {
            self.covered.clone()
        };
        let after = &self.log.links()[usize::try_from(base.machine.applied.0).expect("small logs")..];
        Restored {
            hard: self.hard.clone(),
            certificate: self.certificate.clone(),
            compacted: self.images.compacted,
            frontier: base.frontier,
            terms: base.terms,
            last_proposed_at: base.last_proposed_at,
            tail: after.iter().map(|l| l.entry.clone()).collect(),
            epochs: base.epochs,
            keys,
        }
    }
}
