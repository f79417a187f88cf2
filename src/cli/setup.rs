//! `init` and `genesis`: a member's keys and store, and the file that every verifier trusts.

use super::output;
use super::{Failure, Global, rejoin};
use crate::backup::{self, Rebuilt};
use crate::certificate::{Genesis, Member, MemberTable, Policy, QuorumRule, Role, SecretKey};
use crate::node::STORE_DIR;
use crate::storage::Store;
use crate::transport::{IDENTITY_FILE, Identity};
use clap::{Args, ValueEnum};
use rand::TryRngCore as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zeroize::Zeroizing;

/// The public file of a member, in its data directory.
pub(super) const MEMBER_FILE: &str = "member.json";
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
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "rejoin")]
    address: Option<String>,
    /// How this member decides on ballots [default: auto]
    #[arg(long, value_enum)]
    policy: Option<PolicyArg>,
    /// Begin anew after a damaged or lost store: keeps the identity and sets the store aside, makes a fresh store with a
    /// fresh key (address and policy as before unless given), and says how the member is admitted again
    #[arg(long)]
    rejoin: bool,
    /// With --rejoin: although the store opens soundly
    #[arg(long, requires = "rejoin")]
    even_if_sound: bool,
}

impl Init {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let policy = self.policy.map(Policy::from);
        if self.rejoin {
            let asked = rejoin::Asked { address: self.address, policy, even_if_sound: self.even_if_sound };
            return rejoin::run(&self.data, asked, global);
        }
        // clap demands it without --rejoin.
        let address = self.address.unwrap_or_default();
        let member = init(&self.data, &address, policy.unwrap_or(Policy::Auto))?;
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
    if data.join(rejoin::PLAN).exists() {
        return Err(Failure::new(format!("the member in {} is about to begin anew", data.display()))
            .hint("go on with `concordat init --rejoin`"));
    }
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
    .map_err(|e| Failure::caused(&e))?;
    let store = data.join(STORE_DIR);
    let key = fresh_store(&store, &identity)?;
    let member = row(&identity, &key, address, policy)?;
    output::write_new(&public, member_json(&member)?.as_bytes())?;
    Ok(member)
}

/// The row of a member table that a member asks for.
pub(super) fn row(identity: &Identity, key: &SecretKey, address: &str, policy: Policy) -> Result<Member, Failure> {
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
    Ok(member)
}

/// The key of the fresh store in this directory, which is made if it is not there.
pub(super) fn fresh_store(store: &Path, identity: &Identity) -> Result<SecretKey, Failure> {
    if store.exists() { resume(store, identity) } else { create_store(store, identity) }
}

fn create_store(dir: &Path, identity: &Identity) -> Result<SecretKey, Failure> {
    let mut seed = Zeroizing::new([0; 32]);
    rand::rngs::OsRng
        .try_fill_bytes(seed.as_mut())
        .map_err(|e| Failure::new(format!("the operating system gives no random bytes: {e}")))?;
    let key = SecretKey::generate(&seed);
    Store::create(dir, identity.did(), &key).map_err(|e| Failure::caused(&e))?;
    Ok(key)
}

/// Takes the key from the store that an interrupted run made.
fn resume(dir: &Path, identity: &Identity) -> Result<SecretKey, Failure> {
    let (_store, recovered) = Store::open(dir).map_err(|e| Failure::caused(&e))?;
    if recovered.did != identity.did() {
        return Err(Failure::new(format!(
            "{} is the store of {}, the identity beside it is {}",
            dir.display(),
            recovered.did,
            identity.did()
        ))
        .hint("remove the directory if neither was ever used, or name another one"));
    }
    Ok(recovered.bls)
}

/// Makes the directory for its owner alone: it will hold secret keys.
fn create_private_dir(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| Failure::file("create", path, e))
}

pub(super) fn member_json(member: &Member) -> Result<String, Failure> {
    serde_json::to_string_pretty(member)
        .map(|text| text + "\n")
        .map_err(|e| Failure::new(format!("cannot write the member as JSON: {e}")))
}

