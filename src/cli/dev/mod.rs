//! `dev`: a federation of three on this machine, from nothing to an audited log with one command.

mod cluster;
mod layout;

use super::audit::{Audited, audit_node};
use super::import::{self, LineOutcome, Lines};
use super::output::{self, short};
use super::verify::decode_receipt;
use super::{Failure, PATIENT, call_failed, client, remember};
use crate::api::{Status, Wait};
use crate::certificate::VerifiedReceipt;
use crate::client::Client;
use crate::ids::{Digest, LogIndex};
use clap::Args;
use cluster::Cluster;
use layout::{Layout, NODES};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// Where the peer ports of a new federation begin.
const DEFAULT_PORT: u16 = 7001;
/// Lines of the bundled file that make the sample.
const SAMPLE_LINES: usize = 500;
/// Real registry updates; their origin is told in tests/fixtures/README.md.
const UPDATES: &str = include_str!("../../../tests/fixtures/registry-updates.jsonl");
/// Proposals at a time.
const CONCURRENCY: usize = 64;
/// What is remembered of the bundled sample's import, in the federation's directory; of another file it is beside that.
const IMPORTS_FILE: &str = "imports.concordat";
/// How long the request ids of an import are remembered, from its first run on.
const REMEMBER_DAYS: u64 = 365;
/// How long the nodes may take to elect a leader, and to certify what was imported.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a node is asked how far it is.
const POLL: Duration = Duration::from_millis(50);
/// Receipts that are fetched and verified.
const RECEIPTS: usize = 10;

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub(super) struct Dev {
    /// Where keys, genesis and data are kept
    #[arg(long, value_name = "DIR", default_value = "concordat-dev")]
    data: PathBuf,
    /// Stop after the summary; exit 0 only if everything verified
    #[arg(long)]
    once: bool,
    /// Commit this file of updates (a JSON object a line) instead of the bundled sample
    #[arg(long, value_name = "FILE")]
    import: Option<PathBuf>,
    /// Where the ports of a new federation begin: peers at BASE, HTTP at BASE+100 [default: 7001]
    #[arg(long, value_name = "BASE")]
    port: Option<u16>,
}

impl Dev {
    pub(super) async fn run(self) -> Result<ExitCode, Failure> {
        let lines = match &self.import {
            Some(path) => Lines::read(path)?,
            None => Lines::new(sample()),
        };
        // Listened for from the start: an interrupt at any moment stops the nodes in order.
        let mut interrupted = Interrupt::listen()?;
        let layout = Layout::open_or_create(&self.data, self.port)?;
        let done = if layout.created { "made" } else { "continuing with" };
        eprintln!("{done} {}: three members, genesis {}", layout.dir.display(), layout.genesis.id());
        let mut cluster = tokio::select! {
            cluster = Cluster::start(&layout) => cluster?,
            () = interrupted.wait() => return Ok(ExitCode::SUCCESS),
        };
        let pids = cluster.pids();
        let result = tokio::select! {
            walked = self.walk(&layout, &lines, &pids) => walked.map(Some),
            failure = cluster.supervise() => Err(failure),
            () = interrupted.wait() => Ok(None),
        };
        let result = match result {
            Ok(Some(summary)) => self.keep_serving(&summary, &mut cluster, &mut interrupted).await,
            Ok(None) if self.once => Err(Failure::new("interrupted before everything was verified")),
            Ok(None) => Ok(()),
            Err(failure) => Err(failure),
        };
        cluster.stop().await;
        result.map(|()| ExitCode::SUCCESS)
    }

    async fn keep_serving(
        &self,
        summary: &str,
        cluster: &mut Cluster<'_>,
        interrupted: &mut Interrupt,
    ) -> Result<(), Failure> {
        output::line(summary)?;
        if self.once {
            return Ok(());
        }
        eprintln!("\nserving until Ctrl-C");
        tokio::select! {
            failure = cluster.supervise() => Err(failure),
            () = interrupted.wait() => {
                eprintln!("stopping");
                Ok(())
            }
        }
    }

