//! The pool of signers and verifiers: a pairing costs a millisecond and must never delay a heartbeat.

use super::mailbox::Mailbox;
use crate::certificate::{
    self, Bitmap, CertificateError, ElectionCertificate, Half, HeadCertificate, KeyError, PublicKey, SecretKey,
    Signature, SignedFor, TableInForce, Tally, TallySide,
};
use crate::core::{Crypto, Input};
use crate::ids::{Digest, NodeId};
use crate::limits::{MAX_BALLOTS, MAX_MEMBERS};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Jobs that may wait. The core has at most one job of a kind under way for each peer, and one for each voter of each
/// ballot, so this is never reached unless that bound is broken.
const MAX_WAITING: usize = MAX_BALLOTS * (MAX_MEMBERS + 2) + 16 * MAX_MEMBERS;

/// Does what [`Crypto`] asks, with one member's key and the tables in force.
pub struct Signer {
    id: NodeId,
    genesis_id: Digest,
    key: SecretKey,
    tables: Vec<TableInForce>,
}

impl Signer {
    /// A signer for one member.
    #[must_use]
    pub fn new(id: NodeId, genesis_id: Digest, key: SecretKey, tables: Vec<TableInForce>) -> Self {
        Self { id, genesis_id, key, tables }
    }

    /// Executes one job. `None`: what was to be verified does not verify, and there is nothing to tell the core.
    #[must_use]
    pub fn execute(&self, job: Crypto) -> Option<Input> {
        Some(match job {
            Crypto::SignElection { claim, under } => {
                Input::VoteSigned { claim, signatures: self.sign_all(&under, |u| claim.signed_bytes(u)) }
            }
            Crypto::VerifyElection { from, claim, signatures } => {
                self.verify_all(&from, &signatures, |u| claim.signed_bytes(u))?;
                Input::VoteVerified { from, claim, signatures }
            }
            Crypto::CertifyElection { claim, signatures } => {
                let halves = self.halves(&signatures)?;
                Input::ElectionCertified { certificate: Arc::new(ElectionCertificate { claim, halves }) }
            }
            Crypto::VerifyElectionCertificate { certificate } => {
                let valid = self
                    .check("election certificate", |current, next| certificate.verify(&self.genesis_id, current, next));
                Input::LeaderProved { certificate, valid }
            }
            Crypto::SignHead { head, under } => {
                Input::HeadSigned { head, signatures: self.sign_all(&under, |u| head.signed_bytes(u)) }
            }
            Crypto::VerifyShare { from, head, signatures } => {
                self.verify_all(&from, &signatures, |u| head.signed_bytes(u))?;
                Input::ShareVerified { from, head, signatures }
            }
            Crypto::CertifyHead { head, signatures } => {
                let halves = self.halves(&signatures)?;
                Input::HeadCertified { certificate: Arc::new(HeadCertificate { head, halves }) }
            }
            Crypto::VerifyCertificate { certificate } => {
                let valid =
                    self.check("head certificate", |current, next| certificate.verify(&self.genesis_id, current, next));
                Input::CertificateVerified { certificate, valid }
            }
            Crypto::SignVote { id, statement, under } => {
                let signature = self.key.sign(&statement.signed_bytes(&under));
                Input::BallotSigned { id, statement, under, signature }
            }
            Crypto::VerifyVote { from, id, statement, under, signature } => {
                self.verify_all(&from, &[(under, signature)], |u| statement.signed_bytes(u))?;
                Input::BallotVerified { from, id, statement, signature }
            }
            Crypto::Tally { id, grants, denials } => {
                Input::Tallied { id, tally: Tally { grants: self.side(&grants)?, denials: self.side(&denials)? } }
            }
        })
    }

    fn sign_all(&self, under: &[SignedFor], bytes: impl Fn(&SignedFor) -> Vec<u8>) -> Vec<(SignedFor, Signature)> {
        under.iter().filter(|u| self.key_of(&self.id, u).is_some()).map(|u| (*u, self.key.sign(&bytes(u)))).collect()
    }

    fn table(&self, under: &SignedFor) -> Option<&TableInForce> {
        self.tables.iter().find(|t| t.epoch == under.epoch && t.epoch_hash == under.epoch_hash)
    }

    fn key_of(&self, id: &NodeId, under: &SignedFor) -> Option<PublicKey> {
        let table = self.table(under).filter(|_| under.genesis_id == self.genesis_id)?;
        table.table.voter_position(id)?;
        table.table.get(id).map(|m| m.bls_key)
    }

