//! Epoch chains and evidence.

#[path = "support/certificates.rs"]
mod support;

use concordat::certificate::*;
use concordat::ids::{Digest, Epoch, NodeId, Term};
use support::*;

/// Three changes, closed: {1,2,3} → {2,3,4} → {3,4,5} → {4,5,6}.
fn three_changes() -> (Cluster, EpochChain) {
    let mut c = Cluster::new(autos(1..=3));
    for first in 2..=4 {
        c.open_change(autos(first..first + 3));
        c.close_change();
    }
    let chain = c.chain(3, &c.head());
    (c, chain)
}

fn flaw(chain: &EpochChain, c: &Cluster) -> (Epoch, StepError) {
    match chain.verify(&c.genesis).expect_err("must be refused") {
        CertificateError::Step { epoch, flaw } => (epoch, *flaw),
        other => panic!("{other}"),
    }
}

#[test]
fn a_chain_proves_every_table_from_the_genesis_on() {
    let (c, chain) = three_changes();
    let tables = chain.verify(&c.genesis).unwrap();
    assert_eq!(tables.iter().map(|t| t.epoch.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(tables[0], c.genesis.in_force());
    assert_eq!(tables[3], c.in_force().0);
}

#[test]
fn a_missing_a_doubled_and_a_swapped_step_break_the_chain() {
    let (c, chain) = three_changes();
    for order in [vec![0, 2], vec![1], vec![0, 0], vec![1, 0, 2], vec![0, 2, 1]] {
        let steps = order.iter().map(|i| chain.steps[*i].clone()).collect();
        assert!(EpochChain { steps }.verify(&c.genesis).is_err(), "{order:?}");
    }
}

#[test]
fn a_step_by_an_entry_of_another_kind_is_refused() {
    let (c, mut chain) = three_changes();
    let final_entry = c.entries[2].clone();
    let path = c.path(final_entry.index(), c.entries.len() as u64);
    chain.steps[0] = EpochStep { entry: final_entry, joint: c.head(), path };
    assert_eq!(flaw(&chain, &c), (Epoch(1), StepError::Kind(Kind::EpochFinal)));
}

#[test]
fn each_half_of_a_joint_certificate_needs_its_own_quorum() {
    let mut c = Cluster::new(autos(1..=3));
    c.open_change(autos(3..=7));
    let by = |signers: [&[u8]; 2]| c.chain(1, &c.head_by(&signers));
    assert!(by([&[1, 2], &[3, 4, 5]]).verify(&c.genesis).is_ok());
    for signers in [[[3].as_slice(), &[3, 4, 5]], [&[1, 2, 3], &[3, 4]]] {
        let chain = by(signers);
        let (_, StepError::Joint(why)) = flaw(&chain, &c) else { panic!("{signers:?}") };
        assert!(matches!(*why, CertificateError::Quorum { .. }), "{why}");
    }
}

#[test]
fn a_change_certified_by_one_table_alone_proves_nothing() {
    let mut c = Cluster::new(autos(1..=3));
    c.open_change(autos(1..=5));
    let mut chain = c.chain(1, &c.head());
    let halves = chain.steps[0].joint.halves.clone();
    for alone in halves {
        chain.steps[0].joint.halves = vec![alone];
        let (_, StepError::Joint(why)) = flaw(&chain, &c) else { panic!() };
        assert_eq!(*why, CertificateError::Halves { found: 1, expected: 2 });
    }
}

/// The current table's members signed both this and the other half, or nothing: a leader that collects only their
/// quorum must not be able to show an entry as committed that joint consensus may lose.
#[test]
fn a_half_stripped_off_a_joint_certificate_does_not_pass_for_a_whole_one() {
    let mut c = Cluster::new(autos(1..=3));
    c.open_change(autos(1..=5));
    let index = c.propose(b"{}");
    let mut receipt = c.receipt(index);
    assert!(receipt.verify(&c.genesis).is_ok());
    receipt.certificate.halves.truncate(1);
    receipt.chain.steps.clear();
    assert!(receipt.verify(&c.genesis).is_err(), "under its own name");
    receipt.certificate.halves[0].epoch_hash = c.genesis.id();
    let error = receipt.verify(&c.genesis).expect_err("under the current table's name");
    assert!(error.to_string().contains("does not verify"), "{error}");
}

#[test]
fn a_certificate_under_a_change_that_never_committed_chains_to_nothing() {
    let mut lost = Cluster::new(autos(1..=3));
    lost.open_change(autos(1..=4));
    lost.close_change();
    let mut c = Cluster::new(autos(1..=3));
    c.open_change(autos(1..=5));
    c.close_change();
    let index = lost.propose(b"{}");
    let mut receipt = lost.receipt(index);
    receipt.chain = c.chain(1, &c.head());
    assert!(matches!(
        receipt.verify(&c.genesis),
        Err(ReceiptError::Certificate { what: "head certificate", source: CertificateError::Epoch { .. } })
    ));
}

#[test]
fn a_retired_key_does_not_come_back_and_a_key_does_not_move() {
    let mut c = Cluster::new(autos(1..=3));
    c.open_change(autos(1..=2));
    c.close_change();
    c.open_change(autos(1..=3));
    c.close_change();
    assert_eq!(flaw(&c.chain(2, &c.head()), &c), (Epoch(2), StepError::OldKey(did(3))));

    let mut c = Cluster::new(autos(1..=3));
    c.open_change(vec![member(1, Policy::Auto), member(2, Policy::Auto), member_with_key(4, 3, Policy::Auto)]);
    c.close_change();
    assert_eq!(flaw(&c.chain(1, &c.head()), &c), (Epoch(1), StepError::OldKey(did(4))));
}

/// The log only grows: what bears an epoch lies, by index, term and time, behind the change that set it.
#[test]
fn nothing_lies_before_the_change_that_set_its_epoch() {
    let mut c = Cluster::new(autos(1..=3));
    c.term = Term(2);
    c.open_change(autos(1..=4));
    c.append(Kind::Noop, b"");
    c.close_change();
    c.term = Term(1);
    let index = c.propose(b"{}");
    let error = c.receipt(index).verify(&c.genesis).unwrap_err();
    assert!(matches!(error, ReceiptError::Inconsistent(rule) if rule.contains("before the change")), "{error}");
    c.open_change(autos(1..=5));
    c.close_change();
    assert_eq!(flaw(&c.chain(2, &c.head()), &c), (Epoch(2), StepError::Order));
}

/// At their bounds, index and time: what stands at the place of the joint head is not behind it, what stands right behind
/// it at the very time of the change is.
#[test]
fn what_lies_behind_a_change_begins_right_behind_its_joint_head() {
    let of_next_epoch = |inside: bool, earlier_ms: u64| {
        let mut c = Cluster::new(autos(1..=3));
        let change = c.open_change(autos(1..=4));
        let time = c.entries[change.0 as usize - 1].header.proposed_at;
        let push = |c: &mut Cluster| {
            let body = Body { salt: [9; 16], ..Body::default() };
            let header = Header { epoch: Epoch(1), proposed_at: time - earlier_ms, ..c.header(Kind::Noop) };
            c.push(named(header, &body), body)
        };
        let index = if inside {
            let index = push(&mut c);
            c.close_change();
            index
        } else {
            c.close_change();
            push(&mut c)
        };
        c.append(Kind::Noop, b"");
        c.receipt(index).verify(&c.genesis).map(|_| ())
    };
    assert!(of_next_epoch(false, 0).is_ok());
    for (inside, earlier_ms) in [(true, 0), (false, 1)] {
        let error = of_next_epoch(inside, earlier_ms).unwrap_err();
        assert!(matches!(error, ReceiptError::Inconsistent(rule) if rule.contains("before the change")), "{error}");
    }
}

#[test]
fn a_changed_row_of_a_member_that_kept_its_store_keeps_its_key() {
    let mut c = Cluster::new(autos(1..=3));
    let mut members = autos(1..=3);
    members[0].address = "elsewhere.example:7001".to_owned();
    members[1].policy = Policy::Manual;
    c.open_change(members);
    c.close_change();
    assert!(c.chain(1, &c.head()).verify(&c.genesis).is_ok());
}

mod evidence {
    use super::*;

    fn head(root: u8) -> Head {
        Head { term: Term(3), size: 7, root: Digest([root; 32]) }
    }

    fn under(c: &Cluster) -> SignedFor {
        c.genesis.in_force().signed_for(&c.genesis.id())
    }

    fn two_roots(c: &Cluster, a: Head, b: Head) -> Evidence {
        let signed = |h: Head| (under(c), h, secret(2).sign(&h.signed_bytes(&under(c))));
        Evidence::TwoRoots { member: did(2), a: signed(a), b: signed(b) }
    }

    fn two_candidates(c: &Cluster, a: ElectionClaim, b: ElectionClaim) -> Evidence {
        let signed = |e: ElectionClaim| (under(c), e, secret(2).sign(&e.signed_bytes(&under(c))));
        Evidence::TwoCandidates { member: did(2), a: signed(a), b: signed(b) }
    }

    fn two_votes(c: &Cluster, a: VoteStatement, b: VoteStatement) -> Evidence {
        let signed = |v: VoteStatement| (under(c), v, secret(2).sign(&v.signed_bytes(&under(c))));
        Evidence::TwoVotes { member: did(2), a: signed(a), b: signed(b) }
    }

    fn claim(candidate: u8) -> ElectionClaim {
        let last_root = Digest([8; 32]);
        ElectionClaim { term: Term(3), candidate: did(candidate), last_term: Term(2), last_size: 5, last_root }
    }

    fn vote(granted: bool) -> VoteStatement {
        let (request_digest, payload_hash) = (Digest([1; 32]), Digest([2; 32]));
        VoteStatement { request_digest, payload_hash, required_quorum: 2, granted }
    }

    #[test]
    fn contradicting_signatures_of_one_member_are_evidence_in_both_forms() {
        let c = Cluster::new(autos(1..=3));
        let other_quorum = VoteStatement { required_quorum: 3, ..vote(false) };
        for evidence in [
            two_roots(&c, head(1), head(2)),
            two_candidates(&c, claim(1), claim(3)),
            two_votes(&c, vote(true), vote(false)),
            two_votes(&c, vote(true), other_quorum),
        ] {
            assert_eq!(evidence.verify(&c.genesis, &EpochChain::default()), Ok(()));
            assert_eq!(Evidence::decode(&evidence.encode()), Ok(evidence));
        }
    }

    #[test]
    fn what_an_honest_member_signs_is_no_evidence() {
        let c = Cluster::new(autos(1..=3));
        let later = Head { term: Term(4), ..head(2) };
        let longer = Head { size: 8, ..head(2) };
        let again = ElectionClaim { last_size: 6, ..claim(1) };
        let next_term = ElectionClaim { term: Term(4), ..claim(3) };
        let other = VoteStatement { payload_hash: Digest([3; 32]), ..vote(false) };
        let another = VoteStatement { request_digest: Digest([3; 32]), ..vote(false) };
        for evidence in [
            two_roots(&c, head(1), head(1)),
            two_roots(&c, head(1), later),
            two_roots(&c, head(1), longer),
            two_candidates(&c, claim(1), claim(1)),
            two_candidates(&c, claim(1), again),
            two_candidates(&c, claim(1), next_term),
            two_votes(&c, vote(true), vote(true)),
            two_votes(&c, vote(true), other),
            two_votes(&c, vote(true), another),
        ] {
            assert_eq!(evidence.verify(&c.genesis, &EpochChain::default()), Err(EvidenceError::NoContradiction));
        }
    }

    #[test]
    fn nobody_is_blamed_for_the_signatures_of_another_member_or_cluster() {
        let c = Cluster::new(autos(1..=3));
        let blamed = |member: NodeId, evidence: Evidence| match evidence {
            Evidence::TwoRoots { a, b, .. } => Evidence::TwoRoots { member, a, b },
            other => other,
        };
        let real = two_roots(&c, head(1), head(2));
        for who in [did(1), did(9)] {
            let verdict = blamed(who, real.clone()).verify(&c.genesis, &EpochChain::default());
            assert_eq!(verdict, Err(EvidenceError::NotTheMembers(who)));
        }
        let elsewhere = Cluster::new(autos(1..=4));
        let verdict = two_roots(&elsewhere, head(1), head(2)).verify(&c.genesis, &EpochChain::default());
        assert_eq!(verdict, Err(EvidenceError::NotTheMembers(did(2))));
    }

    /// A member that lost its disk comes back with a fresh key and cannot know what the old one signed.
    #[test]
    fn signatures_by_two_keys_of_one_member_do_not_contradict_each_other() {
        let mut c = Cluster::new(autos(1..=3));
        c.open_change(vec![member(1, Policy::Auto), member_with_key(2, 22, Policy::Auto), member(3, Policy::Auto)]);
        c.close_change();
        let chain = c.chain(1, &c.head());
        let signed = |key: u8, h: Head| (under(&c), h, secret(key).sign(&h.signed_bytes(&under(&c))));
        let by = |a, b| Evidence::TwoRoots { member: did(2), a: signed(a, head(1)), b: signed(b, head(2)) };
        assert_eq!(by(2, 22).verify(&c.genesis, &chain), Err(EvidenceError::NotTheMembers(did(2))));
        assert_eq!(by(22, 22).verify(&c.genesis, &chain), Ok(()));
        assert_eq!(by(2, 2).verify(&c.genesis, &chain), Ok(()));
        assert_eq!(
            by(22, 22).verify(&c.genesis, &EpochChain::default()),
            Err(EvidenceError::NotTheMembers(did(2))),
            "the chain proves whose the fresh key is"
        );
    }

    #[test]
    fn one_bit_of_any_byte_changed_is_no_evidence() {
        let c = Cluster::new(autos(1..=3));
        let bytes = two_votes(&c, vote(true), vote(false)).encode();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            let verdict = Evidence::decode(&changed).map(|e| e.verify(&c.genesis, &EpochChain::default()));
            assert!(!matches!(verdict, Ok(Ok(()))), "byte {at}");
        }
    }
}
