//! `init` and `genesis`: a member's keys and store, and the file that every verifier trusts.

use super::output;
use super::{Failure, Global};
use crate::certificate::{Genesis, Member, MemberTable, Policy, QuorumRule, Role, SecretKey};
use crate::storage::Store;
use crate::transport::{IDENTITY_FILE, Identity};
use clap::{Args, ValueEnum};
use rand::TryRngCore as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zeroize::Zeroizing;

/// The public file of a member, in its data directory.
pub(super) const MEMBER_FILE: &str = "member.json";
/// The store, in a member's data directory.
pub(super) const STORE_DIR: &str = "store";
/// Largest member file, in bytes.
const MAX_MEMBER: u64 = 64 * 1024;

/// How a member decides on ballots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PolicyArg {
    /// Grants what is valid
    Auto,
    /// Decides by the `[rules]` of its configuration
    Rules,
    /// Its application votes
    Manual,
}

impl From<PolicyArg> for Policy {
    fn from(policy: PolicyArg) -> Self {
        match policy {
            PolicyArg::Auto => Self::Auto,
            PolicyArg::Rules => Self::Rules,
            PolicyArg::Manual => Self::Manual,
        }
    }
}

/// How many voters make a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum QuorumArg {
    /// More than half
    Majority,
    /// More than two thirds
    Supermajority,
}

impl From<QuorumArg> for QuorumRule {
    fn from(rule: QuorumArg) -> Self {
        match rule {
            QuorumArg::Majority => Self::Majority,
            QuorumArg::Supermajority => Self::Supermajority,
        }
    }
}

/// Arguments of `init`.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// The data directory to make
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where the other members reach this one (QUIC over UDP)
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// How this member decides on ballots
    #[arg(long, value_enum, default_value_t = PolicyArg::Auto)]
    policy: PolicyArg,
}

impl Init {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let member = init(&self.data, &self.address, self.policy.into())?;
        output::line(member_json(&member)?.trim_end())?;
        if !global.json {
            eprintln!(
                "made {} and {}; give the latter to whoever makes the genesis (it is public), the rest stays here",
                self.data.join(STORE_DIR).display(),
                self.data.join(MEMBER_FILE).display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes a member: identity, store with its BLS key, public file. The public file comes last and says that all of it is
/// there; a directory without it is what an interrupted run left, and is finished by the next.
pub(super) fn init(data: &Path, address: &str, policy: Policy) -> Result<Member, Failure> {
    let public = data.join(MEMBER_FILE);
    if public.exists() {
        return Err(Failure::new(format!("{} already holds a member; its keys are made once", data.display()))
            .hint("use another directory for another member"));
    }
    create_private_dir(data)?;
    let identity = if data.join(IDENTITY_FILE).exists() {
        Identity::load(&data.join(IDENTITY_FILE))
    } else {
        Identity::create(data)
    }
    .map_err(|e| Failure::new(with_source(&e)))?;
    let store = data.join(STORE_DIR);
    let key = if store.exists() { resume(&store, &identity)? } else { create_store(&store, &identity)? };
    let member = Member {
        did: identity.did(),
        bls_key: key.public(),
        possession: key.prove_possession(),
        address: address.to_owned(),
        role: Role::Voter,
        policy,
    };
    // The rules of a member table are the only place that knows what a valid row is.
    MemberTable::new(vec![member.clone()]).map_err(Failure::new)?;
    output::write_new(&public, member_json(&member)?.as_bytes())?;
    Ok(member)
}
