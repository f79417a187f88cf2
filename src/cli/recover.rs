//! `recover`: what survivors of a lost quorum say of their stores, and their end. See `ops/quorum-loss.md`.

use super::{Failure, Global, output};
use crate::certificate::{Signature, Survey};
use crate::node::STORE_DIR;
use crate::storage::{Recovered, Store};
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Largest survey file, in bytes.
const MAX_SURVEY: u64 = 64 * 1024;

/// What is done with a stopped survivor.
#[derive(Debug, Subcommand)]
pub(super) enum Recover {
    /// Write and sign what the store of a stopped node holds
    Survey(MakeSurvey),
    /// Mark the store of a stopped node as ended, for ever: no node starts on it again
    Retire(Retire),
}

/// Arguments of `recover survey`.
#[derive(Debug, Args)]
pub(super) struct MakeSurvey {
    /// The data directory
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where to write it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `recover retire`.
#[derive(Debug, Args)]
pub(super) struct Retire {
    /// The data directory
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

impl Recover {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        match self {
            Self::Survey(args) => args.run(global)?,
            Self::Retire(args) => args.run(global)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn open(data: &Path) -> Result<(Store, Recovered), Failure> {
    Store::open(&data.join(STORE_DIR)).map_err(|e| Failure::caused(&e))
}

impl MakeSurvey {
    fn run(self, global: &Global) -> Result<(), Failure> {
        let (_store, recovered) = open(&self.data)?;
        let survey = survey(&recovered)?;
        let text = serde_json::to_string_pretty(&survey)
            .map_err(|e| Failure::new(format!("cannot write the survey as JSON: {e}")))?;
        output::write_new(&self.out, (text + "\n").as_bytes())?;
        if global.json {
            return output::json(&survey);
        }
        output::line(&format!(
            "{}: {} holds {} entries, the last of term {}, certified up to {}, root {}",
            self.out.display(),
            survey.member,
            survey.size,
            survey.last_term,
            survey.certified,
            survey.root
        ))
    }
}

fn survey(recovered: &Recovered) -> Result<Survey, Failure> {
    let genesis = recovered.genesis.as_ref().ok_or_else(|| Failure::new("this store belongs to no cluster yet"))?;
    let restored = &recovered.restored;
    let mut tree = restored.frontier.clone();
    restored.tail.iter().for_each(|entry| tree.push(entry.header.leaf_hash()));
    let before = restored.terms.last().map(|t| t.1).unwrap_or_default();
    let mut survey = Survey {
        genesis_id: genesis.id(),
        member: recovered.did,
        bls_key: recovered.bls.public(),
        last_term: restored.tail.last().map_or(before, |e| e.term()),
        size: tree.size(),
        root: tree.root(),
        certified: restored.certificate.as_ref().map_or(genesis.begins_after(), |c| c.head.size),
        signature: Signature([0; 96]),
    };
    survey.signature = recovered.bls.sign(&survey.signed_bytes());
    Ok(survey)
}

impl Retire {
    fn run(self, global: &Global) -> Result<(), Failure> {
        let (store, recovered) = open(&self.data)?;
        store.retire().map_err(|e| Failure::caused(&e))?;
        let data = self.data.display();
        if global.json {
            return output::json(&json!({ "data": self.data, "member": recovered.did, "retired": true }));
        }
        output::line(&format!("{data} is retired: it can be audited and backed up, and no node starts on it again"))
    }
}

/// Reads surveys; whether they are signed and fit together is judged with the backup.
pub(super) fn read_surveys(paths: &[PathBuf]) -> Result<Vec<Survey>, Failure> {
    let read = |path: &PathBuf| {
        serde_json::from_slice(&output::read(path, MAX_SURVEY)?)
            .map_err(|e| Failure::file("use the survey", path, e).hint("`concordat recover survey` writes it"))
    };
    paths.iter().map(read).collect()
}
