//! Questions about the log, its certificates and the node itself.

use super::epochs::epoch_of;
use super::handle::Handle;
pub use super::search::SearchError;
use super::shared::json;
use crate::api::{
    CertificatePage, Compaction, ConsensusSnapshot, DatabaseStatus, EntryPage, EntryView, Installing, MemberStatus,
    ProposalState, ProposalStatus, Standing, Status,
};
use crate::certificate::{
    CommitCertificate, Entry, EpochChain, HeadCertificate, Header, Kind, Receipt, Request, Role as MemberRole,
};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId};
use crate::limits::{MAX_APPEND_BYTES, MAX_PAGE};
use crate::storage::{ReadError, Rotated};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::sync::Arc;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No such thing in this log (yet).
    #[error("{what} is not in this node's log")]
    NotFound {
        /// What.
        what: String,
    },
    /// Committed, but no head certificate covers it yet.
    #[error("entry {index} is not certified yet (certified up to {certified}); ask again in a moment")]
    NotCertified {
        /// Which.
        index: LogIndex,
        /// How far certificates reach.
        certified: LogIndex,
    },
    /// Its payload is pruned: a snapshot stands for it. Header, certificates and receipt are kept.
    #[error(
        "the payload of entry {index} is pruned here: payloads begin at {first}; its header, certificate and receipt are kept"
    )]
    Pruned {
        /// Which.
        index: LogIndex,
        /// The first entry whose payload is here.
        first: LogIndex,
    },
    /// This node began with a snapshot, and what lies before is not filled in yet.
    #[error(
        "entry {index} is not on this node yet, which began with a snapshot: it holds headers from {from} on and is filling in those before; ask again later, or another node"
    )]
    NotHere {
        /// Which.
        index: LogIndex,
        /// The first entry whose header is here.
        from: LogIndex,
    },
    /// What was searched for makes no sense.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The database did not move to a fresh one.
    #[error("no disk space is given back: {why}")]
    NotCompacted {
        /// Why.
        why: String,
    },
    /// An entry of the cluster that this one succeeds.
    #[error(
        "entry {index} is of the cluster that this one succeeds ({genesis}, {size} entries): it stands in that cluster's backup"
    )]
    Predecessor {
        /// Which.
        index: LogIndex,
        /// That cluster's entries.
        size: u64,
        /// Its genesis.
        genesis: Digest,
    },
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(ReadError),
}

impl From<ReadError> for QueryError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Compacted { index, base } => Self::Pruned { index, first: base.next() },
            ReadError::NotHere { index, from } => Self::NotHere { index, from },
            other => Self::Store(other),
        }
    }
}

pub(super) fn not_found(what: impl std::fmt::Display) -> QueryError {
    QueryError::NotFound { what: what.to_string() }
}

impl Handle {
    pub(super) fn applied(&self) -> LogIndex {
        *self.shared.applied.borrow()
    }

    /// The first entry of this cluster: 1, or the one after those of the cluster that it succeeds.
    #[must_use]
    pub fn first_entry(&self) -> LogIndex {
        LogIndex(self.shared.genesis.begins_after()).next()
    }

    fn check_own(&self, index: LogIndex) -> Result<(), QueryError> {
        match &self.shared.genesis.succeeds {
            Some(before) if index.0 <= before.size() && index > LogIndex::ZERO => {
                Err(QueryError::Predecessor { index, size: before.size(), genesis: before.genesis_id })
            }
            _ => Ok(()),
        }
    }

    fn committed_entry(&self, index: LogIndex) -> Result<Arc<Entry>, QueryError> {
        self.check_own(index)?;
        let missing = || not_found(format!("entry {index}"));
        if index == LogIndex::ZERO || index > self.applied() {
            return Err(missing());
        }
        self.shared.store.entry(index)?.ok_or_else(missing)
    }

