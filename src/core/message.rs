//! What cores say to each other.

use super::types::{Ballot, SnapshotOffer};
use crate::certificate::{
    ElectionCertificate, ElectionClaim, Entry, EpochChain, Head, HeadCertificate, PublicKey, Signature, SignedFor,
    VoteStatement,
};
use crate::ids::{Digest, Epoch, LogIndex, ProposalId, Term};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
        /// The newest epoch that the asker knows to be in force, so that one who missed changes is told of them.
        epoch: Epoch,
        /// By which of the receiver's keys its vote would count. A store that holds none of them would not vote, so it
        /// promises nothing either.
        keys: Vec<PublicKey>,
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
        /// Under which names the receiver's signature counts, and by which of its keys, as the tables in force at the
        /// end of the candidate's log say. The receiver may not know those tables: a learner that is really a voter
        /// must vote.
        under: Vec<(SignedFor, PublicKey)>,
        /// The leader asked the candidate to take over, so nobody needs to stick to it.
        transfer: bool,
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
        /// The receiver's keys in the leader's tables: one, or while it is being rotated the old and the new one. A store
        /// that does not hold them all is not the one that is meant (its disk was lost and it began anew, or the new key
        /// is another store's): it does not answer, for what it would promise others take for promises of old, or will
        /// take for the other store's.
        to_keys: Vec<PublicKey>,
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
    /// You lack entries that are gone here: begin after this snapshot.
    SnapshotOffer {
        /// The leader's term.
        term: Term,
        /// As in `Append`.
        session: u64,
        /// As in `Append`.
        to_keys: Vec<PublicKey>,
        /// The certified manifest.
        offer: Arc<SnapshotOffer>,
        /// As in `Append`.
        election: Option<Arc<ElectionCertificate>>,
    },
    /// A chunk of an offered snapshot is wanted.
    SnapshotWanted {
        /// The asker's term.
        term: Term,
        /// That of the offer.
        session: u64,
        /// The snapshot.
        index: LogIndex,
        /// Which chunk, from 0.
        chunk: u32,
    },
    /// A chunk. Believed because its manifest proves it.
    SnapshotChunk {
        /// The sender's term.
        term: Term,
        /// The snapshot.
        index: LogIndex,
        /// Which chunk, from 0.
        chunk: u32,
        /// Its bytes.
        #[serde(with = "wire_bytes")]
        bytes: Arc<Vec<u8>>,
        /// Its inclusion path in the tree of chunks.
        path: Vec<Digest>,
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
        /// As in `Append`.
        to_keys: Vec<PublicKey>,
        /// The newest round of reads; the answer echoes it.
        round: u64,
        /// min(commit, the peer's match).
        commit: LogIndex,
        /// The leader's commit index: tells the receiver how far behind it is, and nothing else.
        committed: LogIndex,
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
        /// Echoed.
        round: u64,
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
    /// The leader's certificate names tables that I do not know: what changes came after this epoch?
    EpochsWanted {
        /// The newest epoch known to be in force.
        above: Epoch,
    },
    /// Membership changes, proved one by one. Believed after verification only.
    Epochs {
        /// The steps from the epoch asked about on.
        #[serde(with = "wire_chain")]
        chain: EpochChain,
        /// The `Epoch` entry of the change in flight after them, if any.
        #[serde(with = "wire_entries")]
        in_flight: Vec<Arc<Entry>>,
        /// The newest epoch that the sender knows to be in force for good: whoever is left out of it may go.
        in_force: Epoch,
    },
    /// Up to where must I have applied the log for a linearizable read?
    ReadIndex {
        /// The asker's term.
        term: Term,
        /// Never used twice.
        context: u64,
    },
    /// Answer to `ReadIndex`.
    ReadIndexReply {
        /// The answerer's term.
        term: Term,
        /// Echoed.
        context: u64,
        /// The index; `None` when the answerer does not lead.
        index: Option<LogIndex>,
    },
    /// Take over: stand for election at once.
    TimeoutNow {
        /// The leader's term.
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
            | Self::SnapshotOffer { term, .. }
            | Self::SnapshotWanted { term, .. }
            | Self::SnapshotChunk { term, .. }
            | Self::Heartbeat { term, .. }
            | Self::HeartbeatReply { term, .. }
            | Self::ProofWanted { term }
            | Self::ReadIndex { term, .. }
            | Self::ReadIndexReply { term, .. }
            | Self::TimeoutNow { term }
            | Self::Ballot { term, .. }
            | Self::Vote { term, .. } => Some(*term),
            Self::RequestVote { claim, .. } => Some(claim.term),
            Self::HeadShare { .. } | Self::Certificate(_) | Self::EpochsWanted { .. } | Self::Epochs { .. } => None,
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

/// As [`wire_entries`], for one.
pub(super) mod wire_entry {
    use super::{Arc, Entry};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(entry: &Arc<Entry>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&entry.encode())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Arc<Entry>, D::Error> {
        let raw = serde_bytes::ByteBuf::deserialize(d)?;
        Entry::decode(&raw).map(Arc::new).map_err(serde::de::Error::custom)
    }
}

/// Entries travel as their canonical bytes, so that a receiver checks each one as it decodes it.
pub(crate) mod wire_entries {
    use super::{Arc, Entry};
    use serde::{Deserialize, Deserializer, Serializer, ser::SerializeSeq};

    pub(crate) fn serialize<S: Serializer>(entries: &[Arc<Entry>], s: S) -> Result<S::Ok, S::Error> {
        let mut seq = s.serialize_seq(Some(entries.len()))?;
        for e in entries {
            seq.serialize_element(serde_bytes::Bytes::new(&e.encode()))?;
        }
        seq.end()
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Arc<Entry>>, D::Error> {
        let raw: Vec<serde_bytes::ByteBuf> = Vec::deserialize(d)?;
        raw.iter().map(|b| Entry::decode(b).map(Arc::new).map_err(serde::de::Error::custom)).collect()
    }
}

/// Shared in memory; bytes on the wire.
mod wire_bytes {
    use super::Arc;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Arc<Vec<u8>>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Arc<Vec<u8>>, D::Error> {
        serde_bytes::ByteBuf::deserialize(d).map(|b| Arc::new(b.into_vec()))
    }
}

/// A chain travels as its canonical bytes.
mod wire_chain {
    use super::EpochChain;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(chain: &EpochChain, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&chain.encode())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<EpochChain, D::Error> {
        let raw = serde_bytes::ByteBuf::deserialize(d)?;
        EpochChain::decode(&raw).map_err(serde::de::Error::custom)
    }
}
