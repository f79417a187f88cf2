//! `status`, `get`, `find`, `history` and `receipt`: what a node knows.

use super::output::{self, short};
use super::{Failure, Global, PATIENT, call_failed, client};
use crate::api::{AsOf, CallError, EntryView, HistoryPage, ProposalState, ProposalStatus, Role, Standing, Status};
use crate::certificate::{self, Policy};
use crate::client::{Client, Page, ReceiptOf, Refusal};
use crate::ids::{LogIndex, ProposalId};
use crate::registry::{AgentRecord, AgentStatus};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

fn refused(global: &Global) -> impl Fn(CallError<Refusal>) -> Failure {
    let nodes = global.nodes();
    move |error| call_failed(&nodes, &error)
}

/// `status`: each node given, or the one that answers by default.
pub(super) async fn status(global: &Global) -> Result<ExitCode, Failure> {
    let nodes = global.nodes();
    let mut unreachable = None;
    for (at, client) in global.client()?.each().enumerate() {
        match client.status().await {
            Ok(status) if global.json => output::json(&status)?,
            Ok(status) => {
                if at > 0 {
                    output::line("")?;
                }
                output::line(&describe_status(&status))?;
            }
            // The others are worth showing all the same.
            Err(e) => unreachable = Some(call_failed(nodes.get(at..=at).unwrap_or_default(), &e)),
        }
    }
    unreachable.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn change_in_flight(status: &Status) -> String {
    status.next_epoch.map_or_else(String::new, |next| format!(" (epoch {next} is being put in force)"))
}

fn describe_standing(status: &Status) -> &'static str {
    match status.standing {
        Standing::Voter => "voter",
        Standing::Learner => "learner: receives the log only",
        Standing::Waiting => "waiting: no member table known here names this store's key; `member add` admits it",
        Standing::Retired => "retired: it is no member any more, and safe to stop",
    }
}

fn describe_snapshot(status: &Status) -> String {
    let newest = status.snapshot_index.map_or_else(|| "none".into(), |index| format!("at {index}"));
    let fetching = status
        .installing
        .map_or_else(String::new, |i| format!(", fetching the one at {}: {} of {} chunks", i.index, i.here, i.chunks));
    let filling = match status.history_complete {
        true => String::new(),
        false => format!(", filling in headers and certificates before {}", status.history_from),
    };
    format!("{newest}, payloads from {} on{fetching}{filling}", status.first_index)
}

fn describe_database(status: &Status) -> String {
    let moving = status.database.moved.map_or_else(String::new, |moved| {
        format!(", moving to a fresh one: {} copied and read back", output::mib(moved))
    });
    let last = status.database.last.map_or_else(String::new, |last| {
        let (before, after) = (output::mib(last.bytes_before), output::mib(last.bytes_after));
        format!(", last moved from {before} to {after}")
    });
    format!("{}{moving}{last}", output::mib(status.database.bytes))
}

fn describe_status(status: &Status) -> String {
    let leader = match status.leader {
        Some(leader) if leader == status.id => "this node".to_owned(),
        Some(leader) => leader.to_string(),
        None => "none known".to_owned(),
    };
    let role = match status.snapshot.role {
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    };
    let rows: Vec<Vec<String>> = status
        .members
        .iter()
        .map(|m| {
            vec![
                m.id.to_string(),
                m.address.clone(),
                match m.role {
                    certificate::Role::Voter => "voter",
                    certificate::Role::Learner => "learner",
                }
                .to_owned(),
                match m.policy {
                    Policy::Auto => "auto",
                    Policy::Rules => "rules",
                    Policy::Manual => "manual",
                }
                .to_owned(),
                if m.connected { "yes" } else { "no" }.to_owned(),
                m.match_index.map_or_else(|| "-".to_owned(), |i| i.to_string()),
            ]
        })
        .collect();
    let snapshot = &status.snapshot;
    [
        format!("node       {} ({role}), concordat {}", status.id, status.version),
        format!("cluster    {} (genesis {})", status.cluster, status.genesis_id),
        format!("leader     {leader}, term {}, epoch {}{}", snapshot.term, status.epoch, change_in_flight(status)),
        format!("standing   {}", describe_standing(status)),
        format!(
            "log        last {}, durable {}, committed {}, applied {}, certified {}",
            status.last_index,
            status.durable_index,
            snapshot.commit_index,
            status.applied_index,
            status.certified_index
        ),
        format!("snapshot   {}", describe_snapshot(status)),
        format!("database   {}", describe_database(status)),
        format!(
            "proposals  {} committed, {} aborted, {} pending here",
            snapshot.committed_count, snapshot.aborted_count, snapshot.pending_proposals
        ),
        format!("root       {}", status.certified_root.map_or_else(|| "-".to_owned(), |root| root.to_string())),
        output::table(&["MEMBER", "ADDRESS", "ROLE", "POLICY", "CONNECTED", "MATCH"], &rows),
    ]
    .join("\n")
}

