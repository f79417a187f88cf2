//! A log is built as honest members would sign it, then one thing is changed and everything after it signed again: the
//! auditor must name that thing.

use super::*;
use crate::certificate::{
    AbortReason, Bitmap, ElectionClaim, Half, Member, Policy, QuorumRule, Request, Role, SecretKey, Signature,
    SignedFor, Tally, TallySide, VoteStatement, aggregate, payload_hash,
};

/// Members with their keys, sorted by DID as in the table.
struct Federation {
    keys: Vec<SecretKey>,
    in_force: TableInForce,
}

impl Federation {
    fn new(range: std::ops::Range<u8>, policy: Policy) -> (Self, Genesis) {
        let keys: Vec<SecretKey> = range.clone().map(|i| SecretKey::generate(&[i; 32])).collect();
        let member = |(i, key): (u8, &SecretKey)| Member {
            did: NodeId([i; 32]),
            bls_key: key.public(),
            possession: key.prove_possession(),
            address: format!("127.0.0.1:{}", 7000 + u16::from(i)),
            role: Role::Voter,
            policy,
        };
        let table = MemberTable::new(range.zip(&keys).map(member).collect()).unwrap();
        let genesis = Genesis::new("test", QuorumRule::Majority, table).unwrap();
        (Self { keys, in_force: genesis.in_force() }, genesis)
    }

    fn sign(&self, signers: &[usize], bytes: &[u8]) -> Signature {
        let shares: Vec<Signature> = signers.iter().map(|&i| self.keys[i].sign(bytes)).collect();
        aggregate(&shares).unwrap()
    }

    fn side(&self, members: &[usize], statement: &VoteStatement, genesis_id: &Digest) -> TallySide {
        let bytes = statement.signed_bytes(&self.in_force.signed_for(genesis_id));
        TallySide {
            members: Bitmap::of(self.keys.len(), members.iter().copied()),
            aggregate: (!members.is_empty()).then(|| self.sign(members, &bytes)),
        }
    }
}

/// A log under construction, with the certificates that belong after some of its entries.
struct Log {
    genesis: Genesis,
    current: Federation,
    next: Option<Federation>,
    entries: Vec<Entry>,
    certificates: Vec<HeadCertificate>,
    frontier: Frontier,
    term: Term,
    seq: u64,
}

impl Log {
    fn new(policy: Policy) -> Self {
        let (current, genesis) = Federation::new(1..4, policy);
        Self {
            genesis,
            current,
            next: None,
            entries: vec![],
            certificates: vec![],
            frontier: Frontier::default(),
            term: Term::ZERO,
            seq: 0,
        }
    }

    fn header(&self, kind: Kind, payload: &[u8]) -> Header {
        Header {
            index: LogIndex(self.frontier.size() + 1),
            term: self.term,
            epoch: self.current.in_force.epoch,
            kind,
            proposal_id: None,
            request_digest: Digest::ZERO,
            proposed_at: 1000 * (self.frontier.size() + 1),
            required_quorum: 0,
            abort_reason: None,
            tally: None,
            payload_len: u32::try_from(payload.len()).unwrap(),
            payload_hash: payload_hash(&[0; 16], payload),
        }
    }

    fn push(&mut self, header: Header, request: Option<Request>, payload: &[u8]) -> &mut Self {
        self.frontier.push(header.leaf_hash());
        self.entries.push(Entry { header, body: Body { salt: [0; 16], request, payload: payload.to_vec() } });
        self
    }

    fn halves(&self, bytes: impl Fn(&SignedFor) -> Vec<u8>, signers: &[usize]) -> Vec<Half> {
        let federations: Vec<&Federation> = std::iter::once(&self.current).chain(&self.next).collect();
        let next = self.next.as_ref().map(|f| &f.in_force);
        let unders = self.current.in_force.signed_under(&self.genesis.id(), next);
        let half = |(federation, under): (&&Federation, &SignedFor)| Half {
            epoch: under.epoch,
            epoch_hash: under.epoch_hash,
            signers: Bitmap::of(federation.keys.len(), signers.iter().copied()),
            aggregate: federation.sign(signers, &bytes(under)),
        };
        federations.iter().zip(&unders).map(half).collect()
    }

