//! Every attack on aggregate signatures and every mistake of other systems that we know of, tried on our verifier.
//! Where an attack rests on a property of the curve library, the test first shows that the library alone is fooled.

#[path = "support/certificates.rs"]
mod support;

use blst::min_pk as raw;
use concordat::certificate::merkle;
use concordat::certificate::*;
use concordat::ids::{Digest, Epoch, LogIndex};
use support::*;

const STATEMENT: &[u8] = b"a statement of canonical bytes";
const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
/// The order of the group, big-endian.
const ORDER: &str = "73eda753299d7d483339d80809a1d80553bda402fffe5bfeffffffff00000001";

fn point(key: &PublicKey) -> raw::PublicKey {
    raw::PublicKey::uncompress(&key.0).unwrap()
}

fn raw_sum(signatures: &[Signature]) -> Signature {
    let points: Vec<_> = signatures.iter().map(|s| raw::Signature::uncompress(&s.0).unwrap()).collect();
    let points: Vec<_> = points.iter().collect();
    Signature(raw::AggregateSignature::aggregate(&points, false).unwrap().to_signature().to_bytes())
}

/// What the library says of an aggregate without any of our rules.
fn unguarded(keys: &[PublicKey], signature: &Signature) -> bool {
    let keys: Vec<_> = keys.iter().map(point).collect();
    let keys: Vec<_> = keys.iter().collect();
    let signature = raw::Signature::uncompress(&signature.0).unwrap();
    signature.fast_aggregate_verify(false, STATEMENT, DST, &keys) == blst::BLST_ERROR::BLST_SUCCESS
}

/// `r − sk`: the key whose public key is opposite.
fn opposite(key: &SecretKey) -> SecretKey {
    let mut bytes: [u8; 32] = hex::decode(ORDER).unwrap().try_into().unwrap();
    let mut borrow = 0;
    for (byte, subtrahend) in bytes.iter_mut().zip(key.to_bytes()).rev() {
        let difference = i16::from(*byte) - i16::from(subtrahend) - borrow;
        borrow = i16::from(difference < 0);
        *byte = difference.rem_euclid(256) as u8;
    }
    SecretKey::from_bytes(&bytes).unwrap()
}

/// The negative of a point: the sign bit of its encoding flipped.
fn negative(signature: &Signature) -> Signature {
    let mut negative = *signature;
    negative.0[0] ^= 0x20;
    negative
}

/// A point of the curve outside the subgroup: almost every point is.
fn stray_signature() -> Signature {
    (1..=255)
        .map(|x| {
            let mut bytes = [0; 96];
            (bytes[0], bytes[95]) = (0x80, x);
            bytes
        })
        .find(|b| raw::Signature::uncompress(b).is_ok_and(|s| s.validate(true).is_err()))
        .map(Signature)
        .unwrap()
}

fn stray_key() -> PublicKey {
    (1..=255)
        .map(|x| {
            let mut bytes = [0; 48];
            (bytes[0], bytes[47]) = (0x80, x);
            bytes
        })
        .find(|b| raw::PublicKey::uncompress(b).is_ok_and(|k| k.validate().is_err()))
        .map(PublicKey)
        .unwrap()
}

fn infinity_key() -> PublicKey {
    let mut bytes = [0; 48];
    bytes[0] = 0xc0;
    PublicKey(bytes)
}

fn infinity_signature() -> Signature {
    let mut bytes = [0; 96];
    bytes[0] = 0xc0;
    Signature(bytes)
}

fn with_key(seed: u8, bls_key: PublicKey, possession: Signature) -> Member {
    Member { bls_key, possession, ..member(seed, Policy::Auto) }
}

fn table_of(members: Vec<Member>) -> Result<MemberTable, TableError> {
    MemberTable::new(members)
}

// --- the table of attacks ---------------------------------------------------------------------------------------

