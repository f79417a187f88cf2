//! The log as the core holds it: a window of recent entries over the whole log's terms and tree.

use crate::certificate::Entry;
use crate::certificate::merkle::Frontier;
use crate::ids::{Digest, LogIndex, Term};
use crate::limits::{LOG_WINDOW_BYTES, LOG_WINDOW_ENTRIES};
use std::collections::VecDeque;
use std::sync::Arc;

/// A frontier is kept at every so many entries of the window, so that any root in it costs few hashes.
const CHECKPOINT: u64 = 32;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Slot {
    entry: Arc<Entry>,
    leaf: Digest,
    bytes: usize,
    /// Bytes of this entry and all before it since start.
    total: u64,
    /// The tree up to and including this entry, at every [`CHECKPOINT`]th.
    tree: Option<Frontier>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Log {
    /// Entries up to here are in no store of this node any more.
    compacted: LogIndex,
    /// The tree over the entries before the window.
    base: Frontier,
    /// `proposed_at` of the last entry before the window.
    base_proposed_at: u64,
    window: VecDeque<Slot>,
    window_bytes: usize,
    /// The tree over all entries.
    tip: Frontier,
    /// Where terms begin, ascending, over the whole log.
    terms: Vec<(LogIndex, Term)>,
    last_proposed_at: u64,
    /// Everything up to here is fsynced on this node's own disk.
    durable: LogIndex,
    /// Everything up to here was handed to the disk.
    issued: LogIndex,
    /// Writes under way, as (sequence number, last index of the log it leaves).
    writes: VecDeque<(u64, LogIndex)>,
}

/// What an entry occupies in messages and memory, roughly.
pub(super) fn weight(entry: &Entry) -> usize {
    entry.body.payload.len() + 512
}

impl Log {
    pub(super) fn new(
        compacted: LogIndex,
        base: Frontier,
        terms: Vec<(LogIndex, Term)>,
        last_proposed_at: u64,
        tail: Vec<Arc<Entry>>,
    ) -> Self {
        let mut log = Self {
            compacted,
            tip: base.clone(),
            durable: LogIndex(base.size()),
            issued: LogIndex(base.size()),
            base,
            base_proposed_at: last_proposed_at,
            window: VecDeque::new(),
            window_bytes: 0,
            terms,
            last_proposed_at,
            writes: VecDeque::new(),
        };
        for entry in tail {
            log.append(entry);
        }
        log.issued = log.last();
        log.durable = log.last();
        log
    }

    pub(super) fn last(&self) -> LogIndex {
        LogIndex(self.tip.size())
    }

    pub(super) fn last_term(&self) -> Term {
        self.terms.last().map_or(Term::ZERO, |t| t.1)
    }

    pub(super) fn last_root(&self) -> Digest {
        self.tip.root()
    }

    pub(super) fn last_proposed_at(&self) -> u64 {
        self.last_proposed_at
    }

    pub(super) fn durable(&self) -> LogIndex {
        self.durable
    }

    /// Entries up to here can be had from nowhere on this node.
    pub(super) fn compacted(&self) -> LogIndex {
        self.compacted
    }

    /// Entries up to `upto` are about to go.
    pub(super) fn compact(&mut self, upto: LogIndex) {
        self.compacted = self.compacted.max(upto);
    }

    /// Writes under way, none of which vouches for anything beyond `last` any more.
    pub(super) fn writes_capped_at(&self, last: LogIndex) -> VecDeque<(u64, LogIndex)> {
        self.writes.iter().map(|w| (w.0, w.1.min(last))).collect()
    }

    /// What a log that replaced another one knows of the disk.
    pub(super) fn resume(&mut self, durable: LogIndex, writes: VecDeque<(u64, LogIndex)>) {
        self.durable = durable;
        self.writes = writes;
    }

    /// The first index whose entry is in memory (one past the last when none is).
    pub(super) fn first_in_memory(&self) -> LogIndex {
        LogIndex(self.base.size() + 1)
    }

    /// The term of an entry; zero before the first; `None` beyond the last.
    pub(super) fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == LogIndex::ZERO {
            return Some(Term::ZERO);
        }
        if index > self.last() {
            return None;
        }
        let run = self.terms.partition_point(|t| t.0 <= index);
        run.checked_sub(1).and_then(|i| self.terms.get(i)).map(|t| t.1)
    }

    /// The last index at or below `index` whose term is at most `term`.
    pub(super) fn last_at_or_below(&self, index: LogIndex, term: Term) -> LogIndex {
        let index = index.min(self.last());
        let run = self.terms.partition_point(|t| t.1 <= term);
        // The first run of a higher term begins at `terms[run]`; everything before it qualifies.
        self.terms.get(run).map_or(index, |next| index.min(next.0.prev()))
    }

    fn slot(&self, index: LogIndex) -> Option<&Slot> {
        let offset = index.0.checked_sub(self.base.size() + 1)?;
        self.window.get(usize::try_from(offset).ok()?)
    }

    pub(super) fn get(&self, index: LogIndex) -> Option<&Arc<Entry>> {
        self.slot(index).map(|s| &s.entry)
    }

    /// The tree over the first `index` entries, when that lies in the window.
    fn tree_at(&self, index: LogIndex) -> Option<Frontier> {
        if index < LogIndex(self.base.size()) || index > self.last() {
            return None;
        }
        if index == self.last() {
            return Some(self.tip.clone());
        }
        let mut from = index;
        let mut tree = loop {
            if from == LogIndex(self.base.size()) {
                break self.base.clone();
            }
            if let Some(tree) = self.slot(from).and_then(|s| s.tree.as_ref()) {
                break tree.clone();
            }
            from = from.prev();
        };
        while tree.size() < index.0 {
            tree.push(self.slot(LogIndex(tree.size() + 1))?.leaf);
        }
        Some(tree)
    }

    /// The root over the first `index` entries, when that lies in the window.
    pub(super) fn root_at(&self, index: LogIndex) -> Option<Digest> {
        if index == self.last() {
            return Some(self.tip.root());
        }
        self.tree_at(index).map(|t| t.root())
    }

    /// Appends the next entry.
    pub(super) fn append(&mut self, entry: Arc<Entry>) {
        assert_eq!(entry.index(), self.last().next(), "the log is contiguous");
        assert!(entry.term() >= self.last_term(), "terms never decrease along the log");
        if entry.term() > self.last_term() {
            self.terms.push((entry.index(), entry.term()));
        }
        self.last_proposed_at = entry.header.proposed_at;
        let leaf = entry.header.leaf_hash();
        self.tip.push(leaf);
        let bytes = weight(&entry);
        self.window_bytes += bytes;
        let tree = self.tip.size().is_multiple_of(CHECKPOINT).then(|| self.tip.clone());
        let total = self.window.back().map_or(0, |s| s.total) + bytes as u64;
        self.window.push_back(Slot { entry, leaf, bytes, total, tree });
    }

    /// Drops everything from `from` on. Only uncommitted entries are ever dropped; those are in the window.
    pub(super) fn truncate(&mut self, from: LogIndex) {
        let keep = from.prev();
        self.tip = self.tree_at(keep).expect("only entries in the window are truncated");
        while self.last_in_window() > keep {
            let slot = self.window.pop_back().expect("the window reaches past `keep`");
            self.window_bytes -= slot.bytes;
        }
        while self.terms.last().is_some_and(|t| t.0 > keep) {
            self.terms.pop();
        }
        self.last_proposed_at = self.get(keep).map_or(self.base_proposed_at, |e| e.header.proposed_at);
        // A late completion of a write of what was dropped must not count for what replaced it (ABA): every write under
        // way now vouches for the kept prefix only.
        self.durable = self.durable.min(keep);
        self.issued = self.issued.min(keep);
        for write in &mut self.writes {
            write.1 = write.1.min(keep);
        }
    }

    fn last_in_window(&self) -> LogIndex {
        LogIndex(self.base.size() + self.window.len() as u64)
    }

    /// Entries not yet handed to the disk.
    pub(super) fn unissued(&self) -> Vec<Arc<Entry>> {
        self.range(self.issued.next(), usize::MAX)
    }

    /// Everything appended is now on its way to the disk under this sequence number.
    pub(super) fn issue(&mut self, seq: u64) {
        self.issued = self.last();
        self.writes.push_back((seq, self.issued));
    }

    /// All writes up to `seq` are durable.
    pub(super) fn persisted(&mut self, seq: u64) {
        while let Some(&(s, last)) = self.writes.front().filter(|w| w.0 <= seq) {
            debug_assert!(s <= seq);
            self.durable = self.durable.max(last);
            self.writes.pop_front();
        }
    }

    /// Entries from `from` on, at least one if there is any, at most `max_bytes`.
    pub(super) fn range(&self, from: LogIndex, max_bytes: usize) -> Vec<Arc<Entry>> {
        let mut bytes = 0;
        let Some(offset) = from.0.checked_sub(self.base.size() + 1) else { return Vec::new() };
        self.window
            .iter()
            .skip(usize::try_from(offset).unwrap_or(usize::MAX))
            .take_while(|s| {
                let first = bytes == 0;
                bytes += s.bytes;
                first || bytes <= max_bytes
            })
            .map(|s| s.entry.clone())
            .collect()
    }

    /// Forgets entries up to `upto` beyond the window's bounds; the store keeps them.
    pub(super) fn trim(&mut self, upto: LogIndex) {
        while (self.window.len() > LOG_WINDOW_ENTRIES || self.window_bytes > LOG_WINDOW_BYTES)
            && self.window.front().is_some_and(|s| s.entry.index() <= upto)
        {
            let slot = self.window.pop_front().expect("just seen");
            self.window_bytes -= slot.bytes;
            self.base.push(slot.leaf);
            self.base_proposed_at = slot.entry.header.proposed_at;
        }
    }

    /// Bytes of the entries above `index`.
    pub(super) fn bytes_above(&self, index: LogIndex) -> usize {
        let upto_last = self.window.back().map_or(0, |s| s.total);
        let before_window = || self.window.front().map_or(0, |s| s.total - s.bytes as u64);
        let upto_index = self.slot(index).map_or_else(before_window, |s| s.total);
        usize::try_from(upto_last - upto_index).unwrap_or(usize::MAX)
    }
}
