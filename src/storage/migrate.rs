//! From one schema version to the next; `migrations/` says what each of them was.
//!
//! A step begins with a verified copy of the records that it changes, in a file of its own. Then the watermark says the
//! new version: from here on an older program refuses the store before it touches anything. Then the new records and
//! trees, durably, and last the database's own version. Opening a store whose watermark is ahead of its database, or whose
//! copy still bears its first name, goes on with the step; every part of it may be done twice.

use super::disk::{DATA, Trees};
use super::error::{Damage, fault};
use super::failure::{Failure, database};
use super::generation::Place;
use super::ground::Ground;
use super::layout::{META, META_BASE, META_SCHEMA, SCHEMA, read_schema};
use super::watermark::{self, Watermark};
use crate::certificate::{FormatError, Reader, Writer};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

const MAGIC: &[u8; 8] = b"ccd-back";

/// One step from a schema version to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// From this version.
    pub from: u16,
    /// To this one.
    pub to: u16,
    /// What it changes.
    pub what: &'static str,
}

impl Step {
    /// The file in the store's directory that holds what this step overwrote, once it is done.
    #[must_use]
    pub fn backup(&self) -> String {
        finished_name(self)
    }
}

/// All steps, ascending.
const STEPS: &[Step] = &[
    Step {
        from: 1,
        to: 2,
        what: "adds the record of what the log rests on, and room for snapshots and for entries that outlive the log; no record is rewritten",
    },
    Step {
        from: 2,
        to: 3,
        what: "adds room for the auditors' index, and lets the database move to a fresh directory; no record is rewritten",
    },
];

fn unfinished_name(step: &Step) -> String {
    format!("migrating-{}-{}", step.from, step.to)
}

fn finished_name(step: &Step) -> String {
    format!("migrated-{}-{}", step.from, step.to)
}

/// What a store in `dir` needs, told by its files alone.
pub(super) fn needed(dir: &Path, mark: &Watermark) -> Vec<Step> {
    let due = |step: &&Step| step.from >= mark.schema || dir.join(unfinished_name(step)).exists();
    STEPS.iter().filter(due).copied().collect()
}

/// Brings a store that is being opened to the present version; returns its watermark.
pub(super) fn on_open(dir: &Path, place: &Place, db: &sled::Db, mark: Watermark) -> Result<Watermark, Failure> {
    let mut mark = mark;
    for step in needed(dir, &mark) {
        let wrong = |source| Damage::Record { tree: META, source };
        let meta = db.open_tree(META).map_err(fault).map_err(database)?;
        let stored = meta.get(META_SCHEMA)?.ok_or(Damage::MissingRecord { tree: META, record: META_SCHEMA })?;
        let version = read_schema(&stored).map_err(wrong)?;
        if version > SCHEMA {
            return Err(Failure::Newer(version));
        }
        tracing::info!(from = step.from, to = step.to, what = step.what, "migrating the store");
        mark = run(dir, place, db, &meta, &step, mark)?;
    }
    Ok(mark)
}

fn run(
    dir: &Path,
    place: &Place,
    db: &sled::Db,
    meta: &sled::Tree,
    step: &Step,
    mark: Watermark,
) -> Result<Watermark, Failure> {
    let handle = File::open(dir)?;
    let data = File::options().read(true).write(true).open(place.dir().join(DATA))?;
    if !dir.join(unfinished_name(step)).exists() {
        back_up(dir, &handle, step)?;
    }
    let mark = Watermark { schema: step.to, ..mark };
    mark.store(dir, &handle)?;
    // All of it may have been done before.
    let trees = Trees::open(db).map_err(database)?;
    if meta.get(META_BASE)?.is_none() {
        Ground::default().put_first(&trees)?;
    }
    durable(db, &data)?;
    // Whoever reads the new version finds everything that belongs to it.
    meta.insert(META_SCHEMA, &step.to.to_be_bytes())?;
    durable(db, &data)?;
    fs::rename(dir.join(unfinished_name(step)), dir.join(finished_name(step)))?;
    handle.sync_all()?;
    Ok(mark)
}

fn durable(db: &sled::Db, data: &File) -> Result<(), Failure> {
    db.flush()?;
    Ok(data.sync_data()?)
}

/// A copy of what a step overwrites: the watermark (the schema record says no more than the copy's name).
fn back_up(dir: &Path, handle: &File, step: &Step) -> Result<(), Failure> {
    let mark = fs::read(dir.join(watermark::FILE))?;
    let mut w = Writer(MAGIC.to_vec());
    w.u16(step.from).long(&mark);
    let sum = Sha256::digest(&w.0);
    w.fixed(&sum);
    let next = dir.join(format!("{}.next", unfinished_name(step)));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&next)?;
    file.write_all(&w.0)?;
    file.sync_all()?;
    drop(file);
    if read_backup(&fs::read(&next)?, step).ok().as_deref() != Some(&mark[..]) {
        return Err(io::Error::other("the copy of what a migration changes does not read back").into());
    }
    fs::rename(&next, dir.join(unfinished_name(step)))?;
    Ok(handle.sync_all()?)
}

/// The watermark in a copy.
fn read_backup(bytes: &[u8], step: &Step) -> Result<Vec<u8>, FormatError> {
    let (body, sum) = bytes.split_last_chunk::<32>().ok_or(FormatError::Truncated { field: "backup" })?;
    if Sha256::digest(body).as_slice() != sum {
        return Err(FormatError::Value { field: "backup.checksum" });
    }
    let mut r = Reader::new(body);
    if r.fixed(MAGIC.len(), "backup.magic")? != MAGIC || r.u16("backup.schema")? != step.from {
        return Err(FormatError::Value { field: "backup.schema" });
    }
    let mark = r.long(body.len(), "backup.watermark")?.to_vec();
    r.finish("backup")?;
    Ok(mark)
}
