//! `member` and `transfer`: who belongs to the cluster, and who leads it.

use super::output::{self, short};
use super::setup::{PolicyArg, read_member};
use super::{Failure, Global, PATIENT, call_failed, client};
use crate::api::{CallError, ChangeError, ChangeMembers, ChangeRefusal, MemberOp, Members};
use crate::certificate::{EpochChain, Member as Row, Policy, Role};
use crate::client::{Client, Refusal};
use crate::ids::{Epoch, NodeId};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// What `member` does. Every change is agreed on by the old and the new members, certified, and in force when the command
/// ends.
#[derive(Debug, Subcommand)]
pub(super) enum Member {
    /// Show the member table in force
    List,
    /// Admit a new member as a learner; a member whose disk was lost comes back so, too (same DID, fresh key)
    Add {
        /// Its member.json, as `init` made it
        #[arg(value_name = "FILE")]
        member: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Make a learner that holds the log a voter
    Promote {
        /// Its DID
        id: NodeId,
        #[command(flatten)]
        how: How,
    },
    /// Make a voter a learner
    Demote {
        /// Its DID
        id: NodeId,
        #[command(flatten)]
        how: How,
    },
    /// Remove a member; `status` of its node says when it is safe to stop
    Remove {
        /// Its DID
        id: NodeId,
        #[command(flatten)]
        how: How,
    },
    /// Give a member another address or policy
    Set {
        /// Its DID
        id: NodeId,
        /// Where its peers reach it from now on
        #[arg(long, value_name = "HOST:PORT", required_unless_present = "policy")]
        address: Option<String>,
        /// How it decides on ballots from now on
        #[arg(long, value_enum)]
        policy: Option<PolicyArg>,
        #[command(flatten)]
        how: How,
    },
    /// Replace the BLS key of the member whose node is the first --node: it makes a new one, and erases the old one once
    /// the new one is in force
    RotateKeys {
        #[command(flatten)]
        how: How,
    },
    /// Save the proofs of all membership changes, for `serve --epochs`
    Chain {
        /// Where to write them
        #[arg(long, value_name = "FILE", default_value = "epochs.bin")]
        out: PathBuf,
    },
}

/// How a change is made.
#[derive(Clone, Debug, Args)]
pub(super) struct How {
    /// Only say whether the change could be made now, and what the table would be
    #[arg(long)]
    dry_run: bool,
    /// Milliseconds for the voters to grant the change
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
}

/// Arguments of `transfer`.
#[derive(Debug, Args)]
pub(super) struct Transfer {
    /// The DID of the voter that shall lead; the one that holds most of the log when absent
    #[arg(long, value_name = "DID")]
    to: Option<NodeId>,
}

/// `snapshot`: appends a mark.
pub(super) async fn snapshot(global: &Global) -> Result<ExitCode, Failure> {
    let nodes = global.nodes();
    let marked = client(&nodes, PATIENT)?.mark_snapshot().await.map_err(|e| call_failed(&nodes, &e))?;
    if global.json {
        output::json(&marked)?;
    } else {
        output::line(&format!("marked at {}: `status` shows when each node has its snapshot", marked.index))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `compact`: gives disk space back.
pub(super) async fn compact(global: &Global) -> Result<ExitCode, Failure> {
    let nodes = global.nodes();
    let done = client(&nodes, PATIENT)?.compact().await.map_err(|e| call_failed(&nodes, &e))?;
    if global.json {
        output::json(&done)?;
    } else {
        let (before, after) = (output::mib(done.bytes_before), output::mib(done.bytes_after));
        let held_up = std::time::Duration::from_micros(done.pause_us);
        output::line(&format!("the database took {before}, now {after}; writers were held up for {held_up:?}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Transfer {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let nodes = global.nodes();
        let done = client(&nodes, PATIENT)?.transfer_leadership(self.to).await;
        let done = done.map_err(|e| call_failed(&nodes, &e))?;
        if global.json {
            output::json(&done)?;
        } else {
            let leader =
                done.leader.map_or_else(|| "the next leader is being elected".into(), |l| format!("leader {l}"));
            output::line(&leader)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Member {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let nodes = global.nodes();
        let client = client(&nodes, PATIENT)?;
        let (op, how) = match self {
            Self::List => return list(global, &client).await,
            Self::Chain { out } => return chain(global, &client, out).await,
            Self::Add { member, how } => (MemberOp::Add { member: read_member(&member)? }, how),
            Self::Promote { id, how } => (MemberOp::Promote { id }, how),
            Self::Demote { id, how } => (MemberOp::Demote { id }, how),
            Self::Remove { id, how } => (MemberOp::Remove { id }, how),
            Self::Set { id, address, policy, how } => {
                (MemberOp::Set { id, address, policy: policy.map(Policy::from) }, how)
            }
            Self::RotateKeys { how } => {
                if how.dry_run {
                    return Err(Failure::usage("a rotation makes a key first, so there is no dry run of it"));
                }
                let key = client.make_key().await.map_err(refused(global))?;
                (MemberOp::RotateKey { id: key.id, bls_key: key.bls_key, possession: key.possession }, how)
            }
        };
        change(global, &client, op, how).await
    }
}

fn refused(global: &Global) -> impl Fn(CallError<Refusal>) -> Failure {
    let nodes = global.nodes();
    move |error| call_failed(&nodes, &error)
}

async fn change(global: &Global, client: &Client, op: MemberOp, how: How) -> Result<ExitCode, Failure> {
    let How { dry_run, ttl_ms } = how;
    let before = client.members().await.map_err(refused(global))?;
    // For this epoch and no other: a repeat after a lost answer cannot be taken for a second change.
    let asked = ChangeMembers { changes: vec![op], base_epoch: Some(before.epoch), dry_run, ttl_ms };
    let changed = match client.change_members(&asked).await {
        Ok(changed) => changed,
        Err(error) => return Err(explain(global, client, before.epoch, &error).await),
    };
    if global.json {
        output::json(&changed)?;
    } else if dry_run {
        output::line(&format!("epoch {} could be put in force now (nothing was changed):", changed.epoch))?;
        output::line(&table(&changed.members))?;
    } else {
        output::line(&format!("epoch {} is in force, quorum {}:", changed.epoch, changed.quorum))?;
        output::line(&table(&changed.members))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A failure, with what is in force when the request may have had an effect all the same.
async fn explain(global: &Global, client: &Client, base: u64, error: &CallError<ChangeError>) -> Failure {
    let failure = call_failed(&global.nodes(), error);
    let stale = matches!(error, CallError::Refused(ChangeError::Refused { refusal: ChangeRefusal::Stale { .. } }));
    let without_effect = matches!(error, CallError::Refused(e) if e.is_without_effect()) && !stale;
    if without_effect {
        return failure;
    }
    match client.members().await {
        Ok(now) if now.epoch != base || now.next.is_some() => failure.hint(format!(
            "epoch {} is in force now{}: an earlier attempt of this change may have been made; `member list` shows it",
            now.epoch,
            if now.next.is_some() { " and another change is in flight" } else { "" }
        )),
        _ => failure,
    }
}

async fn list(global: &Global, client: &Client) -> Result<ExitCode, Failure> {
    let members: Members = client.members().await.map_err(refused(global))?;
    if global.json {
        output::json(&members)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("epoch {} (hash {}), quorum {}", members.epoch, members.epoch_hash, members.quorum))?;
    output::line(&table(&members.members))?;
    if let Some(next) = &members.next {
        output::line(&format!("epoch {} is being put in force:", members.epoch + 1))?;
        output::line(&table(next))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[Row]) -> String {
    let row = |m: &Row| {
        let role = match m.role {
            Role::Voter => "voter",
            Role::Learner => "learner",
        };
        let policy = match m.policy {
            Policy::Auto => "auto",
            Policy::Rules => "rules",
            Policy::Manual => "manual",
        };
        vec![m.did.to_string(), m.address.clone(), role.into(), policy.into(), short(&hex::encode(m.bls_key.0))]
    };
    output::table(&["MEMBER", "ADDRESS", "ROLE", "POLICY", "KEY"], &rows.iter().map(row).collect::<Vec<_>>())
}

async fn chain(global: &Global, client: &Client, out: PathBuf) -> Result<ExitCode, Failure> {
    let mut whole = EpochChain::default();
    loop {
        let above = Epoch(whole.steps.len() as u64);
        let bytes = client.epochs(above).await.map_err(refused(global))?;
        let part = EpochChain::decode(&bytes).map_err(|e| Failure::new(format!("not proofs of changes: {e}")))?;
        if part.steps.is_empty() {
            break;
        }
        whole.steps.extend(part.steps);
    }
    output::write_new(&out, &whole.encode())?;
    let changes = whole.steps.len();
    if global.json {
        output::json(&serde_json::json!({ "file": out, "changes": changes }))?;
    } else {
        output::line(&format!("{}: {changes} membership changes", out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
