//! Which of the databases in a store's directory is in force.
//!
//! The first one lies in the store's directory itself. Each later one has a directory of its own below that, named by its
//! number, and the file `current` says which number is in force; it is replaced by one rename, after the database that it
//! will name is durable in all its parts. So at any instant the store rests on the one or the other, and what `current`
//! does not name is no part of it: it is removed when the store is next opened, at the latest.

use super::disk::{BLOBS, CONF, DATA};
use super::error::Damage;
use super::failure::Failure;
use crate::certificate::{FormatError, Reader, Writer};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Says which database is in force. Absent while the first one is.
const CURRENT: &str = "current";
/// The name under which the next one is written.
const NEXT: &str = "current.next";
const MAGIC: &[u8; 8] = b"ccd-curr";
/// What the names of directories begin with.
const PREFIX: &str = "database-";

/// A database's number and directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    number: u64,
    dir: PathBuf,
}

impl Place {
    fn of(store: &Path, number: u64) -> Self {
        let dir = if number == 0 { store.to_owned() } else { store.join(format!("{PREFIX}{number}")) };
        Self { number, dir }
    }

    /// The one in force.
    pub(super) fn current(store: &Path) -> Result<Self, Failure> {
        let bytes = match fs::read(store.join(CURRENT)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::of(store, 0)),
            Err(e) => return Err(e.into()),
        };
        let place = Self::of(store, decode(&bytes).map_err(Damage::Pointer)?);
        // sled would begin an empty database in its place.
        if place.dir.is_dir() { Ok(place) } else { Err(Damage::MissingDatabase { number: place.number }.into()) }
    }

    /// Where the database after this one goes.
    pub(super) fn next(&self, store: &Path) -> Self {
        Self::of(store, self.number + 1)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that its files take on the disk.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if is_part(&entry.file_name().to_string_lossy()) {
                match entry.metadata() {
                    Ok(data) => bytes += data.blocks() * 512,
                    // The database replaces some of its files while it runs.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(bytes)
    }

    /// Writes down that it is to be in force, durably, but not yet where that counts.
    pub(super) fn announce(&self, store: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(store.join(NEXT))?;
        file.write_all(&encode(self.number))?;
        file.sync_all()
    }

    /// Puts in force what was announced, durably. After a failure nobody knows which one is.
    pub(super) fn put_in_force(store: &Path, store_handle: &File) -> io::Result<()> {
        fs::rename(store.join(NEXT), store.join(CURRENT))?;
        store_handle.sync_all()
    }

    /// Removes every database that is not this one, and what announced it. To be called only when this one is in force
    /// durably.
    pub(super) fn clear_others(&self, store: &Path, store_handle: &File) -> io::Result<()> {
        let mut removed = false;
        for entry in fs::read_dir(store)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let number = name.strip_prefix(PREFIX).and_then(|number| number.parse::<u64>().ok());
            let first = self.number != 0 && is_part(&name);
            if first || name == NEXT || number.is_some_and(|number| number != self.number) {
                remove(&entry.path())?;
                removed = true;
            }
        }
        if removed { store_handle.sync_all() } else { Ok(()) }
    }

    /// Makes its directory, empty.
    pub(super) fn make(&self) -> io::Result<()> {
        remove(&self.dir)?;
        fs::create_dir(&self.dir)
    }

    /// Removes what was to be in force and is not.
    pub(super) fn abandon(&self, store: &Path) -> io::Result<()> {
        remove(&store.join(NEXT))?;
        remove(&self.dir)
    }

    /// Whether something lies where the database puts values that it does not make durable.
    pub(super) fn has_blobs(&self) -> io::Result<bool> {
        let blobs = self.dir.join(BLOBS);
        Ok(blobs.is_dir() && fs::read_dir(blobs)?.next().is_some())
    }
}

/// Whether a file of this name belongs to the database in its directory.
fn is_part(name: &str) -> bool {
    name == DATA || name == CONF || name == BLOBS || name.starts_with("snap.")
}

fn encode(number: u64) -> Vec<u8> {
    let mut w = Writer(MAGIC.to_vec());
    w.u64(number);
    let sum = Sha256::digest(&w.0);
    w.fixed(&sum);
    w.0
}

fn decode(bytes: &[u8]) -> Result<u64, FormatError> {
    let (body, sum) = bytes.split_last_chunk::<32>().ok_or(FormatError::Truncated { field: "current" })?;
    if Sha256::digest(body).as_slice() != sum {
        return Err(FormatError::Value { field: "current.checksum" });
    }
    let mut r = Reader::new(body);
    if r.fixed(MAGIC.len(), "current.magic")? != MAGIC {
        return Err(FormatError::Value { field: "current.magic" });
    }
    let number = r.u64("current.number")?;
    r.finish("current")?;
    // The first one is never announced.
    if number == 0 { Err(FormatError::Value { field: "current.number" }) } else { Ok(number) }
}

/// Removes a file, or a directory and all in it; nothing when it is not there.
fn remove(path: &Path) -> io::Result<()> {
    let there = |done: io::Result<()>| match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(what) if what.is_dir() => {
            for entry in fs::read_dir(path)? {
                remove(&entry?.path())?;
            }
            there(fs::remove_dir(path))
        }
        Ok(_) => there(fs::remove_file(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_reads_back_and_any_changed_bit_and_any_other_length_is_found() {
        let bytes = encode(7);
        assert_eq!(bytes.len(), crate::storage::v3::CURRENT);
        assert_eq!(decode(&bytes), Ok(7));
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(decode(&bad).is_err(), "bit {at}");
        }
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "cut to {length}");
        }
        assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
        assert!(decode(&encode(0)).is_err(), "the first one is never announced");
    }
}
