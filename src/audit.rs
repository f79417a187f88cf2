//! The audit of a whole log: every header from the first to the last, the tree rebuilt from them, and everything that is
//! signed along the way. Pure: feed it entries and head certificates in order, trust nothing but the genesis.
//!
//! What holds after [`Auditor::finish`] for the certified part of the log:
//! - indexes are contiguous from 1; term, epoch and `proposed_at` never decrease;
//! - every term begins with a `Noop` whose election certificate names this very log (its size, root and last term) as
//!   what the winner claimed;
//! - every payload that is present is the one its header names;
//! - every proposal was granted as its header says: by a tally that verifies, or by signing where no ballot is needed;
//! - no proposal id stands in two entries;
//! - every member table after the genesis is joined to the one before it by a certificate of both;
//! - every head certificate verifies against the root computed here.

use crate::certificate::merkle::Frontier;
use crate::certificate::{
    Body, CertificateError, ElectionCertificate, Entry, EntryError, FormatError, Genesis, Head, HeadCertificate,
    Header, Kind, MemberTable, OutcomeError, TableError, TableInForce,
};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// The first flaw of a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// An entry is not what should stand there.
    #[error("entry {index}: {flaw}")]
    Entry {
        /// Where in the log it stands, counted from 1.
        index: LogIndex,
        /// What is wrong with it.
        flaw: EntryFlaw,
    },
    /// A head certificate proves something else than this log, or nothing.
    #[error("head certificate of size {size}: {flaw}")]
    Certificate {
        /// Entries it covers.
        size: u64,
        /// What is wrong with it.
        flaw: CertificateFlaw,
    },
    /// Entries without any head certificate.
    #[error("no head certificate covers any of the {entries} entries: nothing here is proved")]
    NothingCertified {
        /// How many there are.
        entries: u64,
    },
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryFlaw {
    /// A gap, a repetition or another order.
    #[error("its header says index {found}")]
    Index {
        /// In the header.
        found: LogIndex,
    },
    /// Terms run backwards.
    #[error("its term {found} is below the term {before} of the entry before it")]
    Term {
        /// In the header.
        found: Term,
        /// In the header before it.
        before: Term,
    },
    /// A term begins with something else than a no-op, or a no-op stands inside a term.
    #[error(
        "a no-op with its election certificate begins each term, and nothing else: here stands {kind:?} in term {term}, after an entry of term {before}"
    )]
    TermStart {
        /// What stands here.
        kind: Kind,
        /// Its term.
        term: Term,
        /// The term before it (zero at the start of the log).
        before: Term,
    },
    /// Clocks run backwards.
    #[error("its time {found} ms is before the time {before} ms of the entry before it")]
    Time {
        /// In the header.
        found: u64,
        /// In the header before it.
        before: u64,
    },
    /// Not the epoch in force.
    #[error("its header says epoch {found}, epoch {expected} is in force")]
    Epoch {
        /// In the header.
        found: Epoch,
        /// In force.
        expected: Epoch,
    },
    /// Header and body do not belong together.
    #[error(transparent)]
    Body(#[from] EntryError),
    /// A payload that may never be pruned is absent.
    #[error("the payload of a {kind:?} entry is missing; it may never be pruned")]
    Missing {
        /// What the entry is.
        kind: Kind,
    },
    /// A payload that is no certificate where one must be.
    #[error("its payload does not decode: {0}")]
    Payload(FormatError),
    /// The election certificate claims another log, term or candidate.
    #[error("the {what} in its election certificate is not that of this log")]
    Claim {
        /// Which part.
        what: &'static str,
    },
    /// The election certificate does not verify.
    #[error("election certificate: {0}")]
    Election(CertificateError),
    /// A proposal id of another term, or one that was used before.
    #[error("its proposal id {id} {what}")]
    ProposalId {
        /// The id.
        id: ProposalId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The votes that its header records do not support what it says became of the proposal.
    #[error(transparent)]
    Outcome(#[from] OutcomeError),
    /// A tally on an entry that nobody proposed.
    #[error("a {kind:?} entry has no tally")]
    StrayTally {
        /// What the entry is.
        kind: Kind,
    },
    /// A membership change where none may be.
    #[error("a membership change is {0}")]
    Change(&'static str),
    /// The next member table.
    #[error("next member table: {0}")]
    Table(TableError),
    /// The joint certificate that closes a membership change.
    #[error("joint certificate: {0}")]
    Joint(CertificateFlaw),
}

/// What is wrong with a head certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFlaw {
    /// Not of the size reached.
    #[error("it does not cover what it stands for: {reached} entries are read")]
    Size {
        /// Entries read so far.
        reached: u64,
    },
    /// Another tree.
    #[error("it certifies root {certified}, the headers have {computed}")]
    Root {
        /// In the certificate.
        certified: Digest,
        /// From the headers.
        computed: Digest,
    },
    /// Not made in the term of the last entry.
    #[error("it is of term {found}, its last entry of term {expected}")]
    Term {
        /// In the certificate.
        found: Term,
        /// In the last header.
        expected: Term,
    },
    /// It does not verify.
    #[error(transparent)]
    Proof(#[from] CertificateError),
}

/// What an audited log holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Entries before the first: those of the cluster that this one succeeds.
    pub begins_after: u64,
    /// Entries read.
    pub entries: u64,
    /// `Proposal` entries among them.
    pub proposals: u64,
    /// `Aborted` entries among them.
    pub aborted: u64,
    /// Terms, each with its election certificate.
    pub terms: u64,
    /// The last term.
    pub last_term: Term,
    /// The epoch in force at the end.
    pub epoch: Epoch,
    /// Entries that were decided by a ballot.
    pub balloted: u64,
    /// Payloads that were pruned; their hash is proved, their contents cannot be looked at any more.
    pub pruned: u64,
    /// Head certificates, all verified.
    pub certificates: u64,
    /// How many of them each member signed, by the table in force at each.
    pub signed: BTreeMap<NodeId, u64>,
    /// Entries that the last head certificate covers.
    pub certified_size: u64,
    /// The root over those.
    pub certified_root: Option<Digest>,
    /// `proposed_at` of the last entry that is covered, milliseconds since the Unix epoch.
    pub certified_at: u64,
}

impl Summary {
    /// Entries that no head certificate covers yet.
    #[must_use]
    pub fn beyond(&self) -> u64 {
        self.begins_after + self.entries - self.certified_size
    }
}

/// A membership change whose `Epoch` entry was read and whose `EpochFinal` was not.
struct Change {
    next: TableInForce,
    opened: LogIndex,
    /// Term and root after each entry since `opened`: the joint certificate is over one of these heads.
    heads: Vec<(Term, Digest)>,
}

/// Walks a log. Give it every entry in order, and each head certificate right after the last entry that it covers.
pub struct Auditor {
    genesis_id: Digest,
    current: TableInForce,
    change: Option<Change>,
    frontier: Frontier,
    last_term: Term,
    last_time: u64,
    /// Sequence numbers of this term's proposals.
    sequences: RangeSet,
    summary: Summary,
}

impl Auditor {
    /// Starts before the first entry of the genesis' own log: entry 1, or the one after what it succeeds.
    #[must_use]
    pub fn new(genesis: &Genesis) -> Self {
        let before = genesis.succeeds.as_ref();
        let begins_after = genesis.begins_after();
        Self {
            genesis_id: genesis.id(),
            current: genesis.in_force(),
            change: None,
            // A successor's log goes on with its predecessor's tree, terms and times.
            frontier: before.map_or_else(Frontier::default, |s| s.tree.clone()),
            last_term: before.map_or(Term::ZERO, |s| s.snapshot.term),
            last_time: before.map_or(0, |s| s.snapshot.proposed_at),
            sequences: RangeSet::default(),
            summary: Summary { begins_after, certified_size: begins_after, ..Summary::default() },
        }
    }

    /// The index of the last entry read.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The root over the entries read so far.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.frontier.root()
    }

    /// The next entry; `body` is `None` when it was pruned.
    ///
    /// # Errors
    /// [`AuditError::Entry`]; the audit is over then.
    pub fn entry(&mut self, header: &Header, body: Option<&Body>) -> Result<(), AuditError> {
        let index = LogIndex(self.size() + 1);
        self.check_entry(index, header, body).map_err(|flaw| AuditError::Entry { index, flaw })?;
        self.count(header, body);
        Ok(())
    }

    fn check_entry(&mut self, index: LogIndex, header: &Header, body: Option<&Body>) -> Result<(), EntryFlaw> {
        if header.index != index {
            return Err(EntryFlaw::Index { found: header.index });
        }
        self.check_order(header)?;
        let payload = match body {
            Some(body) => Some(Entry::new(header.clone(), body.clone())?.body.payload),
            None => None,
        };
        if header.tally.is_some()
            && !matches!(header.kind, Kind::Proposal | Kind::Aborted | Kind::Epoch | Kind::SnapshotManifest)
        {
            return Err(EntryFlaw::StrayTally { kind: header.kind });
        }
        if !matches!(header.kind, Kind::Proposal | Kind::Aborted) && payload.is_none() {
            return Err(EntryFlaw::Missing { kind: header.kind });
        }
        let payload = payload.unwrap_or_default();
        // An `EpochFinal` is already an entry of the epoch that it brings into force; every other kind is judged by the
        // tables in force before it.
        let before = (self.size(), self.frontier.root());
        match header.kind {
            Kind::Noop => self.check_election(header, &payload, before)?,
            Kind::Proposal | Kind::Aborted => self.check_id(header)?,
            Kind::EpochFinal => self.close_change(&payload)?,
            Kind::Epoch | Kind::SnapshotMark | Kind::SnapshotManifest => {}
        }
        if header.epoch != self.current.epoch {
            return Err(EntryFlaw::Epoch { found: header.epoch, expected: self.current.epoch });
        }
        header.verify_outcome(&self.genesis_id, &self.current)?;
        if header.kind == Kind::Epoch {
            self.open_change(header, &payload)?;
        }
        self.frontier.push(header.leaf_hash());
        if let Some(change) = &mut self.change {
            change.heads.push((header.term, self.frontier.root()));
        }
        self.last_term = header.term;
        self.last_time = header.proposed_at;
        Ok(())
    }

    fn check_order(&mut self, header: &Header) -> Result<(), EntryFlaw> {
        let (term, before) = (header.term, self.last_term);
        if term < before {
            return Err(EntryFlaw::Term { found: term, before });
        }
        // A term that began without an election certificate, or twice, was never won.
        if (header.kind == Kind::Noop) != (term > before) {
            return Err(EntryFlaw::TermStart { kind: header.kind, term, before });
        }
        if header.proposed_at < self.last_time {
            return Err(EntryFlaw::Time { found: header.proposed_at, before: self.last_time });
        }
        if term > before {
            self.sequences = RangeSet::default();
        }
        Ok(())
    }

    /// The winner appends its no-op to the very log that it claimed, so the claim must name the log as rebuilt here.
    fn check_election(&self, header: &Header, payload: &[u8], before: (u64, Digest)) -> Result<(), EntryFlaw> {
        let certificate = ElectionCertificate::decode(payload).map_err(EntryFlaw::Payload)?;
        let claim = &certificate.claim;
        let stands = |table: &TableInForce| table.table.voter_position(&claim.candidate).is_some();
        let next = self.change.as_ref().map(|c| &c.next);
        for (right, what) in [
            (claim.term == header.term, "term"),
            (claim.last_term == self.last_term, "last term"),
            (claim.last_size == before.0, "size"),
            (claim.last_root == before.1, "root"),
            (stands(&self.current) || next.is_some_and(stands), "candidate"),
        ] {
            if !right {
                return Err(EntryFlaw::Claim { what });
            }
        }
        certificate.verify(&self.genesis_id, &self.current, next).map_err(EntryFlaw::Election)
    }

    fn check_id(&mut self, header: &Header) -> Result<(), EntryFlaw> {
        // `Header::decode` demands the id for these kinds; a header built otherwise is refused here.
        let Some(id) = header.proposal_id else { return Err(EntryFlaw::Missing { kind: header.kind }) };
        if id.term != header.term {
            return Err(EntryFlaw::ProposalId { id, what: "is of another term than the entry" });
        }
        if !self.sequences.insert(id.seq) {
            return Err(EntryFlaw::ProposalId { id, what: "was used before in this term" });
        }
        Ok(())
    }

    fn open_change(&mut self, header: &Header, payload: &[u8]) -> Result<(), EntryFlaw> {
        if self.change.is_some() {
            return Err(EntryFlaw::Change("already under way"));
        }
        let table = MemberTable::decode(payload).map_err(EntryFlaw::Table)?;
        let next = TableInForce {
            epoch: self.current.epoch.next(),
            epoch_hash: header.leaf_hash(),
            table,
            rule: self.current.rule,
        };
        self.change = Some(Change { next, opened: header.index, heads: Vec::new() });
        Ok(())
    }

    fn close_change(&mut self, payload: &[u8]) -> Result<(), EntryFlaw> {
        let Some(change) = self.change.take() else { return Err(EntryFlaw::Change("not under way")) };
        let joint = HeadCertificate::decode(payload).map_err(EntryFlaw::Payload)?;
        let seen =
            joint.head.size.checked_sub(change.opened.0).and_then(|at| change.heads.get(usize::try_from(at).ok()?));
        let Some(&(term, root)) = seen else {
            return Err(EntryFlaw::Joint(CertificateFlaw::Size { reached: self.size() }));
        };
        check_head(&joint.head, term, root).map_err(EntryFlaw::Joint)?;
        joint
            .verify(&self.genesis_id, &self.current, Some(&change.next))
            .map_err(|source| EntryFlaw::Joint(source.into()))?;
        self.current = change.next;
        Ok(())
    }

    /// A head certificate over exactly the entries read so far.
    ///
    /// # Errors
    /// [`AuditError::Certificate`]; the audit is over then.
    pub fn certificate(&mut self, certificate: &HeadCertificate) -> Result<(), AuditError> {
        let size = certificate.head.size;
        self.check_certificate(certificate).map_err(|flaw| AuditError::Certificate { size, flaw })?;
        self.summary.certificates += 1;
        self.summary.certified_size = size;
        self.summary.certified_root = Some(certificate.head.root);
        self.summary.certified_at = self.last_time;
        for signer in certificate.signers(&self.current) {
            *self.summary.signed.entry(signer).or_default() += 1;
        }
        Ok(())
    }

    fn check_certificate(&self, certificate: &HeadCertificate) -> Result<(), CertificateFlaw> {
        if certificate.head.size != self.size() || self.size() == 0 {
            return Err(CertificateFlaw::Size { reached: self.size() });
        }
        check_head(&certificate.head, self.last_term, self.frontier.root())?;
        Ok(certificate.verify(&self.genesis_id, &self.current, self.change.as_ref().map(|c| &c.next))?)
    }

    /// The table in force, and the next one while a change of members is in flight.
    #[must_use]
    pub fn tables(&self) -> (&TableInForce, Option<&TableInForce>) {
        (&self.current, self.change.as_ref().map(|c| &c.next))
    }

    /// The term of the last entry read.
    #[must_use]
    pub fn last_term(&self) -> Term {
        self.last_term
    }

    /// Ends the audit.
    ///
    /// # Errors
    /// [`AuditError::NothingCertified`] when there are entries and no head certificate.
    pub fn finish(self) -> Result<Summary, AuditError> {
        if self.summary.certificates == 0 && self.summary.entries > 0 {
            return Err(AuditError::NothingCertified { entries: self.summary.entries });
        }
        Ok(self.summary)
    }

    /// Ends an audit whose caller knows that nothing is certified, and says so to whoever reads the summary.
    #[must_use]
    pub fn unproved(self) -> Summary {
        self.summary
    }

    fn count(&mut self, header: &Header, body: Option<&Body>) {
        let summary = &mut self.summary;
        summary.entries += 1;
        summary.last_term = header.term;
        summary.epoch = self.current.epoch;
        summary.terms += u64::from(header.kind == Kind::Noop);
        summary.proposals += u64::from(header.kind == Kind::Proposal);
        summary.aborted += u64::from(header.kind == Kind::Aborted);
        summary.balloted += u64::from(header.tally.is_some());
        summary.pruned += u64::from(body.is_none());
    }
}

fn check_head(head: &Head, term: Term, root: Digest) -> Result<(), CertificateFlaw> {
    if head.root != root {
        return Err(CertificateFlaw::Root { certified: head.root, computed: root });
    }
    if head.term != term {
        return Err(CertificateFlaw::Term { found: head.term, expected: term });
    }
    Ok(())
}

/// Numbers seen, kept as ranges: the sequence numbers of a term are nearly contiguous, so a log of any length costs a
/// few ranges.
#[derive(Default)]
struct RangeSet {
    /// First → last, inclusive, disjoint and not adjacent.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Whether `n` is new.
    fn insert(&mut self, n: u64) -> bool {
        let below = self.ranges.range(..=n).next_back().map(|(&first, &last)| (first, last));
        if below.is_some_and(|(_, last)| n <= last) {
            return false;
        }
        let first = match below {
            Some((first, last)) if last + 1 == n => first,
            _ => n,
        };
        let last = n.checked_add(1).and_then(|after| self.ranges.remove(&after)).unwrap_or(n);
        self.ranges.insert(first, last);
        true
    }
}