#[test]
fn a_rogue_key_forges_an_aggregate_of_all_but_has_no_proof_of_possession() {
    let honest: Vec<_> = (1..=3).map(|i| secret(i).public()).collect();
    let mut rogue = raw::AggregatePublicKey::from_public_key(&point(&secret(9).public()));
    for key in &honest {
        rogue.sub_aggregate(&raw::AggregatePublicKey::from_public_key(&point(key)));
    }
    let rogue = PublicKey(rogue.to_public_key().to_bytes());
    let forged = secret(9).sign(STATEMENT);
    let all = [honest.as_slice(), &[rogue]].concat();
    assert!(unguarded(&all, &forged), "one signature stands for four");
    for proof in [secret(9).prove_possession(), secret(9).sign(&rogue.0), secret(1).prove_possession()] {
        assert_eq!(rogue.verify_possession(&proof), Err(KeyError::Possession));
        let members = [autos(1..=3), vec![with_key(4, rogue, proof)]].concat();
        assert_eq!(table_of(members), Err(TableError::Key { did: did(4), source: KeyError::Possession }));
    }
}

#[test]
fn one_signer_listed_twice_counts_once() {
    let twice = raw_sum(&[secret(1).sign(STATEMENT); 2]);
    assert!(unguarded(&[secret(1).public(); 2], &twice), "a list would count two");
    let c = Cluster::new(autos(1..=3));
    let mut certificate = c.head_by(&[&[1]]);
    certificate.halves[0].aggregate = raw_sum(&[certificate.halves[0].aggregate; 2]);
    let verify = |certificate: &HeadCertificate| certificate.verify(&c.genesis.id(), &c.genesis.in_force(), None);
    assert_eq!(verify(&certificate), Err(CertificateError::Quorum { signers: 1, quorum: 2 }));
    certificate.halves[0].signers = Bitmap::of(3, [0, 1]);
    assert_eq!(verify(&certificate), Err(CertificateError::Signature(KeyError::Unverified)));
}

#[test]
fn the_key_at_infinity_signs_for_nobody() {
    let signature = secret(1).sign(STATEMENT);
    assert!(unguarded(&[secret(1).public(), infinity_key()], &signature), "it adds nothing to the sum");
    assert_eq!(infinity_key().validate(), Err(KeyError::PublicKey));
    let keys = [secret(1).public(), infinity_key()];
    assert_eq!(PublicKey::verify_aggregate(&keys, STATEMENT, &signature), Err(KeyError::PublicKey));
    assert_eq!(infinity_key().verify(STATEMENT, &infinity_signature()), Err(KeyError::PublicKey));
    let members = vec![member(1, Policy::Auto), with_key(2, infinity_key(), infinity_signature())];
    assert_eq!(table_of(members), Err(TableError::Key { did: did(2), source: KeyError::PublicKey }));
}

#[test]
fn opposite_keys_cancel_and_are_not_admitted_together() {
    let (a, b) = (secret(2), opposite(&secret(2)));
    assert_eq!(b.public().verify_possession(&b.prove_possession()), Ok(()), "both proofs are true");
    let keys = [secret(1).public(), a.public(), b.public()];
    assert!(unguarded(&keys, &secret(1).sign(STATEMENT)), "one signature stands for three");
    let collides = |key: &SecretKey| {
        let members = [autos(1..=2), vec![with_key(3, key.public(), key.prove_possession())]].concat();
        table_of(members)
    };
    assert_eq!(collides(&b), Err(TableError::Collision(did(2), did(3))));
    assert_eq!(collides(&a), Err(TableError::Collision(did(2), did(3))));
}

/// σ₁+δ and σ₃−δ: their sum is right, each of them is wrong.
fn conjugates() -> Vec<(PublicKey, Signature)> {
    let delta = secret(77).sign(b"anything");
    let mut shares: Vec<_> = (1..=3).map(|i| (secret(i).public(), secret(i).sign(STATEMENT))).collect();
    shares[0].1 = raw_sum(&[shares[0].1, delta]);
    shares[2].1 = raw_sum(&[shares[2].1, negative(&delta)]);
    shares
}

#[test]
fn conjugate_shares_whose_sum_is_right_are_found_one_by_one() {
    let shares = conjugates();
    let (keys, signatures): (Vec<_>, Vec<_>) = shares.iter().copied().unzip();
    assert!(unguarded(&keys, &raw_sum(&signatures)), "the plain sum hides them");
    assert_eq!(verify_shares(&shares, STATEMENT, &mut coefficients()), [false, true, false]);
}

