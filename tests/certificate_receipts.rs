//! What receipts prove, and that nothing else passes.

#[path = "support/certificates.rs"]
mod support;

use concordat::certificate::*;
use concordat::ids::{Digest, Epoch, LogIndex, NodeId, Term};
use support::*;

fn dids(seeds: &[u8]) -> Vec<NodeId> {
    seeds.iter().map(|s| did(*s)).collect()
}

fn refused(receipt: &Receipt, cluster: &Cluster) -> ReceiptError {
    receipt.verify(&cluster.genesis).expect_err("must be refused")
}

/// Three members, one of whom is asked about every proposal.
fn asking() -> Cluster {
    Cluster::new(vec![member(1, Policy::Auto), member(2, Policy::Auto), member(3, Policy::Manual)])
}

#[test]
fn on_the_fast_path_the_signers_of_the_head_are_the_granters() {
    let mut c = Cluster::new(autos(1..=3));
    let index = c.propose(b"{}");
    let receipt = c.receipt_under(index, c.head_by(&[&[1, 3]]));
    let proved = receipt.verify(&c.genesis).unwrap();
    assert_eq!(proved.certificate.signers, dids(&[1, 3]));
    assert_eq!(proved.granted, proved.certificate.signers);
    assert_eq!(proved.certificate.threshold_sig, receipt.certificate.halves[0].aggregate);
    assert_eq!(proved.certificate.committed_at, receipt.last_header.proposed_at);
    assert!(proved.denied.is_empty());
}

#[test]
fn after_a_ballot_the_granters_are_the_signers_whoever_signed_the_head() {
    let mut c = asking();
    let index = c.ballot(b"{}", &Votes { required: 2, grants: &[2, 3], denials: &[1] });
    let receipt = c.receipt_under(index, c.head_by(&[&[1, 2]]));
    let proved = receipt.verify(&c.genesis).unwrap();
    assert_eq!(proved.certificate.signers, dids(&[2, 3]));
    assert_eq!(proved.denied, dids(&[1]));
    assert_eq!(Some(proved.certificate.threshold_sig), receipt.header.tally.as_ref().unwrap().grants.aggregate);
}

#[test]
fn entries_that_need_no_grant_ride_on_the_head_alone() {
    let mut c = asking();
    c.open_change(autos(1..=3));
    for entry in 1..=2 {
        let proved = c.receipt(LogIndex(entry)).verify(&c.genesis).unwrap();
        assert!(proved.granted.is_empty() && proved.denied.is_empty());
        assert_eq!(proved.certificate.signers, dids(&[1, 2]));
    }
}

#[test]
fn a_pruned_receipt_still_proves_the_header() {
    let mut c = Cluster::new(autos(1..=3));
    let index = c.propose(b"forgotten");
    let mut receipt = c.receipt(index);
    receipt.body = None;
    let proved = Receipt::decode(&receipt.encode()).unwrap().verify(&c.genesis).unwrap();
    assert_eq!(proved.body, None);
    assert_eq!(proved.header.payload_len, 9);
}

#[test]
fn a_proposal_without_a_ballot_is_refused_where_someone_had_to_be_asked() {
    let mut c = asking();
    let index = c.propose(b"{}");
    let error = refused(&c.receipt(index), &c);
    assert!(matches!(error, ReceiptError::Outcome(OutcomeError::NotAutomatic(who)) if who == did(3)), "{error}");
}

#[test]
fn a_raised_quorum_needs_a_ballot_and_that_many_grants() {
    let mut c = Cluster::new(autos(1..=3));
    let (header, body) = c.proposal(b"{}", 3);
    let index = c.push(header, body);
    assert!(matches!(refused(&c.receipt(index), &c), ReceiptError::Outcome(OutcomeError::NoBallot)));
    let index = c.ballot(b"{}", &Votes { required: 3, grants: &[1, 2], denials: &[] });
    assert!(matches!(
        refused(&c.receipt(index), &c),
        ReceiptError::Outcome(OutcomeError::Grants { granted: 2, required: 3 })
    ));
    let index = c.ballot(b"{}", &Votes { required: 3, grants: &[1, 2, 3], denials: &[] });
    assert_eq!(c.receipt(index).verify(&c.genesis).unwrap().granted, dids(&[1, 2, 3]));
}

#[test]
fn a_quorum_below_the_rule_or_above_the_voters_is_refused() {
    for required in [1, 4] {
        let mut c = Cluster::new(autos(1..=3));
        let index = c.ballot(b"{}", &Votes { required, grants: &[1, 2, 3], denials: &[] });
        let error = refused(&c.receipt(index), &c);
        assert!(matches!(error, ReceiptError::Outcome(OutcomeError::RequiredQuorum { .. })), "{error}");
    }
}