    fn claim(&self) -> ElectionClaim {
        ElectionClaim {
            term: self.term,
            candidate: NodeId([2; 32]),
            last_term: self.entries.last().map_or(Term::ZERO, |e| e.header.term),
            last_size: self.frontier.size(),
            last_root: self.frontier.root(),
        }
    }

    fn elect(&mut self) -> &mut Self {
        self.elect_as(|_| ())
    }

    /// A new term whose election certificate is over a claim changed by `change`.
    fn elect_as(&mut self, change: impl Fn(&mut ElectionClaim)) -> &mut Self {
        self.term = self.term.next();
        self.seq = 0;
        let mut claim = self.claim();
        change(&mut claim);
        let halves = self.halves(|under| claim.signed_bytes(under), &[0, 1]);
        let payload = ElectionCertificate { claim, halves }.encode();
        self.push(self.header(Kind::Noop, &payload), None, &payload)
    }

    fn proposal(&mut self, payload: &[u8]) -> (Header, Request) {
        self.seq += 1;
        let request = Request { client: "c".into(), request_id: self.seq.to_string(), deadline_ms: 1 };
        let header = Header {
            proposal_id: Some(ProposalId { term: self.term, seq: self.seq, origin: NodeId([1; 32]) }),
            request_digest: request.digest(),
            required_quorum: 2,
            ..self.header(Kind::Proposal, payload)
        };
        (header, request)
    }

    fn propose(&mut self) -> &mut Self {
        self.propose_as(|_| ())
    }

    fn propose_as(&mut self, change: impl Fn(&mut Header)) -> &mut Self {
        let (mut header, request) = self.proposal(b"{}");
        change(&mut header);
        self.push(header, Some(request), b"{}")
    }

    fn ballot(&mut self, grants: &[usize], denials: &[usize], abort: Option<AbortReason>) -> &mut Self {
        self.ballot_as(grants, denials, abort, |_| ())
    }

    fn ballot_as(
        &mut self,
        grants: &[usize],
        denials: &[usize],
        abort: Option<AbortReason>,
        change: impl Fn(&mut Tally),
    ) -> &mut Self {
        let (mut header, request) = self.proposal(b"{}");
        let statement = |granted| VoteStatement {
            request_digest: header.request_digest,
            payload_hash: header.payload_hash,
            required_quorum: header.required_quorum,
            granted,
        };
        let id = self.genesis.id();
        let mut tally = Tally {
            grants: self.current.side(grants, &statement(true), &id),
            denials: self.current.side(denials, &statement(false), &id),
        };
        change(&mut tally);
        header.tally = Some(tally);
        header.abort_reason = abort;
        header.kind = if abort.is_some() { Kind::Aborted } else { Kind::Proposal };
        let payload: &[u8] = if abort.is_some() { b"" } else { b"{}" };
        self.push(header, Some(request), payload)
    }

    fn certificate(&self, signers: &[usize]) -> HeadCertificate {
        let head = Head { term: self.term, size: self.frontier.size(), root: self.frontier.root() };
        HeadCertificate { head, halves: self.halves(|under| head.signed_bytes(under), signers) }
    }

    fn certify(&mut self) -> &mut Self {
        self.certificates.push(self.certificate(&[0, 2]));
        self
    }

    fn open_change(&mut self) -> &mut Self {
        let (mut next, genesis) = Federation::new(2..7, Policy::Auto);
        let payload = genesis.table.encode();
        let header = self.header(Kind::Epoch, &payload);
        next.in_force = TableInForce { epoch: Epoch(1), epoch_hash: header.leaf_hash(), ..next.in_force };
        self.push(header, None, &payload);
        self.next = Some(next);
        self
    }

