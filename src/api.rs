//! What applications see: the trait [`FederatedConsensus`], its errors, and the JSON shapes that HTTP, the remote
//! client and the CLI share.

use crate::certificate::{AbortReason, CommitCertificate, Kind, Member, Policy, PublicKey, QuorumRule, Signature};
use crate::ids::{Digest, LogIndex, NodeId, ProposalId, Term};
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::future::Future;

mod database;
mod search;

pub use crate::core::{ChangeRefusal, MarkRefusal, Role};
pub use database::{Compaction, DatabaseStatus};
pub use search::{EntryPage, FoundEntry, Order, Search, SearchPage};

/// How long an answer to `propose` waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// Queued at the leader only; may be lost with it.
    Accepted,
    /// Durable on a quorum and applied here.
    Committed,
    /// Committed, and covered by a head certificate.
    #[default]
    Certified,
}

/// A proposal as an application makes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Propose {
    /// Any JSON; known operations change the registry.
    pub payload: Value,
    /// The client's identity, 1–128 bytes; `anonymous` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The client's id for this request, 1–128 bytes. With it, a retry is recognised and applied once. Without it the
    /// node makes one up, and a retry is another request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Until when (milliseconds since the Unix epoch) the id is remembered; a day when absent, at most 400 days ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Grants needed; the quorum rule when absent, up to all voters, never fewer than the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_quorum: Option<u16>,
    /// Time to live until appended, 1–600,000 ms; 5,000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// How long the answer waits.
    #[serde(default)]
    pub wait: Wait,
    /// How long (ms) the caller waits at most before it gets 202 with the state reached; `ttl_ms` + 5,000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

impl Propose {
    /// A proposal with every default.
    #[must_use]
    pub fn new(payload: Value) -> Self {
        Self {
            payload,
            client: None,
            request_id: None,
            deadline_ms: None,
            required_quorum: None,
            ttl_ms: None,
            wait: Wait::default(),
            wait_ms: None,
        }
    }
}

/// The state that a proposal has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProposalState {
    /// On its way to the leader, queued, or on a ballot.
    Pending,
    /// Durable on a quorum.
    Committed,
    /// Covered by a head certificate.
    Certified,
    /// Rejected or expired; the log says so.
    Aborted,
}

/// What became of a proposal, or where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProposalStatus {
    /// Its id; absent while no leader has taken it.
    pub id: Option<ProposalId>,
    /// The state reached.
    pub state: ProposalState,
    /// Position in the log once committed or aborted.
    pub index: Option<LogIndex>,
    /// Why it was aborted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort_reason: Option<AbortReason>,
    /// What applying it did: `{"result":"registered","revision":7}`, `{"result":"conflict",…}`, `{"result":"opaque"}`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<crate::registry::Outcome>,
    /// Set when this request was a repeat: the outcome is that of the first.
    #[serde(default)]
    pub repeated: bool,
    /// The client identity and request id to ask again with.
    pub client: String,
    /// See `client`.
    pub request_id: String,
}