#[test]
fn a_random_source_that_gives_zeros_or_constants_hides_no_bad_share() {
    let shares = conjugates();
    for constant in [0, 1, 0xff] {
        assert_eq!(verify_shares(&shares, STATEMENT, &mut |b| b.fill(constant)), [false, true, false]);
    }
    let mut wrong = shares;
    wrong[1].1 = secret(2).sign(b"another");
    let mut one_zero = |bytes: &mut [u8]| {
        coefficients()(bytes);
        bytes[16..32].fill(0);
    };
    assert_eq!(verify_shares(&wrong, STATEMENT, &mut one_zero), [false; 3]);
}

#[test]
fn a_signature_outside_the_subgroup_is_refused_wherever_one_is_read() {
    let stray = stray_signature();
    assert_eq!(secret(1).public().verify(STATEMENT, &stray), Err(KeyError::Signature));
    assert_eq!(PublicKey::verify_aggregate(&[secret(1).public()], STATEMENT, &stray), Err(KeyError::Signature));
    assert_eq!(aggregate(&[secret(1).sign(STATEMENT), stray]), Err(KeyError::Signature));
    assert_eq!(secret(1).public().verify_possession(&stray), Err(KeyError::Possession));
    let shares = [(secret(1).public(), stray), (secret(2).public(), secret(2).sign(STATEMENT))];
    assert_eq!(verify_shares(&shares, STATEMENT, &mut coefficients()), [false, true]);
    // Nor does a right signature shifted by such a point pass.
    let shifted = raw_sum(&[secret(1).sign(STATEMENT), stray]);
    assert!(secret(1).public().verify(STATEMENT, &shifted).is_err());
}

#[test]
fn a_key_outside_the_subgroup_is_not_admitted() {
    assert_eq!(stray_key().validate(), Err(KeyError::PublicKey));
    let members = vec![with_key(1, stray_key(), secret(1).prove_possession())];
    assert_eq!(table_of(members), Err(TableError::Key { did: did(1), source: KeyError::PublicKey }));
}

#[test]
fn a_signature_of_the_key_is_no_proof_of_possession_and_a_proof_is_no_signature() {
    let key = secret(1);
    let signed = key.sign(&key.public().0);
    assert_eq!(key.public().verify_possession(&signed), Err(KeyError::Possession));
    assert_eq!(key.public().verify(&key.public().0, &key.prove_possession()), Err(KeyError::Unverified));
}

// --- mistakes that other systems made ---------------------------------------------------------------------------

#[test]
fn a_certificate_without_signatures_is_refused() {
    let c = Cluster::new(autos(1..=3));
    let mut certificate = c.head();
    let verify = |certificate: &HeadCertificate| certificate.verify(&c.genesis.id(), &c.genesis.in_force(), None);
    assert_eq!(verify(&certificate), Ok(()));
    certificate.halves[0].aggregate = infinity_signature();
    assert_eq!(verify(&certificate), Err(CertificateError::Signature(KeyError::Signature)));
    certificate.halves[0].signers = Bitmap::empty(3);
    assert_eq!(verify(&certificate), Err(CertificateError::Quorum { signers: 0, quorum: 2 }));
    certificate.halves.clear();
    assert_eq!(verify(&certificate), Err(CertificateError::Halves { found: 0, expected: 1 }));
}

#[test]
fn a_signer_set_has_one_spelling() {
    let c = Cluster::new(autos(1..=3));
    let certificate = c.head_by(&[&[1, 2]]);
    for bytes in [vec![], vec![0b0000_0011, 0], vec![0b1000_0011], vec![0b0000_1011]] {
        let mut padded = certificate.clone();
        padded.halves[0].signers = Bitmap::from_bytes(bytes);
        let verdict = padded.verify(&c.genesis.id(), &c.genesis.in_force(), None);
        assert_eq!(verdict, Err(CertificateError::Signers { voters: 3 }));
    }
}

