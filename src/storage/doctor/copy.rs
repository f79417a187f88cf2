//! A private copy of a store, for sled to write in.

use super::{FileSize, Progress};
use crate::storage::failure::Failure;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Why there is no private copy.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot make a private copy of the store in {at}: {source}; the database is opened only in a copy, because it writes when it is opened: name a place with room for {bytes} bytes and no directory of that name (--scratch DIR)"
)]
pub struct CopyError {
    /// Where it was to be.
    pub at: PathBuf,
    /// How large it is.
    pub bytes: u64,
    /// Why.
    pub source: io::Error,
}

/// Every file of a store, by path.
pub(super) fn files(dir: &Path) -> Result<Vec<FileSize>, Failure> {
    let mut files = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(dir.join(&below))? {
            let entry = entry?;
            let (path, kind) = (below.join(entry.file_name()), entry.file_type()?);
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() {
                files.push(FileSize { path, bytes: entry.metadata()?.len() });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// A directory that goes with this value: it holds a secret key.
pub(super) struct Copy(PathBuf);

impl Copy {
    /// Copies these files of the store `dir` to `scratch`, or beside it, where only the holder of its lock does so: what
    /// lies there was left by one that was interrupted.
    pub(super) fn of(
        dir: &Path,
        files: &[FileSize],
        scratch: Option<&Path>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, CopyError> {
        let bytes = files.iter().map(|f| f.bytes).sum();
        let at = scratch.map_or_else(|| beside(dir), Path::to_owned);
        let failed = |source| CopyError { at: at.clone(), bytes, source };
        if scratch.is_none() {
            match fs::remove_dir_all(&at) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
                _ => {}
            }
        }
        DirBuilder::new().mode(0o700).create(&at).map_err(failed)?;
        let copy = Self(at.clone());
        copy.fill(dir, files, bytes, progress).map_err(failed)?;
        Ok(copy)
    }

    fn fill(&self, dir: &Path, files: &[FileSize], bytes: u64, progress: &mut dyn FnMut(Progress)) -> io::Result<()> {
        let mut done = 0;
        for file in files {
            progress(Progress { stage: "copying", done, total: Some(bytes) });
            let to = self.0.join(&file.path);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(dir.join(&file.path), to)?;
            done += file.bytes;
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(copy = %self.0.display(), %error, "the private copy of a store, with its secret key, is left behind");
        }
    }
}

fn beside(dir: &Path) -> PathBuf {
    let mut name = OsString::from(dir.file_name().unwrap_or_default());
    name.push(".doctor");
    dir.with_file_name(name)
}
