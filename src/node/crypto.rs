//! The pool of signers and verifiers: a pairing costs a millisecond and must never delay a heartbeat.

use super::mailbox::Mailbox;
use crate::certificate::{
    self, Bitmap, CertificateError, ElectionCertificate, Entry, EpochChain, Half, HeadCertificate, KeyError, Kind,
    MemberTable, PublicKey, SecretKey, Signature, SignedFor, TableInForce, Tally, TallySide,
};
use crate::core::{Crypto, Input, Tables};
use crate::ids::{Digest, NodeId};
use crate::limits::{MAX_BALLOTS, MAX_MEMBERS};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

/// Jobs that may wait. The core has at most one job of a kind under way for each peer, and one for each voter of each
/// ballot, so this is never reached unless that bound is broken.
const MAX_WAITING: usize = MAX_BALLOTS * (MAX_MEMBERS + 2) + 16 * MAX_MEMBERS;

/// Does what [`Crypto`] asks, with one member's keys. What to verify against comes with each job.
pub struct Signer {
    /// The first, and the one that is to replace it.
    keys: RwLock<Vec<Arc<SecretKey>>>,
}

impl Signer {
    /// A signer with the keys of one store.
    #[must_use]
    pub fn new(keys: Vec<SecretKey>) -> Self {
        Self { keys: RwLock::new(keys.into_iter().map(Arc::new).collect()) }
    }

    fn keys(&self) -> RwLockReadGuard<'_, Vec<Arc<SecretKey>>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces all keys.
    pub fn set_keys(&self, keys: Vec<Arc<SecretKey>>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Keeps a key beside the first one; an earlier second one is forgotten.
    pub fn set_second_key(&self, key: Arc<SecretKey>) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.truncate(1);
        keys.push(key);
    }

    /// The key beside the first one.
    #[must_use]
    pub fn second_key(&self) -> Option<Arc<SecretKey>> {
        self.keys().get(1).cloned()
    }

    /// The public keys.
    #[must_use]
    pub fn public_keys(&self) -> Vec<PublicKey> {
        self.keys().iter().map(|k| k.public()).collect()
    }

    /// Executes one job. `None`: what was to be verified does not verify, and there is nothing to tell the core.
    #[must_use]
    pub fn execute(&self, job: Crypto) -> Option<Input> {
        Some(match job {
            Crypto::SignElection { claim, under } => {
                Input::VoteSigned { claim, signatures: self.sign_all(&under, |u| claim.signed_bytes(u)) }
            }
            Crypto::VerifyElection { from, claim, signatures, tables } => {
                verify_all(&from, &signatures, &tables, |u| claim.signed_bytes(u))?;
                Input::VoteVerified { from, claim, signatures }
            }
            Crypto::CertifyElection { claim, signatures, tables } => {
                let halves = halves(&signatures, &tables)?;
                Input::ElectionCertified { certificate: Arc::new(ElectionCertificate { claim, halves }) }
            }
            Crypto::VerifyElectionCertificate { certificate, tables } => {
                let verdict = certificate.verify(tables.genesis_id(), tables.current(), tables.next());
                Input::LeaderProved { valid: holds("election certificate", verdict), certificate }
            }
            Crypto::VerifyEpochs { genesis_id, base, chain, in_flight } => {
                verify_epochs(&genesis_id, &base, &chain, in_flight.as_deref())?
            }
            Crypto::SignHead { head, under } => {
                Input::HeadSigned { head, signatures: self.sign_all(&under, |u| head.signed_bytes(u)) }
            }
            Crypto::VerifyShare { from, head, signatures, tables } => {
                verify_all(&from, &signatures, &tables, |u| head.signed_bytes(u))?;
                Input::ShareVerified { from, head, signatures }
            }
            Crypto::CertifyHead { head, signatures, tables } => {
                let halves = halves(&signatures, &tables)?;
                Input::HeadCertified { certificate: Arc::new(HeadCertificate { head, halves }) }
            }
            Crypto::VerifyCertificate { certificate, tables } => {
                let verdict = certificate.verify(tables.genesis_id(), tables.current(), tables.next());
                Input::CertificateVerified { valid: holds("head certificate", verdict), certificate }
            }
            Crypto::VerifySnapshot { offer, tables, balloted } => {
                let verdict = offer.certificate.verify(tables.genesis_id(), tables.current(), tables.next());
                let votes = offer.entry.header.verify_outcome(tables.genesis_id(), &balloted);
                let valid = holds("head certificate of a snapshot", verdict) && votes.is_ok();
                Input::SnapshotVerified { offer, valid }
            }
            Crypto::SignVote { id, statement, under, key } => {
                let signature = self.sign(&key, &statement.signed_bytes(&under))?;
                Input::BallotSigned { id, statement, under, signature }
            }
            Crypto::VerifyVote { from, id, statement, under, signature, table } => {
                verify(&from, &table, &statement.signed_bytes(&under), &signature)?;
                Input::BallotVerified { from, id, statement, under, signature }
            }
            Crypto::Tally { id, grants, denials, table } => {
                let tally = Tally { grants: side(&grants, &table)?, denials: side(&denials, &table)? };
                Input::Tallied { id, tally, epoch: table.epoch }
            }
        })
    }