/// There is no fast path that skips signatures: each one in a receipt, replaced by a true signature of the same members
/// on something else, is noticed.
#[test]
fn no_signature_of_a_receipt_is_skipped() {
    let mut c = Cluster::new(vec![member(1, Policy::Auto), member(2, Policy::Auto), member(3, Policy::Manual)]);
    let index = c.ballot(b"{}", &Votes { required: 2, grants: &[1, 2], denials: &[3] });
    c.open_change(autos(1..=4));
    c.close_change();
    let good = c.receipt(index);
    good.verify(&c.genesis).unwrap();
    let elsewhere = aggregate(&[secret(1).sign(b"x"), secret(2).sign(b"x"), secret(3).sign(b"x")]).unwrap();
    let mut bad = vec![good.clone(); 3];
    bad[0].certificate.halves[0].aggregate = elsewhere;
    bad[1].chain.steps[0].joint.halves[0].aggregate = elsewhere;
    bad[2].chain.steps[0].joint.halves[1].aggregate = elsewhere;
    for receipt in bad {
        let error = receipt.verify(&c.genesis).unwrap_err();
        assert!(error.to_string().contains("signature does not verify"), "{error}");
    }
    // A tally stands inside a hashed header, so a false one is tried in a log of its own.
    for granted in [true, false] {
        let mut c = Cluster::new(vec![member(1, Policy::Auto), member(2, Policy::Auto), member(3, Policy::Manual)]);
        let (mut header, body) = c.proposal(b"{}", 2);
        let mut tally = c.tally(&header, &Votes { required: 2, grants: &[1, 2], denials: &[3] });
        if granted { &mut tally.grants } else { &mut tally.denials }.aggregate = Some(elsewhere);
        header.tally = Some(tally);
        let index = c.push(header, body);
        let error = c.receipt(index).verify(&c.genesis).unwrap_err();
        assert!(matches!(error, ReceiptError::Outcome(OutcomeError::Aggregate { .. })), "{error}");
    }
}

#[test]
fn votes_count_for_one_request_payload_quorum_and_side_only() {
    let mut c = Cluster::new(vec![member(1, Policy::Auto), member(2, Policy::Auto), member(3, Policy::Manual)]);
    let votes = Votes { required: 2, grants: &[1, 2], denials: &[3] };
    let (other, _) = c.proposal(b"{}", 2);
    let (header, body) = c.proposal(b"{}", 2);
    let right = c.tally(&header, &votes);
    let replayed = c.tally(&other, &votes);
    let raised = c.tally(&Header { required_quorum: 3, ..header.clone() }, &votes);
    let swapped = Tally { grants: right.denials.clone(), denials: right.grants.clone() };
    let both = c.tally(&header, &Votes { required: 2, grants: &[1, 2], denials: &[2] });
    for (tally, holds) in [(right, true), (replayed, false), (raised, false), (swapped, false), (both, false)] {
        let mut log = Cluster::new(c.genesis.table.members().to_vec());
        let index = log.push(Header { tally: Some(tally), ..header.clone() }, body.clone());
        assert_eq!(log.receipt(index).verify(&log.genesis).is_ok(), holds);
    }
}

/// The genesis is pinned by the verifier; a receipt brings none along.
#[test]
fn a_receipt_of_another_cluster_is_refused_even_with_the_same_members() {
    let mut c = Cluster::new(autos(1..=3));
    let index = c.propose(b"{}");
    let renamed = Genesis::new("another", QuorumRule::Majority, c.genesis.table.clone()).unwrap();
    let error = c.receipt(index).verify(&renamed).unwrap_err();
    assert!(matches!(error, ReceiptError::Certificate { .. }), "{error}");
    let mut receipt = c.receipt(index);
    receipt.certificate.halves[0].epoch_hash = renamed.id();
    let error = receipt.verify(&renamed).unwrap_err();
    assert!(error.to_string().contains("does not verify"), "{error}");
}

#[test]
fn a_chain_is_proved_at_every_step_not_at_its_ends() {
    let mut c = Cluster::new(autos(1..=3));
    for first in 2..=4 {
        c.open_change(autos(first..first + 3));
        c.close_change();
    }
    let mut receipt = c.receipt(LogIndex(1));
    receipt.verify(&c.genesis).unwrap();
    receipt.chain.steps[1].joint.halves[1].signers = Bitmap::of(3, [1, 2]);
    let error = receipt.verify(&c.genesis).unwrap_err();
    assert!(error.to_string().contains("change to epoch 2"), "{error}");
}

