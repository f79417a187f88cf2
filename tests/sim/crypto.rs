//! A signer that exists in the simulator only: a "signature" is a keyed hash, an aggregate the XOR of them. It keeps
//! what the core relies on (deterministic, bound to the signer and to every byte signed, aggregates verifiable only
//! against exactly their signer set) at a thousandth of the price of a pairing.

use crate::members::{public, secret};
use concordat::certificate::merkle::root_from_path;
use concordat::certificate::{
    Bitmap, ElectionCertificate, Entry, EpochChain, Half, HeadCertificate, Kind, MemberTable, PublicKey, Signature,
    SignedFor, TableInForce, Tally, TallySide,
};
use concordat::core::{Crypto, Input, Tables};
use concordat::ids::{Digest, NodeId};
use concordat::node::Signer;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

pub(crate) enum Pool {
    Real(Box<Signer>),
    Hashes(Hashes),
}

impl Pool {
    /// With a node's keys of these generations.
    pub(crate) fn new(index: usize, keys: &[u8], real: bool) -> Self {
        if real {
            Self::Real(Box::new(Signer::new(keys.iter().map(|g| secret(index, *g)).collect())))
        } else {
            Self::Hashes(Hashes { keys: keys.iter().map(|g| public(index, *g)).collect() })
        }
    }

    pub(crate) fn execute(&self, job: Crypto) -> Option<Input> {
        match self {
            Self::Real(signer) => signer.execute(job),
            Self::Hashes(hashes) => hashes.execute(job),
        }
    }
}

pub(crate) struct Hashes {
    keys: Vec<PublicKey>,
}

fn sign(key: &PublicKey, bytes: &[u8]) -> Signature {
    let hash = Sha256::new().chain_update(b"simulated key of").chain_update(key.0).chain_update(bytes).finalize();
    let mut signature = [0; 96];
    signature[..32].copy_from_slice(&hash);
    Signature(signature)
}

fn xor(signatures: impl IntoIterator<Item = Signature>) -> Signature {
    let mut sum = [0; 96];
    for s in signatures {
        sum.iter_mut().zip(s.0).for_each(|(a, b)| *a ^= b);
    }
    Signature(sum)
}

impl Hashes {
    fn execute(&self, job: Crypto) -> Option<Input> {
        Some(match job {
            Crypto::SignElection { claim, under } => {
                Input::VoteSigned { claim, signatures: self.sign_all(&under, |u| claim.signed_bytes(u)) }
            }
            Crypto::VerifyElection { from, claim, signatures, tables } => {
                let good =
                    signatures.iter().all(|(u, s)| verifies(&from, tables.signing(u), &claim.signed_bytes(u), s));
                (good && !signatures.is_empty()).then_some(Input::VoteVerified { from, claim, signatures })?
            }
            Crypto::CertifyElection { claim, signatures, tables } => Input::ElectionCertified {
                certificate: Arc::new(ElectionCertificate { claim, halves: halves(&signatures, &tables) }),
            },
            Crypto::VerifyElectionCertificate { certificate, tables } => {
                let valid = valid(&certificate.halves, &tables, |u| certificate.claim.signed_bytes(u));
                Input::LeaderProved { certificate, valid }
            }
            Crypto::VerifyEpochs { base, chain, in_flight, genesis_id } => {
                verify_epochs(genesis_id, base, &chain, in_flight.as_deref())?
            }
            Crypto::SignHead { head, under } => {
                Input::HeadSigned { head, signatures: self.sign_all(&under, |u| head.signed_bytes(u)) }
            }
            Crypto::VerifyShare { from, head, signatures, tables } => {
                let good = signatures.iter().all(|(u, s)| verifies(&from, tables.signing(u), &head.signed_bytes(u), s));
                (good && !signatures.is_empty()).then_some(Input::ShareVerified { from, head, signatures })?
            }
            Crypto::CertifyHead { head, signatures, tables } => Input::HeadCertified {
                certificate: Arc::new(HeadCertificate { head, halves: halves(&signatures, &tables) }),
            },
            Crypto::VerifyCertificate { certificate, tables } => {
                let valid = valid(&certificate.halves, &tables, |u| certificate.head.signed_bytes(u));
                Input::CertificateVerified { certificate, valid }
            }
            Crypto::VerifySnapshot { offer, tables, .. } => {
                let (certificate, head) = (&offer.certificate, offer.certificate.head);
                let valid = valid(&certificate.halves, &tables, |u| head.signed_bytes(u));
                Input::SnapshotVerified { offer, valid }
            }
            Crypto::SignVote { id, statement, under, key } => {
                let held = self.keys.contains(&key);
                let signature = held.then(|| sign(&key, &statement.signed_bytes(&under)))?;
                Input::BallotSigned { id, statement, under, signature }
            }
            Crypto::VerifyVote { from, id, statement, under, signature, table } => {
                let good = verifies(&from, Some(&table), &statement.signed_bytes(&under), &signature);
                good.then_some(Input::BallotVerified { from, id, statement, under, signature })?
            }
            Crypto::Tally { id, grants, denials, table } => {
                let tally = Tally { grants: side(&grants, &table), denials: side(&denials, &table) };
                Input::Tallied { id, tally, epoch: table.epoch }
            }
        })
    }

