//! The command line: one file per group of commands, each a thin client of the library.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed (one line `error: …` says why), 2 wrong
//! usage, 3 (`serve` only) the node halted on purpose, or its store must not be used again: not to be restarted before the
//! reason is understood.

mod audit;
mod audit_store;
mod backup;
mod bench;
mod dev;
mod doctor;
mod import;
mod member;
mod output;
mod propose;
mod query;
mod recover;
mod rejoin;
mod remember;
mod search;
mod serve;
mod setup;
mod verify;
mod watch;

use crate::api::Consistency;
use crate::client::{self, Client};
use crate::ids::LogIndex;
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use std::time::Duration;

/// Where a command looks for nodes when neither `--node` nor `CONCORDAT_NODES` says so.
const DEFAULT_NODE: &str = "http://127.0.0.1:7101";
/// How long a person waits to hear that no node answers.
const QUERY: Duration = Duration::from_secs(5);
/// How long is tried where many calls make one result, or where a node may have to wait before it can answer.
const PATIENT: Duration = Duration::from_secs(30);

/// A durable replicated log in which every entry can be proved.
#[derive(Debug, Parser)]
#[command(name = "concordat", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// HTTP address of a node; repeat it for failover [default: $CONCORDAT_NODES (comma-separated), else http://127.0.0.1:7101]
    #[arg(long = "node", value_name = "URL", global = true)]
    nodes: Vec<String>,
    /// Registry queries: take what the node asked has applied, without a round trip to a quorum
    #[arg(long, global = true)]
    stale: bool,
    /// Registry queries: wait until this entry is applied at the node asked
    #[arg(long, value_name = "INDEX", global = true, default_value_t = 0, hide_default_value = true)]
    min_index: u64,
    /// Print JSON for machines instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start three nodes on this machine, commit a sample, audit it, keep serving
    Dev(dev::Dev),
    /// Create a member: identity, store, and the public member.json
    Init(setup::Init),
    /// Put members together into the genesis file that every verifier trusts
    Genesis(setup::MakeGenesis),
    /// Run a node
    Serve(serve::Serve),
    /// Propose one payload, or a file of them
    Propose(propose::Propose),
    /// Answer an open ballot as a member of policy `manual`
    Vote(propose::Vote),
    /// Follow commits, aborts or open ballots
    Watch(watch::Watch),
    /// Show a node and its members
    Status,
    /// Show or change the members of the cluster
    #[command(subcommand)]
    Member(member::Member),
    /// Hand leadership over to another voter
    Transfer(member::Transfer),
    /// Have every node make a snapshot of its state, and let go of what it stands for
    Snapshot,
    /// Copy the node's database to a fresh one, and give back to the disk what pruned entries took
    Compact,
    /// Show one entry, agent, configuration key or proposal
    #[command(subcommand)]
    Get(query::Get),
    /// Find agents by capability and status
    Find(query::Find),
    /// Search the log by origin, request, registry key, signer, denier, kind or time
    Search(search::Search),
    /// Show every change of an agent or configuration key
    #[command(subcommand)]
    History(query::History),
    /// Fetch the receipt of an entry: a file that proves it offline
    Receipt(query::Receipt),
    /// Verify receipts offline, from the genesis file alone
    Verify(verify::Verify),
    /// Verify a whole log: every header, certificate and the tree
    Audit(audit::Audit),
    /// Look at everything in the store of a stopped node: what is wrong, what it means, what to do
    Doctor(doctor::Doctor),
    /// Bring the store of a stopped node to the schema version of this program, as its next start would
    Migrate(doctor::Migrate),
    /// Write everything that a node holds to one file that proves itself, or verify such a file
    Backup(backup::Backup),
    /// Fill a fresh data directory from a backup
    Restore(backup::Restore),
    /// After the loss of a quorum: what each survivor holds, and its end
    #[command(subcommand)]
    Recover(recover::Recover),
    /// Measure a running cluster in a closed loop
    Bench(bench::Bench),
}