    fn sign(&self, key: &PublicKey, bytes: &[u8]) -> Option<Signature> {
        let keys = self.keys();
        let key = keys.iter().find(|k| k.public() == *key).cloned()?;
        drop(keys);
        Some(key.sign(bytes))
    }

    fn sign_all(
        &self,
        under: &[(SignedFor, PublicKey)],
        bytes: impl Fn(&SignedFor) -> Vec<u8>,
    ) -> Vec<(SignedFor, Signature)> {
        under.iter().filter_map(|(u, key)| Some((*u, self.sign(key, &bytes(u))?))).collect()
    }
}

fn holds(what: &str, verdict: Result<(), CertificateError>) -> bool {
    if let Err(why) = &verdict {
        tracing::warn!(%why, "a {what} does not verify; it is ignored");
    }
    verdict.is_ok()
}

fn verify(from: &NodeId, table: &TableInForce, bytes: &[u8], signature: &Signature) -> Option<()> {
    let key = table.table.get(from).filter(|_| table.table.voter_position(from).is_some()).map(|m| m.bls_key);
    let verdict = key.map_or(Err(KeyError::Unverified), |key| key.verify(bytes, signature));
    if let Err(why) = &verdict {
        tracing::warn!(%from, %why, "a member's signature does not verify; it is not counted");
    }
    verdict.ok()
}

fn verify_all(
    from: &NodeId,
    signatures: &[(SignedFor, Signature)],
    tables: &Tables,
    bytes: impl Fn(&SignedFor) -> Vec<u8>,
) -> Option<()> {
    signatures.iter().try_for_each(|(under, s)| verify(from, tables.signing(under)?, &bytes(under), s))
}

fn halves(signatures: &[(SignedFor, Vec<(NodeId, Signature)>)], tables: &Tables) -> Option<Vec<Half>> {
    let half = |(under, shares): &(SignedFor, Vec<(NodeId, Signature)>)| {
        let TallySide { members: signers, aggregate } = side(shares, tables.signing(under)?)?;
        Some(Half { epoch: under.epoch, epoch_hash: under.epoch_hash, signers, aggregate: aggregate? })
    };
    signatures.iter().map(half).collect()
}

fn side(votes: &[(NodeId, Signature)], table: &TableInForce) -> Option<TallySide> {
    let table = &table.table;
    let positions: Vec<usize> = votes.iter().filter_map(|v| table.voter_position(&v.0)).collect();
    let members = Bitmap::of(table.voters().count(), positions);
    let signatures: Vec<Signature> = votes.iter().map(|v| v.1).collect();
    let aggregate = match signatures.as_slice() {
        [] => None,
        all => Some(certificate::aggregate(all).ok()?),
    };
    Some(TallySide { members, aggregate })
}

/// Membership changes that follow on a table, and the one in flight after them (of which only the proofs of possession
/// are verified here: an election certificate under it proves the rest).
fn verify_epochs(
    genesis_id: &Digest,
    base: &TableInForce,
    chain: &EpochChain,
    in_flight: Option<&Entry>,
) -> Option<Input> {
    let ignored = |why: &dyn std::fmt::Display| tracing::warn!(%why, "proofs of membership changes are wrong; ignored");
    let tables = chain.follow(genesis_id, base.clone()).inspect_err(|e| ignored(e)).ok()?;
    let last = tables.last()?.clone();
    let next = |entry: &Entry| {
        let table = MemberTable::decode(&entry.body.payload).inspect_err(|e| ignored(e)).ok()?;
        let (epoch, epoch_hash) = (last.epoch.next(), entry.header.leaf_hash());
        // Granted by a quorum of the table before: nobody becomes a peer by a table that he made up.
        let granted = entry.header.verify_outcome(genesis_id, &last).inspect_err(|e| ignored(e)).is_ok();
        let fits = entry.header.kind == Kind::Epoch && entry.header.tally.is_some();
        (fits && granted).then(|| Arc::new(TableInForce { epoch, epoch_hash, table, rule: last.rule }))
    };
    let in_flight = match in_flight {
        None => None,
        Some(entry) => Some(next(entry)?),
    };
    Some(Input::EpochsVerified { tables: tables.into_iter().skip(1).map(Arc::new).collect(), in_flight })
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
    pub(super) fn start(threads: usize, signer: &Arc<Signer>, mailbox: &Arc<Mailbox>) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
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
