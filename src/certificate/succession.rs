//! A cluster that succeeds another: what its genesis says of the one before, and what survivors sign when that one ends.
//!
//! A successor's log goes on where its predecessor's ended: its first entry has the index after the predecessor's last,
//! its tree is the predecessor's with more leaves, its first term follows the predecessor's last. So indices, registry
//! revisions, proposal ids and the table of answered requests simply continue, and no node can take entries without
//! holding what they follow from. What lies before stays provable by the predecessor's genesis, never by the successor's:
//! its members did not agree on it, they only took it over.

use super::bytes::{FormatError, Reader, Writer};
use super::keys::{KeyError, PublicKey, Signature};
use super::manifest::SnapshotManifest;
use super::merkle::Frontier;
use crate::ids::{Digest, Epoch, LogIndex, NodeId, Term};
use crate::limits::{MAX_MEMBERS, MAX_REASON};
use serde::{Deserialize, Serialize};

const TAG: &[u8; 16] = b"concordat:succ:1";
const SURVEY_TAG: &[u8; 16] = b"concordat:survey";

/// What one survivor of a cluster holds, signed with the BLS key of its store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survey {
    /// The cluster.
    pub genesis_id: Digest,
    /// Whose store it is.
    pub member: NodeId,
    /// Its key.
    pub bls_key: PublicKey,
    /// The term of its last entry.
    pub last_term: Term,
    /// Its entries.
    pub size: u64,
    /// The root over them.
    pub root: Digest,
    /// How many of them its newest head certificate covers.
    pub certified: u64,
    /// Over [`Survey::signed_bytes`].
    pub signature: Signature,
}

impl Survey {
    /// What is signed: tag, genesis id, member, last term, size, root, certified (136 bytes).
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut w = Writer::tagged(SURVEY_TAG);
        w.digest(&self.genesis_id).node(&self.member).u64(self.last_term.0).u64(self.size).digest(&self.root);
        w.u64(self.certified);
        w.0
    }

    /// Whether its key signed it. That the key is the member's is for the predecessor's tables to tell.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn verify(&self) -> Result<(), KeyError> {
        self.bls_key.verify(&self.signed_bytes(), &self.signature)
    }

    fn write(&self, w: &mut Writer) {
        w.node(&self.member).fixed(&self.bls_key.0).u64(self.last_term.0).u64(self.size).digest(&self.root);
        w.u64(self.certified).fixed(&self.signature.0);
    }
}

/// What a genesis says of the cluster that it succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Succession {
    /// The predecessor.
    pub genesis_id: Digest,
    /// The state and the tree after its last entry, and the image by which every member of the successor begins. Its
    /// epoch is 0: the predecessor's member tables are not taken over.
    pub snapshot: SnapshotManifest,
    /// The complete subtrees of its tree: enough to go on with it.
    pub tree: Frontier,
    /// How many of its entries a head certificate covers. Those behind were not certified.
    pub certified: u64,
    /// Members of its last table of whom no survey is here, ascending. Empty when it ended in order.
    pub missing: Vec<NodeId>,
    /// What its survivors signed when it could not go on, ascending by member. Empty when it ended in order.
    pub surveys: Vec<Survey>,
    /// Why, for people: 1 to 256 bytes.
    pub reason: String,
}

/// Why what a genesis says of a predecessor cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    /// Fields that contradict each other.
    #[error("what it says of its predecessor contradicts itself: {0}")]
    Inconsistent(&'static str),
    /// A survey that proves nothing.
    #[error("the survey of {member}: {source}")]
    Survey {
        /// Whose.
        member: NodeId,
        /// Why.
        source: KeyError,
    },
}