    fn verify_all(
        &self,
        from: &NodeId,
        signatures: &[(SignedFor, Signature)],
        bytes: impl Fn(&SignedFor) -> Vec<u8>,
    ) -> Option<()> {
        for (under, signature) in signatures {
            let verdict = match self.key_of(from, under) {
                None => Err(KeyError::Unverified),
                Some(key) => key.verify(&bytes(under), signature),
            };
            if let Err(why) = verdict {
                tracing::warn!(%from, %why, "a member's signature does not verify; it is not counted");
                return None;
            }
        }
        Some(())
    }

    fn check(
        &self,
        what: &str,
        verify: impl Fn(&TableInForce, Option<&TableInForce>) -> Result<(), CertificateError>,
    ) -> bool {
        let Some(current) = self.tables.first() else { return false };
        match verify(current, self.tables.get(1)) {
            Ok(()) => true,
            Err(why) => {
                tracing::warn!(%why, "a {what} does not verify; it is ignored");
                false
            }
        }
    }

    fn halves(&self, signatures: &[(SignedFor, Vec<(NodeId, Signature)>)]) -> Option<Vec<Half>> {
        signatures
            .iter()
            .map(|(under, shares)| {
                let side = self.side_under(under, shares)?;
                Some(Half {
                    epoch: under.epoch,
                    epoch_hash: under.epoch_hash,
                    signers: side.members,
                    aggregate: side.aggregate?,
                })
            })
            .collect()
    }

    fn side(&self, votes: &[(NodeId, Signature)]) -> Option<TallySide> {
        let current = self.tables.first()?;
        let under = SignedFor { genesis_id: self.genesis_id, epoch: current.epoch, epoch_hash: current.epoch_hash };
        self.side_under(&under, votes)
    }

    fn side_under(&self, under: &SignedFor, votes: &[(NodeId, Signature)]) -> Option<TallySide> {
        let table = &self.table(under)?.table;
        let positions: Vec<usize> = votes.iter().filter_map(|v| table.voter_position(&v.0)).collect();
        let members = Bitmap::of(table.voters().count(), positions);
        let signatures: Vec<Signature> = votes.iter().map(|v| v.1).collect();
        let aggregate = match signatures.as_slice() {
            [] => None,
            all => Some(certificate::aggregate(all).ok()?),
        };
        Some(TallySide { members, aggregate })
    }
}

/// Waiting jobs: elections and heads before ballots, so that no flood of ballots delays a certificate.
#[derive(Default)]
struct Jobs {
    urgent: VecDeque<Crypto>,
    ballots: VecDeque<Crypto>,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    more: Condvar,
}

/// Threads that share one queue.
pub(super) struct Pool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn start(threads: usize, signer: Signer, mailbox: &Arc<Mailbox>) -> std::io::Result<Self> {
        let (queue, signer) = (Arc::new(Queue::default()), Arc::new(signer));
        let threads = (0..threads)
            .map(|n| {
                let (queue, signer, mailbox) = (queue.clone(), signer.clone(), mailbox.clone());
                std::thread::Builder::new().name(format!("crypto-{n}")).spawn(move || {
                    mailbox.guard("a signing thread", || {
                        while let Some(job) = queue.next() {
                            if let Some(input) = signer.execute(job) {
                                mailbox.put(input);
                            }
                        }
                    });
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { queue, threads })
    }

    pub(super) fn submit(&self, job: Crypto) {
        let mut jobs = self.queue.lock();
        if jobs.urgent.len() + jobs.ballots.len() >= MAX_WAITING {
            tracing::error!("the signing queue is full; a job is dropped");
            return;
        }
        match job {
            Crypto::SignVote { .. } | Crypto::VerifyVote { .. } | Crypto::Tally { .. } => jobs.ballots.push_back(job),
            _ => jobs.urgent.push_back(job),
        }
        drop(jobs);
        self.queue.more.notify_one();
    }

    /// Ends the threads and waits for them.
    pub(super) fn close(self) {
        self.queue.lock().closed = true;
        self.queue.more.notify_all();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a signing thread panicked");
            }
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().expect("no holder of this lock panics")
    }

    fn next(&self) -> Option<Crypto> {
        let mut jobs = self.lock();
        loop {
            if jobs.closed {
                return None;
            }
            if let Some(job) = jobs.urgent.pop_front() {
                return Some(job);
            }
            if let Some(job) = jobs.ballots.pop_front() {
                return Some(job);
            }
            jobs = self.more.wait(jobs).expect("no holder of this lock panics");
        }
    }
}