    fn sign_all(
        &self,
        under: &[(SignedFor, PublicKey)],
        bytes: impl Fn(&SignedFor) -> Vec<u8>,
    ) -> Vec<(SignedFor, Signature)> {
        under.iter().filter(|(_, k)| self.keys.contains(k)).map(|(u, k)| (*u, sign(k, &bytes(u)))).collect()
    }
}

fn verifies(from: &NodeId, table: Option<&TableInForce>, bytes: &[u8], signature: &Signature) -> bool {
    let row = table.filter(|t| t.table.voter_position(from).is_some()).and_then(|t| t.table.get(from));
    row.is_some_and(|m| *signature == sign(&m.bls_key, bytes))
}

fn side(votes: &[(NodeId, Signature)], table: &TableInForce) -> TallySide {
    let positions: Vec<usize> = votes.iter().filter_map(|v| table.table.voter_position(&v.0)).collect();
    let members = Bitmap::of(table.table.voters().count(), positions);
    TallySide { members, aggregate: (!votes.is_empty()).then(|| xor(votes.iter().map(|v| v.1))) }
}

fn halves(signatures: &[(SignedFor, Vec<(NodeId, Signature)>)], tables: &Tables) -> Vec<Half> {
    let half = |(under, shares): &(SignedFor, Vec<(NodeId, Signature)>)| {
        let side = side(shares, tables.signing(under).expect("of these tables"));
        let aggregate = side.aggregate.expect("a quorum signed");
        Half { epoch: under.epoch, epoch_hash: under.epoch_hash, signers: side.members, aggregate }
    };
    signatures.iter().map(half).collect()
}

pub(crate) fn valid(halves: &[Half], tables: &Tables, bytes: impl Fn(&SignedFor) -> Vec<u8>) -> bool {
    let under = tables.under();
    let holds = |(half, (under, table)): (&Half, (&SignedFor, &TableInForce))| {
        let voters = table.table.voters().enumerate();
        let signers: Vec<PublicKey> =
            voters.filter(|(i, _)| half.signers.contains(*i)).map(|(_, m)| m.bls_key).collect();
        (half.epoch, half.epoch_hash) == (under.epoch, under.epoch_hash)
            && signers.len() >= table.quorum()
            && half.aggregate == xor(signers.iter().map(|key| sign(key, &bytes(under))))
    };
    halves.len() == under.len() && halves.iter().zip(under.iter().zip(tables.all())).all(holds)
}

/// What the library's chain verification does, but for the pairings: the simulator's keys make none.
pub(crate) fn verify_epochs(
    genesis_id: Digest,
    base: Arc<TableInForce>,
    chain: &EpochChain,
    in_flight: Option<&Entry>,
) -> Option<Input> {
    let table_of = |entry: &Entry, before: &TableInForce| {
        let fits = entry.header.kind == Kind::Epoch && entry.header.epoch == before.epoch;
        let table = MemberTable::decode_granted(&entry.body.payload).ok().filter(|_| fits)?;
        let (epoch, epoch_hash) = (before.epoch.next(), entry.header.leaf_hash());
        Some(Arc::new(TableInForce { epoch, epoch_hash, table, rule: before.rule }))
    };
    let mut tables = vec![base];
    for step in &chain.steps {
        let current = tables.last().expect("never empty").clone();
        let next = table_of(&step.entry, &current)?;
        let head = step.joint.head;
        let index = step.entry.header.index.0;
        let root = root_from_path(step.entry.header.leaf_hash(), index.checked_sub(1)?, head.size, &step.path);
        let joint = Tables::new(genesis_id, current, Some(next.clone()));
        if root != Some(head.root) || !valid(&step.joint.halves, &joint, |u| head.signed_bytes(u)) {
            return None;
        }
        tables.push(next);
    }
    let last = tables.last().expect("never empty").clone();
    let in_flight = match in_flight {
        None => None,
        Some(entry) => Some(table_of(entry, &last)?),
    };
    Some(Input::EpochsVerified { tables: tables.split_off(1), in_flight })
}
