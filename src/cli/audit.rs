//! `audit`: feeds a whole log, from a running node or from a data directory, to the auditor.

use super::output::{self, short};
use super::verify::read_genesis;
use super::{Failure, Global, PATIENT, call_failed, client};
use crate::api::{CertificatePage, EntryView};
use crate::audit::{AuditError, Auditor, Summary};
use crate::backup::{self, Rebuilt};
use crate::certificate::{Body, Entry, Genesis, HeadCertificate, Header, Succession};
use crate::client::Client;
use crate::ids::{Digest, LogIndex};
use crate::limits::MAX_PAGE;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// How long an audit waits for the certificate over what is committed, and how often it looks.
const COVERED: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Arguments of `audit`.
#[derive(Debug, Args)]
pub(super) struct Audit {
    /// The genesis file that you trust, from wherever you trust it
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Audit a data directory instead of the first node given that answers; its node must be stopped
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A backup of the cluster that this one succeeds: verified too, and that this one goes on from it
    #[arg(long, value_name = "FILE")]
    predecessor: Option<PathBuf>,
}

impl Audit {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let genesis = read_genesis(&self.genesis)?;
        let before = self.predecessor.as_deref().map(|path| audit_predecessor(path, &genesis)).transpose()?;
        let summary = match &self.data {
            Some(_) if !global.nodes.is_empty() => {
                return Err(Failure::usage("--data and --node exclude each other"));
            }
            Some(data) => super::audit_store::audit(data, &genesis)?,
            None => {
                let nodes = [first_that_answers(global).await?];
                audit_node(&client(&nodes, PATIENT)?, &nodes, &genesis, None).await?.summary
            }
        };
        if global.json {
            output::json(&json!({
                "verified": true, "genesis_id": genesis.id(), "beyond": summary.beyond(), "summary": summary,
                "succeeds": genesis.succeeds, "predecessor": before,
            }))?;
        } else {
            output::line(&describe(&summary))?;
            if let Some(succession) = &genesis.succeeds {
                output::line(&describe_succession(succession))?;
            }
            if let Some(before) = &before {
                output::line(&format!("predecessor, verified with its own genesis:\n{}", describe(before)))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Verifies the log of the cluster that the genesis succeeds, and that the genesis says of it what is true: its end, the
/// state there, and that its own members signed the surveys.
fn audit_predecessor(path: &Path, genesis: &Genesis) -> Result<Summary, Failure> {
    let Some(succession) = &genesis.succeeds else {
        return Err(Failure::usage("--predecessor: the genesis given succeeds no cluster"));
    };
    let (verified, rebuilt) = super::backup::verify_file(path, None, Rebuilt::default())?;
    let found = verified.begin.genesis.id();
    if found != succession.genesis_id {
        return Err(Failure::new(format!(
            "{} is a backup of cluster {found}, the genesis succeeds {}",
            path.display(),
            succession.genesis_id
        )));
    }
    let (surveys, reason) = (succession.surveys.clone(), succession.reason.clone());
    // Whether the succession was needed is for people to judge: what survived is told, and what was missing.
    let told = backup::succession(&verified, &rebuilt.into_image(), surveys, reason, true).map_err(flaw)?;
    if told != *succession {
        return Err(flaw("the genesis says of its predecessor what that one's log does not bear out"));
    }
    Ok(verified.summary)
}

/// What a genesis says of the cluster before, for people.
pub(super) fn describe_succession(succession: &Succession) -> String {
    let (size, certified) = (succession.size(), succession.certified);
    let mut lines = vec![
        format!("succeeds   cluster {} at {size} entries, root {}", succession.genesis_id, succession.snapshot.root),
        format!("why        {}", succession.reason),
        format!("certified  up to {certified} there"),
    ];
    if certified < size {
        lines.push(format!(
            "taken over entries {}..{size} were not certified there: survivors held them, nobody proved them",
            certified + 1
        ));
    }
    for survey in &succession.surveys {
        lines.push(format!("survivor   {} signed {} entries, root {}", survey.member, survey.size, survey.root));
    }
    for member in &succession.missing {
        lines.push(format!("missing    {member}: what it alone may have committed is unknown"));
    }
    lines.join("\n")
}

/// One node's log is audited, whole: entries of one and certificates of another would prove nothing about either.
async fn first_that_answers(global: &Global) -> Result<String, Failure> {
    let nodes = global.nodes();
    let mut unreachable = None;
    for (node, client) in nodes.iter().zip(global.client()?.each()) {
        match client.status().await {
            Ok(_) => return Ok(node.clone()),
            Err(e) => unreachable = Some(e),
        }
    }
    Err(unreachable.map_or_else(|| Failure::usage("no node is given"), |e| call_failed(&nodes, &e)))
}

/// A verified log.
pub(super) struct Audited {
    pub(super) summary: Summary,
    /// The root at the size asked about.
    pub(super) root: Option<Digest>,
}

/// Fetches everything that a node has committed by now, and whatever else the certificate over that covers, and audits
/// it. `root_at` asks for the root over that many entries.
pub(super) async fn audit_node(
    client: &Client,
    nodes: &[String],
    genesis: &Genesis,
    root_at: Option<u64>,
) -> Result<Audited, Failure> {
    let mut auditor = Auditor::new(genesis);
    let mut certificates = Certificates { client, nodes, fetched: VecDeque::new(), above: Some(auditor.size()) };
    let mut root = None;
    // The log grows while it is read, so where to end is settled before.
    let end = end(client, nodes, auditor.size()).await?;
    let bar = output::progress(end, "auditing");
    while auditor.size() < end {
        let from = LogIndex(auditor.size() + 1);
        let page = client.entries(from, MAX_PAGE).await.map_err(|e| call_failed(nodes, &e))?;
        if page.entries.is_empty() {
            return Err(flaw(format!("the node says {end} entries are committed and gives none from {from} on")));
        }
        for view in page.entries {
            if auditor.size() == end {
                break;
            }
            let (header, body) = decode_view(&view)?;
            auditor.entry(&header, body.as_ref()).map_err(found)?;
            while let Some(certificate) = certificates.up_to(auditor.size()).await? {
                auditor.certificate(&certificate).map_err(found)?;
            }
            if root_at == Some(auditor.size()) {
                root = Some(auditor.root());
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(Audited { summary: auditor.finish().map_err(found)?, root })
}

/// Where an audit of a node's log ends: at the certificate over what is committed now, so that nothing of it is left
/// unproved only because entries follow each other faster than certificates. Where none comes (no quorum is up), at what
/// is committed.
async fn end(client: &Client, nodes: &[String], start: u64) -> Result<u64, Failure> {
    let page = client.entries(LogIndex(start + 1), 1).await.map_err(|e| call_failed(nodes, &e))?;
    let committed = page.commit_index.0;
    if committed <= start {
        return Ok(start);
    }
    let above = committed - 1;
    let until = Instant::now() + COVERED;
    loop {
        let page = client.certificates(above, 1).await.map_err(|e| call_failed(nodes, &e))?;
        if let Some(text) = page.certificates.first() {
            return Ok(decode_certificate(text)?.head.size.max(committed));
        }
        if Instant::now() >= until {
            return Ok(committed);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn decode_certificate(text: &str) -> Result<HeadCertificate, Failure> {
    let bytes = STANDARD.decode(text).map_err(|e| flaw(format!("a head certificate: {e}")))?;
    HeadCertificate::decode(&bytes).map_err(|e| flaw(format!("a head certificate: {e}")))
}

/// A failed audit. The command's whole answer is this line, so it says that the log is at fault and not the program.
pub(super) fn found(error: AuditError) -> Failure {
    flaw(error)
}

fn flaw(what: impl std::fmt::Display) -> Failure {
    Failure::new(format!("FLAW: {what}")).hint("keep a copy of this log and compare it with the other members'")
}

fn decode_view(view: &EntryView) -> Result<(Header, Option<Body>), Failure> {
    let wrong = |what: &dyn std::fmt::Display| flaw(format!("entry {}: {what}", view.index));
    let bytes = hex::decode(&view.header).map_err(|e| wrong(&e))?;
    let header = Header::decode(&bytes).map_err(|e| wrong(&e))?;
    let Some(entry) = &view.entry else { return Ok((header, None)) };
    let entry = Entry::decode(&STANDARD.decode(entry).map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    if entry.header != header {
        return Err(wrong(&"the node gives two different headers for it"));
    }
    Ok((header, Some(entry.body)))
}

/// A node's head certificates, fetched page by page as the audit reaches them.
struct Certificates<'a> {
    client: &'a Client,
    nodes: &'a [String],
    fetched: VecDeque<HeadCertificate>,
    /// Where the next page begins; `None` at the end.
    above: Option<u64>,
}

impl Certificates<'_> {
    /// The next certificate, unless it covers more than `size` entries.
    async fn up_to(&mut self, size: u64) -> Result<Option<HeadCertificate>, Failure> {
        while let (true, Some(above)) = (self.fetched.is_empty(), self.above) {
            let page: CertificatePage =
                self.client.certificates(above, MAX_PAGE).await.map_err(|e| call_failed(self.nodes, &e))?;
            for text in &page.certificates {
                self.fetched.push_back(decode_certificate(text)?);
            }
            // A page that does not lead on would be asked for without end.
            self.above = page.next.filter(|next| *next > above);
        }
        if self.fetched.front().is_some_and(|c| c.head.size <= size) { Ok(self.fetched.pop_front()) } else { Ok(None) }
    }
}

/// A bar over a log of known length, for audits of a store.
pub(super) fn bar(entries: u64) -> ProgressBar {
    output::progress(entries, "auditing")
}

/// What a verified log holds, for people.
pub(super) fn describe(summary: &Summary) -> String {
    let signed: Vec<String> = summary.signed.iter().map(|(did, count)| format!("{} {count}", short(did))).collect();
    let root = summary.certified_root.map_or_else(|| "-".to_owned(), |root| root.to_string());
    let mut lines = vec![
        "verified   every header, the tree, every certificate and every tally, from the genesis alone".to_owned(),
        format!(
            "entries    {} in {} terms: {} proposals, {} aborted; {} decided by ballot, {} payloads pruned",
            summary.entries, summary.terms, summary.proposals, summary.aborted, summary.balloted, summary.pruned
        ),
        format!("certified  {} entries by {} head certificates", summary.certified_size, summary.certificates),
        format!("root       {root}"),
    ];
    if summary.certificates > 0 {
        lines.push(format!("signed     {}", signed.join(", ")));
        lines.push(format!("up to      {}", output::time(summary.certified_at)));
    }
    lines.push(match summary.beyond() {
        0 => "beyond     no entry lies beyond the last certificate".to_owned(),
        n => format!("beyond     {n} entries lie beyond the last certificate: committed perhaps, not proved yet"),
    });
    lines.join("\n")
}
