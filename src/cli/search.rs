//! `search`: which entries, by what auditors ask.

use super::output::{self, short};
use super::{Failure, Global, call_failed};
use crate::api::{FoundEntry, Order, Search as Wanted};
use crate::certificate::{Header, Kind};
use crate::ids::{LogIndex, NodeId};
use crate::limits::MAX_PAGE;
use clap::Args;
use serde_json::Value;
use std::process::ExitCode;

/// Characters of a payload that a row of the table shows.
const PAYLOAD: usize = 80;

/// Arguments of `search`.
#[derive(Debug, Args)]
pub(super) struct Search {
    /// Proposals that came in at this node
    #[arg(long, value_name = "DID")]
    origin: Option<NodeId>,
    /// Proposals whose operation names this config key
    #[arg(long, value_name = "KEY", conflicts_with = "agent")]
    key: Option<String>,
    /// Proposals whose operation names this agent
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// The request with this id of the client
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// The client of the request [default: anonymous]
    #[arg(long, value_name = "NAME", requires = "request_id")]
    client: Option<String>,
    /// Entries that this member granted or, where there was no ballot, whose head certificate it signed
    #[arg(long, value_name = "DID")]
    signer: Option<NodeId>,
    /// Entries that this member denied
    #[arg(long, value_name = "DID")]
    denier: Option<NodeId>,
    /// Entries of this kind: noop, proposal, aborted, epoch, epoch_final, snapshot_mark or snapshot_manifest
    #[arg(long, value_name = "KIND", value_parser = kind_named)]
    kind: Option<Kind>,
    /// Proposed at this time or later (milliseconds since the Unix epoch)
    #[arg(long, value_name = "MS")]
    from_time: Option<u64>,
    /// Proposed at this time or earlier
    #[arg(long, value_name = "MS")]
    to_time: Option<u64>,
    /// The first index
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
    /// The last index
    #[arg(long, value_name = "INDEX")]
    to: Option<u64>,
    /// The newest first
    #[arg(long)]
    desc: bool,
    /// Most entries to show
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
}

fn kind_named(name: &str) -> Result<Kind, String> {
    serde_json::from_value(Value::from(name)).map_err(|e| e.to_string())
}

impl Search {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let client = global.client()?;
        let nodes = global.nodes();
        let mut left = self.limit;
        let mut wanted = self.wanted();
        let mut rows = Vec::new();
        let (complete_from, upto, more) = loop {
            wanted.limit = Some(left.clamp(1, MAX_PAGE));
            let page = client.search(&wanted).await.map_err(|e| call_failed(&nodes, &e))?;
            for found in page.entries.iter().take(left) {
                if global.json {
                    output::json(found)?;
                } else {
                    rows.push(row(found));
                }
            }
            left -= page.entries.len().min(left);
            match page.next.filter(|_| left > 0) {
                Some(next) => wanted.cursor = Some(next),
                None => break (page.complete_from, page.upto, left == 0),
            }
        };
        if !global.json {
            if !rows.is_empty() {
                output::line(&output::table(
                    &["INDEX", "PROPOSED", "KIND", "ORIGIN", "CERTIFIED BY", "PAYLOAD"],
                    &rows,
                ))?;
            }
            let rest = if more { ", perhaps more: raise --limit" } else { "" };
            output::line(&format!("{} entries, looking up to {upto}{rest}", rows.len()))?;
        }
        if complete_from > LogIndex(self.from.unwrap_or(1).max(1)) {
            eprintln!(
                "note: this node knows all of them from entry {complete_from} on only; ask another for what lies before"
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            origin: self.origin,
            client: self.client.clone(),
            request_id: self.request_id.clone(),
            signer: self.signer,
            denier: self.denier,
            key: self.key.clone(),
            agent: self.agent.clone(),
            kind: self.kind,
            from_time: self.from_time,
            to_time: self.to_time,
            from: self.from.map(LogIndex),
            to: self.to.map(LogIndex),
            order: if self.desc { Order::Desc } else { Order::Asc },
            limit: None,
            cursor: None,
        }
    }
}

fn row(found: &FoundEntry) -> Vec<String> {
    let entry = &found.entry;
    let pruned = entry.entry.is_none();
    let aborted = || {
        let header = hex::decode(&entry.header).ok().and_then(|bytes| Header::decode(&bytes).ok());
        output::abort_reason(header.and_then(|h| h.abort_reason)).to_owned()
    };
    let payload = match (&entry.payload, entry.kind) {
        (_, Kind::Aborted) => aborted(),
        (Some(payload), _) => payload.to_string(),
        (None, _) if pruned => "pruned".to_owned(),
        (None, _) => "-".to_owned(),
    };
    vec![
        entry.index.to_string(),
        output::time(entry.proposed_at),
        output::kind(entry.kind).to_owned(),
        entry.id.map_or_else(|| "-".to_owned(), |id| short(&id.origin)),
        found.certificate_size.map_or_else(|| "-".to_owned(), |size| format!("head {size}")),
        payload.chars().take(PAYLOAD).collect(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_one_of_seven_words() {
        assert_eq!(kind_named("snapshot_mark"), Ok(Kind::SnapshotMark));
        assert!(kind_named("Noop").unwrap_err().contains("epoch_final"));
    }
}
