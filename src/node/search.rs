//! Searching the log: every condition is a list of entries, read lazily from the auditors' index; the lists are
//! intersected by leaps, so that the rarest one sets the pace; and what stands in all of them is compared with the header
//! itself before it is told.
//!
//! The work of one page is bounded ([`MAX_SEARCH_READS`]). A cursor holds the place and the bounds of the first page: the
//! pages of one search together are what the log held when it began.

use super::handle::Handle;
use super::queries::{QueryError, not_found, view_of};
use crate::api::{FoundEntry, Order, Search, SearchPage};
use crate::certificate::{Body, Entry, HeadCertificate, Header, Kind, Reader, Request, Writer};
use crate::ids::{Digest, Epoch, LogIndex, NodeId};
use crate::limits::{MAX_PAGE_BYTES, MAX_SEARCH_READS};
use crate::registry::Key;
use crate::storage::{Lookup, Store, Word, deadline_of, key_of};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

/// Why there is nothing to search for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// One parameter needs another.
    #[error("{field} is only allowed together with {other}")]
    OnlyWith {
        /// The one given.
        field: &'static str,
        /// The one missing.
        other: &'static str,
    },
    /// No entry can be both.
    #[error("no entry matches both {field} and {other}: leave one of them out")]
    Contradiction {
        /// The one.
        field: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Bounds the wrong way round.
    #[error("{field} lies after {other}")]
    Bounds {
        /// The lower one.
        field: &'static str,
        /// The upper one.
        other: &'static str,
    },
    /// Not a cursor.
    #[error("the cursor is not one that a node gave; start again without it")]
    Cursor,
    /// The cursor of another search.
    #[error("the cursor belongs to another search; repeat all parameters of the first page with it")]
    OtherCursor,
    /// The cursor was given by a node that is ahead of this one.
    #[error("the cursor reaches to entry {upto}, and this node has applied {applied} so far; ask again in a moment")]
    Ahead {
        /// Where it reaches.
        upto: LogIndex,
        /// How far this node is.
        applied: LogIndex,
    },
}

/// Where a search stands, and its bounds.
struct Cursor {
    next: LogIndex,
    first: LogIndex,
    last: LogIndex,
}

const CURSOR: u8 = 1;

/// What tells searches apart.
fn fingerprint(search: &Search) -> [u8; 8] {
    let bare = Search { limit: None, cursor: None, ..search.clone() };
    // Plain fields always serialise.
    let json = serde_json::to_vec(&bare).unwrap_or_default();
    let hash: [u8; 32] = Sha256::digest(json).into();
    std::array::from_fn(|at| hash[at])
}

impl Cursor {
    fn write(&self, search: &Search) -> String {
        let mut w = Writer::default();
        w.u8(CURSOR).fixed(&fingerprint(search)).u64(self.next.0).u64(self.first.0).u64(self.last.0);
        hex::encode(w.0)
    }

    fn read(text: &str, search: &Search) -> Result<Self, SearchError> {
        let bytes = hex::decode(text).map_err(|_| SearchError::Cursor)?;
        let mut r = Reader::new(&bytes);
        let parts = || {
            let (version, of) = (r.u8("cursor")?, r.array::<8>("cursor")?);
            let cursor = Self {
                next: LogIndex(r.u64("cursor")?),
                first: LogIndex(r.u64("cursor")?),
                last: LogIndex(r.u64("cursor")?),
            };
            r.finish("cursor").map(|()| (version, of, cursor))
        };
        let (version, of, cursor) = parts().map_err(|_| SearchError::Cursor)?;
        let Self { next, first, last } = &cursor;
        if version != CURSOR || *first == LogIndex::ZERO || !(first..=last).contains(&next) {
            return Err(SearchError::Cursor);
        }
        if of == fingerprint(search) { Ok(cursor) } else { Err(SearchError::OtherCursor) }
    }
}

/// What must hold of an entry, as far as the index or the header tells.
struct Conditions {
    origin: Option<NodeId>,
    request: Option<Digest>,
    key: Option<Key>,
    kind: Option<Kind>,
    signer: Option<NodeId>,
    denier: Option<NodeId>,
}