/// Why a proposal was not taken, or what is known of it is not an outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum ProposeError {
    /// This node does not lead and forwarding is off.
    #[error("this node is not the leader; ask {}", leader_text(*leader))]
    NotLeader {
        /// Who leads, when known.
        leader: Option<NodeId>,
        /// Its HTTP or peer address, when known.
        address: Option<String>,
    },
    /// A bounded queue is full.
    #[error("too many proposals are pending; try again in a moment")]
    Backpressure,
    /// Out of bounds.
    #[error("required_quorum must be between {least} (the quorum rule) and {most} (all voters)")]
    InvalidQuorum {
        /// Lowest.
        least: u16,
        /// Highest.
        most: u16,
    },
    /// Out of bounds.
    #[error("ttl_ms must be between 1 and 600000")]
    InvalidTtl,
    /// Out of bounds.
    #[error("deadline_ms must lie in the future, at most 400 days ahead")]
    InvalidDeadline,
    /// Out of bounds.
    #[error("client and request_id are 1 to 128 bytes each")]
    InvalidRequestId,
    /// Out of bounds.
    #[error("the payload has {size} bytes, at most {limit} are allowed")]
    PayloadTooLarge {
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A known operation with a field of the wrong type or missing.
    #[error("the payload is a malformed {operation}: {detail}")]
    MalformedOperation {
        /// Which `op`.
        operation: String,
        /// What is wrong.
        detail: String,
    },
    /// Same request id, another payload.
    #[error("this request id was used with another payload; use a new one")]
    RequestIdReused,
    /// The request's deadline has passed: whether it was applied is in the log, but the id is no longer recognised.
    #[error("this request's deadline has passed; look for it in the log before sending it under a new id")]
    RequestExpired,
    /// No leader took it within its time to live.
    #[error(
        "no leader took the proposal within its time to live; it may still be in a leader's log: ask again with the same request id"
    )]
    Unavailable,
    /// The node is closing.
    #[error("the node is shutting down")]
    Closed,
}

fn leader_text(leader: Option<NodeId>) -> String {
    leader.map_or_else(|| "again after an election".into(), |l| l.to_string())
}

impl ProposeError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotLeader { .. } | Self::Backpressure | Self::Unavailable | Self::Closed)
    }

    /// Whether the request certainly had no effect. Of a request id that is taken by another payload that is not certain:
    /// what took it may be lost with a leader, and an earlier attempt with this payload come in after all.
    #[must_use]
    pub fn is_without_effect(&self) -> bool {
        !matches!(self, Self::Unavailable | Self::Closed | Self::RequestExpired | Self::RequestIdReused)
    }
}

/// Why a vote was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum VoteError {
    /// No such ballot is open at this node: decided, expired, or never asked here.
    #[error("no ballot on {id} is open at this node")]
    NoBallot {
        /// Which.
        id: ProposalId,
    },
    /// Already answered otherwise; an answer is for ever.
    #[error("this member has already answered {id} with granted={granted}")]
    AlreadyCast {
        /// Which.
        id: ProposalId,
        /// The answer on record.
        granted: bool,
    },
    /// This member decides by itself.
    #[error("this member's policy is {policy:?}; only a manual member's application votes")]
    NotManual {
        /// Its policy.
        policy: Policy,
    },
    /// The node is closing.
    #[error("the node is shutting down")]
    Closed,
}

/// A ballot that waits for this member's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenBallot {
    /// The proposal.
    pub id: ProposalId,
    /// What it becomes when it is granted: a `proposal`, or an `epoch`.
    pub kind: Kind,
    /// Who asks.
    pub client: String,
    /// Under which id.
    pub request_id: String,
    /// What is asked about; of an `epoch`: `{"members":[…]}`, the next member table.
    pub payload: Value,
    /// Grants needed.
    pub required_quorum: u16,
    /// Milliseconds left.
    pub ttl_ms: u64,
}

/// A committed proposal, as `commit_stream` gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitEvent {
    /// Position in the log.
    pub index: LogIndex,
    /// The proposal.
    pub id: ProposalId,
    /// Who asked.
    pub client: String,
    /// Under which id.
    pub request_id: String,
    /// The payload (`null` once pruned).
    pub payload: Value,
    /// What applying it did.
    pub outcome: crate::registry::Outcome,
    /// Present when the entry is certified by the time it is delivered; the stream delivers certified entries only,
    /// unless asked for committed ones.
    pub certificate: Option<CommitCertificate>,
}

/// An aborted proposal, as `abort_stream` gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AbortEvent {
    /// Position in the log.
    pub index: LogIndex,
    /// The proposal.
    pub id: ProposalId,
    /// Who asked.
    pub client: String,
    /// Under which id.
    pub request_id: String,
    /// Why.
    pub reason: AbortReason,
    /// Who granted.
    pub granted: Vec<NodeId>,
    /// Who denied.
    pub denied: Vec<NodeId>,
}

