//! The calls, typed. Queries fail with the node's [`Refusal`]; operations with their own error.

use super::call::{Answer, Call, Failure, Whom};
use super::{Client, Options, Refusal};
use crate::api::{
    AgentPage, AsOf, CallError, CertificatePage, ChangeError, ChangeMembers, ChangedMembers, Compaction, ConfigPage,
    ConfigView, Consistency, EntryPage, EntryView, HistoryPage, MarkError, Marked, Members, NewKey, OpenBallot,
    OpenBallots, ProposalStatus, Propose, ProposeError, Search, SearchPage, Status, TransferError, TransferLeadership,
    Transferred, VoteError, VoteRequest,
};
use crate::ids::{Epoch, LogIndex, NodeId, ProposalId};
use crate::limits::{
    DEFAULT_REQUEST_HORIZON_MS, DEFAULT_TTL_MS, DEFAULT_WAIT_EXTRA_MS, MAX_HTTP_BODY, MAX_PAGE, MAX_PAYLOAD,
    MAX_REQUEST_HORIZON_MS,
};
use crate::registry::{AgentRecord, AgentStatus};
use bytes::Bytes;
use rand::TryRngCore;
use rand::rngs::OsRng;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a node may take longer than the wait that it was asked for, before another is tried.
const GRACE: Duration = Duration::from_secs(2);
/// How long a database may take to be copied.
const COMPACTION: Duration = Duration::from_secs(4 * 3600);
/// What a node may take over a query before another is tried.
const QUERY: Duration = Duration::from_secs(10);

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// Which part of a long answer. An answer may hold fewer than `limit`; its `next` says where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The first wanted.
    pub from: T,
    /// At most so many, 1–1,000.
    pub limit: usize,
}

impl<T: Default> Default for Page<T> {
    /// The first thousand.
    fn default() -> Self {
        Self { from: T::default(), limit: MAX_PAGE }
    }
}

/// Names an entry whose receipt is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptOf {
    /// By position.
    Entry(LogIndex),
    /// By proposal.
    Proposal(ProposalId),
}

impl From<LogIndex> for ReceiptOf {
    fn from(index: LogIndex) -> Self {
        Self::Entry(index)
    }
}

impl From<ProposalId> for ReceiptOf {
    fn from(id: ProposalId) -> Self {
        Self::Proposal(id)
    }
}

/// How long a request with a made-up id is remembered beyond the last try and its time to live, for clocks that differ.
const UNNAMED_EXTRA_MS: u64 = 60_000;

/// What a query answers.
type Queried<T> = Result<T, CallError<Refusal>>;

impl Client {
    /// Proposes, and waits as `propose.wait` says for at most `propose.wait_ms` (within the client's deadline when
    /// absent). A proposal without a request id gets one made up, so that it is applied once however often it is sent;
    /// one without a deadline gets one that is the same for all tries of this call. Whoever calls again with the same
    /// request id must give it the same `deadline_ms`, or after the first deadline it is another request.
    ///
    /// # Errors
    /// [`ProposeError`] as the node says it. After [`CallError::Unreachable`] the proposal may have been taken: ask
    /// for it by its request id ([`Client::request`]), or propose again with the same one.
    pub async fn propose_with(&self, mut propose: Propose) -> Result<ProposalStatus, CallError<ProposeError>> {
        let options = &self.inner.options;
        if propose.client.is_none() {
            propose.client.clone_from(&options.client);
        }
        let ttl_ms = propose.ttl_ms.unwrap_or(DEFAULT_TTL_MS);
        let usual = ttl_ms.saturating_add(DEFAULT_WAIT_EXTRA_MS);
        let most = millis(options.deadline);
        let wait_ms = *propose.wait_ms.get_or_insert_with(|| usual.min(most));
        let attempt = Duration::from_millis(wait_ms).saturating_add(GRACE);
        let total = options.deadline.max(attempt);
        // Fixed here, once for all tries: were each node to choose one, a try whose answer was lost and the next would
        // differ in it.
        let horizon = match propose.request_id {
            Some(_) => DEFAULT_REQUEST_HORIZON_MS,
            // Only this call can repeat it.
            None => {
                millis(total).saturating_add(ttl_ms).saturating_add(UNNAMED_EXTRA_MS).min(MAX_REQUEST_HORIZON_MS / 2)
            }
        };
        propose.deadline_ms.get_or_insert_with(|| wall_ms().saturating_add(horizon));
        if propose.request_id.is_none() {
            propose.request_id = Some(fresh_id().map_err(Failure::typed)?);
        }
        let body = to_body(&propose).map_err(Failure::typed)?;
        if body.len() > MAX_HTTP_BODY {
            // Refused here: the node would close the connection before it has read the body.
            let error = ProposeError::PayloadTooLarge { size: body.len(), limit: MAX_PAYLOAD };
            return Err(CallError::Refused(error));
        }
        let call = Call {
            whom: Whom::Any,
            method: Method::POST,
            segments: &["v1", "proposals"],
            query: &[],
            accept: JSON,
            body: Some(body),
            attempt,
            total,
        };
        self.call(&call).await.and_then(|answer| answer.json()).map_err(Failure::typed)
    }