impl Conditions {
    fn of(search: &Search) -> Result<Self, SearchError> {
        let contradiction = |field, other| Err(SearchError::Contradiction { field, other });
        let Search { origin, client, request_id, signer, denier, key, agent, kind, .. } = search.clone();
        let request = match (client, request_id) {
            (Some(_), None) => return Err(SearchError::OnlyWith { field: "client", other: "request_id" }),
            (_, None) => None,
            (client, Some(request_id)) => {
                let client = client.unwrap_or_else(|| "anonymous".into());
                Some(Request { client, request_id, deadline_ms: 0 }.key())
            }
        };
        let key = match (key, agent) {
            (Some(_), Some(_)) => return contradiction("key", "agent"),
            (key, agent) => key.map(Key::Config).or(agent.map(Key::Agent)),
        };
        if signer.is_some() && signer == denier {
            return contradiction("signer", "denier");
        }
        if kind.is_some_and(|kind| kind != Kind::Proposal) && key.is_some() {
            return contradiction("kind", if search.key.is_some() { "key" } else { "agent" });
        }
        let unproposed = kind.is_some_and(|kind| !matches!(kind, Kind::Proposal | Kind::Aborted));
        for (given, name) in [(origin.is_some(), "origin"), (request.is_some(), "request_id")] {
            if given && unproposed {
                return contradiction("kind", name);
            }
        }
        if search.from.zip(search.to).is_some_and(|(from, to)| from > to) {
            return Err(SearchError::Bounds { field: "from", other: "to" });
        }
        if search.from_time.zip(search.to_time).is_some_and(|(from, to)| from > to) {
            return Err(SearchError::Bounds { field: "from_time", other: "to_time" });
        }
        Ok(Self { origin, request, key, kind, signer, denier })
    }

    fn words(&self) -> Vec<Word> {
        let words = [
            self.request.map(Word::Request),
            self.key.clone().map(Word::Key),
            self.kind.map(Word::Kind),
            self.origin.map(Word::Origin),
        ];
        words.into_iter().flatten().collect()
    }
}

/// Entries from the one nearest to where was asked, in the direction of the search.
struct Reach {
    nearest: u64,
    note: u64,
}

/// One list, in pieces that follow one another: the position of a voter changes from epoch to epoch.
struct List {
    pieces: Vec<Lookup>,
    /// Whose head certificates count besides.
    signer: Option<NodeId>,
}

/// A search at work.
struct Walk<'a> {
    handle: &'a Handle,
    order: Order,
    first: LogIndex,
    last: LogIndex,
    lists: Vec<List>,
    reads: usize,
    /// The certificate looked at last: from where to where it is the smallest one, and itself.
    certificate: Option<(LogIndex, LogIndex, Arc<HeadCertificate>)>,
}

