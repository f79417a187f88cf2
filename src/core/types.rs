//! The vocabulary between the core and whoever drives it: inputs, effects, messages.
//!
//! The drain rule: any number of [`Input`]s, then [`Core::drain`](super::Core::drain), then execute all [`Effect`]s in the
//! order in which they were emitted. `Persist` effects complete in order, each by one [`Input::Persisted`]; signing and verifying complete in any
//! order, each by the input named at its effect.

use super::tables::Tables;
#[cfg(doc)]
use super::{Effect, Input};
use crate::certificate::{
    Edge, ElectionCertificate, ElectionClaim, Entry, EpochChain, Head, HeadCertificate, Kind, MemberTable, PublicKey,
    Request, Signature, SignedFor, SnapshotManifest, TableInForce, VoteStatement, merkle,
};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Two clocks, read by the shell once per input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Now {
    /// Monotonic, milliseconds since some start.
    pub mono: u64,
    /// Milliseconds since the Unix epoch; may jump.
    pub wall: u64,
}

/// What must never be forgotten between two messages: fsynced before any answer that rests on it leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardState {
    /// The newest term seen.
    pub term: Term,
    /// The claim this node voted for in that term (its own when it stood), whole, so that a repeated request gets the
    /// same signature and no other.
    pub vote: Option<ElectionClaim>,
}

/// A ballot answer that this node gave, kept so that whoever asks again gets the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CastVote {
    /// [`Request::key`].
    pub request_key: Digest,
    /// SHA-256 of the payload alone, so that the answer also holds when a retry brings another salt.
    pub content: Digest,
    /// The answer.
    pub granted: bool,
    /// Until when it must be kept (the request's deadline, milliseconds since the Unix epoch).
    pub keep_until: u64,
}

/// What a log that begins after a snapshot rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Base {
    /// The right edge of the tree over everything before; its size is the index of the snapshot.
    pub edge: Edge,
    /// Where terms begin: (first index, term), ascending, over everything before.
    pub terms: Vec<(LogIndex, Term)>,
    /// `proposed_at` of the last entry before, milliseconds since the Unix epoch.
    pub proposed_at: u64,
    /// The `Epoch` and `EpochFinal` entries before, ascending; the last one is an `EpochFinal`.
    pub epochs: Vec<Arc<Entry>>,
}

impl Base {
    /// The last entry that the snapshot stands for.
    #[must_use]
    pub fn index(&self) -> LogIndex {
        LogIndex(self.edge.size())
    }
}

/// One durable step; several may be made durable by one fsync, always in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Write {
    /// Term and vote, when they changed.
    pub hard: Option<HardState>,
    /// The whole log is replaced by one that begins after this, before `entries` are appended. The snapshot that it
    /// stands for is complete and durable.
    pub base: Option<Arc<Base>>,
    /// Entries to append. The first one's index says where: whatever the log held from there on is replaced.
    pub entries: Vec<Arc<Entry>>,
    /// A ballot answer.
    pub cast: Option<CastVote>,
    /// A verified head certificate.
    pub certificate: Option<Arc<HeadCertificate>>,
}

/// A proposal on its way to the leader.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Submission {
    /// The node where it came in.
    pub origin: NodeId,
    /// Who asks, under which id.
    pub request: Request,
    /// Chosen by the origin.
    pub salt: [u8; 16],
    /// The payload.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Grants needed; `None` is the quorum rule.
    pub required_quorum: Option<u16>,
    /// Milliseconds left to live.
    pub ttl_ms: u64,
}