    /// Where a proposal stands.
    ///
    /// # Errors
    /// [`Refusal`] `not_found` when the node asked does not know it.
    pub async fn proposal(&self, id: ProposalId) -> Queried<ProposalStatus> {
        self.get(&["v1", "proposals", &id.to_string()], &[]).await
    }

    /// Where the proposal of a request stands. `client` is the identity it was made under; `anonymous` when `None`.
    ///
    /// # Errors
    /// [`Refusal`] `not_found` when the node asked does not know it.
    pub async fn request(&self, client: Option<&str>, request_id: &str) -> Queried<ProposalStatus> {
        let mut query = vec![("request_id", request_id)];
        query.extend(client.map(|client| ("client", client)));
        self.get(&["v1", "requests"], &query).await
    }

    /// Casts the vote of the member whose node is the first of this client. Never another member's.
    ///
    /// # Errors
    /// [`VoteError`].
    pub async fn cast_vote(&self, id: ProposalId, granted: bool) -> Result<(), CallError<VoteError>> {
        let body = to_body(&VoteRequest { granted }).map_err(Failure::typed)?;
        let call = Call {
            whom: Whom::First,
            method: Method::POST,
            segments: &["v1", "proposals", &id.to_string(), "votes"],
            query: &[],
            accept: JSON,
            body: Some(body),
            attempt: QUERY,
            total: self.inner.options.deadline,
        };
        self.call(&call).await.map(drop).map_err(Failure::typed)
    }