/// Arguments of `genesis`.
#[derive(Debug, Args)]
pub(super) struct MakeGenesis {
    /// The cluster's name: 1 to 64 characters of a-z, 0-9, '.' and '-'
    #[arg(long)]
    name: String,
    /// How many voters make a quorum, for ever
    #[arg(long, value_enum)]
    quorum: QuorumArg,
    /// A member.json, as `init` made it; one for each member
    #[arg(long = "member", value_name = "FILE", required = true, num_args = 1..)]
    members: Vec<PathBuf>,
    /// Where to write the genesis
    #[arg(long, value_name = "FILE", default_value = "genesis.json")]
    out: PathBuf,
    /// The backup of a cluster that this one succeeds: its log and state go on, with other members
    #[arg(long, value_name = "FILE", requires = "reason")]
    succeeds: Option<PathBuf>,
    /// With --succeeds: why, in at most 256 bytes, for auditors
    #[arg(long, value_name = "TEXT", requires = "succeeds")]
    reason: Option<String>,
    /// With --succeeds: what each survivor of a lost quorum signed (`recover survey`)
    #[arg(long = "survivors", value_name = "FILE", num_args = 1.., requires = "succeeds")]
    surveys: Vec<PathBuf>,
    /// With --succeeds: although the survivors could go on by themselves
    #[arg(long, requires = "surveys")]
    force: bool,
}

impl MakeGenesis {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let members = self.members.iter().map(|path| read_member(path)).collect::<Result<Vec<_>, _>>()?;
        let genesis = make_genesis(&self.name, self.quorum.into(), members)?;
        let genesis = match &self.succeeds {
            None => genesis,
            Some(backup) => self.succeeding(genesis, backup)?,
        };
        output::write_new(&self.out, genesis.to_json().as_bytes())?;
        let voters = genesis.table.voters().count();
        if let Some(warning) = size_warning(genesis.rule, voters) {
            eprintln!("warning: {warning}");
        }
        let (id, quorum) = (genesis.id(), genesis.rule.quorum(voters));
        if global.json {
            output::json(&serde_json::json!({
                "genesis_id": id, "file": self.out, "voters": voters, "quorum": quorum,
            }))?;
        } else {
            output::line(&format!("{} {id}: {voters} voters, quorum {quorum}", self.out.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl MakeGenesis {
    fn succeeding(&self, genesis: Genesis, path: &Path) -> Result<Genesis, Failure> {
        let (verified, rebuilt) = super::backup::verify_file(path, None, Rebuilt::default())?;
        let (current, next) = &verified.tables;
        let mut old = std::iter::once(current).chain(next).flat_map(|t| t.table.members());
        let brings = |old: &Member| genesis.table.members().iter().find(|m| m.bls_key.collides_with(&old.bls_key));
        if let Some(member) = old.find_map(brings) {
            return Err(Failure::new(format!(
                "{} brings a BLS key of the cluster that is succeeded: a key is the memory of its store",
                member.did
            ))
            .hint("make a new data directory with `concordat init`"));
        }
        let surveys = super::recover::read_surveys(&self.surveys)?;
        let reason = self.reason.clone().unwrap_or_default();
        let succession =
            backup::succession(&verified, &rebuilt.into_image(), surveys, reason, self.force).map_err(Failure::new)?;
        eprintln!("{}", super::audit::describe_succession(&succession));
        if !succession.surveys.is_empty() {
            eprintln!(
                "now run `concordat recover retire --data DIR` on every survivor, then `restore` on every new member"
            );
        }
        genesis.succeeding(succession).map_err(Failure::new)
    }
}

/// Puts members together; every key's proof of possession is checked here.
pub(super) fn make_genesis(name: &str, rule: QuorumRule, members: Vec<Member>) -> Result<Genesis, Failure> {
    let table = MemberTable::new(members).map_err(Failure::new)?;
    Genesis::new(name, rule, table).map_err(Failure::new)
}

pub(super) fn read_member(path: &Path) -> Result<Member, Failure> {
    serde_json::from_slice(&output::read(path, MAX_MEMBER)?)
        .map_err(|e| Failure::file("use the member file", path, e).hint("`concordat init` writes it, as member.json"))
}

/// Replacing a lost store takes a quorum of the old table without the lost member. Where there is none, one lost disk is
/// for ever.
fn size_warning(rule: QuorumRule, voters: usize) -> Option<String> {
    let alone = voters == 1;
    if rule.quorum(voters) < voters || (alone && rule == QuorumRule::Majority) {
        return None;
    }
    Some(format!(
        "with {voters} {} under this rule every one of them is needed: while one is down nothing commits, and a member \
         whose disk is lost can never be replaced; {} members or more avoid it",
        if alone { "member" } else { "members" },
        if rule == QuorumRule::Majority { 3 } else { 4 }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_replace_a_lost_member_are_warned_about() {
        let warned = |rule| (1..8).filter(|&n| size_warning(rule, n).is_some()).collect::<Vec<_>>();
        assert_eq!(warned(QuorumRule::Majority), [2]);
        assert_eq!(warned(QuorumRule::Supermajority), [1, 2, 3]);
    }
}
