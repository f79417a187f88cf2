//! What canonical bytes and shapes refuse, field by field, and what an election certificate proves.

#[path = "support/certificates.rs"]
mod support;

use concordat::certificate::*;
use concordat::ids::{Digest, Epoch, LogIndex, ProposalId, Term};
use concordat::limits::{MAX_PAYLOAD, MAX_REQUEST_ID};
use support::*;

fn claim() -> ElectionClaim {
    ElectionClaim { term: Term(3), candidate: did(1), last_term: Term(2), last_size: 7, last_root: Digest([5; 32]) }
}

/// An election certificate by the first voters of the only table.
fn elected(c: &Cluster, claim: ElectionClaim, voters: &[u8]) -> ElectionCertificate {
    let table = c.in_force().0;
    let under = table.signed_for(&c.genesis.id());
    let signatures: Vec<Signature> = voters.iter().map(|v| secret(*v).sign(&claim.signed_bytes(&under))).collect();
    let positions = voters.iter().map(|v| table.table.voter_position(&did(*v)).unwrap());
    let signers = Bitmap::of(table.table.voters().count(), positions);
    let aggregate = aggregate(&signatures).unwrap();
    ElectionCertificate {
        claim,
        halves: vec![Half { epoch: under.epoch, epoch_hash: under.epoch_hash, signers, aggregate }],
    }
}

#[test]
fn an_election_is_proved_by_a_quorum_on_the_very_claim_under_the_table_in_force() {
    let c = Cluster::new(autos(1..=3));
    let (table, _) = c.in_force();
    let verify = |e: &ElectionCertificate| e.verify(&c.genesis.id(), &table, None);
    let good = elected(&c, claim(), &[1, 2]);
    assert_eq!(verify(&good), Ok(()));
    assert_eq!(verify(&elected(&c, claim(), &[1])), Err(CertificateError::Quorum { signers: 1, quorum: 2 }));
    let others = [
        ElectionClaim { term: Term(4), ..claim() },
        ElectionClaim { candidate: did(2), ..claim() },
        ElectionClaim { last_term: Term(1), ..claim() },
        ElectionClaim { last_size: 8, ..claim() },
        ElectionClaim { last_root: Digest([6; 32]), ..claim() },
    ];
    for claim in others {
        assert!(verify(&ElectionCertificate { claim, ..good.clone() }).is_err(), "{claim:?}");
    }
    let mut elsewhere = table.clone();
    elsewhere.epoch = Epoch(1);
    assert!(good.verify(&c.genesis.id(), &elsewhere, None).is_err());
    assert!(good.verify(&Digest([1; 32]), &table, None).is_err());
}