    /// Import, certify, audit, verify, sum up.
    async fn walk(&self, layout: &Layout, lines: &Lines, pids: &[Option<u32>]) -> Result<String, Failure> {
        let urls = layout.urls();
        let everyone = client(&urls, PATIENT)?;
        let nodes: Vec<Client> = everyone.each().collect();
        until_led(&nodes, &urls).await?;
        let state = self.import.as_deref().map_or_else(|| layout.dir.join(IMPORTS_FILE), remember::beside);
        let deadline = import::deadline(&state, lines, import::CLIENT, layout.genesis.id(), REMEMBER_DAYS)?;
        let imported = import_all(&everyone, lines, deadline).await?;
        let size = imported.outcomes.iter().filter_map(|o| o.index).max().map_or(0, |index| index.0);
        let statuses = until_certified(&nodes, &urls, size).await?;
        let audits = audit_all(&nodes, &urls, layout, size).await?;
        let receipts = verify_receipts(&nodes, &urls, layout, lines, &imported.outcomes).await?;
        Ok(summarise(layout, &imported, &statuses, &audits, &receipts, pids))
    }
}

/// The first lines of the bundled updates, each with its line feed.
fn sample() -> String {
    UPDATES.split_inclusive('\n').take(SAMPLE_LINES).collect()
}

