//! What checks find. Opening a store stops at the first of it, an examination hears all.

use super::below::Fault;
use super::error::{Damage, DurabilityError, Loss, OpenError, ReadError, SnapshotError, fault};
use super::layout::SCHEMA;
use super::read::panic_message;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// What is wrong, before the directory is named.
pub(super) enum Failure {
    Io(io::Error),
    Damage(Damage),
    Loss(Loss),
    Newer(u16),
    InUse,
    Missing,
}

impl From<Damage> for Failure {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

impl From<Loss> for Failure {
    fn from(loss: Loss) -> Self {
        Self::Loss(loss)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What the operating system refuses (no room, no permission, an unreadable sector) says nothing about what is stored;
/// what sled cannot make sense of does.
pub(super) fn database(error: io::Error) -> Failure {
    if error.raw_os_error().is_some() { Failure::Io(error) } else { Damage::Database(error).into() }
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        database(fault(error))
    }
}

impl From<DurabilityError> for Failure {
    fn from(error: DurabilityError) -> Self {
        Self::Io(match error {
            DurabilityError::Write { source }
            | DurabilityError::Sync { source }
            | DurabilityError::Watermark { source } => source,
            DurabilityError::Stopped => io::Error::other(DurabilityError::Stopped),
        })
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Headers(first, last) => Damage::Headers { first, last }.into(),
            Fault::Kept(index) => Damage::Kept { index }.into(),
            Fault::Read(e) => e.into(),
        }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Read(e) => e.into(),
            SnapshotError::Durability(e) => e.into(),
            other => Damage::Database(io::Error::other(other)).into(),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Durability(e) => e.into(),
            ReadError::Io(e) => database(e),
            ReadError::Record { tree, source } => Damage::Record { tree, source }.into(),
            other => Damage::Database(io::Error::other(other)).into(),
        }
    }
}

/// Names the directory, and catches what sled does instead of answering.
pub(super) fn explained<T>(path: &Path, step: impl FnOnce() -> Result<T, Failure>) -> Result<T, OpenError> {
    // sled panics on much of what a bad disk can give it.
    let result = catch_unwind(AssertUnwindSafe(step))
        .unwrap_or_else(|p| Err(Damage::Panicked { message: panic_message(p.as_ref()) }.into()));
    let dir = path.to_owned();
    result.map_err(|failure| match failure {
        Failure::Io(source) => OpenError::Io { dir, source },
        Failure::Damage(damage) => OpenError::Damaged { dir, damage },
        Failure::Loss(loss) => OpenError::Quarantined { dir, loss },
        Failure::Newer(found) => OpenError::Newer { dir, found, known: SCHEMA },
        Failure::InUse => OpenError::InUse { dir },
        Failure::Missing => OpenError::Missing { dir },
    })
}

/// Findings that an examination keeps; a store that is broken all over has as many as it has records.
const MAX_FINDINGS: usize = 1_000;

/// Where checks bring what they find.
pub(super) enum Findings {
    /// The first one ends everything.
    First,
    /// All are heard.
    All {
        /// In the order in which they were found.
        found: Vec<Failure>,
        /// How many more there were.
        more: u64,
    },
}

impl Findings {
    /// An examination's.
    pub(super) fn all() -> Self {
        Self::All { found: Vec::new(), more: 0 }
    }

    /// Whether a newer program wrote what is looked at.
    pub(super) fn are_newer(&self) -> bool {
        matches!(self, Self::All { found, .. } if found.iter().any(|f| matches!(f, Failure::Newer(_))))
    }

    /// Goes on after a finding, or not.
    pub(super) fn hear(&mut self, failure: impl Into<Failure>) -> Result<(), Failure> {
        match self {
            Self::First => return Err(failure.into()),
            Self::All { found, .. } if found.len() < MAX_FINDINGS => found.push(failure.into()),
            Self::All { more, .. } => *more += 1,
        }
        Ok(())
    }

    /// What a check gave; nothing when it found something and everything else is to be heard, too.
    pub(super) fn take<T>(&mut self, checked: Result<T, impl Into<Failure>>) -> Result<Option<T>, Failure> {
        match checked {
            Ok(value) => Ok(Some(value)),
            Err(failure) => self.hear(failure).map(|()| None),
        }
    }
}
