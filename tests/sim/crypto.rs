//! A signer that exists in the simulator only: a "signature" is a keyed hash, an aggregate the XOR of them. It keeps
//! what the core relies on (deterministic, bound to the signer and to every byte signed, aggregates verifiable only
//! against exactly their signer set) at a thousandth of the price of a pairing.

use crate::members::{id_of, index_of, secret_of};
use concordat::certificate::{
    Bitmap, ElectionCertificate, Genesis, Half, HeadCertificate, Signature, SignedFor, TableInForce, Tally, TallySide,
};
use concordat::core::{Crypto, Input};
use concordat::ids::{Digest, NodeId};
use concordat::node::Signer;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

pub(crate) enum Executor {
    Real(Box<Signer>),
    Hashes(Hashes),
}

impl Executor {
    pub(crate) fn new(index: usize, genesis: &Genesis, real: bool) -> Self {
        if real {
            let tables = vec![genesis.in_force()];
            Self::Real(Box::new(Signer::new(id_of(index), genesis.id(), secret_of(index), tables)))
        } else {
            Self::Hashes(Hashes { id: id_of(index), genesis_id: genesis.id(), table: genesis.in_force() })
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
    id: NodeId,
    genesis_id: Digest,
    table: TableInForce,
}

fn sign(id: &NodeId, bytes: &[u8]) -> Signature {
    let hash = Sha256::new().chain_update(b"simulated key of").chain_update(id.0).chain_update(bytes).finalize();
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
            Crypto::VerifyElection { from, claim, signatures } => {
                let good = signatures.iter().all(|(u, s)| *s == sign(&from, &claim.signed_bytes(u)));
                (good && !signatures.is_empty()).then_some(Input::VoteVerified { from, claim, signatures })?
            }
            Crypto::CertifyElection { claim, signatures } => Input::ElectionCertified {
                certificate: Arc::new(ElectionCertificate { claim, halves: self.halves(&signatures) }),
            },
            Crypto::VerifyElectionCertificate { certificate } => {
                let valid = self.valid(&certificate.halves, |u| certificate.claim.signed_bytes(u));
                Input::LeaderProved { certificate, valid }
            }
            Crypto::SignHead { head, under } => {
                Input::HeadSigned { head, signatures: self.sign_all(&under, |u| head.signed_bytes(u)) }
            }
            Crypto::VerifyShare { from, head, signatures } => {
                let good = signatures.iter().all(|(u, s)| *s == sign(&from, &head.signed_bytes(u)));
                (good && !signatures.is_empty()).then_some(Input::ShareVerified { from, head, signatures })?
            }
            Crypto::CertifyHead { head, signatures } => Input::HeadCertified {
                certificate: Arc::new(HeadCertificate { head, halves: self.halves(&signatures) }),
            },
            Crypto::VerifyCertificate { certificate } => {
                let valid = self.valid(&certificate.halves, |u| certificate.head.signed_bytes(u));
                Input::CertificateVerified { certificate, valid }
            }
            Crypto::SignVote { id, statement, under } => {
                let signature = sign(&self.id, &statement.signed_bytes(&under));
                Input::BallotSigned { id, statement, under, signature }
            }
            Crypto::VerifyVote { from, id, statement, under, signature } => {
                let good = signature == sign(&from, &statement.signed_bytes(&under));
                good.then_some(Input::BallotVerified { from, id, statement, signature })?
            }
            Crypto::Tally { id, grants, denials } => {
                Input::Tallied { id, tally: Tally { grants: self.side(&grants), denials: self.side(&denials) } }
            }
        })
    }

    fn sign_all(&self, under: &[SignedFor], bytes: impl Fn(&SignedFor) -> Vec<u8>) -> Vec<(SignedFor, Signature)> {
        under.iter().map(|u| (*u, sign(&self.id, &bytes(u)))).collect()
    }

    fn side(&self, votes: &[(NodeId, Signature)]) -> TallySide {
        let positions: Vec<usize> = votes.iter().filter_map(|v| self.table.table.voter_position(&v.0)).collect();
        let members = Bitmap::of(self.table.table.voters().count(), positions);
        TallySide { members, aggregate: (!votes.is_empty()).then(|| xor(votes.iter().map(|v| v.1))) }
    }

    fn halves(&self, signatures: &[(SignedFor, Vec<(NodeId, Signature)>)]) -> Vec<Half> {
        let half = |(under, shares): &(SignedFor, Vec<(NodeId, Signature)>)| {
            let side = self.side(shares);
            let aggregate = side.aggregate.expect("a quorum signed");
            Half { epoch: under.epoch, epoch_hash: under.epoch_hash, signers: side.members, aggregate }
        };
        signatures.iter().map(half).collect()
    }

    fn valid(&self, halves: &[Half], bytes: impl Fn(&SignedFor) -> Vec<u8>) -> bool {
        let under = self.table.signed_for(&self.genesis_id);
        let [half] = halves else { return false };
        let signers: Vec<NodeId> = self
            .table
            .table
            .voters()
            .enumerate()
            .filter(|(i, _)| half.signers.contains(*i))
            .map(|(_, m)| m.did)
            .collect();
        debug_assert!(signers.iter().all(|s| index_of(s) < 7));
        (half.epoch, half.epoch_hash) == (under.epoch, under.epoch_hash)
            && signers.len() >= self.table.quorum()
            && half.aggregate == xor(signers.iter().map(|id| sign(id, &bytes(&under))))
    }
}