/// How the leader took a submission.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Admission {
    /// Appended, not yet committed.
    Appended {
        /// Its id.
        id: ProposalId,
        /// Where.
        index: LogIndex,
    },
    /// A ballot is open on it.
    Balloted {
        /// Its id.
        id: ProposalId,
    },
    /// The same request is already in the log (not yet applied) or on a ballot.
    Duplicate {
        /// The id it got first.
        id: ProposalId,
    },
    /// The same request id with another payload is under way.
    RequestIdReused,
    /// Not the leader (any more).
    NotLeader {
        /// Who is, when known.
        leader: Option<NodeId>,
    },
    /// A bound is reached; try again later.
    Backpressure,
    /// The request's deadline has passed.
    RequestExpired,
    /// Below the quorum rule or above the number of voters.
    InvalidQuorum {
        /// Lowest allowed.
        least: u16,
        /// Highest allowed.
        most: u16,
    },
    /// The leader's clock is out of bound against its peers': it takes nothing.
    ClockOutOfBound,
    /// The leader is handing leadership over and takes nothing meanwhile; try again in a moment.
    Transferring,
    /// The payload is larger than [`MAX_PAYLOAD`](crate::limits::MAX_PAYLOAD).
    PayloadTooLarge {
        /// Bytes given.
        size: usize,
    },
    /// The client identity or the request id is out of bounds.
    InvalidRequestId,
}

/// A membership change asked for: the whole next table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The epoch that the table was made from; refused when another is in force, so that no change undoes an unseen one.
    pub base: Epoch,
    /// The next table, its proofs of possession verified.
    pub table: MemberTable,
    /// Chosen by the origin, new for every attempt.
    pub salt: [u8; 16],
    /// Milliseconds for the ballot on it.
    pub ttl_ms: u64,
}

/// Why a membership change is not made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum ChangeRefusal {
    /// Only the leader changes members.
    #[error("this node does not lead")]
    NotLeader {
        /// Who does, when known.
        leader: Option<NodeId>,
    },
    /// Another change is in flight.
    #[error("another membership change is in flight; wait until `status` shows its epoch in force")]
    InFlight,
    /// The leader has not committed an entry of its own term yet.
    #[error("the leader has just been elected and has not committed in its term yet; try again in a moment")]
    NotSettled,
    /// Leadership is being transferred.
    #[error("leadership is being transferred; try again in a moment")]
    Transferring,
    /// The table was made from another epoch than the one in force.
    #[error("the change was made from another epoch than {current}, which is in force; look at the members again")]
    Stale {
        /// In force.
        current: Epoch,
    },
    /// Nothing changes.
    #[error("the table is the one in force already")]
    Unchanged,
    /// Too few voters of the new table answer.
    #[error(
        "the new table would have no quorum: {quorum} of its voters must have answered within an election timeout; silent: {}",
        names(silent)
    )]
    NoQuorum {
        /// Of the new table.
        quorum: usize,
        /// Voters that did not answer in time.
        silent: Vec<NodeId>,
    },
    /// New voters that lack entries.
    #[error("not caught up: {}; add them as learners first and wait until they hold the log", names(behind))]
    NotCaughtUp {
        /// Who.
        behind: Vec<NodeId>,
    },
    /// A key that was in force before.
    #[error("{0} brings a BLS key that was retired or belongs to another member; every store makes its own key")]
    OldKey(NodeId),
    /// The voters denied it.
    #[error("the voters rejected it; denied by {}", names(denied))]
    Rejected {
        /// Who denied.
        denied: Vec<NodeId>,
    },
    /// Too few voters answered in time.
    #[error("too few voters granted it in time")]
    Expired,
    /// Leadership was lost before it was in force. It may or may not come into force.
    #[error("leadership was lost meanwhile: look at `status` for the epoch in force before you try again")]
    Interrupted,
}

fn names(ids: &[NodeId]) -> String {
    if ids.is_empty() { "none".into() } else { ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ") }
}

/// Why a snapshot mark is not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum MarkRefusal {
    /// Only the leader appends marks.
    #[error("this node does not lead")]
    NotLeader {
        /// Who does, when known.
        leader: Option<NodeId>,
    },
    /// Leadership is being transferred.
    #[error("leadership is being transferred; try again in a moment")]
    Transferring,
    /// A membership change is in flight.
    #[error("a membership change is in flight; wait until `status` shows its epoch in force")]
    InFlight,
    /// The leader has not committed an entry of its own term yet.
    #[error("the leader has just been elected and has not committed in its term yet; try again in a moment")]
    NotSettled,
}

/// A certified snapshot, as it is offered to those who lack entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotOffer {
    /// What the entry's payload says.
    pub manifest: SnapshotManifest,
    /// The `SnapshotManifest` entry.
    #[serde(with = "super::message::wire_entry")]
    pub entry: Arc<Entry>,
    /// Its inclusion path below the certified head.
    pub path: Vec<Digest>,
    /// A quorum's, on a head that covers it.
    pub certificate: Arc<HeadCertificate>,
}