/// An entry as HTTP shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntryView {
    /// Position in the log.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// What it is.
    pub kind: Kind,
    /// Its proposal.
    pub id: Option<ProposalId>,
    /// Milliseconds since the Unix epoch.
    pub proposed_at: u64,
    /// Canonical header bytes, hexadecimal: what the tree commits to.
    pub header: String,
    /// Canonical entry bytes ([`crate::certificate::Entry::encode`]), base64; absent once pruned.
    pub entry: Option<String>,
    /// The payload as JSON, for `Proposal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
}

/// A page of head certificates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertificatePage {
    /// Canonical bytes ([`crate::certificate::HeadCertificate::encode`]), base64, ascending by size.
    pub certificates: Vec<String>,
    /// `above` of the next page; absent at the end.
    pub next: Option<u64>,
}

/// The node at a glance (the specification's `ConsensusSnapshot`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsensusSnapshot {
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Its commit index.
    pub commit_index: LogIndex,
    /// The other members it knows.
    pub known_peers: Vec<NodeId>,
    /// Proposals that came in here and are not decided.
    pub pending_proposals: u64,
    /// `Proposal` entries committed in this log.
    pub committed_count: u64,
    /// `Aborted` entries committed in this log.
    pub aborted_count: u64,
}

/// What `/v1/status` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// The cluster's name.
    pub cluster: String,
    /// The genesis.
    pub genesis_id: Digest,
    /// The specification's snapshot.
    #[serde(flatten)]
    pub snapshot: ConsensusSnapshot,
    /// Who leads, when known.
    pub leader: Option<NodeId>,
    /// First and last entry held with its payload; a snapshot stands for those before, and their headers and
    /// certificates are kept.
    pub first_index: LogIndex,
    /// See `first_index`.
    pub last_index: LogIndex,
    /// The mark of the newest snapshot that this node made or installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_index: Option<LogIndex>,
    /// Headers, certificates and receipts are held from this entry on. After a snapshot was installed, those before are
    /// filled in from other members, the newest first.
    #[serde(default = "first_entry")]
    pub history_from: LogIndex,
    /// Whether nothing is missing from the first entry on.
    #[serde(default)]
    pub history_complete: bool,
    /// Damaged records of this node's store that were put back from other members when it started; look at its disk.
    #[serde(default)]
    pub mended: u64,
    /// The snapshot that is being fetched, because entries that this node lacks are pruned at the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installing: Option<Installing>,
    /// The disk space of this node's database.
    #[serde(default)]
    pub database: DatabaseStatus,
    /// Durable here.
    pub durable_index: LogIndex,
    /// Applied here.
    pub applied_index: LogIndex,
    /// Covered by the newest head certificate held here.
    pub certified_index: LogIndex,
    /// Root at `certified_index`.
    pub certified_root: Option<Digest>,
    /// The epoch in force.
    pub epoch: u64,
    /// The epoch that a membership change in flight is about to put in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_epoch: Option<u64>,
    /// What this node is to the cluster.
    pub standing: Standing,
    /// Whether nothing rests on this node any more: it was removed, and the tables without it are in force for good.
    pub safe_to_stop: bool,
    /// Members of the newest table, with what this node knows of each.
    pub members: Vec<MemberStatus>,
    /// The program's version.
    pub version: String,
}

const fn first_entry() -> LogIndex {
    LogIndex(1)
}

/// A snapshot on its way to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installing {
    /// Its mark.
    pub index: LogIndex,
    /// Chunks that are here.
    pub here: u32,
    /// Chunks in all.
    pub chunks: u32,
}

/// A snapshot mark that was appended, as `POST /v1/snapshots` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// Its index: every node makes an image of its state there.
    pub index: LogIndex,
}

