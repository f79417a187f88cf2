//! Reads: from any thread, only of what is durable.

use super::archive::Archive;
use super::block::{self, Block, Builder};
use super::error::ReadError;
use super::ground::Ground;
use super::layout::{self, CASTS, CERTIFICATES, META, META_GENESIS, number_key, read_cast};
use super::{Shared, Store, kept};
use crate::certificate::merkle::{self, Frontier};
use crate::certificate::{Body, Entry, FormatError, Genesis, HeadCertificate, Header};
use crate::core::CastVote;
use crate::ids::{Digest, LogIndex, ProposalId, Term};
use crate::limits::MAX_PAGE;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// What a panic said.
pub(super) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// sled panics on some damaged pages, whenever it first reads them. Its state after that is its own affair: the error
/// says to stop the node.
pub(super) fn guard<T, E: From<ReadError>>(step: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(step))
        .unwrap_or_else(|p| Err(ReadError::Panicked { message: panic_message(p.as_ref()) }.into()))
}

/// [`guard`] for what only reads.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
    guard(read)
}

impl Shared {
    /// Calls `each` with every stored entry from `from` to `to` (both included, encoded), until it says `false`.
    /// Durable or not: callers bound `to`.
    pub(super) fn scan(
        &self,
        from: LogIndex,
        to: LogIndex,
        mut each: impl FnMut(LogIndex, &[u8]) -> Result<bool, ReadError>,
    ) -> Result<(), ReadError> {
        let log = &self.disk.trees.log;
        let mut expected = from;
        // The block that holds `from` begins at or before it.
        let before = log.get_lt(number_key(from.next().0))?.map(|(key, _)| key);
        let end = number_key(to.0);
        for row in log.range(before.as_deref().unwrap_or(&number_key(from.0))..=&end[..]) {
            let (key, value) = row?;
            let stored = Block::read(&key, &value).map_err(|source| block_error(&key, source))?;
            if expected < stored.first || stored.end() <= expected {
                return Err(ReadError::Hole { index: expected });
            }
            for (index, bytes) in stored.raw_from(expected).take_while(|(index, _)| *index <= to) {
                if !each(index, bytes)? {
                    return Ok(());
                }
                expected = index.next();
            }
        }
        if expected <= to { Err(ReadError::Hole { index: expected }) } else { Ok(()) }
    }

    /// What remains of the block in which `from` lies when the log is cut there: its key and its new value; `None` when
    /// a block ends just before `from`.
    pub(super) fn part_of_block(&self, from: LogIndex) -> Result<Option<block::Row>, ReadError> {
        let Some((key, value)) = self.disk.trees.log.get_lt(number_key(from.0))? else { return Ok(None) };
        let stored = Block::read(&key, &value).map_err(|source| block_error(&key, source))?;
        if stored.end() <= from {
            return Ok(None);
        }
        let mut kept = Builder::new(stored.first, stored.root_before);
        for (_, bytes) in stored.raw_from(stored.first).take_while(|(index, _)| *index < from) {
            kept.push(bytes);
        }
        Ok(Some(kept.finish()))
    }

    /// Where the log would end were it cut behind `size`, which lies at or above its base; `tree` is over no more entries.
    pub(super) fn end_at(&self, tree: Frontier, size: LogIndex) -> Result<End, ReadError> {
        let ground = self.ground();
        let mut end = End { last_term: ground.last_term(), last_time: ground.proposed_at, tree };
        if end.tree.size() < ground.index().0 {
            end.tree = ground.edge.frontier();
        }
        // The entry at the tree's own size is read too: its term and time count.
        let from = LogIndex(end.tree.size()).max(ground.index().next());
        if from > size {
            return Ok(end);
        }
        self.scan(from, size, |index, bytes| {
            let header = decode(index, bytes)?.header.clone();
            if index.0 > end.tree.size() {
                end.tree.push(header.leaf_hash());
            }
            (end.last_term, end.last_time) = (header.term, header.proposed_at);
            Ok(true)
        })?;
        Ok(end)
    }

