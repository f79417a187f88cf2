//! The state after a backup's last entry, rebuilt from its snapshot and the entries behind that.

use super::frame::Begin;
use super::verify::{Sink, SinkError, Verified};
use crate::certificate::{
    Body, Edge, Entry, EpochChain, Header, Succession, SuccessionError, Survey, merkle::Frontier,
};
use crate::ids::{LogIndex, NodeId, Term};
use crate::node::image::Image;
use crate::registry::State;
use std::collections::BTreeSet;

/// Takes a backup and applies it.
#[derive(Debug, Default)]
pub struct Rebuilt {
    edge: Edge,
    terms: Vec<(LogIndex, Term)>,
    proposed_at: u64,
    state: State,
}

impl Sink for Rebuilt {
    fn begin(&mut self, begin: &Begin) -> Result<(), SinkError> {
        self.edge = begin.edge.clone();
        self.terms.clone_from(&begin.terms);
        self.proposed_at = begin.genesis.succeeds.as_ref().map_or(0, |s| s.snapshot.proposed_at);
        Ok(())
    }

    fn image(&mut self, _: &crate::certificate::SnapshotManifest, image: &Image, _: &[u8]) -> Result<(), SinkError> {
        self.state = image.state.clone();
        Ok(())
    }

    fn entry(&mut self, header: &Header, body: Option<&Body>) -> Result<(), SinkError> {
        self.edge.push(header.encode());
        if self.terms.last().is_none_or(|t| t.1 < header.term) {
            self.terms.push((header.index, header.term));
        }
        self.proposed_at = header.proposed_at;
        if header.index > self.state.applied() {
            // The verifier demands every body that no snapshot stands for.
            let body = body.ok_or(RebuildError::Body { index: header.index })?;
            self.state.apply(&Entry { header: header.clone(), body: body.clone() });
        }
        Ok(())
    }
}

/// Why a cluster cannot be succeeded with this backup.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// A body is missing.
    #[error("the body of entry {index} is missing")]
    Body {
        /// Which.
        index: LogIndex,
    },
    /// A survey of another cluster.
    #[error("the survey of {member} is of cluster {found}, the backup of another")]
    Cluster {
        /// Whose.
        member: NodeId,
        /// Named in it.
        found: crate::ids::Digest,
    },
    /// A survey by a stranger, or with another key.
    #[error("the survey of {member} is not signed with a key that stands in the cluster's last member table")]
    Stranger {
        /// Whose.
        member: NodeId,
    },
    /// Two by one member.
    #[error("two surveys of {member}; make one of each survivor, after it was stopped for good")]
    Twice {
        /// Whose.
        member: NodeId,
    },
    /// A survivor holds a log that the backup does not.
    #[error(
        "the survivor {member} holds {size} entries, the last of term {last_term}; the backup holds {held}, the last of term {held_term}: make the backup from that survivor (`concordat backup --data DIR --with-tail`), so that nothing is lost that somebody still has"
    )]
    Longer {
        /// Who.
        member: NodeId,
        /// Its entries.
        size: u64,
        /// Its last term.
        last_term: Term,
        /// Entries in the backup.
        held: u64,
        /// The term of the last of them.
        held_term: Term,
    },
    /// A survivor's log of the same length and term is another one.
    #[error(
        "the survivor {member} has root {root} over {size} entries, the backup another, in one term: one of the logs is false; keep all stores and find out which (`concordat audit --data`)"
    )]
    Differs {
        /// Who.
        member: NodeId,
        /// Its root.
        root: crate::ids::Digest,
        /// Its entries.
        size: u64,
    },
    /// Enough of them for the cluster to go on.
    #[error(
        "{survivors} of {voters} voters are here, a quorum is {quorum}: nothing is lost; start them again, and replace the others by membership changes (`concordat member add`, `member remove`); --force succeeds the cluster all the same"
    )]
    Quorum {
        /// Voters that were surveyed.
        survivors: usize,
        /// All of them.
        voters: usize,
        /// Needed.
        quorum: usize,
    },
    /// An uncertified tail that nobody stands for.
    #[error(
        "the backup holds {beyond} entries that are not certified: only survivors can say that those were the last (--survivors), or make the backup without --with-tail"
    )]
    Tail {
        /// How many.
        beyond: u64,
    },
    /// What came of it is inconsistent.
    #[error(transparent)]
    Succession(#[from] SuccessionError),
}