/// Why no snapshot mark was appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum MarkError {
    /// This node does not lead.
    #[error("this node does not lead; ask the leader")]
    NotLeader {
        /// Who does, when known.
        leader: Option<NodeId>,
    },
    /// A membership change or a transfer is under way, or the leader has just been elected.
    #[error("{refusal}")]
    Refused {
        /// Why.
        refusal: MarkRefusal,
    },
    /// The node is closing.
    #[error("the node is shutting down")]
    Closed,
}

/// What a node is to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Counts in elections, commits and certificates.
    Voter,
    /// Receives the log only.
    Learner,
    /// In no member table that it knows, or there with another key: it waits to be admitted.
    Waiting,
    /// Was a member and is none any more.
    Retired,
}

/// One step of a membership change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum MemberOp {
    /// A new member, as a learner. A member whose store was lost comes back so, too: same DID, fresh key.
    Add {
        /// Its `member.json`; the role in it does not count.
        member: Member,
    },
    /// A learner becomes a voter; it must hold the log.
    Promote {
        /// Who.
        id: NodeId,
    },
    /// A voter becomes a learner.
    Demote {
        /// Who.
        id: NodeId,
    },
    /// A member leaves.
    Remove {
        /// Who.
        id: NodeId,
    },
    /// A member gets a new BLS key, made by its own store (`POST /v1/key`).
    RotateKey {
        /// Who.
        id: NodeId,
        /// The new key.
        bls_key: PublicKey,
        /// The proof that the store holds it.
        possession: Signature,
    },
    /// A member gets another address or policy.
    Set {
        /// Who.
        id: NodeId,
        /// Where its peers reach it from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
        /// How it decides on ballots from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<Policy>,
    },
}

/// A membership change: all of it, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeMembers {
    /// In order, on the table in force.
    pub changes: Vec<MemberOp>,
    /// The epoch that they are meant for; whatever is in force when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_epoch: Option<u64>,
    /// Only say whether it could be made now.
    #[serde(default)]
    pub dry_run: bool,
    /// Time for the voters to grant it, 1–600,000 ms; 5,000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// A membership change that is in force, committed; or, of a dry run, that could be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangedMembers {
    /// The epoch that it put (or would put) in force.
    pub epoch: u64,
    /// Its voters' quorum.
    pub quorum: usize,
    /// Its members.
    pub members: Vec<Member>,
    /// Whether nothing was changed.
    pub dry_run: bool,
}

/// Why a membership change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum ChangeError {
    /// Only the leader changes members.
    #[error("this node is not the leader; ask {}", leader_text(*leader))]
    NotLeader {
        /// Who leads, when known.
        leader: Option<NodeId>,
    },
    /// A step that does not fit the table.
    #[error("{id}: {detail}")]
    DoesNotApply {
        /// Whom it names.
        id: NodeId,
        /// What is wrong.
        detail: String,
    },
    /// The table that it makes breaks a rule.
    #[error("the new member table breaks a rule: {detail}")]
    InvalidTable {
        /// Which.
        detail: String,
    },
    /// Out of bounds.
    #[error("ttl_ms must be between 1 and 600000")]
    InvalidTtl,
    /// The cluster refuses it.
    #[error("{refusal}")]
    Refused {
        /// Why.
        refusal: ChangeRefusal,
    },
    /// The node is closing.
    #[error("the node is shutting down; look at `status` of another one for what became of the change")]
    Closed,
}

impl ChangeError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        use ChangeRefusal::{Expired, InFlight, NoQuorum, NotCaughtUp, NotSettled, Transferring};
        match self {
            Self::NotLeader { .. } => true,
            Self::Refused { refusal } => {
                matches!(refusal, Expired | InFlight | NoQuorum { .. } | NotCaughtUp { .. } | NotSettled | Transferring)
            }
            _ => false,
        }
    }

    /// Whether the request certainly had no effect.
    #[must_use]
    pub fn is_without_effect(&self) -> bool {
        !matches!(self, Self::Closed | Self::Refused { refusal: ChangeRefusal::Interrupted })
    }
}

