//! `backup` and `restore`: one file that holds and proves everything, and what is made of it.

use super::output;
use super::verify::read_genesis;
use super::{Failure, Global, PATIENT, call_failed, client};
use crate::backup::{self, Nothing, Source, Verified, Verifier};
use crate::certificate::Genesis;
use crate::node::STORE_DIR;
use crate::storage::Store;
use clap::Args;
use futures::StreamExt as _;
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// Where to write it; the file appears once all of it is written and verified
    #[arg(long, value_name = "FILE", required_unless_present = "verify")]
    out: Option<PathBuf>,
    /// Of the store of a stopped node instead of the first node given
    #[arg(long, value_name = "DIR", conflicts_with = "verify")]
    data: Option<PathBuf>,
    /// With --data: also the entries that no certificate covers, for recovery from the loss of a quorum
    #[arg(long, requires = "data")]
    with_tail: bool,
    /// At most so many bytes a second
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["data", "verify"])]
    rate: Option<u64>,
    /// Verify a backup instead of making one
    #[arg(long, value_name = "FILE", conflicts_with = "out", requires = "genesis")]
    verify: Option<PathBuf>,
    /// The genesis file that you trust, from wherever you trust it
    #[arg(long, value_name = "FILE")]
    genesis: Option<PathBuf>,
}

impl Backup {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let genesis = self.genesis.as_deref().map(read_genesis).transpose()?;
        let (path, verified) = match (self.verify, self.out) {
            (Some(file), _) => {
                let verified = verify_file(&file, genesis.as_ref(), Nothing)?.0;
                (file, verified)
            }
            (None, Some(out)) => {
                let partial = Partial::create(&out, genesis.as_ref())?;
                let verified = match &self.data {
                    Some(data) => from_store(data, self.with_tail, partial)?,
                    None => from_node(global, self.rate, partial).await?,
                };
                (out, verified)
            }
            (None, None) => return Err(Failure::usage("--out or --verify is needed")),
        };
        report(global, &path, &verified, genesis.is_some())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Verifies a file, with a bar.
pub(super) fn verify_file<S: backup::Sink>(
    path: &Path,
    genesis: Option<&Genesis>,
    sink: S,
) -> Result<(Verified, S), Failure> {
    let file = File::open(path).map_err(|e| Failure::file("read", path, e))?;
    let bar = output::progress(0, "verifying");
    let verified = backup::verify(BufReader::new(file), genesis, sink, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    verified.map_err(|e| Failure::file("use the backup", path, e))
}

/// A backup on its way to its place: verified as it is written, and not there before it is whole.
struct Partial {
    out: PathBuf,
    path: PathBuf,
    file: File,
    verifier: Verifier<Nothing>,
}

impl Partial {
    fn create(out: &Path, genesis: Option<&Genesis>) -> Result<Self, Failure> {
        if out.exists() {
            return Err(Failure::new(format!("{} exists", out.display())).hint("choose another name, or remove it"));
        }
        let mut path = out.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        // Payloads are nobody else's business, as in a store.
        let private = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = private.map_err(|e| Failure::file("write", &path, e))?;
        Ok(Self { out: out.to_owned(), path, file, verifier: Verifier::new(genesis, Nothing) })
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|e| Failure::file("write", &self.path, e))?;
        self.verifier.push(bytes).map_err(|e| Failure::file("use the backup", &self.path, e))
    }

    fn finish(self) -> Result<Verified, Failure> {
        let Self { out, path, file, verifier } = self;
        let (verified, Nothing) = verifier.finish().map_err(|e| Failure::file("use the backup", &path, e))?;
        file.sync_all().map_err(|e| Failure::file("write", &path, e))?;
        fs::rename(&path, &out).map_err(|e| Failure::file("write", &out, e))?;
        let dir = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Failure::file("write", &out, e))?;
        Ok(verified)
    }
}

