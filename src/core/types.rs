//! The vocabulary between the core and whoever drives it: inputs, effects, messages.
//!
//! The drain rule: any number of [`Input`]s, then [`Core::drain`](super::Core::drain), then execute all [`Effect`]s in the
//! order in which they were emitted. `Persist` effects complete in order, each by one [`Input::Persisted`]; signing and verifying complete in any
//! order, each by the input named at its effect.

use crate::certificate::{
    ElectionCertificate, ElectionClaim, Entry, Head, HeadCertificate, Request, Signature, SignedFor, VoteStatement,
};
use crate::ids::{Digest, LogIndex, NodeId, ProposalId, Term};
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

/// One durable step; several may be made durable by one fsync, always in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Write {
    /// Term and vote, when they changed.
    pub hard: Option<HardState>,
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
    /// The payload is larger than [`MAX_PAYLOAD`](crate::limits::MAX_PAYLOAD).
    PayloadTooLarge {
        /// Bytes given.
        size: usize,
    },
    /// The client identity or the request id is out of bounds.
    InvalidRequestId,
}

/// A question put to one member.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// The proposal.
    pub id: ProposalId,
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

/// Between cores. The sender is known from the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// Would you vote for me in this term? Changes nothing.
    PreVote {
        /// The term it would stand for.
        term: Term,
        /// Last entry.
        last_index: LogIndex,
        /// Term of the last entry.
        last_term: Term,
    },
    /// Answer to `PreVote`.
    PreVoteReply {
        /// The term asked about when granted, the answerer's own when not.
        term: Term,
        /// The answer.
        granted: bool,
        /// The answerer's wall clock.
        wall: u64,
    },
    /// Vote for me.
    RequestVote {
        /// The signed claim; its candidate is the sender.
        claim: ElectionClaim,
    },
    /// Answer to `RequestVote`; a grant carries one signature per table in force (current first).
    RequestVoteReply {
        /// The answerer's term.
        term: Term,
        /// The claim answered (its term and candidate), echoed.
        granted: bool,
        /// Signatures with what they are signed for.
        signatures: Vec<(SignedFor, Signature)>,
    },
    /// Replicate. Empty as a probe.
    Append {
        /// The leader's term.
        term: Term,
        /// Replication session of this peer in this term; answers echo it.
        session: u64,
        /// Entry before the first.
        prev_index: LogIndex,
        /// Its term.
        prev_term: Term,
        /// The tree root at `prev_index`, when the leader has it at hand.
        prev_root: Option<Digest>,
        /// Encoded entries ([`Entry::encode`]) on the wire; shared in memory.
        #[serde(with = "wire_entries")]
        entries: Vec<Arc<Entry>>,
        /// The leader's commit index.
        commit: LogIndex,
        /// Sign the head at this size once durable, when not zero.
        sign_point: LogIndex,
        /// The election certificate, until the peer has answered in this term.
        election: Option<Arc<ElectionCertificate>>,
    },
    /// Answer to `Append`, after fsync.
    AppendReply {
        /// The answerer's term.
        term: Term,
        /// Echoed.
        session: u64,
        /// What became of it.
        result: AppendResult,
    },
    /// I lead.
    Heartbeat {
        /// The leader's term.
        term: Term,
        /// Replication session of this peer in this term; answers echo it.
        session: u64,
        /// min(commit, the peer's match).
        commit: LogIndex,
        /// As in `Append`.
        sign_point: LogIndex,
        /// The leader's wall clock, for the bound on clock differences.
        wall: u64,
        /// As in `Append`.
        election: Option<Arc<ElectionCertificate>>,
    },
    /// Answer to `Heartbeat`.
    HeartbeatReply {
        /// The answerer's term.
        term: Term,
        /// Echoed.
        session: u64,
        /// The answerer's wall clock.
        wall: u64,
        /// Size of the newest head certificate that the answerer holds.
        certified: u64,
    },
    /// You say you lead this term, and I have seen no election certificate: send it along.
    ProofWanted {
        /// The term.
        term: Term,
    },
    /// One member's signature on a head; one per table in force (current first).
    HeadShare {
        /// What is signed.
        head: Head,
        /// Signatures with what they are signed for.
        signatures: Vec<(SignedFor, Signature)>,
    },
    /// A quorum's. Receivers verify before they keep it.
    Certificate(Arc<HeadCertificate>),
    /// A leader's question.
    Ballot {
        /// The leader's term.
        term: Term,
        /// The question.
        ballot: Arc<Ballot>,
    },
    /// A member's answer, after fsync.
    Vote {
        /// The answerer's term.
        term: Term,
        /// Which ballot.
        id: ProposalId,
        /// The signed answer.
        statement: VoteStatement,
        /// Under which table it is signed.
        under: SignedFor,
        /// The signature.
        signature: Signature,
    },
}

