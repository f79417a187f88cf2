//! `propose` and `vote`.

use super::import::{self, Answer, Lines, Options};
use super::{Failure, Global, call_failed, client, output, remember};
use crate::api::{ProposalState, ProposalStatus, Status, Wait};
use crate::client::Client;
use crate::ids::ProposalId;
use crate::limits::{DEFAULT_REQUEST_HORIZON_MS, MAX_HTTP_BODY};
use clap::{Args, ValueEnum};
use rand::TryRngCore as _;
use serde_json::Value;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The client identity of single proposals.
const CLIENT: &str = "cli";

/// How long an answer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WaitFor {
    /// Committed, and covered by a head certificate
    Certified,
    /// Durable on a quorum
    Committed,
    /// Queued at the leader only; may be lost with it (with --file, a line waits to be committed all the same when a
    /// later line changes the same agent or configuration key, so that the two cannot change places)
    Accepted,
}

impl From<WaitFor> for Wait {
    fn from(wait: WaitFor) -> Self {
        match wait {
            WaitFor::Certified => Self::Certified,
            WaitFor::Committed => Self::Committed,
            WaitFor::Accepted => Self::Accepted,
        }
    }
}

/// Arguments of `propose`.
#[derive(Debug, Args)]
pub(super) struct Propose {
    /// The payload: any JSON, or `-` to read it from stdin
    #[arg(value_name = "JSON", required_unless_present = "file", conflicts_with = "file")]
    payload: Option<String>,
    /// Propose every line of a file of JSON; print one outcome line for each
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Proposals at a time with --file (lines of one agent or configuration key keep their order)
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// What to wait for
    #[arg(long, value_enum, default_value_t = WaitFor::Certified)]
    wait: WaitFor,
    /// Grants needed: from the quorum rule (the default) up to all voters
    #[arg(long, value_name = "N")]
    required_quorum: Option<u16>,
    /// Time to live until appended, 1 to 600000 [default: 5000]
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// Your id for this request; sent again with the same payload it is applied once [default: random]
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    request_id: Option<String>,
    /// The client identity that request ids belong to [default: cli, file-import with --file]
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// How long a proposal is tried again through failovers, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    patience: u64,
    /// Until when the id is remembered, milliseconds since the Unix epoch; a retry must say what the first try said
    /// [default: in a day]
    #[arg(long, value_name = "MS", conflicts_with = "file", requires = "request_id")]
    deadline_ms: Option<u64>,
    /// How long the cluster remembers the request ids of a file, in days from its first run: until then a further run
    /// finds every line's outcome, and later it is refused, so that no line is ever applied twice
    #[arg(long, default_value_t = 30, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=400))]
    remember_days: u64,
    /// Where the first run of a file notes its deadline for all further ones; keep it with the file
    /// [default: FILE.concordat]
    #[arg(long, value_name = "FILE", requires = "file")]
    state: Option<PathBuf>,
}

