//! `watch`: the streams, for people or as JSON lines.

use super::output::{self, short};
use super::{Failure, Global, call_failed};
use crate::api::{AbortEvent, CommitEvent, OpenBallot, StreamError};
use crate::ids::LogIndex;
use clap::{Args, ValueEnum};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde::Serialize;
use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

/// How often open ballots are asked for: they live for seconds, and a member sees only its own.
const BALLOTS_EVERY: Duration = Duration::from_millis(250);

/// What is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stream {
    /// Certified proposals
    Commits,
    /// Rejected and expired proposals
    Aborts,
    /// Ballots that wait for the member whose node is asked
    Ballots,
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub(super) struct Watch {
    /// What to follow
    #[arg(value_enum)]
    stream: Stream,
    /// The first index wanted (commits and aborts); by default only what is new
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
}

impl Watch {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let client = global.client()?;
        if self.stream == Stream::Ballots {
            return if self.from.is_some() {
                Err(Failure::usage("--from is for commits and aborts; open ballots have no index"))
            } else {
                watch_ballots(global).await
            };
        }
        let from = match self.from {
            Some(from) => LogIndex(from),
            None => {
                let status = client.status().await.map_err(|e| call_failed(&global.nodes(), &e))?;
                status.certified_index.next()
            }
        };
        match self.stream {
            Stream::Aborts => follow(client.aborts(from), global.json, describe_abort).await,
            Stream::Commits | Stream::Ballots => follow(client.commits(from), global.json, describe_commit).await,
        }
    }
}

async fn follow<E: Serialize>(
    mut stream: BoxStream<'static, Result<E, StreamError>>,
    as_json: bool,
    describe: fn(&E) -> String,
) -> Result<ExitCode, Failure> {
    while let Some(event) = stream.next().await {
        let event = event.map_err(Failure::new)?;
        if as_json {
            output::json(&event)?;
        } else {
            output::line(&describe(&event))?;
        }
    }
    Err(Failure::new("the stream ended"))
}

fn describe_commit(event: &CommitEvent) -> String {
    let signers = event.certificate.as_ref().map_or_else(String::new, |certificate| {
        let signers: Vec<String> = certificate.signers.iter().map(short).collect();
        format!("  [{} {}]", output::time(certificate.committed_at), signers.join(" "))
    });
    format!("{}  {}  {}{signers}", event.index, output::outcome(&event.outcome), event.payload)
}

fn describe_abort(event: &AbortEvent) -> String {
    let names = |dids: &[crate::ids::NodeId]| dids.iter().map(short).collect::<Vec<_>>().join(" ");
    format!(
        "{}  {}  {}  granted by [{}]  denied by [{}]",
        event.index,
        output::abort_reason(Some(event.reason)),
        event.id,
        names(&event.granted),
        names(&event.denied)
    )
}

/// Prints each ballot once, when it opens.
async fn watch_ballots(global: &Global) -> Result<ExitCode, Failure> {
    let client = global.client()?;
    let mut shown = HashSet::new();
    loop {
        let open = client.ballots().await.map_err(|e| call_failed(&global.nodes(), &e))?;
        for ballot in open.iter().filter(|ballot| !shown.contains(&ballot.id)) {
            if global.json {
                output::json(ballot)?;
            } else {
                output::line(&describe_ballot(ballot))?;
            }
        }
        shown = open.iter().map(|ballot| ballot.id).collect();
        tokio::time::sleep(BALLOTS_EVERY).await;
    }
}

fn describe_ballot(ballot: &OpenBallot) -> String {
    format!(
        "{}  needs {} grants, {} ms left, asked by {}: {}",
        ballot.id, ballot.required_quorum, ballot.ttl_ms, ballot.client, ballot.payload
    )
}