impl Message {
    /// The term that a receiver may adopt from it.
    pub(super) fn term(&self) -> Option<Term> {
        match self {
            Self::PreVote { term, .. }
            | Self::PreVoteReply { term, .. }
            | Self::RequestVoteReply { term, .. }
            | Self::Append { term, .. }
            | Self::AppendReply { term, .. }
            | Self::Heartbeat { term, .. }
            | Self::HeartbeatReply { term, .. }
            | Self::ProofWanted { term }
            | Self::Ballot { term, .. }
            | Self::Vote { term, .. } => Some(*term),
            Self::RequestVote { claim } => Some(claim.term),
            Self::HeadShare { .. } | Self::Certificate(_) => None,
        }
    }
}

/// What became of an `Append`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AppendResult {
    /// Durable here and equal to the leader's log up to this index (never beyond what the message covered).
    Durable(LogIndex),
    /// The previous entry did not match.
    Mismatch {
        /// The `prev_index` refused.
        refused: LogIndex,
        /// The last index here whose term is at most the refused entry's: where to look next.
        hint_index: LogIndex,
        /// Its term.
        hint_term: Term,
    },
}

/// Something for the pool of signers and verifiers. Completes by the input named at each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Crypto {
    /// → [`Input::VoteSigned`].
    SignElection {
        /// What.
        claim: ElectionClaim,
        /// Under which tables (one signature each).
        under: Vec<SignedFor>,
    },
    /// → [`Input::VoteVerified`] only when every signature verifies.
    VerifyElection {
        /// Whose.
        from: NodeId,
        /// What.
        claim: ElectionClaim,
        /// The signatures.
        signatures: Vec<(SignedFor, Signature)>,
    },
    /// Aggregates already verified signatures, a list per table. → [`Input::ElectionCertified`].
    CertifyElection {
        /// What.
        claim: ElectionClaim,
        /// Verified signatures.
        signatures: Vec<(SignedFor, Vec<(NodeId, Signature)>)>,
    },
    /// → [`Input::LeaderProved`].
    VerifyElectionCertificate {
        /// What.
        certificate: Arc<ElectionCertificate>,
    },
    /// → [`Input::HeadSigned`].
    SignHead {
        /// What.
        head: Head,
        /// Under which tables.
        under: Vec<SignedFor>,
    },
    /// → [`Input::ShareVerified`] only when every signature verifies.
    VerifyShare {
        /// Whose.
        from: NodeId,
        /// What.
        head: Head,
        /// The signatures.
        signatures: Vec<(SignedFor, Signature)>,
    },
    /// Aggregates already verified shares. → [`Input::HeadCertified`].
    CertifyHead {
        /// What.
        head: Head,
        /// Verified signatures, a list per table.
        signatures: Vec<(SignedFor, Vec<(NodeId, Signature)>)>,
    },
    /// Against the tables in force at that head. → [`Input::CertificateVerified`].
    VerifyCertificate {
        /// What.
        certificate: Arc<HeadCertificate>,
    },
    /// → [`Input::BallotSigned`].
    SignVote {
        /// Which ballot.
        id: ProposalId,
        /// What.
        statement: VoteStatement,
        /// Under which table.
        under: SignedFor,
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
    },
    /// Aggregates already verified votes of a decided ballot. → [`Input::Tallied`].
    Tally {
        /// Which ballot.
        id: ProposalId,
        /// Whose grants.
        grants: Vec<(NodeId, Signature)>,
        /// Whose denials.
        denials: Vec<(NodeId, Signature)>,
    },
}

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
        /// The signature.
        signature: Signature,
    },
    /// See [`Crypto::Tally`].
    Tallied {
        /// Which ballot.
        id: ProposalId,
        /// The tally.
        tally: crate::certificate::Tally,
    },
}