impl Walk<'_> {
    fn store(&self) -> &Store {
        &self.handle.shared.store
    }

    /// The place after another one; `None` beyond the bounds.
    fn after(&self, at: u64) -> Option<u64> {
        let next = match self.order {
            Order::Asc => at.checked_add(1)?,
            Order::Desc => at.checked_sub(1)?,
        };
        (self.first.0..=self.last.0).contains(&next).then_some(next)
    }

    /// The nearest entry of a list.
    fn seek(&mut self, list: usize, at: u64) -> Result<Option<Reach>, QueryError> {
        let granted = self.seek_pieces(list, at)?;
        let Some(signer) = self.lists[list].signer else { return Ok(granted) };
        let mut place = at;
        loop {
            let Some((from, to, certificate)) = self.covering(LogIndex(place))? else { return Ok(granted) };
            let by_head = self.signed(&certificate, &signer);
            let far = if self.order == Order::Asc { to.0 } else { from.0 };
            let sooner = granted.as_ref().filter(|g| (place.min(far)..=place.max(far)).contains(&g.nearest));
            if by_head {
                return Ok(Some(Reach { nearest: place, note: 0 }));
            }
            if sooner.is_some() {
                return Ok(granted);
            }
            match self.after(far).filter(|_| self.reads < MAX_SEARCH_READS) {
                Some(next) => place = next,
                // Either there is none, or whoever counts stops here, and the next page goes on from there.
                None => return Ok(self.after(far).map(|nearest| Reach { nearest, note: 0 })),
            }
        }
    }

    fn seek_pieces(&mut self, list: usize, at: u64) -> Result<Option<Reach>, QueryError> {
        let mut pieces = self.lists[list].pieces.iter_mut();
        while let Some(piece) = if self.order == Order::Asc { pieces.next() } else { pieces.next_back() } {
            let before = piece.reads();
            let found = match self.order {
                Order::Asc => piece.next_from(LogIndex(at))?.map(|f| Reach { nearest: f.first.0, note: f.note }),
                Order::Desc => piece.last_upto(LogIndex(at))?.map(|f| Reach { nearest: f.last.0, note: f.note }),
            };
            self.reads += piece.reads() - before;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The smallest certificate that covers an entry, and for which ones it is.
    fn covering(&mut self, index: LogIndex) -> Result<Option<(LogIndex, LogIndex, Arc<HeadCertificate>)>, QueryError> {
        if let Some(known) = self.certificate.as_ref().filter(|c| (c.0..=c.1).contains(&index)) {
            return Ok(Some(known.clone()));
        }
        self.reads += 1;
        let Some((from, to)) = self.store().covered_alike(index)? else { return Ok(None) };
        let found = self.store().certificate_at(to.0)?.map(|c| (from, to, c));
        self.certificate.clone_from(&found);
        Ok(found)
    }

    fn signed(&self, certificate: &HeadCertificate, signer: &NodeId) -> bool {
        certificate.halves.iter().any(|half| {
            self.position(half.epoch, signer).is_some_and(|position| half.signers.contains(position.into()))
        })
    }

    fn position(&self, epoch: Epoch, did: &NodeId) -> Option<u8> {
        let replica = self.handle.shared.replica();
        let position = replica.epochs.table(epoch)?.table.voter_position(did)?;
        u8::try_from(position).ok()
    }

    /// The nearest entry that stands in all lists, from one on; the work may end before it is known to.
    fn meet(&mut self, at: u64) -> Result<Option<(u64, u64)>, QueryError> {
        let (mut place, mut note, mut agreed, mut list) = (at, 0, 0, 0);
        while agreed < self.lists.len() && self.reads < MAX_SEARCH_READS {
            let Some(reach) = self.seek(list, place)? else { return Ok(None) };
            if !(self.first.0..=self.last.0).contains(&reach.nearest) {
                return Ok(None);
            }
            agreed = if reach.nearest == place { agreed + 1 } else { 1 };
            // Only the first list may bear notes.
            if list == 0 {
                note = reach.note;
            }
            place = reach.nearest;
            list = (list + 1) % self.lists.len();
        }
        Ok(Some((place, note)))
    }

    /// Whether the entry itself says what the index does.
    fn holds(
        &mut self,
        conditions: &Conditions,
        header: &Header,
        body: Option<&Body>,
        note: u64,
    ) -> Result<bool, QueryError> {
        let Conditions { origin, request, key, kind, signer, denier } = conditions;
        let digest = request.map(|key| Request::digest_of(&key, deadline_of(note, header.proposed_at)));
        let voted = |did: &NodeId, denied: bool| {
            let side = header.tally.as_ref().map(|t| if denied { &t.denials } else { &t.grants });
            let position = self.position(header.epoch, did);
            side.zip(position).is_some_and(|(side, position)| side.members.contains(position.into()))
        };
        let told = kind.is_none_or(|kind| kind == header.kind)
            && origin.is_none_or(|did| header.proposal_id.is_some_and(|id| id.origin == did))
            && digest.is_none_or(|digest| digest == header.request_digest)
            && denier.is_none_or(|did| voted(&did, true))
            && key.as_ref().is_none_or(|key| body.is_none_or(|body| key_of(header, body).as_ref() == Some(key)));
        let Some(signer) = signer.filter(|_| told) else { return Ok(told) };
        if header.tally.is_some() {
            return Ok(voted(&signer, false));
        }
        Ok(self.covering(header.index)?.is_some_and(|(.., certificate)| self.signed(&certificate, &signer)))
    }

    fn read(&mut self, conditions: &Conditions, at: u64, note: u64) -> Result<Option<FoundEntry>, QueryError> {
        self.reads += 1;
        let index = LogIndex(at);
        let record = self.store().record(index)?;
        let (header, body) = record.ok_or_else(|| not_found(format!("entry {index}")))?;
        if !self.holds(conditions, &header, body.as_ref(), note)? {
            return Ok(None);
        }
        let deadline_ms = conditions.request.map(|_| deadline_of(note, header.proposed_at));
        let entry = body.map(|body| Entry { header: header.clone(), body });
        let certified = self.handle.shared.certified_size();
        let covered = self.store().covered_alike(index)?.map(|(_, size)| size.0);
        Ok(Some(FoundEntry {
            entry: view_of(&header, entry.as_ref()),
            certificate_size: covered.filter(|size| *size <= certified),
            deadline_ms,
        }))
    }

    /// Fills a page from a place on; says where the next one begins.
    fn page(
        &mut self,
        conditions: &Conditions,
        start: u64,
        limit: usize,
    ) -> Result<(Vec<FoundEntry>, Option<u64>), QueryError> {
        let (mut entries, mut bytes, mut at) = (Vec::new(), 0, Some(start));
        while let Some(place) = at
            && entries.len() < limit
            && bytes < MAX_PAGE_BYTES
            && self.reads < MAX_SEARCH_READS
        {
            let Some((place, note)) = self.meet(place)? else { return Ok((entries, None)) };
            if self.reads >= MAX_SEARCH_READS {
                at = Some(place);
                break;
            }
            if let Some(found) = self.read(conditions, place, note)? {
                bytes += found.entry.header.len() + 2 * found.entry.entry.as_ref().map_or(0, String::len);
                entries.push(found);
            }
            at = self.after(place);
        }
        Ok((entries, at))
    }
}

impl Handle {
    /// A page of the entries that are searched for, at most `limit`. Blocking.
    ///
    /// # Errors
    /// [`QueryError::Search`] when no entry can be meant, [`QueryError::NotFound`] when a signer or denier never was a voter.
    pub fn search(&self, search: &Search, limit: usize) -> Result<SearchPage, QueryError> {
        let conditions = Conditions::of(search)?;
        let (store, applied) = (&self.shared.store, self.applied());
        let words = conditions.words();
        let voted = conditions.signer.or(conditions.denier).map(|_| Word::Granted(Epoch::ZERO, 0));
        let indexed = words.iter().chain(&voted).map(|word| store.indexed_from(word));
        let complete_from = indexed.fold(store.headers_from().max(self.first_entry()), LogIndex::max);
        let cursor = match &search.cursor {
            Some(text) => Cursor::read(text, search)?,
            None => self.bounds(search, applied)?,
        };
        if cursor.last > applied {
            return Err(SearchError::Ahead { upto: cursor.last, applied }.into());
        }
        let Cursor { next, first, last } = cursor;
        let (next, first) = (next.max(self.first_entry()), first.max(self.first_entry()));
        let mut page = SearchPage { entries: Vec::new(), next: None, complete_from, upto: last };
        let mut lists: Vec<List> = Vec::new();
        for word in &words {
            lists.push(List { pieces: vec![store.lookup(word, first, last)], signer: None });
        }
        for (did, denied) in [(conditions.denier, true), (conditions.signer, false)] {
            if let Some(did) = did {
                let pieces = self.votes(&did, denied, first, last)?;
                lists.push(List { pieces, signer: (!denied).then_some(did) });
            }
        }
        if first > last {
            return Ok(page);
        }
        let mut walk = Walk { handle: self, order: search.order, first, last, lists, reads: 0, certificate: None };
        let (entries, next) = walk.page(&conditions, next.0, limit)?;
        page.entries = entries;
        page.next = next.map(|next| Cursor { next: LogIndex(next), first, last }.write(search));
        Ok(page)
    }

    /// The bounds of a search that begins now.
    fn bounds(&self, search: &Search, applied: LogIndex) -> Result<Cursor, QueryError> {
        // Entries of a cluster before this one stand in its backup, and were voted on by its members.
        let known = self.shared.store.headers_from().max(self.first_entry());
        let mut first = search.from.unwrap_or_default().max(known);
        let mut last = search.to.unwrap_or(applied).min(applied);
        if search.signer.is_some() {
            // Who signed is not settled above.
            last = last.min(LogIndex(self.shared.certified_size()));
        }
        if let Some(time) = search.from_time {
            first = first.max(self.first_at(known, applied, |proposed_at| proposed_at >= time)?);
        }
        if let Some(time) = search.to_time {
            last = last.min(self.first_at(known, applied, |proposed_at| proposed_at > time)?.prev());
        }
        Ok(Cursor { next: if search.order == Order::Asc { first } else { last }, first, last })
    }

    /// The first entry of a time that is late enough; the one after the last if none is. Times never decrease along the log.
    fn first_at(&self, from: LogIndex, to: LogIndex, late: impl Fn(u64) -> bool) -> Result<LogIndex, QueryError> {
        let (mut low, mut high) = (from.0, to.0 + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let header = self.shared.store.header(LogIndex(middle))?;
            let header = header.ok_or_else(|| not_found(format!("entry {middle}")))?;
            if late(header.proposed_at) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(LogIndex(low))
    }

    /// Where a member's votes stand, epoch by epoch.
    fn votes(&self, did: &NodeId, denied: bool, first: LogIndex, last: LogIndex) -> Result<Vec<Lookup>, QueryError> {
        let replica = self.shared.replica();
        let closed: Vec<LogIndex> = replica.epochs.finals().iter().map(|e| e.index()).collect();
        let mut places = Vec::new();
        let mut number = 0;
        while let Some(table) = replica.epochs.table(Epoch(number)) {
            // An epoch is in force from the entry that closes the change to it up to the one that closes the next.
            let at = |number: Option<u64>| number.and_then(|n| closed.get(usize::try_from(n).ok()?)).copied();
            let (from, to) = (at(number.checked_sub(1)), at(Some(number)));
            if let Some(position) = table.table.voter_position(did).and_then(|p| u8::try_from(p).ok()) {
                places.push((Epoch(number), position, from.unwrap_or(first).max(first), to.unwrap_or(last).min(last)));
            }
            number += 1;
        }
        drop(replica);
        if places.is_empty() {
            return Err(not_found(format!("a voter {did}")));
        }
        let word =
            |epoch, position| if denied { Word::Denied(epoch, position) } else { Word::Granted(epoch, position) };
        let within = places.into_iter().filter(|(_, _, from, to)| from <= to);
        Ok(within
            .map(|(epoch, position, from, to)| self.shared.store.lookup(&word(epoch, position), from, to))
            .collect())
    }
}