/// What `get` shows.
#[derive(Debug, Subcommand)]
pub(super) enum Get {
    /// An entry of the log
    Entry {
        /// Its index, from 1
        index: u64,
    },
    /// An agent of the registry
    Agent {
        /// Its id
        id: String,
    },
    /// A configuration key
    Config {
        /// The key
        key: String,
    },
    /// Where a proposal stands
    Proposal {
        /// Its id
        id: ProposalId,
    },
}

impl Get {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let client = global.client()?;
        let refused = refused(global);
        let (answer, text) = match self {
            Self::Entry { index } => {
                let entry = client.entry(LogIndex(index)).await.map_err(&refused)?;
                (json(&entry)?, describe_entry(&entry))
            }
            Self::Agent { id } => {
                let agent = client.agent(&id).await.map_err(&refused)?;
                let text = format!("{}\n{}", describe_agent(&agent.answer)?, describe_as_of(&agent));
                (json(&agent)?, text)
            }
            Self::Config { key } => {
                let config = client.config(&key).await.map_err(&refused)?;
                let record = &config.answer.record;
                let text =
                    format!("{key} = {}  (revision {})\n{}", record.value, record.revision, describe_as_of(&config));
                (json(&config)?, text)
            }
            Self::Proposal { id } => {
                let status = client.proposal(id).await.map_err(&refused)?;
                (json(&status)?, describe_proposal(&status))
            }
        };
        show(global, &answer, &text)
    }
}

