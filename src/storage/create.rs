//! Making a store, whole or not at all, and setting one aside.

use super::disk::{LOCK, Trees, open_database};
use super::error::{CreateError, Damage, OpenError, fault};
use super::failure::{Failure, explained};
use super::ground::Ground;
use super::layout::{self, META_BLS, META_DID, META_SCHEMA, SCHEMA};
use super::recovery::lock;
use super::watermark::Watermark;
use crate::certificate::SecretKey;
use crate::certificate::merkle;
use crate::core::HardState;
use crate::ids::{LogIndex, NodeId};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub(super) fn create(dir: &Path, did: NodeId, bls: &SecretKey) -> Result<(), CreateError> {
    let failed = |source| CreateError::Io { dir: dir.to_owned(), source };
    match fs::read_dir(dir) {
        Ok(mut there) => {
            if there.next().is_some() {
                return Err(CreateError::NotEmpty { dir: dir.to_owned() });
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    build(dir, did, bls).map_err(failed)
}

/// Renames a store that no node has open, durably, within its directory.
pub(super) fn set_aside(dir: &Path, to: &Path) -> Result<(), OpenError> {
    explained(dir, || {
        let _lock = match lock(dir) {
            // Without it no node starts either.
            Err(Failure::Missing | Failure::Damage(Damage::MissingFile(LOCK))) => None,
            other => Some(other?),
        };
        if to.exists() {
            // A rename would take the place of an empty directory without a word.
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", to.display())).into());
        }
        fs::rename(dir, to)?;
        Ok(File::open(parent_of(dir))?.sync_all()?)
    })
}

fn parent_of(dir: &Path) -> &Path {
    match dir.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Builds the store beside its place and moves it there by one rename, so that a crash leaves no half a store: what an
/// earlier attempt left beside it was never used and is removed.
fn build(dir: &Path, did: NodeId, bls: &SecretKey) -> io::Result<()> {
    let parent = parent_of(dir);
    fs::create_dir_all(parent)?;
    let beside = beside(dir)?;
    match fs::remove_dir_all(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir(&beside)?;
    restrict(&beside)?;
    fill(&beside, did, bls)?;
    // sled syncs neither its parameters nor any directory.
    sync_tree(&beside)?;
    fs::rename(&beside, dir)?;
    File::open(dir)?.sync_all()?;
    File::open(parent)?.sync_all()
}

fn beside(dir: &Path) -> io::Result<PathBuf> {
    let name =
        dir.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no directory"))?;
    let mut name = OsString::from(name);
    name.push(".creating");
    Ok(dir.with_file_name(name))
}

/// The database holds a secret key: nobody but its owner reads it.
pub(super) fn restrict(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

fn fill(dir: &Path, did: NodeId, bls: &SecretKey) -> io::Result<()> {
    File::create(dir.join(LOCK))?;
    {
        let db = open_database(dir)?;
        let trees = Trees::open(&db)?;
        let put = |tree: &sled::Tree, key: &str, value: &[u8]| tree.insert(key, value).map(drop).map_err(fault);
        put(&trees.meta, META_SCHEMA, &SCHEMA.to_be_bytes())?;
        put(&trees.meta, META_DID, &did.0)?;
        put(&trees.meta, META_BLS, &bls.to_bytes())?;
        put(&trees.hard, layout::HARD_STATE, &layout::write_hard_state(&HardState::default()))?;
        put(&trees.hard, layout::COMMITS, &layout::number_key(0))?;
        Ground::default().put_first(&trees).map_err(fault)?;
        db.flush().map_err(fault)?;
    }
    let (last, root) = (LogIndex::ZERO, merkle::empty_root());
    let mark = Watermark { did, hard: HardState::default(), last, root, commits: 0, schema: SCHEMA };
    mark.store(dir, &File::open(dir)?)
}

/// Makes a directory and all in it durable, names included.
pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}