#[test]
fn an_abort_proves_who_denied_and_its_reason_must_follow_from_the_votes() {
    use AbortReason::{Expired, Rejected};
    let cases: [(AbortReason, &[u8], &[u8], bool); 6] = [
        (Rejected, &[1], &[2, 3], true),
        (Rejected, &[1], &[2], false),
        (Rejected, &[1, 2], &[3], false),
        (Expired, &[1], &[2], true),
        (Expired, &[], &[], true),
        (Expired, &[1, 2], &[], false),
    ];
    for (reason, grants, denials, holds) in cases {
        let mut c = asking();
        let index = c.abort(b"{}", reason, &Votes { required: 2, grants, denials });
        let proved = c.receipt(index).verify(&c.genesis);
        assert_eq!(proved.is_ok(), holds, "{reason:?} {grants:?} {denials:?}: {proved:?}");
        if let Ok(proved) = proved {
            assert_eq!((proved.granted, proved.denied), (dids(grants), dids(denials)));
            assert_eq!(proved.certificate.threshold_sig, proved.certificate.head.halves[0].aggregate);
        }
    }
}

#[test]
fn an_abort_publishes_neither_payload_nor_salt() {
    let mut c = asking();
    let index = c.abort(b"secret", AbortReason::Expired, &Votes { required: 2, grants: &[], denials: &[] });
    let entry = c.entries[index.0 as usize - 1].clone();
    let salted = Body { salt: [1; 16], ..entry.body.clone() };
    assert!(Entry::new(entry.header.clone(), salted).is_err());
    let told = Body { payload: b"secret".to_vec(), ..entry.body };
    assert!(Entry::new(entry.header, told).is_err());
}

#[test]
fn entries_are_proved_across_membership_changes() {
    let mut c = asking();
    let before = c.ballot(b"before", &Votes { required: 2, grants: &[1, 2], denials: &[] });
    c.open_change(autos(2..=5));
    let during = c.ballot(b"during", &Votes { required: 2, grants: &[1, 3], denials: &[] });
    let in_flight = c.receipt(during);
    assert_eq!((in_flight.certificate.halves.len(), in_flight.chain.steps.len()), (2, 1));
    assert_eq!(in_flight.verify(&c.genesis).unwrap().granted, dids(&[1, 3]));
    c.term = Term(2);
    c.close_change();
    let after = c.propose(b"after");
    c.open_change(autos(4..=8));
    c.close_change();
    let newest = c.propose(b"newest");
    for (index, granted) in [(before, dids(&[1, 2])), (during, dids(&[1, 3])), (newest, dids(&[4, 5, 6]))] {
        let receipt = Receipt::decode(&c.receipt(index).encode()).unwrap();
        assert_eq!(receipt.chain.steps.len(), 2);
        assert_eq!(receipt.verify(&c.genesis).unwrap().granted, granted);
    }
    let error = refused(&c.receipt(after), &c);
    assert!(matches!(error, ReceiptError::LaterHead { entry: Epoch(1), head: Epoch(2) }), "{error}");
}

#[test]
fn a_rotated_key_signs_its_own_half() {
    let mut c = Cluster::new(autos(1..=3));
    c.open_change(vec![member_with_key(1, 11, Policy::Auto), member(2, Policy::Auto), member(3, Policy::Auto)]);
    c.close_change();
    let index = c.propose(b"{}");
    assert_eq!(c.receipt(index).verify(&c.genesis).unwrap().granted, dids(&[1, 2]));
}

#[test]
fn a_receipt_carries_exactly_the_changes_that_it_needs() {
    let mut c = Cluster::new(autos(1..=3));
    let index = c.propose(b"{}");
    let early = c.receipt(index);
    c.open_change(autos(1..=4));
    c.close_change();
    let late = c.receipt(LogIndex(1));
    let mut longer = early;
    longer.chain = late.chain.clone();
    assert!(matches!(refused(&longer, &c), ReceiptError::ChainLength { found: 1, needed: 0 }));
    let mut shorter = late;
    shorter.chain.steps.clear();
    assert!(matches!(refused(&shorter, &c), ReceiptError::ChainLength { found: 0, needed: 1 }));
}

#[test]
fn the_last_header_must_be_the_last_and_of_the_head_s_term() {
    let mut c = Cluster::new(autos(1..=3));
    let index = c.propose(b"{}");
    c.propose(b"{}");
    let mut receipt = c.receipt(index);
    receipt.last_header = c.entries[1].header.clone();
    receipt.last_path = c.path(LogIndex(2), 3);
    assert!(matches!(refused(&receipt, &c), ReceiptError::Inconsistent(_)));
    c.term = Term(2);
    assert!(matches!(refused(&c.receipt(index), &c), ReceiptError::Inconsistent(_)));
}