impl SnapshotOffer {
    /// Whether the parts speak of each other. Signatures are another matter: [`Crypto::VerifySnapshot`].
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let (header, head) = (&self.entry.header, &self.certificate.head);
        let leaf = header.index.prev().0;
        header.kind == Kind::SnapshotManifest
            && self.manifest.index < header.index
            && SnapshotManifest::decode(&self.entry.body.payload).as_ref() == Ok(&self.manifest)
            && merkle::root_from_path(header.leaf_hash(), leaf, head.size, &self.path) == Some(head.root)
    }
}

/// What became of a leadership transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transfer {
    /// This node leads no more: a newer term began.
    Done,
    /// The target did not take over within an election timeout; this node goes on leading.
    TimedOut,
    /// Another transfer took its place.
    Replaced,
    /// Not the leader.
    NotLeader,
    /// The target is no voter other than this node, or there is none that could lead.
    NoTarget,
}

/// A question put to one member.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// The proposal.
    pub id: ProposalId,
    /// What it becomes when it is granted: a `Proposal`, or an `Epoch` whose payload is the next member table.
    pub kind: Kind,
    /// Who asks, under which id.
    pub request: Request,
    /// With the payload gives the payload hash.
    pub salt: [u8; 16],
    /// What is asked about.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Grants needed.
    pub required_quorum: u16,
    /// Milliseconds left.
    pub ttl_ms: u64,
    /// Under which table the answer is signed.
    pub under: SignedFor,
}

/// Something for the pool of signers and verifiers. Completes by the input named at each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Crypto {
    /// → [`Input::VoteSigned`].
    SignElection {
        /// What.
        claim: ElectionClaim,
        /// Under which names, by which of this node's keys; none by a key that is not held.
        under: Vec<(SignedFor, PublicKey)>,
    },
    /// → [`Input::VoteVerified`] only when every signature verifies.
    VerifyElection {
        /// Whose.
        from: NodeId,
        /// What.
        claim: ElectionClaim,
        /// The signatures.
        signatures: Vec<(SignedFor, Signature)>,
        /// In force at the candidate.
        tables: Arc<Tables>,
    },
    /// Aggregates already verified signatures, a list per table. → [`Input::ElectionCertified`].
    CertifyElection {
        /// What.
        claim: ElectionClaim,
        /// Verified signatures.
        signatures: Vec<(SignedFor, Vec<(NodeId, Signature)>)>,
        /// In force at the candidate.
        tables: Arc<Tables>,
    },
    /// → [`Input::LeaderProved`].
    VerifyElectionCertificate {
        /// What.
        certificate: Arc<ElectionCertificate>,
        /// Those that it names.
        tables: Arc<Tables>,
    },
    /// The head certificate of an offered snapshot's manifest, and the votes that its entry records.
    /// → [`Input::SnapshotVerified`].
    VerifySnapshot {
        /// What.
        offer: Arc<SnapshotOffer>,
        /// Those that the certificate names.
        tables: Arc<Tables>,
        /// That of the entry's epoch.
        balloted: Arc<TableInForce>,
    },
    /// Verifies membership changes that follow on a known table, and the proofs of possession of the one in flight.
    /// → [`Input::EpochsVerified`] only when all of them verify.
    VerifyEpochs {
        /// The cluster.
        genesis_id: Digest,
        /// What is known.
        base: Arc<TableInForce>,
        /// What follows.
        chain: EpochChain,
        /// The `Epoch` entry in flight.
        in_flight: Option<Arc<Entry>>,
    },
    /// → [`Input::HeadSigned`].
    SignHead {
        /// What.
        head: Head,
        /// As for `SignElection`.
        under: Vec<(SignedFor, PublicKey)>,
    },
    /// → [`Input::ShareVerified`] only when every signature verifies.
    VerifyShare {
        /// Whose.
        from: NodeId,
        /// What.
        head: Head,
        /// The signatures.
        signatures: Vec<(SignedFor, Signature)>,
        /// In force at that head.
        tables: Arc<Tables>,
    },
    /// Aggregates already verified shares. → [`Input::HeadCertified`].
    CertifyHead {
        /// What.
        head: Head,
        /// Verified signatures, a list per table.
        signatures: Vec<(SignedFor, Vec<(NodeId, Signature)>)>,
        /// In force at that head.
        tables: Arc<Tables>,
    },
    /// → [`Input::CertificateVerified`].
    VerifyCertificate {
        /// What.
        certificate: Arc<HeadCertificate>,
        /// In force at that head.
        tables: Arc<Tables>,
    },
    /// → [`Input::BallotSigned`].
    SignVote {
        /// Which ballot.
        id: ProposalId,
        /// What.
        statement: VoteStatement,
        /// Under which table.
        under: SignedFor,
        /// By which of this node's keys; nothing is signed when it is not held.
        key: PublicKey,
    },
    /// → [`Input::BallotVerified`] only when it verifies.
    VerifyVote {
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
        /// The table.
        table: Arc<TableInForce>,
    },
    /// Aggregates already verified votes of a decided ballot. → [`Input::Tallied`].
    Tally {
        /// Which ballot.
        id: ProposalId,
        /// Whose grants.
        grants: Vec<(NodeId, Signature)>,
        /// Whose denials.
        denials: Vec<(NodeId, Signature)>,
        /// The table under which they are signed.
        table: Arc<TableInForce>,
    },
}

