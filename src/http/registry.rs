//! What the replicated registry of this node holds, and the history of its keys.
//!
//! Answers are linearizable unless `consistency=stale` is asked for, which costs no round trip; each says how far the state
//! was that gave it. `min_index` makes a reader wait for what it wrote itself.

use super::Api;
use super::error::{ApiError, RequestError};
use super::extract::{At, Params};
use super::log::{page_limit, weight};
use crate::api::{AgentPage, AsOf, ConfigPage, ConfigView, Consistency, HistoryPage};
use crate::ids::LogIndex;
use crate::limits::MAX_PAGE_BYTES;
use crate::node::{Freshness, Handle, QueryError};
use crate::registry::{AgentStatus, ConfigRecord, Key, State};
use axum::extract::State as Shared;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// Adds to an answer how far the state was that gave it.
fn as_of<T>(handle: &Handle, fresh: Freshness, look: impl FnOnce(&State) -> T) -> AsOf<T> {
    let (answer, applied_index) = handle.registry(|state| (look(state), state.applied()));
    // Read after the state, so that it is never less than what was certified of it then.
    let certified_index = handle.status().certified_index;
    let Freshness { consistency, age_ms } = fresh;
    AsOf { answer, applied_index, certified_index, consistency, age_ms }
}

/// How fresh the answer to a read must be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadParams {
    #[serde(default)]
    consistency: Consistency,
    #[serde(default)]
    min_index: LogIndex,
}

impl Api {
    /// Waits until this node's state is as fresh as asked.
    async fn fresh(&self, consistency: Consistency, min_index: LogIndex) -> Result<Freshness, ApiError> {
        Ok(self.handle.fresh(consistency, min_index).await?)
    }
}