async fn from_node(global: &Global, rate: Option<u64>, mut partial: Partial) -> Result<Verified, Failure> {
    let nodes = global.nodes();
    let mut refused = None;
    for (node, one) in nodes.iter().zip(client(&nodes, PATIENT)?.each()) {
        let mut stream = match one.backup(rate).await {
            Ok(stream) => stream,
            Err(e) => {
                refused = Some(call_failed(std::slice::from_ref(node), &e));
                continue;
            }
        };
        let bar = output::progress(0, "fetching");
        while let Some(bytes) = stream.next().await {
            let broken = |why| Failure::new(format!("the backup of {node} broke off: {why}")).hint("try again");
            partial.push(&bytes.map_err(broken)?)?;
            let (done, all) = partial.verifier.progress();
            bar.set_length(all);
            bar.set_position(done);
        }
        bar.finish_and_clear();
        return partial.finish();
    }
    Err(refused.unwrap_or_else(|| Failure::usage("no node is given")))
}

fn from_store(data: &Path, tail: bool, mut partial: Partial) -> Result<Verified, Failure> {
    let (store, _) = Store::open(&data.join(STORE_DIR)).map_err(|e| Failure::caused(&e))?;
    let mut source = Source::open(&store, tail).map_err(Failure::new)?;
    while let Some(frame) = source.next_frame().map_err(Failure::new)? {
        partial.push(&frame)?;
    }
    partial.finish()
}

fn report(global: &Global, path: &Path, verified: &Verified, trusted: bool) -> Result<(), Failure> {
    let Verified { begin, summary, end, sum, root, .. } = verified;
    if global.json {
        return output::json(&json!({
            "verified": true, "file": path, "genesis_id": begin.genesis.id(), "certified": begin.certified,
            "last": begin.last, "root": root, "snapshot": begin.snapshot, "holds": end, "sha256": sum,
            "beyond": summary.beyond(), "summary": summary,
        }));
    }
    let by =
        if trusted { "against the genesis given" } else { "against the genesis within; give --genesis to trust it" };
    let snapshot = begin.snapshot.as_ref().map_or_else(|| "none".to_owned(), |m| format!("at {}", m.index));
    let mut lines = vec![
        format!("verified   {} {by}", path.display()),
        format!("cluster    {} (genesis {})", begin.genesis.name, begin.genesis.id()),
        format!("entries    {}, {} with their bodies; snapshot {snapshot}", end.entries, end.bodies),
        format!("certified  up to {} by {} head certificates", begin.certified, end.certificates),
        format!("root       {root}"),
        format!("sha256     {sum}"),
    ];
    if summary.beyond() > 0 {
        lines.push(format!("beyond     {} entries that nobody certified", summary.beyond()));
    }
    output::line(&lines.join("\n"))
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// A data directory that `init` made and nothing has used; its key stays
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The genesis file: of the backup's own cluster, or of one that succeeds it
    #[arg(long, value_name = "FILE")]
    genesis: Option<PathBuf>,
}

impl Restore {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let genesis = self.genesis.as_deref().map(read_genesis).transpose()?;
        let bar = output::progress(0, "restoring");
        let progress = |done, all| {
            bar.set_length(all);
            bar.set_position(done);
        };
        let successor = genesis.as_ref().filter(|g| g.succeeds.is_some());
        // A successor's own backups restore its joining members like any other's.
        let own = |g: &Genesis| backup_is_of(&self.from, g);
        let succeeds = match successor {
            Some(genesis) => !own(genesis)?,
            None => false,
        };
        let restored = match &genesis {
            Some(genesis) if succeeds => backup::restore_successor(&self.from, &self.data, genesis, progress),
            genesis => backup::restore(&self.from, &self.data, genesis.as_ref(), progress),
        };
        bar.finish_and_clear();
        let verified = restored.map_err(|e| Failure::caused(&e))?;
        let (last, data) = (verified.begin.last, self.data.display());
        if global.json {
            output::json(&json!({ "data": self.data, "last": last, "root": verified.root, "successor": succeeds }))?;
        } else if succeeds {
            output::line(&format!(
                "{data} begins with the state after entry {last}; start it with the genesis of the new cluster"
            ))?;
        } else {
            output::line(&format!(
                "{data} holds the log up to entry {last}; start it with `serve --join` and admit it with `member add`"
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn backup_is_of(path: &Path, genesis: &Genesis) -> Result<bool, Failure> {
    let file = File::open(path).map_err(|e| Failure::file("read", path, e))?;
    let begin = backup::peek(BufReader::new(file)).map_err(|e| Failure::file("use the backup", path, e))?;
    Ok(begin.genesis.id() == genesis.id())
}