#[test]
fn both_forms_read_back_and_verify() {
    let mut c = asking();
    c.ballot("{\"text\":\"é\\u0007\"}".as_bytes(), &Votes { required: 2, grants: &[1, 3], denials: &[2] });
    c.abort(b"x", AbortReason::Rejected, &Votes { required: 2, grants: &[], denials: &[2, 3] });
    c.ballot(&[0xff, 0x00], &Votes { required: 2, grants: &[1, 2], denials: &[] });
    c.open_change(autos(2..=4));
    c.close_change();
    for index in 1..=c.entries.len() as u64 {
        let receipt = c.receipt(LogIndex(index));
        assert_eq!(Receipt::read(&receipt.encode()).unwrap(), receipt);
        assert_eq!(Receipt::read(receipt.to_json().as_bytes()).unwrap(), receipt);
        receipt.verify(&c.genesis).unwrap();
    }
}

/// Receipts that between them hold every optional part of the format.
fn every_part() -> (Cluster, Vec<Receipt>) {
    let mut c = asking();
    c.ballot(b"{\"a\":1}", &Votes { required: 2, grants: &[1, 3], denials: &[2] });
    c.abort(b"x", AbortReason::Rejected, &Votes { required: 2, grants: &[], denials: &[2, 3] });
    c.open_change(autos(2..=4));
    c.close_change();
    c.propose(b"{}");
    let receipts = [2, 3, 6].map(|i| c.receipt(LogIndex(i))).to_vec();
    (c, receipts)
}

fn verifies(file: &[u8], genesis: &Genesis) -> bool {
    Receipt::read(file).is_ok_and(|r| r.verify(genesis).is_ok())
}

#[test]
fn one_bit_of_any_byte_changed_fails_to_verify() {
    let (c, receipts) = every_part();
    for receipt in receipts {
        for file in [receipt.encode(), receipt.to_json().into_bytes()] {
            assert!(verifies(&file, &c.genesis));
            for at in 0..file.len() {
                let mut changed = file.clone();
                changed[at] ^= 1 << (at % 8);
                assert!(!verifies(&changed, &c.genesis), "entry {}: byte {at}", receipt.header.index);
            }
        }
    }
}

#[test]
fn a_receipt_cut_short_or_with_bytes_added_is_refused() {
    let (c, receipts) = every_part();
    for file in [receipts[0].encode(), receipts[0].to_json().into_bytes()] {
        assert!((0..file.len()).all(|end| Receipt::read(&file[..end]).is_err()));
        assert!(!verifies(&[file.as_slice(), b" "].concat(), &c.genesis));
    }
}

#[test]
fn a_receipt_whose_shown_fields_lie_is_refused() {
    let (_, receipts) = every_part();
    let text = receipts[0].to_json();
    let shown = "\"proposed_at\": 1700000000010";
    assert!(text.contains(shown));
    let altered = Receipt::from_json(&text.replacen(shown, "\"proposed_at\": 1700000000011", 1));
    assert!(matches!(altered, Err(ReceiptError::Altered)));
    let newer = Receipt::from_json(&text.replacen("\"concordat_receipt\": 1", "\"concordat_receipt\": 2", 1));
    assert!(matches!(newer, Err(ReceiptError::Version(2))));
}

#[test]
fn an_entry_does_not_pass_for_another_of_the_same_tree() {
    let mut c = Cluster::new(autos(1..=3));
    let (a, b) = (c.propose(b"a"), c.propose(b"b"));
    let (a, b) = (c.receipt(a), c.receipt(b));
    let mixed = Receipt { path: b.path.clone(), ..a.clone() };
    assert!(matches!(refused(&mixed, &c), ReceiptError::Inclusion { what: "entry" }));
    let mixed = Receipt { body: b.body, ..a };
    assert!(matches!(refused(&mixed, &c), ReceiptError::Entry(_)));
}

#[test]
fn hand_made_receipts_never_panic_the_verifier() {
    let mut c = Cluster::new(autos(1..=3));
    let index = c.propose(b"{}");
    let good = c.receipt(index);
    let mut wrong = vec![good.clone(); 5];
    wrong[0].certificate.halves.clear();
    wrong[1].header.index = LogIndex(0);
    wrong[2].last_header.epoch = Epoch(u64::MAX);
    wrong[3].certificate.head.size = u64::MAX;
    wrong[3].last_header.index = LogIndex(u64::MAX);
    wrong[4].certificate.halves[0].signers = Bitmap::from_bytes(vec![0; 9]);
    for receipt in wrong {
        refused(&receipt, &c);
    }
    assert_ne!(good.certificate.head.root, Digest::ZERO);
}