struct Interrupt {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupt {
    fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| Failure::new(format!("cannot listen for signals: {e}")));
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    /// Cancel-safe: signals stay pending in their streams.
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn until_led(nodes: &[Client], urls: &[String]) -> Result<(), Failure> {
    for (node, url) in nodes.iter().zip(urls) {
        node.ready().await.map_err(|e| call_failed(std::slice::from_ref(url), &e))?;
    }
    Ok(())
}

struct Imported {
    outcomes: Vec<LineOutcome>,
    tally: import::Tally,
    lines: usize,
    took: Duration,
}

async fn import_all(everyone: &Client, lines: &Lines, deadline_ms: u64) -> Result<Imported, Failure> {
    let options = import::Options {
        client: import::CLIENT.to_owned(),
        wait: Wait::Certified,
        required_quorum: None,
        ttl_ms: None,
        patience: PATIENCE,
        deadline_ms,
    };
    let bar = output::progress(lines.len() as u64, "committing");
    let started = Instant::now();
    let mut outcomes = Vec::with_capacity(lines.len());
    let tally = import::run(everyone, lines, &options, CONCURRENCY, &bar, |outcome| {
        outcomes.push(outcome.clone());
        Ok(())
    })
    .await?;
    if let Some(bad) = outcomes.iter().find(|o| !o.state.is_success()) {
        let why = bad.error.clone().unwrap_or_else(|| output::abort_reason(bad.abort_reason).to_owned());
        return Err(Failure::new(format!(
            "{} of {} lines failed, line {} first: {why}",
            tally.failed(),
            lines.len(),
            bad.line
        )));
    }
    Ok(Imported { outcomes, tally, lines: lines.len(), took: started.elapsed() })
}

/// Waits until every node holds a certificate over the first `size` entries.
async fn until_certified(nodes: &[Client], urls: &[String], size: u64) -> Result<Vec<Status>, Failure> {
    let end = Instant::now() + PATIENCE;
    let mut statuses = Vec::new();
    for (node, url) in nodes.iter().zip(urls) {
        loop {
            let status = node.status().await.map_err(|e| call_failed(std::slice::from_ref(url), &e))?;
            if status.certified_index.0 >= size {
                statuses.push(status);
                break;
            }
            if Instant::now() >= end {
                return Err(Failure::new(format!(
                    "{url} holds certificates up to entry {} after {} s, entry {size} is expected",
                    status.certified_index,
                    PATIENCE.as_secs()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(statuses)
}

/// Audits the log of each node from the genesis file alone and compares their trees.
async fn audit_all(nodes: &[Client], urls: &[String], layout: &Layout, size: u64) -> Result<Vec<Audited>, Failure> {
    let mut audits: Vec<Audited> = Vec::new();
    for (at, (node, url)) in nodes.iter().zip(urls).enumerate() {
        let audited =
            audit_node(node, std::slice::from_ref(url), &layout.genesis, Some(size)).await.map_err(|mut f| {
                f.message = format!("n{}: {}", at + 1, f.message);
                f
            })?;
        if audited.summary.certified_size < size {
            return Err(Failure::new(format!("n{} gives no certificate over entry {size}", at + 1)));
        }
        audits.push(audited);
    }
    let roots: Vec<Option<Digest>> = audits.iter().map(|a| a.root).collect();
    if roots.windows(2).any(|pair| matches!(pair, [a, b] if a != b)) {
        return Err(Failure::new(format!(
            "the nodes hold different logs: their roots over {size} entries are {roots:?}"
        )));
    }
    Ok(audits)
}

/// Fetches receipts spread over the import, from all nodes in turn, and verifies each against the genesis file and the
/// line that it must prove.
async fn verify_receipts(
    nodes: &[Client],
    urls: &[String],
    layout: &Layout,
    lines: &Lines,
    outcomes: &[LineOutcome],
) -> Result<Vec<VerifiedReceipt>, Failure> {
    let mut verified = Vec::new();
    let step = outcomes.len().div_ceil(RECEIPTS).max(1);
    for (outcome, (node, url)) in outcomes.iter().step_by(step).zip(nodes.iter().zip(urls).cycle()) {
        let Some(index) = outcome.index else { continue };
        let bytes = node.receipt(index).await.map_err(|e| call_failed(std::slice::from_ref(url), &e))?;
        let wrong = |what: &dyn std::fmt::Display| Failure::new(format!("the receipt of entry {index}: {what}"));
        let proof = decode_receipt(&bytes).and_then(|r| r.verify(&layout.genesis)).map_err(|e| wrong(&e))?;
        if proof.header.index != index || !proves_line(&proof, lines, outcome) {
            return Err(wrong(&format!("it proves something else than line {}", outcome.line)));
        }
        verified.push(proof);
    }
    Ok(verified)
}

fn proves_line(proof: &VerifiedReceipt, lines: &Lines, outcome: &LineOutcome) -> bool {
    let Some(body) = &proof.body else { return false };
    let proved: Option<serde_json::Value> = serde_json::from_slice(&body.payload).ok();
    let meant: Option<serde_json::Value> = lines.line(outcome.line).and_then(|text| serde_json::from_str(text).ok());
    let named = body.request.as_ref().is_some_and(|request| request.request_id == outcome.request_id);
    named && proved.is_some() && proved == meant
}

fn summarise(
    layout: &Layout,
    imported: &Imported,
    statuses: &[Status],
    audits: &[Audited],
    receipts: &[VerifiedReceipt],
    pids: &[Option<u32>],
) -> String {
    let mut text = Vec::new();
    let seconds = imported.took.as_secs_f64();
    text.push(format!("imported   {} lines in {seconds:.1} s: {}", imported.lines, imported.tally));
    if let Some(audited) = audits.first() {
        let summary = &audited.summary;
        let root = audited.root.map_or_else(|| "-".to_owned(), |root| root.to_string());
        text.push(format!(
            "audited    {} entries on each of {NODES} nodes, {} head certificates, {} terms: all verified from the genesis alone",
            summary.entries, summary.certificates, summary.terms
        ));
        text.push(format!("root       {root} on every node"));
        let signed: Vec<String> = summary.signed.iter().map(|(did, n)| format!("{} {n}", short(did))).collect();
        text.push(format!("signers    {}", signed.join(", ")));
    }
    text.push(format!("receipts   {} fetched from all nodes and verified offline", receipts.len()));
    let leader = statuses.iter().find_map(|s| s.leader);
    let rows: Vec<Vec<String>> = statuses
        .iter()
        .zip(&layout.members)
        .enumerate()
        .map(|(at, (status, ports))| {
            vec![
                format!("n{}", at + 1),
                if leader == Some(status.id) { "leader" } else { "follower" }.to_owned(),
                ports.url(),
                ports.peer_address().to_string(),
                pids.get(at).copied().flatten().map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                status.id.to_string(),
            ]
        })
        .collect();
    text.push(output::table(&["NODE", "ROLE", "HTTP", "PEERS", "PID", "DID"], &rows));
    text.push(what_next(layout, receipts.first().map_or(LogIndex(1), |r| r.header.index)));
    text.join("\n")
}

fn what_next(layout: &Layout, index: LogIndex) -> String {
    let (nodes, dir) = (layout.urls().join(","), layout.dir.display());
    format!(
        "\nTry, in another terminal (export CONCORDAT_NODES={nodes}):\n  \
         concordat status\n  \
         concordat find --capability search --status available\n  \
         concordat propose '{{\"op\":\"set_config\",\"key\":\"routing/strategy\",\"value\":\"round_robin\"}}'\n  \
         concordat receipt {index} --out receipt.json && concordat verify --genesis {dir}/genesis.json receipt.json\n  \
         concordat audit --genesis {dir}/genesis.json\n  \
         kill -9 the leader's PID: another takes over, and the killed one is started again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_the_first_500_whole_lines_of_the_bundled_updates() {
        let sample = sample();
        assert_eq!(sample.lines().count(), 500);
        assert!(UPDATES.starts_with(&sample) && sample.ends_with("}\n"));
        assert!(sample.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }
}