/// The tables in force, as `/v1/members` shows them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Members {
    /// The epoch in force at the end of this node's log.
    pub epoch: u64,
    /// Its hash.
    pub epoch_hash: Digest,
    /// The rule.
    pub rule: QuorumRule,
    /// The quorum of its voters.
    pub quorum: usize,
    /// Its rows.
    pub members: Vec<Member>,
    /// The table of a change in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Vec<Member>>,
}

/// A member's new key, made by its own store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKey {
    /// Whose.
    pub id: NodeId,
    /// The key.
    pub bls_key: PublicKey,
    /// The proof of possession.
    pub possession: Signature,
}

/// A leadership transfer, as `POST /v1/leadership` takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferLeadership {
    /// To whom; the voter that is furthest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
}

/// Leadership was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transferred {
    /// Who leads now, when known yet.
    pub leader: Option<NodeId>,
}

/// Why leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum TransferError {
    /// Only the leader can hand it over.
    #[error("this node is not the leader; ask {}", leader_text(*leader))]
    NotLeader {
        /// Who leads, when known.
        leader: Option<NodeId>,
    },
    /// No such voter.
    #[error("there is no such voter besides the leader that is in contact")]
    NoTarget,
    /// The target did not take over within an election timeout.
    #[error("the target did not take over in time; this node goes on leading")]
    TimedOut,
    /// Another transfer took its place.
    #[error("another transfer took its place")]
    Replaced,
    /// The node is closing.
    #[error("the node is shutting down")]
    Closed,
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Everything that was acknowledged anywhere before the question is in the answer; costs a round trip to a quorum.
    #[default]
    Linearizable,
    /// What this node has applied; the answer says how old that may be.
    Stale,
}

/// Why a read cannot be answered as wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum ReadError {
    /// No leader confirmed it in time.
    #[error("no leader confirmed the read in time; try again, or take what this node has with consistency=stale")]
    Unconfirmed,
    /// The index asked for is not applied here yet.
    #[error("entry {wanted} is not applied here yet (applied: {applied}); try again in a moment")]
    NotApplied {
        /// `min_index`, or the index up to which the leader says a linearizable read must have applied the log.
        wanted: LogIndex,
        /// Applied here.
        applied: LogIndex,
    },
    /// The node is closing.
    #[error("the node is shutting down")]
    Closed,
}

/// A member as `/v1/status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Who.
    pub id: NodeId,
    /// Peer address.
    pub address: String,
    /// HTTP address, when it announced one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Voter or learner.
    pub role: crate::certificate::Role,
    /// How it decides on ballots.
    pub policy: Policy,
    /// Whether a connection to it stands (this node itself: true).
    pub connected: bool,
    /// On the leader: how far it is known to hold the log.
    pub match_index: Option<LogIndex>,
}

/// A cluster, seen from an application: an embedded node or a remote one.
pub trait FederatedConsensus: Send + Sync {
    /// Proposes a payload and returns its id as soon as the leader has taken it.
    ///
    /// # Errors
    /// [`ProposeError`].
    fn propose(
        &self,
        payload: Value,
        required_quorum: Option<u16>,
        ttl_ms: Option<u64>,
    ) -> impl Future<Output = Result<ProposalId, CallError<ProposeError>>> + Send;

    /// Casts this member's vote on an open ballot.
    ///
    /// # Errors
    /// [`VoteError`].
    fn vote(&self, id: ProposalId, granted: bool) -> impl Future<Output = Result<(), CallError<VoteError>>> + Send;

    /// Certified proposals from an index on: in order, each once, without end.
    fn commit_stream(&self, from: LogIndex) -> BoxStream<'static, Result<CommitEvent, StreamError>>;

    /// Aborted proposals from an index on: in order, each once, without end.
    fn abort_stream(&self, from: LogIndex) -> BoxStream<'static, Result<AbortEvent, StreamError>>;