/// What the core wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Send. Whatever had to be durable first already is.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Make durable, in order. → [`Input::Persisted`].
    Persist {
        /// Ascending by one.
        seq: u64,
        /// What.
        write: Write,
    },
    /// For the crypto pool.
    Crypto(Crypto),
    /// Read `from..` (at most `max_bytes`, at least one entry) back for a peer. → [`Input::Fetched`].
    Fetch {
        /// For whom.
        peer: NodeId,
        /// Echoed.
        session: u64,
        /// First index wanted.
        from: LogIndex,
        /// Last index wanted.
        to: LogIndex,
    },
    /// These entries are committed: apply them, in order. → [`Input::Applied`].
    Commit {
        /// Consecutive entries, from the one after the last committed.
        entries: Vec<Arc<Entry>>,
        /// The commit index (that of the last entry).
        index: LogIndex,
    },
    /// A certificate is stored (or about to be, in an earlier `Persist`): everything up to its size is certified.
    Certified(Arc<HeadCertificate>),
    /// Answer to [`Input::Submit`].
    Admitted {
        /// Echoed.
        handle: u64,
        /// How.
        admission: Admission,
    },
    /// A question to this member: answer by [`Input::Decide`]. Asked again when the leader asks again.
    Ask {
        /// The question.
        ballot: Arc<Ballot>,
    },
    /// A question is moot (decided, expired or its leader gone).
    Withdraw {
        /// Which.
        id: ProposalId,
    },
    /// A role or leader changed.
    Role {
        /// The role now.
        role: Role,
        /// The term now.
        term: Term,
        /// The leader, when known.
        leader: Option<NodeId>,
    },
    /// Something an operator should know.
    Alarm(Alarm),
    /// A promise was broken (not by this node): stop, say why, and do not come back by itself.
    Halt(Halt),
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
    /// The tree before the first of `tail`.
    pub frontier: crate::certificate::merkle::Frontier,
    /// Where terms begin: (first index, term), ascending, for the log before `tail`.
    pub terms: Vec<(LogIndex, Term)>,
    /// `proposed_at` of the entry before `tail`.
    pub last_proposed_at: u64,
    /// All entries after `frontier.size()`.
    pub tail: Vec<Arc<Entry>>,
}

/// Entries travel as their canonical bytes, so that a receiver checks each one as it decodes it.
mod wire_entries {
    use super::{Arc, Entry};
    use serde::{Deserialize, Deserializer, Serializer, ser::SerializeSeq};

    pub(super) fn serialize<S: Serializer>(entries: &[Arc<Entry>], s: S) -> Result<S::Ok, S::Error> {
        let mut seq = s.serialize_seq(Some(entries.len()))?;
        for e in entries {
            seq.serialize_element(serde_bytes::Bytes::new(&e.encode()))?;
        }
        seq.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Arc<Entry>>, D::Error> {
        let raw: Vec<serde_bytes::ByteBuf> = Vec::deserialize(d)?;
        raw.iter().map(|b| Entry::decode(b).map(Arc::new).map_err(serde::de::Error::custom)).collect()
    }
}
