//! What happens to a core.

use super::message::Message;
use super::types::{Base, Change, SnapshotOffer, Submission};
#[cfg(doc)]
use super::{Crypto, Effect};
use crate::certificate::{
    ElectionCertificate, ElectionClaim, Entry, EpochChain, Head, HeadCertificate, PublicKey, Signature, SignedFor,
    SnapshotManifest, TableInForce, Tally, VoteStatement,
};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What happens to the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time passed; sent at or after [`Core::deadline`](super::Core::deadline).
    Tick,
    /// A message came in.
    Receive {
        /// The authenticated sender.
        from: NodeId,
        /// What it said.
        message: Message,
    },
    /// A submission, local or forwarded; answered by [`Effect::Admitted`] with the same handle.
    Submit {
        /// Chosen by the shell.
        handle: u64,
        /// What.
        submission: Submission,
    },
    /// This node's answer to a ballot (by policy, rules or application).
    Decide {
        /// Which.
        id: ProposalId,
        /// The answer.
        granted: bool,
        /// Whether an earlier durable answer exists (then nothing is written).
        on_record: bool,
    },
    /// A linearizable read is wanted; answered by [`Effect::ReadReady`] or [`Effect::ReadRefused`] with the same handle.
    Read {
        /// Chosen by the shell.
        handle: u64,
    },
    /// Hand leadership over; answered by [`Effect::Transferred`] with the same handle.
    Transfer {
        /// Chosen by the shell.
        handle: u64,
        /// To whom; `None`: to the voter that is furthest.
        to: Option<NodeId>,
    },
    /// Change the members; answered by [`Effect::Changed`] with the same handle.
    Change {
        /// Chosen by the shell.
        handle: u64,
        /// How.
        change: Change,
    },
    /// Append a snapshot mark; answered by [`Effect::Marked`] with the same handle.
    Mark {
        /// Chosen by the shell.
        handle: u64,
    },
    /// This node's own image at a mark is complete and durable.
    SnapshotTaken(Arc<SnapshotManifest>),
    /// A snapshot whose manifest is certified is here, and may be offered to those who lack entries.
    SnapshotOffered(Arc<SnapshotOffer>),
    /// Entries up to this index are about to be pruned: a snapshot stands for them.
    Compacted {
        /// The last of them.
        upto: LogIndex,
    },
    /// See [`Effect::FetchChunk`].
    ChunkFetched {
        /// For whom.
        peer: NodeId,
        /// Echoed.
        session: u64,
        /// Which snapshot.
        index: LogIndex,
        /// Which chunk.
        chunk: u32,
        /// Its bytes and inclusion path; `None` when that snapshot is here no more.
        found: Option<(Vec<u8>, Vec<Digest>)>,
    },
    /// See [`Crypto::VerifySnapshot`].
    SnapshotVerified {
        /// What.
        offer: Arc<SnapshotOffer>,
        /// Whether it verifies.
        valid: bool,
    },
    /// See [`Effect::StageSnapshot`].
    SnapshotStaged {
        /// Which snapshot.
        index: LogIndex,
        /// Chunks that are not here yet.
        missing: BTreeSet<u32>,
    },
    /// See [`Effect::StoreChunk`].
    ChunkStored {
        /// Which snapshot.
        index: LogIndex,
        /// Which chunk.
        chunk: u32,
    },
    /// See [`Effect::CompleteSnapshot`].
    SnapshotReady {
        /// Which snapshot.
        index: LogIndex,
        /// What a log that begins after it rests on; `None` when the image is not what its manifest says.
        base: Option<Arc<Base>>,
    },
    /// The BLS keys that this node's store holds now.
    Keys(Vec<PublicKey>),
    /// See [`Effect::FetchEpochs`].
    EpochsFetched {
        /// For whom.
        peer: NodeId,
        /// What follows on the epoch asked about; empty when nothing does (or nothing can be told now).
        chain: EpochChain,
    },
    /// See [`Crypto::VerifyEpochs`].
    EpochsVerified {
        /// The tables that follow, ascending, each proved to be in force after the one before.
        tables: Vec<Arc<TableInForce>>,
        /// The table of the change in flight.
        in_flight: Option<Arc<TableInForce>>,
    },
    /// All writes up to this sequence number are durable.
    Persisted {
        /// The newest durable [`Effect::Persist::seq`].
        seq: u64,
    },
    /// Entries read back for a lagging peer.
    Fetched {
        /// For whom.
        peer: NodeId,
        /// Session for which they were asked.
        session: u64,
        /// Term of the entry before the first.
        prev_term: Term,
        /// Root at the entry before the first.
        prev_root: Option<Digest>,
        /// The entries, from the index asked.
        entries: Vec<Arc<Entry>>,
    },
    /// Everything up to this index is applied to the state machine.
    Applied {
        /// The index.
        index: LogIndex,
    },
    /// See [`Crypto::SignElection`].
    VoteSigned {
        /// What.
        claim: ElectionClaim,
        /// The signatures.
        signatures: Vec<(SignedFor, Signature)>,
    },
    /// See [`Crypto::VerifyElection`].
    VoteVerified {
        /// Whose.
        from: NodeId,
        /// What.
        claim: ElectionClaim,
        /// The signatures.
        signatures: Vec<(SignedFor, Signature)>,
    },
    /// See [`Crypto::CertifyElection`].
    ElectionCertified {
        /// The certificate.
        certificate: Arc<ElectionCertificate>,
    },
    /// See [`Crypto::VerifyElectionCertificate`].
    LeaderProved {
        /// The certificate.
        certificate: Arc<ElectionCertificate>,
        /// Whether it verifies.
        valid: bool,
    },
    /// See [`Crypto::SignHead`].
    HeadSigned {
        /// What.
        head: Head,
        /// The signatures.
        signatures: Vec<(SignedFor, Signature)>,
    },
    /// See [`Crypto::VerifyShare`].
    ShareVerified {
        /// Whose.
        from: NodeId,
        /// What.
        head: Head,
        /// The signatures.
        signatures: Vec<(SignedFor, Signature)>,
    },
    /// See [`Crypto::CertifyHead`].
    HeadCertified {
        /// The certificate.
        certificate: Arc<HeadCertificate>,
    },
    /// See [`Crypto::VerifyCertificate`].
    CertificateVerified {
        /// The certificate.
        certificate: Arc<HeadCertificate>,
        /// Whether it verifies.
        valid: bool,
    },
    /// See [`Crypto::SignVote`].
    BallotSigned {
        /// Which ballot.
        id: ProposalId,
        /// What.
        statement: VoteStatement,
        /// Under which table.
        under: SignedFor,
        /// The signature.
        signature: Signature,
    },
    /// See [`Crypto::VerifyVote`].
    BallotVerified {
        /// Whose.
        from: NodeId,
        /// Which ballot.
        id: ProposalId,
        /// What.
        statement: VoteStatement,
        /// Under which table.
        under: SignedFor,
        /// The signature.
        signature: Signature,
    },
    /// See [`Crypto::Tally`].
    Tallied {
        /// Which ballot.
        id: ProposalId,
        /// The tally.
        tally: Tally,
        /// The epoch of the table under which its votes are signed.
        epoch: Epoch,
    },
}