#[test]
fn an_odd_last_leaf_is_not_doubled() {
    let leaf = |i: u8| merkle::leaf_hash(&[i]);
    let three = Leaves(vec![leaf(1), leaf(2), leaf(3)]);
    let four = Leaves(vec![leaf(1), leaf(2), leaf(3), leaf(3)]);
    assert_ne!(merkle::root(&three, 3), merkle::root(&four, 4));
}

#[test]
fn an_inner_node_does_not_pass_for_a_leaf() {
    let leaf = |i: u8| merkle::leaf_hash(&[i]);
    let tree = Leaves((0..4).map(leaf).collect());
    let root = merkle::root(&tree, 4).unwrap();
    let (left, right) = (merkle::node_hash(&leaf(0), &leaf(1)), merkle::node_hash(&leaf(2), &leaf(3)));
    // The two halves offered as the data of one leaf, and one half as one of two leaves.
    assert_ne!(merkle::leaf_hash(&[left.0, right.0].concat()), root);
    assert_eq!(merkle::root_from_path(left, 0, 4, &[right]), None);
}

#[test]
fn keys_of_an_old_table_sign_nothing_in_a_later_epoch() {
    let mut c = Cluster::new(autos(1..=3));
    c.open_change(autos(4..=6));
    c.close_change();
    let index = c.propose(b"{}");
    let mut receipt = c.receipt(index);
    let head = receipt.certificate.head;
    let old = c.genesis.in_force().signed_for(&c.genesis.id());
    let new = c.in_force().0.signed_for(&c.genesis.id());
    for under in [old, new] {
        let bytes = head.signed_bytes(&under);
        let sum = aggregate(&[secret(1).sign(&bytes), secret(2).sign(&bytes)]).unwrap();
        let signers = Bitmap::of(3, [0, 1]);
        let (epoch, epoch_hash) = (under.epoch, under.epoch_hash);
        receipt.certificate.halves = vec![Half { epoch, epoch_hash, signers, aggregate: sum }];
        assert!(receipt.verify(&c.genesis).is_err());
    }
}

#[test]
fn a_statement_of_one_kind_does_not_pass_for_another() {
    let c = Cluster::new(autos(1..=3));
    let under = c.genesis.in_force().signed_for(&c.genesis.id());
    let head = Head { term: c.term, size: 1, root: Digest([1; 32]) }.signed_bytes(&under);
    let claim =
        ElectionClaim { term: c.term, candidate: did(1), last_term: c.term, last_size: 1, last_root: Digest([1; 32]) };
    let vote = VoteStatement {
        request_digest: Digest([1; 32]),
        payload_hash: Digest([1; 32]),
        required_quorum: 2,
        granted: true,
    };
    let kinds = [head, claim.signed_bytes(&under), vote.signed_bytes(&under)];
    for (i, a) in kinds.iter().enumerate() {
        for (j, b) in kinds.iter().enumerate() {
            assert_eq!(secret(1).public().verify(b, &secret(1).sign(a)).is_ok(), i == j);
        }
    }
    assert_eq!(kinds.map(|k| k.len()), [136, 176, 155], "fixed widths");
}

#[test]
fn a_signature_binds_the_epoch_s_hash_and_not_its_number_alone() {
    let c = Cluster::new(autos(1..=3));
    let mut certificate = c.head();
    certificate.halves[0].epoch_hash = Digest([1; 32]);
    let mut table = c.genesis.in_force();
    table.epoch_hash = Digest([1; 32]);
    let verdict = certificate.verify(&c.genesis.id(), &table, None);
    assert_eq!(verdict, Err(CertificateError::Signature(KeyError::Unverified)));
    let mut certificate = c.head();
    certificate.halves[0].epoch = Epoch(1);
    let mut table = c.genesis.in_force();
    table.epoch = Epoch(1);
    let verdict = certificate.verify(&c.genesis.id(), &table, None);
    assert_eq!(verdict, Err(CertificateError::Signature(KeyError::Unverified)));
}

#[test]
fn the_same_signers_on_the_same_head_give_the_same_bytes_in_any_order() {
    let c = Cluster::new(autos(1..=5));
    let a = c.head_by(&[&[1, 3, 5]]);
    let b = c.head_by(&[&[5, 1, 3]]);
    assert_eq!(a.encode(), b.encode());
    assert_ne!(a.encode(), c.head_by(&[&[1, 3, 4]]).encode());
}
