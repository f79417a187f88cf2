//! What was found, what it means, and what to do.

use crate::certificate::{CertificateError, FormatError, TableError};
use crate::ids::{Digest, LogIndex};
use crate::storage::error::{Damage, SnapshotError};
use crate::storage::failure::Failure;
use serde::Serialize;

/// Flaws that are told one by one.
pub(super) const MAX_FLAWS: usize = 1_000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// No node may go on with this store.
    Unsound,
    /// A node starts with this store, and what was found mends itself or with `doctor --repair`.
    Flaw,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub weight: Weight,
    /// What was found.
    pub what: String,
    /// What that means.
    pub means: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// What only an examination looks for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Flaw {
    #[error("{missing} proposals are missing in the index of proposals, or are wrong there")]
    Proposals { missing: u64 },
    #[error("a derived record of the tree {tree:?} is wrong: {source}")]
    Derived { tree: &'static str, source: FormatError },
    #[error(transparent)]
    Image(SnapshotError),
    #[error("the head certificate of size {size} does not verify: {source}")]
    Signature { size: u64, source: CertificateError },
    #[error("the head certificate of size {size} says the root {certified}, the tree has {computed}")]
    Root { size: u64, certified: Digest, computed: Digest },
    #[error("{certificates} head certificates, but no genesis to verify them by")]
    NoGenesis { certificates: u64 },
    #[error("the member table in entry {index} does not decode: {source}")]
    Table { index: LogIndex, source: TableError },
    #[error("the membership change ending at entry {index} is not proved: {why}")]
    Change { index: LogIndex, why: String },
    #[error("a record of the tree {tree:?} under a key that this program does not know")]
    Stray { tree: &'static str },
}

/// What is wrong with one record.
pub(super) enum Noted {
    Damage(Damage),
    Flaw(Flaw),
}

impl From<Damage> for Noted {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

impl From<Flaw> for Noted {
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

const REJOIN: &str = "do not start a node on it; `concordat init --rejoin --data DIR` keeps it aside and begins anew with a fresh key; check the disk";
const MIXED: &str = "find out how files of two stores came together; if the right ones are not to be had, `concordat init --rejoin --data DIR` begins anew with a fresh key";
const BYTES: &str = "what can be read is not what was written: the disk changed, lost or cut bytes";
const ORDER: &str =
    "its records are whole but do not belong together: the disk gave back old pages, or files of two stores were mixed";

impl Finding {
    pub(super) fn of(failure: &Failure) -> Self {
        let (what, means, remedy) = match failure {
            Failure::Damage(damage) => {
                let (means, remedy) = of_damage(damage);
                (damage.to_string(), means, remedy)
            }
            Failure::Loss(loss) => (
                loss.to_string(),
                "it reads well but is older than what this node has said: a vote or an acknowledgement is forgotten",
                REJOIN,
            ),
            Failure::Io(error) => (
                format!("the system refuses: {error}"),
                "this says nothing about what is stored",
                "mend that (room, rights, the disk), then look again",
            ),
            Failure::Newer(found) => (
                format!("it has schema version {found}"),
                "a newer program wrote it; nothing else was looked at",
                "use the newer program",
            ),
            Failure::InUse | Failure::Missing => ("it is in use or not there".into(), BYTES, "look again"),
        };
        Self { weight: Weight::Unsound, what, means, remedy }
    }

    pub(super) fn of_flaw(flaw: &Flaw) -> Self {
        let (weight, means, remedy) = match flaw {
            Flaw::Proposals { .. } => (
                Weight::Flaw,
                "who asks for an old proposal by its id is told that there is none; nothing else depends on it",
                "`concordat doctor --repair` writes it anew from the headers",
            ),
            Flaw::Derived { .. } => (
                Weight::Flaw,
                "it follows from other records, and is made again from them",
                "start the node, or `concordat doctor --repair`; check the disk",
            ),
            Flaw::Image(_) => (
                Weight::Flaw,
                "an image of the state is damaged, but the log does not need it",
                "the next start sets it aside, and it is taken or fetched again; check the disk",
            ),
            Flaw::Signature { .. } | Flaw::Root { .. } | Flaw::Change { .. } => (
                Weight::Unsound,
                "what auditors would be given proves nothing: it was changed since it was stored, or never was right",
                REJOIN,
            ),
            Flaw::NoGenesis { .. } => (Weight::Unsound, "the record of the cluster is gone", REJOIN),
            Flaw::Table { .. } => (Weight::Unsound, BYTES, REJOIN),
            Flaw::Stray { .. } => {
                (Weight::Unsound, "another program wrote in this store, or bytes were changed", REJOIN)
            }
        };
        Self { weight, what: flaw.to_string(), means, remedy }
    }
}

fn of_damage(damage: &Damage) -> (&'static str, &'static str) {
    match damage {
        Damage::MissingFile(_)
        | Damage::Pointer(_)
        | Damage::MissingDatabase { .. }
        | Damage::MissingTree(_)
        | Damage::MissingRecord { .. }
        | Damage::Database(_)
        | Damage::Panicked { .. }
        | Damage::Record { .. }
        | Damage::Key(_)
        | Damage::Genesis(_)
        | Damage::Block { .. } => (BYTES, REJOIN),
        Damage::Blobs => ("the database keeps a value where it does not make it durable", REJOIN),
        Damage::Watermark(_) => ("nothing tells whether the database has forgotten a vote", REJOIN),
        Damage::ForeignWatermark { .. } => (ORDER, MIXED),
        Damage::NotContiguous { .. }
        | Damage::Backwards { .. }
        | Damage::OtherHistory { .. }
        | Damage::NotCertified { .. }
        | Damage::Headers { .. }
        | Damage::Kept { .. }
        | Damage::TermBehindLog { .. } => (ORDER, REJOIN),
        Damage::NoSnapshot { .. } => ("nothing stands for the entries before the log", REJOIN),
    }
}