fn missing(what: &str, name: &str) -> QueryError {
    QueryError::NotFound { what: format!("{what} {name:?}") }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentsParams {
    #[serde(default)]
    consistency: Consistency,
    #[serde(default)]
    min_index: LogIndex,
    capability: Option<String>,
    status: Option<AgentStatus>,
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
}

pub(super) async fn agents(
    Shared(api): Shared<Api>,
    Params(params): Params<AgentsParams>,
) -> Result<Response, ApiError> {
    let AgentsParams { consistency, min_index, capability, status, offset, limit } = params;
    let limit = page_limit(limit)?;
    let fresh = api.fresh(consistency, min_index).await?;
    api.ask(move |handle| {
        Ok(as_of(handle, fresh, |state| {
            let (agents, next) = page(state.agents(capability.as_deref(), status), offset, limit);
            AgentPage { agents, next }
        }))
    })
    .await
}

/// Takes up to `limit` records, fewer when they are large, and says where the next page begins. Writes them as JSON at
/// once: how large they are is known only then.
fn page<T: Serialize>(
    records: impl Iterator<Item = T>,
    offset: usize,
    limit: usize,
) -> (Vec<Box<RawValue>>, Option<usize>) {
    let mut records = records.skip(offset).peekable();
    let (mut page, mut bytes) = (Vec::new(), 0);
    while page.len() < limit
        && bytes < MAX_PAGE_BYTES
        && let Some(record) = records.next()
    {
        // Records came out of JSON, with string keys only: they go back in.
        let Ok(record) = to_raw_value(&record) else { break };
        bytes += record.get().len();
        page.push(record);
    }
    let next = records.peek().map(|_| offset.saturating_add(page.len()));
    (page, next)
}

pub(super) async fn agent(
    Shared(api): Shared<Api>,
    At(id): At<String>,
    Params(ReadParams { consistency, min_index }): Params<ReadParams>,
) -> Result<Response, ApiError> {
    let fresh = api.fresh(consistency, min_index).await?;
    api.ask(move |handle| {
        as_of(handle, fresh, |state| state.agent(&id).cloned()).transpose().ok_or_else(|| missing("agent", &id))
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryParams {
    #[serde(default)]
    consistency: Consistency,
    #[serde(default)]
    min_index: LogIndex,
    #[serde(default)]
    from: LogIndex,
    limit: Option<usize>,
}

pub(super) async fn agent_history(
    Shared(api): Shared<Api>,
    At(id): At<String>,
    Params(HistoryParams { consistency, min_index, from, limit }): Params<HistoryParams>,
) -> Result<Response, ApiError> {
    let limit = page_limit(limit)?;
    let fresh = api.fresh(consistency, min_index).await?;
    api.ask(move |handle| history(handle, fresh, Key::Agent(id), from, limit)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigsParams {
    #[serde(default)]
    consistency: Consistency,
    #[serde(default)]
    min_index: LogIndex,
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
}

pub(super) async fn configs(
    Shared(api): Shared<Api>,
    Params(ConfigsParams { consistency, min_index, offset, limit }): Params<ConfigsParams>,
) -> Result<Response, ApiError> {
    let limit = page_limit(limit)?;
    let fresh = api.fresh(consistency, min_index).await?;
    api.ask(move |handle| {
        Ok(as_of(handle, fresh, |state| {
            let configs = state.configs().map(|(key, record)| Row { key, record });
            let (configs, next) = page(configs, offset, limit);
            ConfigPage { configs, next }
        }))
    })
    .await
}

/// A [`ConfigView`] that borrows.
#[derive(Serialize)]
struct Row<'a> {
    key: &'a str,
    #[serde(flatten)]
    record: &'a ConfigRecord,
}

/// A config key's value or, since a key may hold slashes and so nothing can stand behind it, with `history=true` the
/// entries that set it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigParams {
    #[serde(default)]
    consistency: Consistency,
    #[serde(default)]
    min_index: LogIndex,
    #[serde(default)]
    history: bool,
    from: Option<LogIndex>,
    limit: Option<usize>,
}

pub(super) async fn config(
    Shared(api): Shared<Api>,
    At(key): At<String>,
    Params(params): Params<ConfigParams>,
) -> Result<Response, ApiError> {
    if params.history {
        let limit = page_limit(params.limit)?;
        let fresh = api.fresh(params.consistency, params.min_index).await?;
        return api
            .ask(move |handle| history(handle, fresh, Key::Config(key), params.from.unwrap_or_default(), limit))
            .await;
    }
    for (field, given) in [("from", params.from.is_some()), ("limit", params.limit.is_some())] {
        if given {
            return Err(RequestError::OnlyWith { field, other: "history=true" }.into());
        }
    }
    let fresh = api.fresh(params.consistency, params.min_index).await?;
    api.ask(move |handle| {
        let found = as_of(handle, fresh, |state| state.config(&key).cloned());
        found
            .transpose()
            .ok_or_else(|| missing("config key", &key))
            .map(|found| found.map(|record| ConfigView { key, record }))
    })
    .await
}

fn history(
    handle: &Handle,
    fresh: Freshness,
    key: Key,
    from: LogIndex,
    limit: usize,
) -> Result<AsOf<HistoryPage>, QueryError> {
    // What the cluster before this one did stands in its backup; a record that it left has an empty history here.
    let from = from.max(handle.first_entry());
    let found = as_of(handle, fresh, |state| {
        let all = state.history(&key);
        let rest = all.get(all.partition_point(|index| *index < from)..).unwrap_or_default();
        (!all.is_empty()).then(|| rest.iter().take(limit + 1).copied().collect::<Vec<_>>())
    });
    let (what, name) = match key {
        Key::Agent(name) => ("agent", name),
        Key::Config(name) => ("config key", name),
    };
    let mut found = found.transpose().ok_or_else(|| missing(what, &name))?;
    let mut page = HistoryPage { key: name, entries: Vec::new(), next: None };
    let mut bytes = 0;
    for index in std::mem::take(&mut found.answer) {
        if page.entries.len() == limit || bytes >= MAX_PAGE_BYTES {
            page.next = Some(index);
            break;
        }
        let entry = handle.entry(index)?;
        bytes += weight(&entry);
        page.entries.push(entry);
    }
    Ok(found.map(|_| page))
}