/// A node's role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Follows a leader or waits for one.
    #[default]
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// Something an operator should know; the node goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// The leader's clock differs from a majority of its peers' by more than the bound: it stepped down or does not stand.
    ClockOutOfBound {
        /// Median difference, milliseconds (positive: this node is ahead).
        difference_ms: i64,
    },
    /// A leader sent entries that are not consecutive, run backwards in term or time, or lack its election certificate.
    MalformedAppend {
        /// Who.
        from: NodeId,
    },
    /// Voters have another state at a mark than this leader: it does not lead on.
    SnapshotDenied {
        /// The mark.
        index: LogIndex,
        /// Who denied.
        denied: Vec<NodeId>,
    },
    /// An offered snapshot is not what its certificate or its manifest says.
    SnapshotFailed {
        /// Who offered it.
        from: NodeId,
        /// The mark.
        index: LogIndex,
    },
    /// A peer's election certificate did not verify; it is not followed.
    FalseLeader {
        /// Who.
        claimant: NodeId,
        /// In which term.
        term: Term,
    },
}

/// Why a node stops for good.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Halt {
    /// Same (index, term), another root.
    #[error(
        "the leader {leader} has another history at index {index}: its tree root differs from ours for the same term; one of the two logs is corrupt or the leader misbehaves; do not restart this node before comparing both with `concordat audit`"
    )]
    RootMismatch {
        /// Who.
        leader: NodeId,
        /// Where.
        index: LogIndex,
    },
    /// The leader wants an entry overwritten that is committed here, or of its own term.
    #[error(
        "the leader {leader} wants entry {index} overwritten, which is committed here or of its own term; compare the nodes with `concordat audit`"
    )]
    CommittedOverwrite {
        /// Who.
        leader: NodeId,
        /// Where.
        index: LogIndex,
    },
}

/// What the shell gives back after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Term and vote.
    pub hard: HardState,
    /// Newest verified head certificate: everything it covers is committed.
    pub certificate: Option<Arc<HeadCertificate>>,
    /// Entries up to here are not in the log any more: a snapshot stands for them. Zero when it begins at the beginning.
    pub compacted: LogIndex,
    /// The tree before the first of `tail`.
    pub frontier: crate::certificate::merkle::Frontier,
    /// Where terms begin: (first index, term), ascending, for the log before `tail`.
    pub terms: Vec<(LogIndex, Term)>,
    /// `proposed_at` of the entry before `tail`.
    pub last_proposed_at: u64,
    /// All entries after `frontier.size()`.
    pub tail: Vec<Arc<Entry>>,
    /// The `Epoch` and `EpochFinal` entries before `tail`, ascending.
    pub epochs: Vec<Arc<Entry>>,
    /// The BLS keys that the store holds.
    pub keys: Vec<PublicKey>,
}