    fn close_change(&mut self, joint: &HeadCertificate) -> &mut Self {
        let payload = joint.encode();
        let mut header = self.header(Kind::EpochFinal, &payload);
        header.epoch = Epoch(1);
        self.push(header, None, &payload);
        self.current = self.next.take().unwrap();
        self
    }

    fn audit(&self) -> Result<Summary, AuditError> {
        self.audit_pruned(|_| false)
    }

    fn audit_pruned(&self, pruned: impl Fn(&Entry) -> bool) -> Result<Summary, AuditError> {
        let mut auditor = Auditor::new(&self.genesis);
        for entry in &self.entries {
            auditor.entry(&entry.header, (!pruned(entry)).then_some(&entry.body))?;
            let size = auditor.size();
            for certificate in self.certificates.iter().filter(|c| c.head.size == size) {
                auditor.certificate(certificate)?;
            }
        }
        auditor.finish()
    }

    fn flaw(&self) -> EntryFlaw {
        match self.audit().expect_err("a flawed log") {
            AuditError::Entry { index, flaw } => {
                assert_eq!(index.0, self.entries.len() as u64, "the last entry is the flawed one: {flaw}");
                flaw
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn an_honest_log_passes_and_is_summed_up() {
    let mut log = Log::new(Policy::Auto);
    log.elect().propose().certify().propose().propose().certify().elect().propose().certify().propose();
    let summary = log.audit().unwrap();
    assert_eq!((summary.entries, summary.proposals, summary.terms, summary.certificates), (7, 5, 2, 3));
    assert_eq!((summary.certified_size, summary.beyond(), summary.last_term), (6, 1, Term(2)));
    assert_eq!(summary.certified_at, 6000);
    assert_eq!(summary.certified_root, Some(log.certificates[2].head.root));
    assert_eq!(summary.signed, BTreeMap::from([(NodeId([1; 32]), 3), (NodeId([3; 32]), 3)]));
}

#[test]
fn an_empty_log_passes_and_an_uncertified_one_does_not() {
    assert_eq!(Log::new(Policy::Auto).audit().unwrap(), Summary::default());
    assert_eq!(Log::new(Policy::Auto).elect().audit(), Err(AuditError::NothingCertified { entries: 1 }));
}

#[test]
fn a_gap_and_a_repetition_are_found() {
    let mut log = Log::new(Policy::Auto);
    log.elect().propose_as(|h| h.index = LogIndex(3));
    assert_eq!(log.flaw(), EntryFlaw::Index { found: LogIndex(3) });
    let mut log = Log::new(Policy::Auto);
    log.elect().propose_as(|h| h.index = LogIndex(1));
    assert_eq!(log.flaw(), EntryFlaw::Index { found: LogIndex(1) });
}

#[test]
fn terms_never_decrease_and_each_begins_with_its_noop() {
    let mut log = Log::new(Policy::Auto);
    log.elect().elect().propose_as(|h| h.term = Term(1));
    assert_eq!(log.flaw(), EntryFlaw::Term { found: Term(1), before: Term(2) });
    let mut log = Log::new(Policy::Auto);
    log.elect().propose_as(|h| h.term = Term(2));
    assert!(matches!(log.flaw(), EntryFlaw::TermStart { kind: Kind::Proposal, .. }));
    let mut log = Log::new(Policy::Auto);
    log.elect();
    log.term = Term::ZERO;
    log.elect();
    assert!(matches!(log.flaw(), EntryFlaw::TermStart { kind: Kind::Noop, .. }));
    let mut log = Log::new(Policy::Auto);
    log.term = Term(1);
    log.propose();
    assert!(matches!(log.flaw(), EntryFlaw::TermStart { before: Term::ZERO, .. }));
}

#[test]
fn time_and_epoch_are_checked() {
    let mut log = Log::new(Policy::Auto);
    log.elect().propose_as(|h| h.proposed_at = 999);
    assert_eq!(log.flaw(), EntryFlaw::Time { found: 999, before: 1000 });
    let mut log = Log::new(Policy::Auto);
    log.elect().propose_as(|h| h.epoch = Epoch(1));
    assert_eq!(log.flaw(), EntryFlaw::Epoch { found: Epoch(1), expected: Epoch(0) });
}

#[test]
fn a_changed_payload_or_request_is_found_and_a_pruned_one_is_counted() {
    let mut log = Log::new(Policy::Auto);
    log.elect().propose().certify();
    assert_eq!(log.audit_pruned(|e| e.header.kind == Kind::Proposal).unwrap().pruned, 1);
    log.entries[1].body.payload = b"[]".to_vec();
    assert!(matches!(log.flaw(), EntryFlaw::Body(EntryError::Mismatch { what: "payload", .. })));
    log.entries[1].body.payload = b"{}".to_vec();
    log.entries[1].body.request.as_mut().unwrap().request_id.push('x');
    assert!(matches!(log.flaw(), EntryFlaw::Body(EntryError::Mismatch { what: "request", .. })));
}

#[test]
fn an_election_certificate_may_not_be_missing() {
    let mut log = Log::new(Policy::Auto);
    log.elect().certify();
    let pruned = log.audit_pruned(|_| true);
    let flaw = EntryFlaw::Missing { kind: Kind::Noop };
    assert_eq!(pruned, Err(AuditError::Entry { index: LogIndex(1), flaw }));
}

#[test]
fn an_election_certificate_must_claim_this_very_log() {
    type Change = fn(&mut ElectionClaim);
    let changes: [(Change, &str); 5] = [
        (|c| c.term = Term(9), "term"),
        (|c| c.last_term = Term(0), "last term"),
        (|c| c.last_size = 1, "size"),
        (|c| c.last_root = Digest::ZERO, "root"),
        (|c| c.candidate = NodeId([9; 32]), "candidate"),
    ];
    for (change, what) in changes {
        let mut log = Log::new(Policy::Auto);
        log.elect().propose().elect_as(change);
        assert_eq!(log.flaw(), EntryFlaw::Claim { what });
    }
}

#[test]
fn an_election_certificate_must_verify() {
    for (signers, changed) in [(vec![0], false), (vec![0, 1], true)] {
        let mut log = Log::new(Policy::Auto);
        log.term = Term(1);
        let claim = log.claim();
        let signed = ElectionClaim { candidate: NodeId([if changed { 3 } else { 2 }; 32]), ..claim };
        let halves = log.halves(|under| signed.signed_bytes(under), &signers);
        let payload = ElectionCertificate { claim, halves }.encode();
        log.push(log.header(Kind::Noop, &payload), None, &payload);
        assert!(matches!(log.flaw(), EntryFlaw::Election(_)));
    }
}

#[test]
fn a_proposal_id_is_of_its_term_and_used_once() {
    let mut log = Log::new(Policy::Auto);
    log.elect().elect().propose_as(|h| h.proposal_id.as_mut().unwrap().term = Term(1));
    assert!(matches!(log.flaw(), EntryFlaw::ProposalId { what: "is of another term than the entry", .. }));
    let mut log = Log::new(Policy::Auto);
    log.elect().propose().propose().propose_as(|h| h.proposal_id.as_mut().unwrap().seq = 1);
    assert!(matches!(log.flaw(), EntryFlaw::ProposalId { what: "was used before in this term", .. }));
}

#[test]
fn a_head_certificate_must_be_of_this_tree_term_and_quorum() {
    let mut log = Log::new(Policy::Auto);
    log.elect().propose();
    let flaw = |certificate: HeadCertificate| {
        let mut auditor = Auditor::new(&log.genesis);
        for e in &log.entries {
            auditor.entry(&e.header, Some(&e.body)).unwrap();
        }
        match auditor.certificate(&certificate) {
            Err(AuditError::Certificate { flaw, .. }) => flaw,
            other => panic!("{other:?}"),
        }
    };
    let good = log.certificate(&[0, 1]);
    let with = |change: fn(&mut HeadCertificate)| {
        let mut certificate = good.clone();
        change(&mut certificate);
        certificate
    };
    assert_eq!(flaw(with(|c| c.head.size = 1)), CertificateFlaw::Size { reached: 2 });
    assert!(matches!(flaw(with(|c| c.head.root = Digest::ZERO)), CertificateFlaw::Root { .. }));
    assert!(matches!(flaw(with(|c| c.head.term = Term(2))), CertificateFlaw::Term { .. }));
    assert!(matches!(flaw(with(|c| c.halves[0].signers = Bitmap::of(3, [1, 2]))), CertificateFlaw::Proof(_)));
    assert!(matches!(
        flaw(log.certificate(&[0])),
        CertificateFlaw::Proof(CertificateError::Quorum { signers: 1, quorum: 2 })
    ));
}

#[test]
fn one_changed_header_is_found_by_the_next_certificate() {
    let mut log = Log::new(Policy::Auto);
    log.elect().propose().propose().certify();
    log.entries[1].header.proposed_at += 1;
    assert!(matches!(log.audit(), Err(AuditError::Certificate { size: 3, flaw: CertificateFlaw::Root { .. } })));
}

#[test]
fn ballots_pass_with_every_outcome_that_their_tally_supports() {
    let mut log = Log::new(Policy::Manual);
    log.elect().ballot(&[0, 1], &[], None).ballot(&[0, 2], &[1], None);
    log.ballot(&[0], &[1, 2], Some(AbortReason::Rejected));
    log.ballot(&[0], &[1], Some(AbortReason::Expired)).ballot(&[], &[], Some(AbortReason::Expired)).certify();
    let summary = log.audit().unwrap();
    assert_eq!((summary.balloted, summary.proposals, summary.aborted), (5, 2, 3));
}

#[test]
fn a_tally_must_support_what_the_header_says() {
    for (grants, denials, abort) in [
        (&[0][..], &[1][..], None),
        (&[0, 1], &[2], Some(AbortReason::Rejected)),
        (&[0, 1], &[], Some(AbortReason::Expired)),
        (&[], &[0, 1], Some(AbortReason::Expired)),
    ] {
        let mut log = Log::new(Policy::Manual);
        log.elect().ballot(grants, denials, abort);
        let flaw = log.flaw();
        let expected = matches!(
            flaw,
            EntryFlaw::Outcome(OutcomeError::Grants { granted: 1, required: 2 } | OutcomeError::Reason { .. })
        );
        assert!(expected, "{grants:?} {denials:?} {abort:?}: {flaw}");
    }
}

#[test]
fn a_tally_must_verify_over_two_separate_sets_of_voters() {
    let tampered = |change: fn(&mut Tally)| {
        let mut log = Log::new(Policy::Manual);
        log.elect().ballot_as(&[0, 1], &[2], None, change);
        log.flaw()
    };
    let undenied = |change: fn(&mut Tally)| {
        let mut log = Log::new(Policy::Manual);
        log.elect().ballot_as(&[0, 1], &[], None, change);
        log.flaw()
    };
    let outcome = |flaw| match flaw {
        EntryFlaw::Outcome(error) => error,
        other => panic!("{other}"),
    };
    assert_eq!(outcome(tampered(|t| t.denials.members = Bitmap::of(3, [1]))), OutcomeError::Overlap);
    assert_eq!(outcome(tampered(|t| t.grants.members = Bitmap::of(9, [0, 1]))), OutcomeError::Members { voters: 3 });
    let side = |flaw| match outcome(flaw) {
        OutcomeError::Aggregate { side, .. } => side,
        other => panic!("{other}"),
    };
    assert_eq!(side(tampered(|t| t.grants.aggregate = None)), "granted");
    assert_eq!(side(undenied(|t| t.grants.members = Bitmap::of(3, [0, 2]))), "granted");
    assert_eq!(side(tampered(|t| t.denials.aggregate = t.grants.aggregate)), "denied");
}

#[test]
fn where_a_ballot_is_needed_signing_is_no_grant() {
    let mut log = Log::new(Policy::Manual);
    log.elect().propose();
    assert_eq!(log.flaw(), EntryFlaw::Outcome(OutcomeError::NotAutomatic(NodeId([1; 32]))));
    let mut log = Log::new(Policy::Auto);
    log.elect().propose_as(|h| h.required_quorum = 3);
    assert_eq!(log.flaw(), EntryFlaw::Outcome(OutcomeError::NoBallot));
    for required in [1, 4] {
        let mut log = Log::new(Policy::Auto);
        log.elect().propose_as(|h| h.required_quorum = required);
        assert!(matches!(log.flaw(), EntryFlaw::Outcome(OutcomeError::RequiredQuorum { .. })));
    }
}

#[test]
fn a_membership_change_is_followed_through_both_tables() {
    let mut log = Log::new(Policy::Auto);
    log.elect().propose().open_change().propose();
    let joint = log.certificate(&[0, 1, 2]);
    log.certificates.push(joint.clone());
    log.propose().close_change(&joint);
    // The five new members decide alone from here on: a quorum is three.
    log.propose_as(|h| h.required_quorum = 3);
    let after = log.certificate(&[0, 1, 2]);
    log.certificates.push(after);
    let summary = log.audit().unwrap();
    assert_eq!((summary.epoch, summary.certificates, summary.entries), (Epoch(1), 2, 7));
}

#[test]
fn a_membership_change_needs_both_quorums_over_its_own_entry() {
    // The certificate was made before the change: it has one half.
    let mut log = Log::new(Policy::Auto);
    log.elect();
    let before = log.certificate(&[0, 1]);
    log.open_change().close_change(&before);
    assert!(matches!(log.flaw(), EntryFlaw::Joint(CertificateFlaw::Size { .. })));
    // Two signers of five are no quorum of the new table.
    let mut log = Log::new(Policy::Auto);
    log.elect().open_change();
    let thin = log.certificate(&[0, 1]);
    log.close_change(&thin);
    assert!(matches!(log.flaw(), EntryFlaw::Joint(CertificateFlaw::Proof(CertificateError::Quorum { .. }))));
    // Another tree.
    let mut log = Log::new(Policy::Auto);
    log.elect().open_change();
    let mut other = log.certificate(&[0, 1, 2]);
    other.head.root = Digest::ZERO;
    log.close_change(&other);
    assert!(matches!(log.flaw(), EntryFlaw::Joint(CertificateFlaw::Root { .. })));
}

#[test]
fn a_change_neither_nests_nor_closes_twice() {
    let mut log = Log::new(Policy::Auto);
    log.elect().open_change().open_change();
    assert_eq!(log.flaw(), EntryFlaw::Change("already under way"));
    let mut log = Log::new(Policy::Auto);
    log.elect();
    let certificate = log.certificate(&[0, 1]);
    let payload = certificate.encode();
    log.push(log.header(Kind::EpochFinal, &payload), None, &payload);
    assert_eq!(log.flaw(), EntryFlaw::Change("not under way"));
}

#[test]
fn numbers_seen_merge_into_ranges() {
    let mut set = RangeSet::default();
    for n in [3, 1, 2, 5, 0, u64::MAX, 4] {
        assert!(set.insert(n), "{n}");
    }
    for n in [0, 1, 2, 3, 4, 5, u64::MAX] {
        assert!(!set.insert(n), "{n}");
    }
    assert_eq!(set.ranges, BTreeMap::from([(0, 5), (u64::MAX, u64::MAX)]));
}