    /// What the log rests on.
    pub(super) fn ground(&self) -> Arc<Ground> {
        self.ground.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where a log ends.
pub(super) struct End {
    pub(super) tree: Frontier,
    pub(super) last_term: Term,
    pub(super) last_time: u64,
}

fn block_error(key: &[u8], source: block::BlockError) -> ReadError {
    ReadError::Block { first: LogIndex(layout::read_number_key(key).unwrap_or_default()), source }
}

fn decode(index: LogIndex, bytes: &[u8]) -> Result<Arc<Entry>, ReadError> {
    block::decode(index, bytes).map_err(|source| ReadError::Block { first: index, source })
}

pub(super) fn certificate(key: &[u8], value: &[u8]) -> Result<Arc<HeadCertificate>, FormatError> {
    let certificate = HeadCertificate::decode(value)?;
    if layout::read_number_key(key)? != certificate.head.size {
        return Err(FormatError::Value { field: "certificate.size" });
    }
    Ok(Arc::new(certificate))
}

impl Store {
    /// The last entry below the log: a snapshot stands for everything up to it. Zero while the log begins at 1.
    #[must_use]
    pub fn base(&self) -> LogIndex {
        self.shared.ground().index()
    }

    /// The term of the last entry below the log, if that is its index: its header may lie in a leaf tile that is not here.
    #[must_use]
    pub fn base_term(&self, index: LogIndex) -> Option<Term> {
        let ground = self.shared.ground();
        (index == ground.index() && index > LogIndex::ZERO).then(|| ground.last_term())
    }

    /// The first entry whose header, tree hashes and certificates are here: 1, or the first one that came with an
    /// installed snapshot, until those before are filled in.
    #[must_use]
    pub fn headers_from(&self) -> LogIndex {
        self.shared.ground().from
    }

    /// The first index that the log holds or will hold: the one after [`Store::base`].
    #[must_use]
    pub fn first_index(&self) -> LogIndex {
        self.base().next()
    }

    /// The last index that is durable and that no write submitted replaces; that of [`Store::base`] while the log is
    /// empty.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        LogIndex(self.shared.last.load(Ordering::Acquire))
    }

    /// Durable entries from `from` to `to` (both included), as many as fit in `max_bytes` of encoded entries, but at
    /// least the first. Empty when `from` is not durable here.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] when `from` lies below the log.
    pub fn read(&self, from: LogIndex, to: LogIndex, max_bytes: usize) -> Result<Vec<Arc<Entry>>, ReadError> {
        guarded(|| {
            let _uncut = self.shared.cutting.read().unwrap_or_else(PoisonError::into_inner);
            let (from, to) = (from.max(LogIndex(1)), to.min(self.last_index()));
            let mut entries = Vec::new();
            let base = self.base();
            if from <= base && from <= to {
                return Err(ReadError::Compacted { index: from, base });
            }
            if from > to {
                return Ok(entries);
            }
            let mut room = max_bytes;
            self.shared.scan(from, to, |index, bytes| {
                if !entries.is_empty() && bytes.len() > room {
                    return Ok(false);
                }
                room = room.saturating_sub(bytes.len());
                entries.push(decode(index, bytes)?);
                Ok(true)
            })?;
            Ok(entries)
        })
    }

    /// One durable entry; `None` when `index` is not durable here. Below [`Store::base`] there are those whose bodies are
    /// kept for ever: all but `Proposal` and `Aborted`.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] when the body of a durable entry is not here any more: see [`Store::record`].
    pub fn entry(&self, index: LogIndex) -> Result<Option<Arc<Entry>>, ReadError> {
        if index == LogIndex::ZERO {
            return Ok(None);
        }
        match self.read(index, index, 0) {
            Err(ReadError::Compacted { base, .. }) => match self.kept(index)? {
                None => Err(ReadError::Compacted { index, base }),
                kept => Ok(kept),
            },
            found => Ok(found?.pop()),
        }
    }

    fn kept(&self, index: LogIndex) -> Result<Option<Arc<Entry>>, ReadError> {
        guarded(|| kept::read(&self.shared.disk, index))
    }

    /// The header of one durable entry, and its body unless that is not here any more; `None` when `index` is not durable
    /// here.
    ///
    /// # Errors
    /// [`ReadError::NotHere`] when the header itself lies before [`Store::headers_from`].
    pub fn record(&self, index: LogIndex) -> Result<Option<(Header, Option<Body>)>, ReadError> {
        match self.entry(index) {
            Ok(found) => Ok(found.map(|e| (e.header.clone(), Some(e.body.clone())))),
            Err(ReadError::Compacted { .. }) => Ok(self.header(index)?.map(|header| (header, None))),
            Err(e) => Err(e),
        }
    }

    /// The header of one durable entry.
    ///
    /// # Errors
    /// [`ReadError::NotHere`] when it lies before [`Store::headers_from`].
    pub fn header(&self, index: LogIndex) -> Result<Option<Header>, ReadError> {
        if index == LogIndex::ZERO || index > self.last_index() {
            return Ok(None);
        }
        guarded(|| {
            let archive = self.shared.archive();
            if index.0 <= archive.size() {
                return archive.header(&self.shared.disk, index).map(Some);
            }
            drop(archive);
            Ok(self.entry(index)?.map(|e| e.header.clone()))
        })
    }

    /// The newest durable head certificate.
    #[must_use]
    pub fn latest_certificate(&self) -> Option<Arc<HeadCertificate>> {
        self.shared.certificate.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificate of the smallest head that covers entry `index`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn certificate_covering(&self, index: LogIndex) -> Result<Option<Arc<HeadCertificate>>, ReadError> {
        Ok(self.certificates(index.prev().0, 1)?.pop())
    }

    /// The certificate of the head of exactly this size.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn certificate_at(&self, size: u64) -> Result<Option<Arc<HeadCertificate>>, ReadError> {
        guarded(|| {
            let key = number_key(size);
            let Some(value) = self.shared.disk.trees.certificates.get(key)? else { return Ok(None) };
            certificate(&key, &value).map(Some).map_err(|source| ReadError::Record { tree: CERTIFICATES, source })
        })
    }

    /// Which entries [`Store::certificate_covering`] answers the same for as for entry `index`: the first one, and the size of
    /// the head.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn covered_alike(&self, index: LogIndex) -> Result<Option<(LogIndex, LogIndex)>, ReadError> {
        guarded(|| {
            let size = |row: Option<sled::Result<(sled::IVec, sled::IVec)>>| {
                let Some(row) = row else { return Ok(None) };
                let size = layout::read_number_key(&row?.0);
                size.map(|n| Some(LogIndex(n))).map_err(|source| ReadError::Record { tree: CERTIFICATES, source })
            };
            let tree = &self.shared.disk.trees.certificates;
            let Some(last) = size(tree.range(number_key(index.0)..).next())? else { return Ok(None) };
            let before = size(tree.range(..number_key(index.0)).next_back())?;
            Ok(Some((before.unwrap_or_default().next(), last)))
        })
    }