impl Propose {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        match &self.file {
            Some(file) => self.import(global, file, Lines::read(file)?).await,
            None => self.single(global).await,
        }
    }

    fn options(&self, client: String, deadline_ms: u64) -> Options {
        Options {
            client,
            wait: self.wait.into(),
            required_quorum: self.required_quorum,
            ttl_ms: self.ttl_ms,
            patience: Duration::from_secs(self.patience),
            deadline_ms,
        }
    }

    /// A wrong address is found now, not after the patience of the first proposal.
    async fn connect(&self, global: &Global) -> Result<(Client, Status), Failure> {
        let nodes = global.nodes();
        let status = global.client()?.status().await.map_err(|e| call_failed(&nodes, &e))?;
        Ok((client(&nodes, import::TRY.min(Duration::from_secs(self.patience)))?, status))
    }

    async fn import(&self, global: &Global, file: &Path, lines: Lines) -> Result<ExitCode, Failure> {
        let (client, status) = self.connect(global).await?;
        let state = self.state.clone().unwrap_or_else(|| remember::beside(file));
        let identity = self.client.clone().unwrap_or_else(|| import::CLIENT.to_owned());
        let deadline = import::deadline(&state, &lines, &identity, status.genesis_id, self.remember_days)?;
        let options = self.options(identity, deadline);
        let bar = output::progress(lines.len() as u64, "proposing");
        let tally = import::run(&client, &lines, &options, self.concurrency.into(), &bar, output::json).await?;
        eprintln!("{} lines: {tally}", lines.len());
        match tally.failed() {
            0 => Ok(ExitCode::SUCCESS),
            n => Err(Failure::new(format!("{n} of {} lines failed", lines.len()))
                .hint("their outcome lines say why; run the same file again, what is done stays done")),
        }
    }

    async fn single(&self, global: &Global) -> Result<ExitCode, Failure> {
        let payload = read_payload(self.payload.as_deref().unwrap_or_default())?;
        let (client, _) = self.connect(global).await?;
        let identity = self.client.clone().unwrap_or_else(|| CLIENT.to_owned());
        let usual = || super::now_ms() + DEFAULT_REQUEST_HORIZON_MS + self.patience * 1000;
        let options = self.options(identity, self.deadline_ms.unwrap_or_else(usual));
        let request_id = self.request_id.clone().map_or_else(random_id, Ok)?;
        let request = options.propose(payload, request_id.clone());
        let mut told = false;
        let answer = import::propose(&client, &request, options.patience, |why| {
            if !std::mem::replace(&mut told, true) {
                eprintln!("trying again: {why}");
            }
        })
        .await;
        match answer {
            Answer::Known(status) => show(&status, global.json),
            Answer::Refused(e) => Err(Failure::new(e)),
            Answer::Unknown(detail) => Err(Failure::new(format!("the outcome is not known: {detail}")).hint(format!(
                "it may still be applied; ask again with --client {} --request-id {request_id} --deadline-ms {}",
                options.client, options.deadline_ms
            ))),
        }
    }
}

fn random_id() -> Result<String, Failure> {
    let mut id = [0; 16];
    rand::rngs::OsRng
        .try_fill_bytes(&mut id)
        .map_err(|e| Failure::new(format!("the operating system gives no random bytes: {e}")))?;
    Ok(hex::encode(id))
}

fn read_payload(argument: &str) -> Result<Value, Failure> {
    let mut text = argument.to_owned();
    if argument == "-" {
        text.clear();
        let limit = MAX_HTTP_BODY as u64;
        let read = std::io::stdin().lock().take(limit + 1).read_to_string(&mut text);
        let length = read.map_err(|e| Failure::new(format!("cannot read stdin: {e}")))?;
        if length as u64 > limit {
            return Err(Failure::new(format!("the payload has more than {limit} bytes")));
        }
    }
    serde_json::from_str(&text).map_err(|e| Failure::new(format!("the payload is not JSON: {e}")))
}

fn show(status: &ProposalStatus, as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        output::json(status)?;
    } else {
        output::line(&super::query::describe_proposal(status))?;
    }
    match (status.state, status.abort_reason) {
        (ProposalState::Aborted, reason) => {
            Err(Failure::new(format!("the proposal was {}", output::abort_reason(reason))))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Arguments of `vote`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("answer").required(true).args(["grant", "deny"]))]
pub(super) struct Vote {
    /// The proposal, as `watch ballots` shows it
    id: ProposalId,
    /// Grant it
    #[arg(long)]
    grant: bool,
    /// Deny it
    #[arg(long)]
    deny: bool,
}

impl Vote {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let granted = self.grant && !self.deny;
        let client = global.client()?;
        client.cast_vote(self.id, granted).await.map_err(|e| call_failed(&global.nodes(), &e))?;
        let answer = if granted { "granted" } else { "denied" };
        if global.json {
            output::json(&serde_json::json!({ "id": self.id, "granted": granted }))?;
        } else {
            output::line(&format!("{answer} {}", self.id))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