/// Parses the arguments, runs the command and gives the exit code.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let global = cli.global;
    match cli.command {
        Command::Init(args) => args.run(&global),
        Command::Genesis(args) => args.run(&global),
        Command::Verify(args) => args.run(&global),
        Command::Doctor(args) => args.run(&global),
        Command::Migrate(args) => args.run(&global),
        Command::Serve(args) => args.run(),
        Command::Dev(args) => block_on(args.run()),
        Command::Propose(args) => block_on(args.run(&global)),
        Command::Vote(args) => block_on(args.run(&global)),
        Command::Watch(args) => block_on(args.run(&global)),
        Command::Status => block_on(query::status(&global)),
        Command::Member(args) => block_on(args.run(&global)),
        Command::Snapshot => block_on(member::snapshot(&global)),
        Command::Compact => block_on(member::compact(&global)),
        Command::Transfer(args) => block_on(args.run(&global)),
        Command::Get(args) => block_on(args.run(&global)),
        Command::Find(args) => block_on(args.run(&global)),
        Command::Search(args) => block_on(args.run(&global)),
        Command::History(args) => block_on(args.run(&global)),
        Command::Receipt(args) => block_on(args.run(&global)),
        Command::Audit(args) => block_on(args.run(&global)),
        Command::Backup(args) => block_on(args.run(&global)),
        Command::Recover(args) => args.run(&global),
        Command::Restore(args) => args.run(&global),
        Command::Bench(args) => block_on(args.run(&global)),
    }
}

fn block_on(work: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| Failure::new(format!("cannot start the runtime: {e}")))?;
    runtime.block_on(work)
}

impl Global {
    /// The addresses to try, in order.
    fn nodes(&self) -> Vec<String> {
        if !self.nodes.is_empty() {
            return self.nodes.clone();
        }
        let listed = std::env::var("CONCORDAT_NODES").unwrap_or_default();
        let listed: Vec<String> =
            listed.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect();
        if listed.is_empty() { vec![DEFAULT_NODE.to_owned()] } else { listed }
    }

    fn client(&self) -> Result<Client, Failure> {
        let consistency = if self.stale { Consistency::Stale } else { Consistency::Linearizable };
        let options = client::Options {
            deadline: QUERY,
            consistency,
            min_index: LogIndex(self.min_index),
            ..client::Options::default()
        };
        Client::new(self.nodes(), options).map_err(|e| Failure::caused(&e))
    }
}

/// A client whose calls try for `deadline`, over all nodes.
fn client(nodes: &[String], deadline: Duration) -> Result<Client, Failure> {
    Client::new(nodes, client::Options { deadline, ..client::Options::default() }).map_err(|e| Failure::caused(&e))
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    crate::node::clock::wall_ms()
}

/// What a command that failed tells its user: one line, and what to do about it.
#[derive(Debug)]
struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    fn new(message: impl std::fmt::Display) -> Self {
        Self { message: message.to_string(), hint: None, code: 1 }
    }

    /// An error with what caused it, for those whose own text leaves the cause to their source.
    fn caused(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut next = error.source();
        while let Some(source) = next {
            let text = source.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            next = source.source();
        }
        Self::new(message)
    }

    /// An error on the way to or at a file.
    fn file(doing: &str, path: &std::path::Path, error: impl std::fmt::Display) -> Self {
        Self::new(format!("cannot {doing} {}: {error}", path.display()))
    }

    fn usage(message: impl std::fmt::Display) -> Self {
        Self { code: 2, ..Self::new(message) }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn print(&self) {
        // The message may be built of errors that span lines; what stands after `error:` is one line for scripts.
        let message = self.message.split_whitespace().collect::<Vec<_>>().join(" ");
        match &self.hint {
            None => eprintln!("error: {message}"),
            Some(hint) => eprintln!("error: {message} (hint: {hint})"),
        }
    }
}

/// A failed call of a node: what it said, and where it was sought.
fn call_failed<E: std::fmt::Display>(nodes: &[String], error: &crate::api::CallError<E>) -> Failure {
    use crate::api::CallError;
    let failure = Failure::new(error);
    match error {
        CallError::Unreachable { .. } => failure.hint(format!(
            "is a node running at {}? `concordat dev` starts three, --node names others",
            nodes.join(", ")
        )),
        CallError::Refused(_) | CallError::Protocol { .. } => failure,
    }
}
