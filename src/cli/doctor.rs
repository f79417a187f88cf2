//! `doctor` and `migrate`: the store of a node that does not run.

use super::output::{self, table};
use super::setup::{MEMBER_FILE, read_member};
use super::{Failure, Global};
use crate::node::STORE_DIR;
use crate::storage::{Examination, Examine, Finding, Progress, Repaired, Store, Weight};
use crate::transport::{IDENTITY_FILE, Identity};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The data directory of a node that does not run
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Then write derived records anew where they are missing or wrong; nothing else is ever changed
    #[arg(long)]
    repair: bool,
    /// Do not verify the signatures of head certificates
    #[arg(long)]
    quick: bool,
    /// Where to make the private copy in which the database is opened; a directory that does not exist yet [default:
    /// beside the store]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

impl Doctor {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        hush_the_database();
        let store = self.data.join(STORE_DIR);
        let how = Examine { scratch: self.scratch.clone(), quick: self.quick };
        let mut shown = Shown::new();
        let examined = Store::examine(&store, &how, &mut |progress| shown.show(progress));
        shown.finish();
        let mut seen = examined.map_err(|e| Failure::caused(&e))?;
        check_identity(&self.data, &mut seen);
        let repaired = match self.repair && seen.opens() {
            true => Some(Store::repair(&store).map_err(|e| Failure::caused(&e))?),
            false => None,
        };
        let sound = seen.is_sound() || repaired.is_some();
        if global.json {
            output::json(&serde_json::json!({ "sound": sound, "examination": seen, "repaired": repaired }))?;
        } else {
            output::line(&describe(&store, &seen))?;
            output::line(&conclude(&seen, self.repair, repaired.as_ref()))?;
        }
        Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Identity and store must be those of one member.
fn check_identity(data: &Path, seen: &mut Examination) {
    let unsound = |what: String, means, remedy| Finding { weight: Weight::Unsound, what, means, remedy };
    match Identity::load(&data.join(IDENTITY_FILE)) {
        Err(e) => seen.findings.push(unsound(
            Failure::caused(&e).message,
            "without its identity this is nobody's store",
            "mend that; when the identity is lost, this member is lost: replace it by another (ops/README.md)",
        )),
        Ok(identity) if seen.did.is_some_and(|did| did != identity.did()) => seen.findings.push(unsound(
            format!("the identity beside the store is that of {}", identity.did()),
            "files of two members were mixed",
            "put the right ones together again",
        )),
        Ok(_) => {}
    }
    let public = read_member(&data.join(MEMBER_FILE)).ok();
    if let (Some(public), Some(key)) = (public, &seen.key)
        && public.bls_key != *key
        && seen.next_key.as_ref() != Some(&public.bls_key)
    {
        seen.notes.push(format!(
            "{MEMBER_FILE} names another key than the store: it was written before the key was replaced"
        ));
    }
}

fn describe(store: &Path, seen: &Examination) -> String {
    let mut facts: Vec<(&str, String)> = vec![("store", store.display().to_string())];
    let mut fact = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    fact("member", seen.did.map(|did| did.to_string()));
    fact("cluster", seen.cluster.as_ref().zip(seen.genesis).map(|(name, id)| format!("{name}, genesis {id}")));
    fact("schema", seen.schema.map(|version| version.to_string()));
    for step in &seen.migrations {
        fact("migration", Some(format!("{} to {}, at the next start: {}", step.from, step.to, step.what)));
    }
    fact(
        "term",
        seen.term.map(|term| match seen.vote {
            Some(vote) => format!("{term}, voted for {vote}"),
            None => term.to_string(),
        }),
    );
    fact("log", seen.base.zip(seen.last_index).map(|(base, last)| format!("entries {} to {last}", base.next())));
    fact("headers", seen.headers_from.map(|from| format!("from entry {from} on")));
    fact("root", seen.root.map(|root| root.to_string()));
    fact(
        "certified",
        seen.certified.map(|size| format!("{size} entries; signatures of {} certificates verified", seen.verified)),
    );
    fact(
        "watermark",
        seen.watermark.as_ref().map(|mark| {
            format!(
                "term {}, entry {}, {} groups of writes (found: {})",
                mark.term,
                mark.last_index,
                mark.writes,
                seen.writes.map_or("?".into(), |w| w.to_string())
            )
        }),
    );
    let images: Vec<String> = seen.snapshots.iter().map(|m| format!("{} ({} bytes)", m.index, m.bytes)).collect();
    fact("images", (!images.is_empty()).then(|| images.join(", ")));
    let mut text: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<10} {value}")).collect();
    let rows = seen
        .trees
        .iter()
        .map(|t| vec![t.tree.to_owned(), t.records.to_string(), t.key_bytes.to_string(), t.value_bytes.to_string()]);
    text.push(table(&["TREE", "RECORDS", "KEY BYTES", "VALUE BYTES"], &rows.collect::<Vec<_>>()));
    let rows = seen.files.iter().map(|f| vec![f.path.display().to_string(), f.bytes.to_string()]);
    text.push(table(&["FILE", "BYTES"], &rows.collect::<Vec<_>>()));
    text.extend(seen.notes.iter().map(|note| format!("note: {note}")));
    for finding in &seen.findings {
        text.push(format!("found: {}\n  means: {}\n  do:    {}", finding.what, finding.means, finding.remedy));
    }
    text.join("\n")
}

