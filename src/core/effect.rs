//! What a core wants done.

#[cfg(doc)]
use super::Input;
use super::message::Message;
use super::tables::Tables;
use super::types::{Admission, Alarm, Ballot, ChangeRefusal, Crypto, Halt, MarkRefusal, Role, Transfer, Write};
use crate::certificate::{Entry, HeadCertificate, Member, SnapshotManifest, TableInForce};
use crate::ids::{Epoch, LogIndex, NodeId, ProposalId, Term};
use std::sync::Arc;

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
    /// What became of a wish for a mark: its index, or why there is none.
    Marked {
        /// Echoed.
        handle: u64,
        /// What.
        outcome: Result<LogIndex, MarkRefusal>,
    },
    /// Read a chunk of a snapshot for a peer. → [`Input::ChunkFetched`], always.
    FetchChunk {
        /// For whom.
        peer: NodeId,
        /// Echoed.
        session: u64,
        /// Which snapshot.
        index: LogIndex,
        /// Which chunk.
        chunk: u32,
    },
    /// Make room for a snapshot's chunks, and tell which are here already; what is here of another unfinished one may go.
    /// → [`Input::SnapshotStaged`]. This and the next four are carried out in order.
    StageSnapshot {
        /// Its manifest, verified.
        manifest: Arc<SnapshotManifest>,
    },
    /// Keep a chunk, which its manifest proves. It need not be durable yet. → [`Input::ChunkStored`].
    StoreChunk {
        /// Which snapshot.
        index: LogIndex,
        /// Which chunk.
        chunk: u32,
        /// Its bytes.
        bytes: Arc<Vec<u8>>,
    },
    /// All chunks are here: check the whole image, make it durable and tell what a log after it rests on.
    /// → [`Input::SnapshotReady`].
    CompleteSnapshot {
        /// Its manifest.
        manifest: Arc<SnapshotManifest>,
    },
    /// The log got there by itself: what was fetched of this snapshot may go.
    AbandonSnapshot {
        /// Which.
        index: LogIndex,
    },
    /// The log begins after this snapshot, durably: its state takes the place of the applied one, in order with `Commit`.
    /// → [`Input::Applied`].
    Restore {
        /// Which.
        index: LogIndex,
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
    /// A read may be served once this index is applied here.
    ReadReady {
        /// Echoed.
        handle: u64,
        /// The index.
        index: LogIndex,
    },
    /// A read cannot be served: no leader is known, or it changed meanwhile. Ask again.
    ReadRefused {
        /// Echoed.
        handle: u64,
    },
    /// What became of a transfer.
    Transferred {
        /// Echoed.
        handle: u64,
        /// What.
        outcome: Transfer,
    },
    /// What became of a membership change: the epoch in force, committed; or why not.
    Changed {
        /// Echoed.
        handle: u64,
        /// What.
        outcome: Result<Epoch, ChangeRefusal>,
    },
    /// Collect the proofs of the membership changes above an epoch, as many as go into one message, for a peer.
    /// → [`Input::EpochsFetched`].
    FetchEpochs {
        /// For whom.
        peer: NodeId,
        /// The epoch above which.
        above: Epoch,
    },
    /// The tables in force changed, or others became known: connect to these members, and let go of others.
    Membership {
        /// In force at the end of the log.
        tables: Arc<Tables>,
        /// Members of tables that are proved but not in this log yet.
        ahead: Vec<Arc<TableInForce>>,
        /// Those left out by the last change. They are to be told so; and a leader among them leads, and wants answers,
        /// until its removal is committed. So connections with them are kept until the next change.
        leaving: Vec<Member>,
    },
    /// A table is in force for good: its `EpochFinal` is committed. Keys of earlier tables that this one does not name are
    /// of no use any more.
    InForce(Arc<TableInForce>),
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