impl Succession {
    /// Entries of the predecessor: the successor's log begins after as many.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.snapshot.index.0
    }

    /// Checks every rule.
    ///
    /// # Errors
    /// [`SuccessionError`].
    pub fn check(&self) -> Result<(), SuccessionError> {
        let Self { snapshot, tree, surveys, missing, .. } = self;
        let ascending = |surveys: &[Survey]| surveys.windows(2).all(|w| w[0].member < w[1].member);
        for (kept, rule) in [
            (snapshot.index > LogIndex::ZERO, "it has no entry"),
            (snapshot.epoch == Epoch::ZERO, "its state bears another epoch than 0"),
            (tree.size() == snapshot.index.0 && tree.root() == snapshot.root, "the subtrees are not those of its root"),
            (self.certified <= snapshot.index.0, "more is certified than there is"),
            ((1..=MAX_REASON).contains(&self.reason.len()), "the reason is 1 to 256 bytes"),
            (surveys.len() <= MAX_MEMBERS && ascending(surveys), "surveys ascend by member, at most 100"),
            (
                missing.len() <= MAX_MEMBERS && missing.windows(2).all(|w| w[0] < w[1]),
                "missing members ascend, at most 100",
            ),
            (surveys.iter().all(|s| s.genesis_id == self.genesis_id), "a survey is of another cluster"),
            (
                surveys.iter().all(|s| (s.last_term, s.size) <= (snapshot.term, snapshot.index.0)),
                "a survivor's log is newer than what was taken over",
            ),
            (
                self.certified == snapshot.index.0
                    || surveys.iter().any(|s| (s.size, s.root) == (snapshot.index.0, snapshot.root)),
                "no survivor signed the entries that no certificate covers",
            ),
            (!surveys.iter().any(|s| missing.contains(&s.member)), "a member is missing and survived"),
        ] {
            if !kept {
                return Err(SuccessionError::Inconsistent(rule));
            }
        }
        let bad = surveys.iter().find_map(|s| s.verify().err().map(|source| (s.member, source)));
        bad.map_or(Ok(()), |(member, source)| Err(SuccessionError::Survey { member, source }))
    }

    /// Canonical bytes: the last part of a successor's genesis.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::tagged(TAG);
        w.digest(&self.genesis_id).short(&self.snapshot.encode());
        w.u8(u8::try_from(self.tree.peaks().len()).expect("at most one subtree per bit of the size"));
        for peak in self.tree.peaks() {
            w.digest(peak);
        }
        w.u64(self.certified);
        w.u16(u16::try_from(self.missing.len()).expect("at most MAX_MEMBERS"));
        for member in &self.missing {
            w.node(member);
        }
        w.u16(u16::try_from(self.surveys.len()).expect("at most MAX_MEMBERS"));
        for survey in &self.surveys {
            survey.write(&mut w);
        }
        w.short(self.reason.as_bytes());
        w.0
    }

    /// Reads canonical bytes; [`Succession::check`] is the caller's.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        r.tag(TAG, "succession")?;
        let genesis_id = r.digest("succession.genesis_id")?;
        let snapshot = SnapshotManifest::decode(r.short(u16::MAX.into(), "succession.snapshot")?)?;
        let count = r.u8("succession.tree")?;
        let peaks = (0..count).map(|_| r.digest("succession.tree")).collect::<Result<Vec<_>, _>>()?;
        let tree = Frontier::new(snapshot.index.0, peaks)?;
        let certified = r.u64("succession.certified")?;
        let count = r.u16("succession.missing")?;
        let missing = (0..count).map(|_| r.node("succession.missing")).collect::<Result<Vec<_>, _>>()?;
        let count = r.u16("succession.surveys")?;
        let survey = |r: &mut Reader<'_>| {
            Ok(Survey {
                genesis_id,
                member: r.node("survey.member")?,
                bls_key: PublicKey(r.array("survey.bls_key")?),
                last_term: Term(r.u64("survey.last_term")?),
                size: r.u64("survey.size")?,
                root: r.digest("survey.root")?,
                certified: r.u64("survey.certified")?,
                signature: Signature(r.array("survey.signature")?),
            })
        };
        let surveys = (0..count).map(|_| survey(&mut r)).collect::<Result<Vec<_>, FormatError>>()?;
        let reason = r.text(MAX_REASON, "succession.reason")?;
        r.finish("succession")?;
        Ok(Self { genesis_id, snapshot, tree, certified, missing, surveys, reason })
    }
}