    /// The node at a glance.
    ///
    /// # Errors
    /// Only when a remote node cannot be reached.
    fn snapshot(&self) -> impl Future<Output = Result<ConsensusSnapshot, CallError<std::convert::Infallible>>> + Send;

    /// Ends every background task and, for an embedded node, closes its store.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// An operation's own error, or one of the way there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E> {
    /// The operation was refused.
    #[error("{0}")]
    Refused(E),
    /// No node answered.
    #[error("no node answered: {detail}")]
    Unreachable {
        /// What the last one tried said.
        detail: String,
    },
    /// A node answered what this client does not understand.
    #[error("unexpected answer: {detail}")]
    Protocol {
        /// What was wrong with it.
        detail: String,
    },
}

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The node is closing.
    #[error("the node is shutting down")]
    Closed,
    /// Entries before this index are pruned here.
    #[error("entries before {first} are pruned here")]
    Pruned {
        /// The first index still held.
        first: LogIndex,
    },
    /// The store failed.
    #[error("the store failed: {detail}")]
    Store {
        /// How.
        detail: String,
    },
    /// No node answered.
    #[error("no node answered: {detail}")]
    Unreachable {
        /// What the last one tried said.
        detail: String,
    },
}

/// A vote, as `POST /v1/proposals/{id}/votes` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteRequest {
    /// Granted or denied.
    pub granted: bool,
}

/// The ballots that wait for the member whose node was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenBallots {
    /// The ballots.
    pub ballots: Vec<OpenBallot>,
}

/// An answer from the replicated state of one node, with how far that state had come. It may be behind other nodes'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AsOf<T> {
    /// The answer; its fields stand beside the two indexes.
    #[serde(flatten)]
    pub answer: T,
    /// The last entry applied to the state that answered.
    pub applied_index: LogIndex,
    /// The last entry that a head certificate held by this node covers; what was written by later entries is committed,
    /// but not proved yet.
    pub certified_index: LogIndex,
    /// What the answer promises.
    pub consistency: Consistency,
    /// Of a stale answer: how long ago (ms) this node last knew that it had applied everything committed; absent when it
    /// never did since its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}

impl<T> AsOf<T> {
    /// The same with another answer.
    pub fn map<U>(self, to: impl FnOnce(T) -> U) -> AsOf<U> {
        let Self { answer, applied_index, certified_index, consistency, age_ms } = self;
        AsOf { answer: to(answer), applied_index, certified_index, consistency, age_ms }
    }
}

impl<T> AsOf<Option<T>> {
    /// The answer, if there is one.
    #[must_use]
    pub fn transpose(self) -> Option<AsOf<T>> {
        let Self { answer, applied_index, certified_index, consistency, age_ms } = self;
        answer.map(|answer| AsOf { answer, applied_index, certified_index, consistency, age_ms })
    }
}

/// A page of agents, in registration order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentPage<A = crate::registry::AgentRecord> {
    /// The agents.
    pub agents: Vec<A>,
    /// `offset` of the next page; absent at the end.
    pub next: Option<usize>,
}

/// A config key with its value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigView {
    /// The key.
    pub key: String,
    /// Value and revision.
    #[serde(flatten)]
    pub record: crate::registry::ConfigRecord,
}

/// A page of config keys, ascending.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigPage<C = ConfigView> {
    /// The keys with their values.
    pub configs: Vec<C>,
    /// `offset` of the next page; absent at the end.
    pub next: Option<usize>,
}

/// A page of the entries that changed a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryPage {
    /// The agent's id, or the config key.
    pub key: String,
    /// The entries, ascending.
    pub entries: Vec<EntryView>,
    /// `from` of the next page; absent at the end.
    pub next: Option<LogIndex>,
}

/// The body of every HTTP error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Stable, `snake_case`, for machines.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The leader's HTTP address, where that helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Whether the request certainly had no effect.
    pub without_effect: bool,
    /// The typed error of the operation ([`ProposeError`] or [`VoteError`]), when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Value>,
}