#[test]
fn a_chain_reads_back_from_its_canonical_bytes_only() {
    let mut c = Cluster::new(autos(1..=3));
    c.open_change(autos(2..=4));
    c.close_change();
    let chain = c.chain(1, &c.head());
    let bytes = chain.encode();
    assert_eq!(EpochChain::decode(&bytes), Ok(chain));
    assert_eq!(EpochChain::decode(&EpochChain::default().encode()), Ok(EpochChain::default()));
    for length in 0..bytes.len() {
        assert!(EpochChain::decode(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    assert!(EpochChain::decode(&[bytes.as_slice(), &[0]].concat()).is_err(), "one byte more");
}

#[test]
fn a_path_holds_as_many_hashes_as_a_tree_is_deep_and_no_more() {
    let mut c = Cluster::new(autos(1..=3));
    c.open_change(autos(2..=4));
    c.close_change();
    let with = |hashes: usize| {
        let mut chain = c.chain(1, &c.head());
        chain.steps[0].path = vec![Digest([1; 32]); hashes];
        EpochChain::decode(&chain.encode())
    };
    assert!(with(64).is_ok());
    assert!(matches!(with(65), Err(EntryError::Format(FormatError::TooLong { length: 65, .. }))), "{:?}", with(65));
}

/// A header of every kind, as it must look.
fn headers() -> Vec<Header> {
    let mut c = Cluster::new(autos(1..=3));
    let (proposal, _) = c.proposal(b"x", 2);
    let reason = |reason| Header { kind: Kind::Aborted, abort_reason: Some(reason), ..proposal.clone() };
    let mut all = vec![proposal.clone(), reason(AbortReason::Rejected), reason(AbortReason::Expired)];
    let others = [Kind::Noop, Kind::Epoch, Kind::EpochFinal, Kind::SnapshotMark, Kind::SnapshotManifest];
    all.extend(others.map(|kind| c.header(kind)));
    all
}

#[test]
fn a_header_of_every_kind_reads_back() {
    for header in headers() {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}

#[test]
fn a_header_has_the_fields_of_its_kind_and_no_others() {
    let id = ProposalId { term: Term(1), seq: 1, origin: did(1) };
    let tally = Tally {
        grants: TallySide { members: Bitmap::of(3, []), aggregate: None },
        denials: TallySide { members: Bitmap::of(3, []), aggregate: None },
    };
    for header in headers() {
        let proposed = header.proposal_id.is_some();
        let aborted = header.kind == Kind::Aborted;
        let too_long = u32::try_from(MAX_PAYLOAD + 1).unwrap();
        let mut wrong = vec![
            ("header.index", Header { index: LogIndex::ZERO, ..header.clone() }),
            ("header.proposal_id", Header { proposal_id: (!proposed).then_some(id), ..header.clone() }),
            ("header.required_quorum", Header { required_quorum: u16::from(!proposed), ..header.clone() }),
            (
                "header.abort_reason",
                Header { abort_reason: (!aborted).then_some(AbortReason::Expired), ..header.clone() },
            ),
            ("header.payload_len", Header { payload_len: too_long, ..header.clone() }),
        ];
        if !proposed {
            wrong.push(("header.request_digest", Header { request_digest: Digest([1; 32]), ..header.clone() }));
        }
        if matches!(header.kind, Kind::Noop | Kind::EpochFinal | Kind::SnapshotMark) {
            wrong.push(("header.tally", Header { tally: Some(tally.clone()), ..header.clone() }));
        }
        for (field, wrong) in wrong {
            let kind = wrong.kind;
            assert_eq!(Header::decode(&wrong.encode()), Err(FormatError::Value { field }), "{kind:?}");
        }
        let longest = Header { payload_len: too_long - 1, ..header };
        assert_eq!(Header::decode(&longest.encode()), Ok(longest));
    }
}

#[test]
fn names_of_a_request_are_neither_empty_nor_too_long() {
    let request =
        |client: usize, id: usize| Request { client: "c".repeat(client), request_id: "r".repeat(id), deadline_ms: 1 };
    for (client, id, fine) in [
        (1, 1, true),
        (MAX_REQUEST_ID, MAX_REQUEST_ID, true),
        (0, 1, false),
        (1, 0, false),
        (MAX_REQUEST_ID + 1, 1, false),
        (1, MAX_REQUEST_ID + 1, false),
    ] {
        assert_eq!(request(client, id).is_within_bounds(), fine, "{client} and {id} bytes");
    }
}

#[test]
fn a_statement_of_another_cluster_beside_one_of_this_is_no_evidence() {
    let c = Cluster::new(autos(1..=3));
    let here = c.in_force().0.signed_for(&c.genesis.id());
    let there = SignedFor { genesis_id: Digest([7; 32]), ..here };
    let head = |root: u8| Head { term: Term(1), size: 4, root: Digest([root; 32]) };
    let signed = |under: SignedFor, root: u8| (under, head(root), secret(1).sign(&head(root).signed_bytes(&under)));
    for (a, b) in [(here, there), (there, here)] {
        let evidence = Evidence::TwoRoots { member: did(1), a: signed(a, 1), b: signed(b, 2) };
        let verdict = evidence.verify(&c.genesis, &EpochChain::default());
        assert_eq!(verdict, Err(EvidenceError::NotTheMembers(did(1))));
    }
}