    /// The ballots that wait for the member whose node is the first of this client.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn ballots(&self) -> Queried<Vec<OpenBallot>> {
        let answer = self.fetch(Whom::First, &["v1", "ballots"], &[], JSON).await;
        let ballots: Result<OpenBallots, _> = answer.and_then(|answer| answer.json());
        ballots.map(|b| b.ballots).map_err(Failure::refused)
    }

    /// One committed entry.
    ///
    /// # Errors
    /// [`Refusal`] `not_found` beyond the commit index of the node asked.
    pub async fn entry(&self, index: LogIndex) -> Queried<EntryView> {
        self.get(&["v1", "entries", &index.to_string()], &[]).await
    }

    /// Committed entries from an index on, at most `limit` (1–1,000); a page may be shorter, `next` says where the next
    /// begins.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn entries(&self, from: LogIndex, limit: usize) -> Queried<EntryPage> {
        self.get(&["v1", "entries"], &[("from", &from.to_string()), ("limit", &limit.to_string())]).await
    }

    /// A receipt in canonical bytes ([`crate::certificate::Receipt::decode`]). Waits for the entry to be certified.
    ///
    /// # Errors
    /// [`Refusal`] `not_found`, or `not_certified` when the deadline passes first.
    pub async fn receipt(&self, of: impl Into<ReceiptOf>) -> Queried<Bytes> {
        self.receipt_as(of.into(), BYTES).await.map(|answer| answer.body).map_err(Failure::refused)
    }

    /// A receipt as a JSON file ([`crate::certificate::Receipt::from_json`]). Waits for the entry to be certified.
    ///
    /// # Errors
    /// As [`Client::receipt`].
    pub async fn receipt_json(&self, of: impl Into<ReceiptOf>) -> Queried<String> {
        self.receipt_as(of.into(), JSON).await.and_then(Answer::text).map_err(Failure::refused)
    }

    async fn receipt_as(&self, of: ReceiptOf, accept: &'static str) -> Result<Answer, Failure> {
        match of {
            ReceiptOf::Entry(index) => {
                self.fetch(Whom::Any, &["v1", "receipts", &index.to_string()], &[], accept).await
            }
            ReceiptOf::Proposal(id) => {
                self.fetch(Whom::Any, &["v1", "proposals", &id.to_string(), "receipt"], &[], accept).await
            }
        }
    }

    /// A page of the entries that are searched for; `search.cursor` takes [`SearchPage::next`] of the one before.
    ///
    /// # Errors
    /// [`Refusal`] `invalid_search` when no entry can be meant.
    pub async fn search(&self, search: &Search) -> Queried<SearchPage> {
        let fields = serde_json::to_value(search).map_err(|e| CallError::Protocol { detail: e.to_string() })?;
        let fields = fields.as_object().into_iter().flatten();
        let fields: Vec<(&str, String)> = fields
            .map(|(name, value)| (&**name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect();
        let query: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, &**value)).collect();
        self.get(&["v1", "search"], &query).await
    }

    /// Head certificates of sizes above `above`, ascending, at most `limit` (1–1,000).
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn certificates(&self, above: u64, limit: usize) -> Queried<CertificatePage> {
        self.get(&["v1", "certificates"], &[("above", &above.to_string()), ("limit", &limit.to_string())]).await
    }

    /// The genesis file that a node pins ([`crate::certificate::Genesis::from_json`]). Whoever verifies must have it
    /// from a source that it trusts, which a node is not.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn genesis(&self) -> Queried<String> {
        self.text(&["v1", "genesis"]).await
    }

    /// A registered agent, as the node asked holds it.
    ///
    /// # Errors
    /// [`Refusal`] `not_found`.
    pub async fn agent(&self, agent_id: &str) -> Queried<AsOf<AgentRecord>> {
        self.read(&["v1", "registry", "agents", agent_id], &[]).await
    }

    /// Registered agents that have a capability with this tag and are in this status, in registration order.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn find(
        &self,
        capability: Option<&str>,
        status: Option<AgentStatus>,
        page: Page<usize>,
    ) -> Queried<AsOf<AgentPage>> {
        let (from, limit) = (page.from.to_string(), page.limit.to_string());
        let mut query = vec![("offset", &*from), ("limit", &*limit)];
        query.extend(capability.map(|tag| ("capability", tag)));
        query.extend(status.map(|status| ("status", status_text(status))));
        self.read(&["v1", "registry", "agents"], &query).await
    }

    /// The entries that changed an agent, also one that has left.
    ///
    /// # Errors
    /// [`Refusal`] `not_found` when it was never registered.
    pub async fn agent_history(&self, agent_id: &str, page: Page<LogIndex>) -> Queried<AsOf<HistoryPage>> {
        let (from, limit) = (page.from.to_string(), page.limit.to_string());
        let query = [("from", &*from), ("limit", &*limit)];
        self.read(&["v1", "registry", "agents", agent_id, "history"], &query).await
    }

    /// The value of a config key, as the node asked holds it.
    ///
    /// # Errors
    /// [`Refusal`] `not_found`.
    pub async fn config(&self, key: &str) -> Queried<AsOf<ConfigView>> {
        self.read(&["v1", "registry", "config", key], &[]).await
    }

    /// All config keys, ascending.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn configs(&self, page: Page<usize>) -> Queried<AsOf<ConfigPage>> {
        let (from, limit) = (page.from.to_string(), page.limit.to_string());
        self.read(&["v1", "registry", "config"], &[("offset", &from), ("limit", &limit)]).await
    }

    /// The entries that set a config key.
    ///
    /// # Errors
    /// [`Refusal`] `not_found` when it was never set.
    pub async fn config_history(&self, key: &str, page: Page<LogIndex>) -> Queried<AsOf<HistoryPage>> {
        let (from, limit) = (page.from.to_string(), page.limit.to_string());
        let query = [("history", "true"), ("from", &from), ("limit", &limit)];
        self.read(&["v1", "registry", "config", key], &query).await
    }

    /// A node and what it knows of its members: the one that answers; [`Client::each`] asks a certain one.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn status(&self) -> Queried<Status> {
        self.get(&["v1", "status"], &[]).await
    }

    /// Waits until a node is ready, at most until the client's deadline; [`Client::each`] asks a certain one.
    ///
    /// # Errors
    /// [`Refusal`] `not_ready` with the reason.
    pub async fn ready(&self) -> Queried<()> {
        self.fetch(Whom::Any, &["readyz"], &[], JSON).await.map(drop).map_err(Failure::refused)
    }

    /// A node's metrics in Prometheus text format.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn metrics(&self) -> Queried<String> {
        self.text(&["metrics"]).await
    }

    /// The member tables in force, as the node asked knows them.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn members(&self) -> Queried<Members> {
        self.get(&["v1", "members"], &[]).await
    }

    /// Changes the members; the leader is found by itself. Returns once the new table is in force, committed.
    ///
    /// # Errors
    /// [`ChangeError`]. After [`CallError::Unreachable`] the change may have been made: look at [`Client::members`].
    pub async fn change_members(&self, change: &ChangeMembers) -> Result<ChangedMembers, CallError<ChangeError>> {
        // A repeat after a lost answer must not be taken for another change: every attempt is for one epoch.
        let ttl = Duration::from_millis(change.ttl_ms.unwrap_or(DEFAULT_TTL_MS));
        self.post(Whom::Any, &["v1", "members"], change, ttl + QUERY).await.map_err(Failure::typed)
    }

    /// Hands leadership over; the leader is found by itself.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<Transferred, CallError<TransferError>> {
        let transfer = TransferLeadership { to };
        self.post(Whom::Any, &["v1", "leadership"], &transfer, QUERY).await.map_err(Failure::typed)
    }

    /// Appends a snapshot mark; the leader is found by itself.
    ///
    /// # Errors
    /// [`MarkError`].
    pub async fn mark_snapshot(&self) -> Result<Marked, CallError<MarkError>> {
        self.post(Whom::Any, &["v1", "snapshots"], &serde_json::json!({}), QUERY).await.map_err(Failure::typed)
    }

    /// Has the first of this client's nodes move its database to a fresh one, so that the disk gets back what pruned
    /// entries took. Returns when that is done, which takes as long as copying the database does.
    ///
    /// # Errors
    /// [`Refusal`] `not_compacted`.
    pub async fn compact(&self) -> Queried<Compaction> {
        self.post(Whom::First, &["v1", "compaction"], &serde_json::json!({}), COMPACTION)
            .await
            .map_err(Failure::refused)
    }

    /// Has the first of this client's nodes make a second BLS key in its store.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn make_key(&self) -> Queried<NewKey> {
        self.post(Whom::First, &["v1", "key"], &serde_json::json!({}), QUERY).await.map_err(Failure::refused)
    }

    /// The proofs of the membership changes above an epoch, as many as go into one answer
    /// ([`crate::certificate::EpochChain::decode`]).
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn epochs(&self, above: Epoch) -> Queried<Bytes> {
        let answer = self.fetch(Whom::Any, &["v1", "epochs"], &[("above", &above.to_string())], BYTES).await;
        answer.map(|answer| answer.body).map_err(Failure::refused)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        whom: Whom,
        segments: &[&str],
        body: &impl Serialize,
        attempt: Duration,
    ) -> Result<T, Failure> {
        let call = Call {
            whom,
            method: Method::POST,
            segments,
            query: &[],
            accept: JSON,
            body: Some(to_body(body)?),
            attempt,
            total: self.inner.options.deadline.max(attempt),
        };
        self.call(&call).await.and_then(|answer| answer.json())
    }

    /// A query of the registry, as fresh as this client's options say.
    async fn read<T: DeserializeOwned>(&self, segments: &[&str], query: &[(&str, &str)]) -> Queried<T> {
        let Options { consistency, min_index, .. } = &self.inner.options;
        let min_index = min_index.to_string();
        let mut query = query.to_vec();
        if *consistency == Consistency::Stale {
            query.push(("consistency", "stale"));
        }
        if min_index != "0" {
            query.push(("min_index", &min_index));
        }
        self.get(segments, &query).await
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, segments: &[&str], query: &[(&str, &str)]) -> Queried<T> {
        self.fetch(Whom::Any, segments, query, JSON).await.and_then(|a| a.json()).map_err(Failure::refused)
    }

    async fn text(&self, segments: &[&str]) -> Queried<String> {
        self.fetch(Whom::Any, segments, &[], "*/*").await.and_then(Answer::text).map_err(Failure::refused)
    }

    async fn fetch(
        &self,
        whom: Whom,
        segments: &[&str],
        query: &[(&str, &str)],
        accept: &'static str,
    ) -> Result<Answer, Failure> {
        if segments.iter().any(|s| matches!(*s, "." | "..")) {
            // URLs give these two a meaning of their own, encoded or not.
            return Err(Failure::Protocol("the names . and .. cannot be asked for over HTTP".into()));
        }
        let total = self.inner.options.deadline;
        let call = Call { whom, method: Method::GET, segments, query, accept, body: None, attempt: QUERY, total };
        self.call(&call).await
    }
}

fn status_text(status: AgentStatus) -> &'static str {
    match status {
        AgentStatus::Available => "available",
        AgentStatus::Busy => "busy",
        AgentStatus::Draining => "draining",
        AgentStatus::Offline => "offline",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the Unix epoch; zero for a clock set before it.
#[expect(clippy::disallowed_methods, reason = "a deadline that no node chose is chosen by the application's clock")]
fn wall_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A request id that nobody else makes up.
fn fresh_id() -> Result<String, Failure> {
    let mut id = [0; 16];
    // Nothing has been sent yet, and no other id would do.
    OsRng.try_fill_bytes(&mut id).map_err(|e| Failure::Unreachable(format!("the system gives no randomness: {e}")))?;
    Ok(hex::encode(id))
}

fn to_body(value: &impl Serialize) -> Result<Bytes, Failure> {
    let bytes = serde_json::to_vec(value).map_err(|e| Failure::Protocol(format!("cannot be written as JSON: {e}")))?;
    Ok(bytes.into())
}