fn conclude(seen: &Examination, asked: bool, repaired: Option<&Repaired>) -> String {
    let count = match seen.findings.len() as u64 + seen.more {
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    };
    match repaired {
        Some(done) => format!(
            "repaired: {} derived records and {} proposals written anew, {} images set aside",
            done.derived, done.proposals, done.images
        ),
        None if seen.is_sound() => "sound: nothing is wrong".into(),
        None if asked => {
            format!("{count}; nothing was repaired: what derived records follow from is not sound")
        }
        None if seen.opens() => format!("{count}; a node can go on with this store"),
        None => format!("{count}; no node may go on with this store"),
    }
}

/// Progress on stderr: a line that changes on a terminal, a line for each stage elsewhere.
struct Shown {
    bar: ProgressBar,
    stage: &'static str,
}

impl Shown {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {human_pos}") {
            bar.set_style(style);
        }
        Self { bar, stage: "" }
    }

    fn show(&mut self, progress: Progress) {
        if self.stage != progress.stage {
            self.stage = progress.stage;
            self.bar.set_message(progress.stage);
            if self.bar.is_hidden() {
                eprintln!("{}", progress.stage);
            }
        }
        self.bar.set_position(progress.done);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The database panics on what a bad disk gives it. That is caught and told as a finding; its own words on stderr would
/// only be taken for a failure of this program.
pub(super) fn hush_the_database() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|at| at.file().contains("/sled-")) {
            usual(panic);
        }
    }));
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// The data directory of a node that does not run
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Migrate {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let store = self.data.join(STORE_DIR);
        let steps = Store::migrate(&store, self.dry_run).map_err(|e| Failure::caused(&e))?;
        if global.json {
            let steps: Vec<_> = steps
                .iter()
                .map(|s| serde_json::json!({ "from": s.from, "to": s.to, "what": s.what, "backup": store.join(s.backup()) }))
                .collect();
            output::json(&serde_json::json!({ "dry_run": self.dry_run, "steps": steps }))?;
            return Ok(ExitCode::SUCCESS);
        }
        if steps.is_empty() {
            output::line("nothing to do: the store has the schema version of this program")?;
        }
        for step in &steps {
            let (done, kept) = if self.dry_run { ("would go", "would be kept") } else { ("went", "is kept") };
            output::line(&format!("{done} from version {} to {}: {}", step.from, step.to, step.what))?;
            output::line(&format!(
                "  what it overwrites {kept}, verified, in {}",
                store.join(step.backup()).display()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