    /// Certificates of heads larger than `above`, ascending, at most `limit` (and at most [`MAX_PAGE`]).
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn certificates(&self, above: u64, limit: usize) -> Result<Vec<Arc<HeadCertificate>>, ReadError> {
        let Some(from) = above.checked_add(1) else { return Ok(Vec::new()) };
        guarded(|| {
            let mut found = Vec::new();
            for row in self.shared.disk.trees.certificates.range(number_key(from)..).take(limit.min(MAX_PAGE)) {
                let (key, value) = row?;
                let read = certificate(&key, &value);
                found.push(read.map_err(|source| ReadError::Record { tree: CERTIFICATES, source })?);
            }
            Ok(found)
        })
    }

    /// This member's durable answer to a ballot on this request and payload. Waits for one that is being written.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn cast_vote(&self, request_key: &Digest, content: &Digest) -> Result<Option<CastVote>, ReadError> {
        guarded(|| {
            let _settled = self.shared.casting.read().unwrap_or_else(PoisonError::into_inner);
            let key = layout::cast_key(request_key, content);
            let Some(value) = self.shared.disk.trees.casts.get(key)? else { return Ok(None) };
            read_cast(&key, &value).map(Some).map_err(|source| ReadError::Record { tree: CASTS, source })
        })
    }

    /// Forgets ballot answers whose request's deadline lies before `now_ms` (milliseconds since the Unix epoch), after
    /// which the request can no longer be asked about. Returns how many.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn forget_casts(&self, now_ms: u64) -> Result<u64, ReadError> {
        guarded(|| {
            let mut forgotten = 0;
            for row in self.shared.disk.trees.casts.iter() {
                let (key, value) = row?;
                let cast = read_cast(&key, &value).map_err(|source| ReadError::Record { tree: CASTS, source })?;
                // Compared and removed at once: an answer given again meanwhile, with a later deadline, stays.
                let stale = cast.keep_until < now_ms;
                if stale && self.shared.disk.remove_if(&self.shared.disk.trees.casts, &key, &value)? {
                    forgotten += 1;
                }
            }
            Ok(forgotten)
        })
    }

    /// The genesis that this store is bound to.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn genesis(&self) -> Result<Option<Genesis>, ReadError> {
        guarded(|| {
            let Some(value) = self.shared.disk.trees.meta.get(META_GENESIS)? else { return Ok(None) };
            // It was read and judged at open, so what does not read now went bad since.
            let wrong = |_| ReadError::Record { tree: META, source: FormatError::Value { field: META_GENESIS } };
            let text = std::str::from_utf8(&value).map_err(wrong)?;
            let wrong = |_| ReadError::Record { tree: META, source: FormatError::Value { field: META_GENESIS } };
            Genesis::from_json(text).map(Some).map_err(wrong)
        })
    }

    /// Which entry a proposal became, when it is committed here.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn index_of(&self, id: &ProposalId) -> Result<Option<LogIndex>, ReadError> {
        let found = guarded(|| self.shared.archive().index_of(&self.shared.disk, id))?;
        let Some(index) = found else { return Ok(None) };
        let header = self.header(index)?;
        Ok(header.filter(|h| h.proposal_id.as_ref() == Some(id)).map(|_| index))
    }

    /// How many committed entries roots and proofs can be asked about.
    #[must_use]
    pub fn archived(&self) -> u64 {
        self.shared.archive().size()
    }

    /// The root over the first `size` committed entries.
    ///
    /// # Errors
    /// [`ReadError::NotYet`] beyond what [`Store::archive`] has been given.
    pub fn root_at(&self, size: u64) -> Result<Digest, ReadError> {
        self.prove(size, |archive| merkle::root(&archive.nodes(&self.shared.disk), size))
    }

    /// The inclusion path of leaf number `leaf` (from 0: entry `leaf + 1`) in the tree of the first `size` committed
    /// entries.
    ///
    /// # Errors
    /// [`ReadError::NotYet`] when `size` is beyond what [`Store::archive`] has been given, or `leaf` not below `size`.
    pub fn inclusion_path(&self, leaf: u64, size: u64) -> Result<Vec<Digest>, ReadError> {
        if leaf >= size {
            return Err(ReadError::NotYet { asked: leaf.saturating_add(1), size });
        }
        self.prove(size, |archive| merkle::inclusion_path(&archive.nodes(&self.shared.disk), leaf, size))
    }

    /// The consistency proof between the trees of the first `old` and the first `new` committed entries.
    ///
    /// # Errors
    /// [`ReadError::NotYet`] when `new` is beyond what [`Store::archive`] has been given, or `old` beyond `new`.
    pub fn consistency_path(&self, old: u64, new: u64) -> Result<Vec<Digest>, ReadError> {
        if old > new {
            return Err(ReadError::NotYet { asked: old, size: new });
        }
        self.prove(new, |archive| merkle::consistency_path(&archive.nodes(&self.shared.disk), old, new))
    }

    fn prove<T>(&self, asked: u64, proof: impl FnOnce(&Archive) -> Result<T, ReadError>) -> Result<T, ReadError> {
        guarded(|| {
            let archive = self.shared.archive();
            let size = archive.size();
            if asked > size {
                return Err(ReadError::NotYet { asked, size });
            }
            proof(&archive)
        })
    }
}