fn show(global: &Global, answer: &Value, text: &str) -> Result<ExitCode, Failure> {
    if global.json {
        output::json(answer)?;
    } else {
        output::line(text)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn json(value: &impl serde::Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|e| Failure::new(format!("cannot write the answer as JSON: {e}")))
}

fn describe_as_of<T>(answer: &AsOf<T>) -> String {
    format!("as of entry {} (certified up to {})", answer.applied_index, answer.certified_index)
}

fn describe_entry(entry: &EntryView) -> String {
    let mut lines = vec![
        format!("entry      {} ({}), term {}", entry.index, output::kind(entry.kind), entry.term),
        format!("proposed   {}", output::time(entry.proposed_at)),
    ];
    if let Some(id) = &entry.id {
        lines.push(format!("proposal   {id}"));
    }
    if entry.entry.is_none() {
        lines.push("payload    pruned; its hash stands in the header".to_owned());
    } else if let Some(payload) = &entry.payload {
        lines.push(format!("payload    {payload}"));
    }
    lines.push(format!("header     {}", entry.header));
    lines.join("\n")
}

fn describe_agent(record: &AgentRecord) -> Result<String, Failure> {
    let pretty = serde_json::to_string_pretty(&record.agent)
        .map_err(|e| Failure::new(format!("cannot write the agent as JSON: {e}")))?;
    Ok(format!("{pretty}\nrevision {}", record.revision))
}

/// Where a proposal stands, in one line.
pub(super) fn describe_proposal(status: &ProposalStatus) -> String {
    let mut text = match status.state {
        ProposalState::Pending => "pending".to_owned(),
        ProposalState::Committed => "committed".to_owned(),
        ProposalState::Certified => "certified".to_owned(),
        ProposalState::Aborted => format!("aborted ({})", output::abort_reason(status.abort_reason)),
    };
    if let Some(index) = status.index {
        text.push_str(&format!(" as entry {index}"));
    }
    if let Some(outcome) = &status.outcome {
        text.push_str(&format!(": {}", output::outcome(outcome)));
    }
    if status.repeated {
        text.push_str(" (a repeat: this is the outcome of the first)");
    }
    if let Some(id) = &status.id {
        text.push_str(&format!("\nproposal {id}"));
    }
    text.push_str(&format!("\nrequest  {} of {}", status.request_id, status.client));
    text
}

/// Arguments of `find`.
#[derive(Debug, Args)]
pub(super) struct Find {
    /// Only agents that have a capability with this tag
    #[arg(long, value_name = "TAG")]
    capability: Option<String>,
    /// Only agents in this status: available, busy, draining or offline
    #[arg(long, value_name = "STATUS", value_parser = status_named)]
    status: Option<AgentStatus>,
}

fn status_named(name: &str) -> Result<AgentStatus, String> {
    AgentStatus::ALL.into_iter().find(|status| status.as_str() == name).ok_or_else(|| {
        let names: Vec<&str> = AgentStatus::ALL.iter().map(|status| status.as_str()).collect();
        format!("it is one of {}", names.join(", "))
    })
}

impl Find {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let client = global.client()?;
        let mut agents = Vec::new();
        let mut page = Page::default();
        let as_of = loop {
            let found = client.find(self.capability.as_deref(), self.status, page).await.map_err(refused(global))?;
            let as_of = describe_as_of(&found);
            let next = found.answer.next.filter(|next| *next > page.from);
            agents.extend(found.answer.agents);
            match next {
                Some(next) => page.from = next,
                None => break as_of,
            }
        };
        if global.json {
            for record in &agents {
                output::json(record)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Vec<String>> = agents.iter().map(agent_row).collect();
        if !rows.is_empty() {
            output::line(&output::table(&["AGENT", "STATUS", "REVISION", "CAPABILITIES", "ENDPOINT"], &rows))?;
        }
        output::line(&format!("{} agents, {as_of}", rows.len()))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn agent_row(record: &AgentRecord) -> Vec<String> {
    let agent = &record.agent;
    let capabilities: Vec<&str> = agent.capabilities.iter().map(|c| c.tag.as_str()).collect();
    vec![
        agent.agent_id.clone(),
        agent.status.as_str().to_owned(),
        record.revision.to_string(),
        capabilities.join(","),
        agent.endpoint.clone(),
    ]
}

/// What `history` shows.
#[derive(Debug, Subcommand)]
pub(super) enum History {
    /// Of an agent, also one that has left
    Agent {
        /// Its id
        id: String,
    },
    /// Of a configuration key
    Config {
        /// The key
        key: String,
    },
}

impl History {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let client = global.client()?;
        let mut page = Page::default();
        loop {
            let answer = self.page(&client, page).await.map_err(refused(global))?;
            for entry in &answer.answer.entries {
                if global.json {
                    output::json(entry)?;
                } else {
                    output::line(&history_line(entry))?;
                }
            }
            match answer.answer.next.filter(|next| *next > page.from) {
                Some(next) => page.from = next,
                None => return Ok(ExitCode::SUCCESS),
            }
        }
    }

    async fn page(&self, client: &Client, page: Page<LogIndex>) -> Result<AsOf<HistoryPage>, CallError<Refusal>> {
        match self {
            Self::Agent { id } => client.agent_history(id, page).await,
            Self::Config { key } => client.config_history(key, page).await,
        }
    }
}

fn history_line(entry: &EntryView) -> String {
    let payload = entry.payload.as_ref().map_or_else(|| "pruned".to_owned(), Value::to_string);
    format!("{}  {}  {payload}", entry.index, output::time(entry.proposed_at))
}

/// Arguments of `receipt`.
#[derive(Debug, Args)]
pub(super) struct Receipt {
    /// An entry's index, or a proposal's id
    #[arg(value_name = "INDEX|PROPOSAL-ID", value_parser = receipt_of)]
    of: ReceiptOf,
    /// Write it to a file instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn receipt_of(text: &str) -> Result<ReceiptOf, String> {
    if let Ok(index) = text.parse() {
        return Ok(LogIndex(index).into());
    }
    text.parse::<ProposalId>().map(Into::into).map_err(|e| format!("neither an index nor a proposal id ({e})"))
}

impl Receipt {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let receipt = client(&global.nodes(), PATIENT)?.receipt_json(self.of).await.map_err(refused(global))?;
        match &self.out {
            Some(path) => {
                output::write_new(path, receipt.as_bytes())?;
                short_note(&self.of, &path.display().to_string());
            }
            None => output::line(receipt.trim_end())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn short_note(of: &ReceiptOf, path: &str) {
    let what = match of {
        ReceiptOf::Entry(index) => format!("entry {index}"),
        ReceiptOf::Proposal(id) => format!("proposal {}-{} of {}", id.term, id.seq, short(&id.origin)),
    };
    eprintln!("wrote the receipt of {what} to {path}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_asked_for_by_index_or_proposal() {
        assert_eq!(receipt_of("17"), Ok(ReceiptOf::Entry(LogIndex(17))));
        let id = format!("3-17-{}", crate::ids::NodeId([7; 32]));
        assert!(matches!(receipt_of(&id), Ok(ReceiptOf::Proposal(p)) if p.seq == 17));
        assert!(receipt_of("3-17").is_err());
    }

    #[test]
    fn a_status_is_one_of_four_words() {
        assert_eq!(status_named("busy"), Ok(AgentStatus::Busy));
        assert!(status_named("Busy").unwrap_err().contains("draining"));
    }
}
