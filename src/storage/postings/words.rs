//! The words of an entry: what auditors ask by.
//!
//! Most follow from the header, which is kept for ever. Two follow from the body, which compaction prunes: the request
//! (its header names it by a digest into which the deadline goes too, so that is noted with it, and the digest then proves
//! the answer) and the key of the registry.

use crate::certificate::{Bitmap, Body, Header, Kind};
use crate::ids::{Digest, Epoch, NodeId};
use crate::limits::MAX_MEMBERS;
use crate::registry::{Key, Operation};
use sha2::{Digest as _, Sha256};

/// What entries are looked up by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Entries of this kind.
    Kind(Kind),
    /// Entries whose proposal came in at this node.
    Origin(NodeId),
    /// Entries whose tally, read under this epoch, has the voter at this position among the grants.
    Granted(Epoch, u8),
    /// The same among the denials.
    Denied(Epoch, u8),
    /// Entries of the request with this key ([`crate::certificate::Request::key`]).
    Request(Digest),
    /// Proposals whose operation names this key of the registry, whether or not it changed anything.
    Key(Key),
}

impl Word {
    /// Whether it follows from headers alone, and so outlives every pruned body.
    #[must_use]
    pub const fn is_of_header(&self) -> bool {
        !matches!(self, Self::Request(_) | Self::Key(_))
    }

    pub(super) fn code(&self) -> Code {
        match self {
            Self::Kind(kind) => Code { hi: tagged(KIND, *kind as u64), lo: 0 },
            Self::Origin(did) => hashed(ORIGIN, &[&did.0]),
            Self::Granted(epoch, voter) => vote(GRANTED, *epoch, *voter),
            Self::Denied(epoch, voter) => vote(DENIED, *epoch, *voter),
            Self::Request(key) => hashed(REQUEST, &[&key.0]),
            Self::Key(Key::Agent(id)) => hashed(KEY, &[b"agent:", id.as_bytes()]),
            Self::Key(Key::Config(key)) => hashed(KEY, &[b"config:", key.as_bytes()]),
        }
    }
}

const KIND: u8 = 1;
const ORIGIN: u8 = 2;
const GRANTED: u8 = 3;
const DENIED: u8 = 4;
const REQUEST: u8 = 5;
const KEY: u8 = 6;

/// A word as it is stored: what it is about in the topmost byte, then 56 bits that name it. The header proves that an
/// entry found by them is the right one, except for a key of the registry whose body is pruned: such a word has 64 more
/// bits, so that nobody makes up two keys that are taken for one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::storage) struct Code {
    pub(super) hi: u64,
    pub(super) lo: u64,
}

impl Code {
    const fn tag(self) -> u8 {
        self.hi.to_be_bytes()[0]
    }

    /// Whether it has more than 64 bits.
    pub(super) const fn is_long(self) -> bool {
        self.tag() == KEY
    }

    /// Whether each of its postings bears a number.
    pub(super) const fn has_note(self) -> bool {
        self.tag() == REQUEST
    }
}

const fn tagged(tag: u8, name: u64) -> u64 {
    (tag as u64) << 56 | (name & (u64::MAX >> 8))
}

fn vote(tag: u8, epoch: Epoch, voter: u8) -> Code {
    // Epochs have 48 bits here: a cluster that changes its members a thousand times a second fills them in 8,000 years.
    Code { hi: tagged(tag, u64::from(voter) << 48 | (epoch.0 & (u64::MAX >> 16))), lo: 0 }
}

fn hashed(tag: u8, parts: &[&[u8]]) -> Code {
    let mut hasher = Sha256::new().chain_update([tag]);
    parts.iter().for_each(|part| hasher.update(part));
    let hash: [u8; 32] = hasher.finalize().into();
    let number = |from: usize| hash[from..from + 8].iter().fold(0, |n: u64, b| n << 8 | u64::from(*b));
    let code = Code { hi: tagged(tag, number(0)), lo: 0 };
    if code.is_long() { Code { lo: number(8), ..code } } else { code }
}

/// One word of one entry, and the number that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Posting {
    pub(super) code: Code,
    pub(super) index: u64,
    pub(super) note: u64,
}

/// The words that follow from a header.
pub(super) fn of_header(header: &Header, into: &mut Vec<Posting>) {
    let mut add = |word: Word| into.push(Posting { code: word.code(), index: header.index.0, note: 0 });
    add(Word::Kind(header.kind));
    if let Some(id) = &header.proposal_id {
        add(Word::Origin(id.origin));
    }
    if let Some(tally) = &header.tally {
        voters(&tally.grants.members).for_each(|voter| add(Word::Granted(header.epoch, voter)));
        voters(&tally.denials.members).for_each(|voter| add(Word::Denied(header.epoch, voter)));
    }
}

fn voters(members: &Bitmap) -> impl Iterator<Item = u8> {
    members.positions().take(MAX_MEMBERS).filter_map(|voter| u8::try_from(voter).ok())
}

/// The words that follow from a body.
pub(super) fn of_body(header: &Header, body: &Body, into: &mut Vec<Posting>) {
    let index = header.index.0;
    if let Some(request) = &body.request {
        let note = write_deadline(request.deadline_ms, header.proposed_at);
        into.push(Posting { code: Word::Request(request.key()).code(), index, note });
    }
    if let Some(key) = key_of(header, body) {
        into.push(Posting { code: Word::Key(key).code(), index, note: 0 });
    }
}

/// The key of the registry that a proposal's operation names.
#[must_use]
pub fn key_of(header: &Header, body: &Body) -> Option<Key> {
    if header.kind != Kind::Proposal {
        return None;
    }
    let payload = serde_json::from_slice(&body.payload).ok()?;
    Operation::parse(&payload).ok().flatten().map(|operation| operation.action.key())
}

/// A deadline as a small number: its distance from the entry's own time, later and earlier by turns.
const fn write_deadline(deadline_ms: u64, proposed_at: u64) -> u64 {
    let apart = deadline_ms.wrapping_sub(proposed_at).cast_signed();
    ((apart << 1) ^ (apart >> 63)).cast_unsigned()
}

/// Reads the deadline that was noted with the request of an entry of that time.
#[must_use]
pub const fn deadline_of(note: u64, proposed_at: u64) -> u64 {
    let apart = (note >> 1) ^ (note & 1).wrapping_neg();
    proposed_at.wrapping_add(apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_reads_back_whichever_side_of_the_entry_it_lies() {
        for deadline in [0, 1, 999, 1000, 1001, 86_401_000, u64::MAX / 2, u64::MAX] {
            for proposed in [0, 1000, u64::MAX] {
                assert_eq!(deadline_of(write_deadline(deadline, proposed), proposed), deadline);
            }
        }
        assert_eq!((write_deadline(1005, 1000), write_deadline(995, 1000)), (10, 9));
    }

    #[test]
    fn words_of_different_things_are_different() {
        let words = [
            Word::Kind(Kind::Proposal),
            Word::Kind(Kind::Aborted),
            Word::Origin(NodeId([1; 32])),
            Word::Granted(Epoch(1), 2),
            Word::Granted(Epoch(2), 1),
            Word::Denied(Epoch(1), 2),
            Word::Request(Digest([1; 32])),
            Word::Key(Key::Agent("a".into())),
            Word::Key(Key::Config("a".into())),
        ];
        for (at, word) in words.iter().enumerate() {
            assert!(words[..at].iter().all(|other| other.code() != word.code()), "{word:?}");
            assert_eq!(word.code().is_long(), matches!(word, Word::Key(_)));
        }
    }
}