impl Rebuilt {
    /// The image of the state with which a successor begins: of the tree, terms and state after the last entry, and of no
    /// change of members, for the successor's genesis names its members.
    #[must_use]
    pub fn into_image(self) -> Image {
        let Self { edge, terms, proposed_at, state } = self;
        Image { edge, terms, proposed_at, chain: EpochChain::default(), finals: Vec::new(), state }
    }
}

/// What the genesis of a successor says of the cluster in a verified backup; `image` is that of [`Rebuilt::into_image`].
///
/// # Errors
/// [`RebuildError`]: the surveys contradict each other or the backup, or (unless `force`) no recovery is needed.
pub fn succession(
    verified: &Verified,
    image: &Image,
    mut surveys: Vec<Survey>,
    reason: String,
    force: bool,
) -> Result<Succession, RebuildError> {
    surveys.sort_by_key(|s| s.member);
    if let Some(pair) = surveys.windows(2).find(|w| w[0].member == w[1].member) {
        return Err(RebuildError::Twice { member: pair[0].member });
    }
    for survey in &surveys {
        check_survey(verified, survey)?;
    }
    let beyond = verified.begin.last.0 - verified.begin.certified;
    if surveys.is_empty() && beyond > 0 {
        return Err(RebuildError::Tail { beyond });
    }
    if !surveys.is_empty() && !force {
        check_lost(verified, &surveys)?;
    }
    let survived: BTreeSet<NodeId> = surveys.iter().map(|s| s.member).collect();
    let missing = if surveys.is_empty() {
        Vec::new()
    } else {
        members(verified).filter(|did| !survived.contains(did)).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let tree: Frontier = image.edge.frontier();
    let succession = Succession {
        genesis_id: verified.begin.genesis.id(),
        snapshot: image.manifest(&image.encode()),
        tree,
        certified: verified.begin.certified,
        missing,
        surveys,
        reason,
    };
    succession.check()?;
    Ok(succession)
}

fn members(verified: &Verified) -> impl Iterator<Item = NodeId> {
    let (current, next) = &verified.tables;
    std::iter::once(current).chain(next).flat_map(|t| t.table.members()).map(|m| m.did)
}

fn check_survey(verified: &Verified, survey: &Survey) -> Result<(), RebuildError> {
    let Survey { member, size, last_term, root, .. } = survey;
    let (member, size, last_term) = (*member, *size, *last_term);
    if survey.genesis_id != verified.begin.genesis.id() {
        return Err(RebuildError::Cluster { member, found: survey.genesis_id });
    }
    survey.verify().map_err(|source| SuccessionError::Survey { member, source })?;
    let (current, next) = &verified.tables;
    let known =
        std::iter::once(current).chain(next).any(|t| t.table.get(&member).is_some_and(|m| m.bls_key == survey.bls_key));
    if !known {
        return Err(RebuildError::Stranger { member });
    }
    let (held, held_term) = (verified.begin.last.0, verified.last_term);
    if (last_term, size) > (held_term, held) {
        return Err(RebuildError::Longer { member, size, last_term, held, held_term });
    }
    if (last_term, size) == (held_term, held) && *root != verified.root {
        return Err(RebuildError::Differs { member, root: *root, size });
    }
    Ok(())
}

/// Whether the survivors could not elect a leader among themselves.
fn check_lost(verified: &Verified, surveys: &[Survey]) -> Result<(), RebuildError> {
    let (current, next) = &verified.tables;
    let mut all = true;
    let mut told = (0, 0, 0);
    for table in std::iter::once(current).chain(next) {
        let voters = table.table.voters().count();
        let survivors = table.table.voters().filter(|m| surveys.iter().any(|s| s.member == m.did)).count();
        all &= survivors >= table.quorum();
        told = (survivors, voters, table.quorum());
    }
    let (survivors, voters, quorum) = told;
    if all { Err(RebuildError::Quorum { survivors, voters, quorum }) } else { Ok(()) }
}