    /// Where a proposal stands. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn proposal(&self, id: &ProposalId) -> Result<ProposalStatus, QueryError> {
        let index = self.shared.store.index_of(id)?.ok_or_else(|| not_found(format!("proposal {id}")))?;
        let entry = self.committed_entry(index)?;
        let request = entry.body.request.clone().ok_or_else(|| not_found(format!("proposal {id}")))?;
        let outcome = self.shared.replica().outcome(index).cloned();
        let state = match entry.header.kind {
            Kind::Aborted => ProposalState::Aborted,
            _ if self.shared.certified_size() >= index.0 => ProposalState::Certified,
            _ => ProposalState::Committed,
        };
        Ok(ProposalStatus {
            id: Some(*id),
            state,
            index: Some(index),
            abort_reason: entry.header.abort_reason,
            repeated: matches!(outcome, Some(crate::registry::Outcome::Repeat { .. })),
            outcome,
            client: request.client,
            request_id: request.request_id,
        })
    }

    /// Where the proposal of a request stands. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn request(&self, client: &str, request_id: &str) -> Result<ProposalStatus, QueryError> {
        let key = Request { client: client.into(), request_id: request_id.into(), deadline_ms: 0 }.key();
        let mut status = ProposalStatus {
            id: None,
            state: ProposalState::Pending,
            index: None,
            abort_reason: None,
            outcome: None,
            repeated: false,
            client: client.into(),
            request_id: request_id.into(),
        };
        self.fill(&key, &mut status).ok_or_else(|| not_found(format!("request {request_id:?} of {client:?}")))?;
        Ok(status)
    }

    /// Committed entries. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn entries(&self, from: LogIndex, limit: usize) -> Result<EntryPage, QueryError> {
        let (from, applied) = (from.max(self.first_entry()), self.applied());
        let to = LogIndex((from.0 - 1).saturating_add(limit.clamp(1, MAX_PAGE) as u64)).min(applied);
        let base = self.shared.store.base();
        let entries: Vec<EntryView> = if from > to {
            Vec::new()
        } else if from <= base {
            self.below(from, to.min(base))?
        } else {
            self.shared.store.read(from, to, MAX_APPEND_BYTES)?.iter().map(|e| view(e)).collect()
        };
        let next = entries.last().map(|e| e.index.next()).filter(|n| *n <= applied);
        Ok(EntryPage { entries, next, commit_index: applied })
    }

    /// Entries that a snapshot stands for: their headers, and what is kept besides.
    fn below(&self, from: LogIndex, to: LogIndex) -> Result<Vec<EntryView>, QueryError> {
        let records = (from.0..=to.0).map(LogIndex).map(|index| {
            let record = self.shared.store.record(index)?.ok_or_else(|| not_found(format!("entry {index}")))?;
            Ok(match record {
                (header, Some(body)) => view_of(&header, Some(&Entry { header: header.clone(), body })),
                (header, None) => view_of(&header, None),
            })
        });
        records.collect()
    }

    /// One committed entry. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn entry(&self, index: LogIndex) -> Result<EntryView, QueryError> {
        self.check_own(index)?;
        if index > LogIndex::ZERO && index <= self.shared.store.base().min(self.applied()) {
            return self.below(index, index)?.pop().ok_or_else(|| not_found(format!("entry {index}")));
        }
        Ok(view(&*self.committed_entry(index)?))
    }

    /// The receipt of one entry. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn receipt(&self, index: LogIndex) -> Result<Receipt, QueryError> {
        self.check_own(index)?;
        let missing = || not_found(format!("entry {index}"));
        let committed = (LogIndex(1)..=self.applied()).contains(&index);
        let record = if committed { self.shared.store.record(index)? } else { None };
        // A receipt proves the entry with its payload pruned, too.
        let (header, body) = record.ok_or_else(missing)?;
        let certificate = self.certificate_for(&header)?;
        let size = certificate.head.size;
        let last_header =
            self.shared.store.header(LogIndex(size))?.ok_or_else(|| not_found(format!("entry {size}")))?;
        let store = &self.shared.store;
        // As many changes as the head's tables take; of one in flight, the head itself is the joint certificate.
        let upto = Epoch(last_header.epoch.0 + u64::from(certificate.halves.len() > 1));
        let outline = self.shared.replica().epochs.chain(Epoch::ZERO, upto, Some(&certificate));
        let chain = outline.prove(store, usize::MAX)?;
        Ok(Receipt {
            header,
            body,
            path: store.inclusion_path(index.0 - 1, size)?,
            certificate: (*certificate).clone(),
            last_header,
            last_path: store.inclusion_path(size - 1, size)?,
            chain,
        })
    }

    /// The receipt of a proposal. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn receipt_of(&self, id: &ProposalId) -> Result<Receipt, QueryError> {
        let index = self.shared.store.index_of(id)?.ok_or_else(|| not_found(format!("proposal {id}")))?;
        self.receipt(index)
    }

    /// The smallest head certificate that covers an entry, of those that are announced: durable, and within what is
    /// applied (and so indexed) here.
    fn certificate_for(&self, header: &Header) -> Result<Arc<HeadCertificate>, QueryError> {
        let index = header.index;
        let certified = LogIndex(self.shared.certified_size());
        // The store may hold one more, whose write is not durable yet.
        let shown = self.shared.store.certificate_covering(index)?.filter(|c| c.head.size <= certified.0);
        let shown = shown.ok_or(QueryError::NotCertified { index, certified })?;
        // What was granted by signing is proved by its own epoch's members only. A node that joined later holds no
        // certificate of that epoch but the one that closed it, which stands in the log.
        let epoch = header.epoch;
        if epoch_of(&shown) == epoch {
            return Ok(shown);
        }
        let closing = self.shared.replica().epochs.closing(epoch).filter(|c| c.head.size >= index.0).cloned();
        Ok(closing.map_or(shown, Arc::new))
    }

    /// What proves one entry, without the parts that only a receipt needs. Blocking.
    pub(super) fn commit_certificate(&self, entry: &Entry) -> Result<CommitCertificate, QueryError> {
        let certificate = self.certificate_for(&entry.header)?;
        let size = certificate.head.size;
        let last = self.shared.store.header(LogIndex(size))?.ok_or_else(|| not_found(format!("entry {size}")))?;
        let path = self.shared.store.inclusion_path(entry.index().0 - 1, size)?;
        let replica = self.shared.replica();
        let table = |epoch| replica.epochs.table(epoch).ok_or_else(|| not_found(format!("the table of epoch {epoch}")));
        let (own, current) = (table(entry.header.epoch)?, table(epoch_of(&certificate))?);
        let head = (*certificate).clone();
        CommitCertificate::assemble(&entry.header, own, last.proposed_at, head, current, path)
            .ok_or_else(|| not_found("a half of the certificate"))
    }

    /// The proofs of the membership changes above an epoch, at most one message full. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn epoch_chain(&self, above: Epoch) -> Result<EpochChain, QueryError> {
        let replica = self.shared.replica();
        let outline = replica.epochs.chain(above, replica.epochs.proved(), None);
        drop(replica);
        outline.prove(&self.shared.store, MAX_APPEND_BYTES)
    }

    /// Head certificates of sizes above `above`, ascending. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn certificates(&self, above: u64, limit: usize) -> Result<CertificatePage, QueryError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let certified = self.shared.certified_size();
        let mut found = self.shared.store.certificates(above, limit)?;
        found.retain(|c| c.head.size <= certified);
        let next = found.last().map(|c| c.head.size).filter(|_| found.len() == limit);
        Ok(CertificatePage { certificates: found.iter().map(|c| BASE64.encode(c.encode())).collect(), next })
    }

    /// The node at a glance.
    #[must_use]
    pub fn consensus_snapshot(&self) -> ConsensusSnapshot {
        let view = self.shared.view();
        let known = self.shared.tables().members().into_iter().filter(|d| *d != self.shared.id);
        let (committed_count, aborted_count) = self.registry(|state| (state.committed_count(), state.aborted_count()));
        ConsensusSnapshot {
            role: view.role,
            term: view.term,
            commit_index: view.committed,
            known_peers: known.collect(),
            pending_proposals: view.pending,
            committed_count,
            aborted_count,
        }
    }

    /// The node and its members.
    #[must_use]
    pub fn status(&self) -> Status {
        let (shared, view) = (&self.shared, self.shared.view());
        let certificate = shared.certificate.borrow().clone();
        let tables = shared.tables();
        let (history_from, history_complete) = shared.history();
        let standing = match tables.row(&shared.id) {
            _ if view.retired => Standing::Retired,
            None => Standing::Waiting,
            Some(row) if !shared.holds(&row.bls_key) => Standing::Waiting,
            Some(row) if row.role == MemberRole::Learner => Standing::Learner,
            Some(_) => Standing::Voter,
        };
        let members = tables.newest().table.members().iter().map(|m| MemberStatus {
            id: m.did,
            address: m.address.clone(),
            http: shared.http_address(&m.did),
            role: m.role,
            policy: m.policy,
            connected: m.did == shared.id || shared.transport.connected(&m.did),
            match_index: view.matched.get(&m.did).copied(),
        });
        Status {
            id: shared.id,
            cluster: shared.genesis.name.clone(),
            genesis_id: shared.genesis_id,
            snapshot: self.consensus_snapshot(),
            leader: view.leader,
            first_index: view.compacted.next().min(view.last),
            snapshot_index: Some(view.snapshot).filter(|index| *index > LogIndex::ZERO),
            database: self.database(),
            history_from,
            history_complete,
            mended: shared.mended,
            installing: view.installing.map(|(index, here, chunks)| Installing { index, here, chunks }),
            last_index: view.last,
            durable_index: view.durable,
            applied_index: self.applied(),
            certified_index: LogIndex(certificate.as_ref().map_or(0, |c| c.head.size)),
            certified_root: certificate.map(|c| c.head.root),
            epoch: tables.current().epoch.0,
            next_epoch: tables.next().map(|t| t.epoch.0),
            standing,
            safe_to_stop: standing == Standing::Retired,
            members: members.collect(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Bytes that the files of the database take; zero when they cannot be looked at.
    pub(super) fn database_bytes(&self) -> u64 {
        self.shared.store.space().map_or(0, |space| space.file)
    }

    fn database(&self) -> DatabaseStatus {
        let moving = self.shared.moving();
        DatabaseStatus { bytes: self.database_bytes(), moved: moving.moved, last: moving.last.map(compaction) }
    }

    /// Moves this node's database to a fresh one, so that the disk gets back what pruned entries took, and returns when
    /// that is done. Whoever asks while one is under way waits for the same.
    ///
    /// # Errors
    /// [`QueryError::NotCompacted`].
    pub async fn compact_database(&self) -> Result<Compaction, QueryError> {
        let closing = || QueryError::NotCompacted { why: "the node is shutting down".into() };
        let (done, told) = tokio::sync::oneshot::channel();
        self.shared.jobs().ok_or_else(closing)?.rotate(done);
        let ended = told.await.map_err(|_| closing())?;
        ended.map(compaction).map_err(|why| QueryError::NotCompacted { why })
    }

    /// Why this node is not ready to serve, or `None` when it is: a leader is known and what is committed is applied.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        let view = self.shared.view();
        let applied = self.applied();
        if self.shared.ended.borrow().is_some() {
            Some("the node has stopped".into())
        } else if view.leader.is_none() {
            Some("no leader is known".into())
        } else if view.known_commit.0.saturating_sub(view.durable.0) > MAX_PAGE as u64 {
            // A few are always on their way while the leader takes proposals.
            Some(format!("catching up: {} of {} entries are here", view.durable, view.known_commit))
        } else if view.known_commit.0.saturating_sub(applied.0) > MAX_PAGE as u64 {
            Some(format!("catching up: {applied} of {} entries are applied", view.known_commit))
        } else {
            None
        }
    }

    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.shared.id
    }
}

fn view(entry: &Entry) -> EntryView {
    view_of(&entry.header, Some(entry))
}

/// Without the entry when its payload is pruned.
pub(super) fn view_of(header: &Header, entry: Option<&Entry>) -> EntryView {
    let payload = entry.filter(|_| header.kind == Kind::Proposal).map(|entry| json(&entry.body.payload));
    EntryView {
        index: header.index,
        term: header.term,
        kind: header.kind,
        id: header.proposal_id,
        proposed_at: header.proposed_at,
        header: hex::encode(header.encode()),
        entry: entry.map(|entry| BASE64.encode(entry.encode())),
        payload,
    }
}

fn compaction(rotated: Rotated) -> Compaction {
    Compaction {
        bytes_before: rotated.before,
        bytes_after: rotated.after,
        records: rotated.records,
        pause_us: u64::try_from(rotated.pause.as_micros()).unwrap_or(u64::MAX),
    }
}
