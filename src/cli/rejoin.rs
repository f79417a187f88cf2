//! `init --rejoin`: a member whose store is damaged or lost begins anew, with its identity and a fresh key.
//!
//! Everything is named in a plan before it is done, and every part of it may be done twice, in this order: the plan, the old
//! public file aside, the old store aside, the fresh store, its public file, the end of the plan. So after a crash at any
//! instant the old store lies at its place or aside, never beside a public file that names its key as the member's next
//! one; and whatever lies at its place once it is aside was made with a fresh key.

use super::setup::{MEMBER_FILE, fresh_store, member_json, read_member, row};
use super::{Failure, Global, doctor, output};
use crate::certificate::{Member, Policy};
use crate::node::STORE_DIR;
use crate::storage::{OpenError, Store};
use crate::transport::{IDENTITY_FILE, Identity};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// While it is there, a member is about to begin anew.
pub(super) const PLAN: &str = "rejoining.json";
/// Largest plan, in bytes.
const MAX_PLAN: u64 = 4096;

/// What the command line says.
pub(super) struct Asked {
    /// Where the others reach this member; as before when absent.
    pub(super) address: Option<String>,
    /// How it decides; as before when absent.
    pub(super) policy: Option<Policy>,
    /// Although its store is sound.
    pub(super) even_if_sound: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    address: String,
    policy: Policy,
    /// What is set aside gets this number.
    number: u32,
    /// Whether there was a store to set aside.
    store: bool,
    /// Whether there was a public file to set aside.
    member: bool,
}

pub(super) fn run(data: &Path, asked: Asked, global: &Global) -> Result<ExitCode, Failure> {
    doctor::hush_the_database();
    let (member, aside) = rejoin(data, asked)?;
    let commands = commands(data, &member);
    if global.json {
        output::json(&serde_json::json!({ "member": member, "set_aside": aside, "commands": commands }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(member_json(&member)?.trim_end())?;
    match aside {
        Some(aside) => eprintln!("the old store lies in {}, for the search: it is never used again", aside.display()),
        None => eprintln!("there was no store to set aside"),
    }
    eprintln!("{} takes part again, with its fresh key, after:", member.did);
    for (command, why) in
        commands.iter().zip(["here, and let it run", "at any member", "at any member, once it holds the log"])
    {
        eprintln!("  {command}    # {why}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What makes the member take part again.
fn commands(data: &Path, member: &Member) -> [String; 3] {
    let data = data.display();
    [
        format!("concordat serve --data {data} --genesis FILE --listen ADDR --http ADDR --join"),
        format!("concordat member add {data}/{MEMBER_FILE}"),
        format!("concordat member promote {}", member.did),
    ]
}

/// Returns the row to be admitted, and where the old store lies now.
fn rejoin(data: &Path, asked: Asked) -> Result<(Member, Option<PathBuf>), Failure> {
    let identity = Identity::load(&data.join(IDENTITY_FILE)).map_err(|e| {
        Failure::caused(&e).hint("a member begins anew with the identity that it has; without one it is another member: `concordat init`, then replace the old member")
    })?;
    let plan = match read_plan(data)? {
        Some(begun) => Plan {
            address: asked.address.unwrap_or(begun.address),
            policy: asked.policy.unwrap_or(begun.policy),
            ..begun
        },
        None => {
            let plan = make_plan(data, asked)?;
            output::replace(&data.join(PLAN), &serde_json::to_vec(&plan).map_err(Failure::new)?)?;
            plan
        }
    };
    let public = data.join(MEMBER_FILE);
    let old_public = aside(data, MEMBER_FILE, plan.number);
    if plan.member && !old_public.exists() {
        std::fs::rename(&public, &old_public).map_err(|e| Failure::file("set aside", &public, e))?;
        output::sync_dir(data)?;
    }
    let store = data.join(STORE_DIR);
    let old_store = aside(data, STORE_DIR, plan.number);
    if plan.store && !old_store.exists() {
        Store::set_aside(&store, &old_store).map_err(|e| Failure::caused(&e))?;
    }
    // What lies at its place now was made by this very plan.
    let key = fresh_store(&store, &identity)?;
    let member = row(&identity, &key, &plan.address, plan.policy)?;
    output::replace(&public, member_json(&member)?.as_bytes())?;
    let plan_file = data.join(PLAN);
    std::fs::remove_file(&plan_file).map_err(|e| Failure::file("remove", &plan_file, e))?;
    output::sync_dir(data)?;
    Ok((member, plan.store.then_some(old_store)))
}

fn read_plan(data: &Path) -> Result<Option<Plan>, Failure> {
    let file = data.join(PLAN);
    if !file.exists() {
        return Ok(None);
    }
    let bytes = output::read(&file, MAX_PLAN)?;
    let plan = serde_json::from_slice(&bytes).map_err(|e| Failure::file("use the plan", &file, e))?;
    Ok(Some(plan))
}

fn make_plan(data: &Path, asked: Asked) -> Result<Plan, Failure> {
    let public = data.join(MEMBER_FILE);
    let before = if public.exists() { read_member(&public).map(Some) } else { Ok(None) };
    let (address, policy) = match (asked.address, asked.policy, before) {
        (Some(address), Some(policy), _) => (address, policy),
        (address, policy, Ok(Some(before))) => (address.unwrap_or(before.address), policy.unwrap_or(before.policy)),
        (Some(address), None, Ok(None)) => (address, Policy::Auto),
        (None, _, Ok(None)) => {
            return Err(Failure::usage(format!(
                "{} is not there to tell where the others reach this member",
                public.display()
            ))
            .hint("name it with --address, and its policy with --policy"));
        }
        (_, _, Err(why)) => return Err(why.hint("name its address and policy with --address and --policy")),
    };
    let store = data.join(STORE_DIR);
    judge(&store, asked.even_if_sound)?;
    let is_free =
        |number: &u32| !aside(data, STORE_DIR, *number).exists() && !aside(data, MEMBER_FILE, *number).exists();
    let number = (1..u32::MAX).find(is_free).ok_or_else(|| Failure::new("too many stores were set aside here"))?;
    Ok(Plan { address, policy, number, store: store.exists(), member: public.exists() })
}

/// A store that opens soundly remembers what this member promised, which is worth more than a fresh start.
fn judge(store: &Path, even_if_sound: bool) -> Result<(), Failure> {
    let why = match Store::open(store) {
        Err(e @ OpenError::InUse { .. }) => return Err(Failure::caused(&e)),
        Err(OpenError::Missing { .. }) => return Ok(()),
        Err(e) if e.bars_the_store() || even_if_sound => return Ok(()),
        Ok(_) if even_if_sound => return Ok(()),
        Err(e) => format!("nothing says that the store is damaged: {}", Failure::caused(&e).message),
        Ok(_) => format!(
            "the store in {} opens soundly: it remembers what this member voted for and acknowledged, so the member can simply go on, and a fresh start would cost the cluster one copy of the log until it is caught up",
            store.display()
        ),
    };
    Err(Failure::new(why).hint("start the node with `concordat serve`; to begin anew all the same: --even-if-sound"))
}

fn aside(data: &Path, name: &str, number: u32) -> PathBuf {
    data.join(format!("{name}.quarantined-{number}"))
}

#[cfg(test)]
#[path = "rejoin/tests.rs"]
mod tests;
