//! Streams of certified entries: from any index, in order, each once.

use super::handle::Handle;
use super::queries::QueryError;
use super::shared::json;
use crate::api::{AbortEvent, CommitEvent, StreamError};
use crate::certificate::{AbortReason, Bitmap, Entry, Kind};
use crate::ids::{Epoch, LogIndex, NodeId};
use crate::limits::MAX_APPEND_BYTES;
use crate::registry::Outcome;
use futures::stream::{self, BoxStream, StreamExt};
use std::collections::VecDeque;

/// Entries read for a stream at once.
const CHUNK: u64 = 256;

/// Why nothing was read.
enum Ended {
    /// The node is closing.
    Closed,
    Query(QueryError),
}

struct Cursor<E> {
    handle: Handle,
    next: LogIndex,
    ready: VecDeque<E>,
    over: bool,
}

impl Handle {
    /// Certified `Proposal` entries from an index on, in order, each once; ends only with an error.
    #[must_use]
    pub fn commits(&self, from: LogIndex) -> BoxStream<'static, Result<CommitEvent, StreamError>> {
        self.follow(from, Handle::commit_event)
    }

    /// Certified `Aborted` entries from an index on, in order, each once; ends only with an error.
    #[must_use]
    pub fn aborts(&self, from: LogIndex) -> BoxStream<'static, Result<AbortEvent, StreamError>> {
        self.follow(from, Handle::abort_event)
    }

    fn follow<E: Send + 'static>(
        &self,
        from: LogIndex,
        pick: fn(&Handle, &Entry) -> Result<Option<E>, QueryError>,
    ) -> BoxStream<'static, Result<E, StreamError>> {
        let cursor =
            Cursor { handle: self.clone(), next: from.max(self.first_entry()), ready: VecDeque::new(), over: false };
        stream::unfold(cursor, move |mut cursor| async move {
            loop {
                if let Some(event) = cursor.ready.pop_front() {
                    return Some((Ok(event), cursor));
                }
                if cursor.over {
                    return None;
                }
                match cursor.handle.read_on(cursor.next, pick).await {
                    Ok((events, next)) => {
                        cursor.ready = events;
                        cursor.next = next;
                    }
                    Err(why) => {
                        cursor.over = true;
                        return Some((Err(why), cursor));
                    }
                }
            }
        })
        .boxed()
    }

    /// As [`Handle::read_certified`]; waits on while the store does not hold what a certificate announces.
    async fn read_on<E: Send + 'static>(
        &self,
        from: LogIndex,
        pick: fn(&Handle, &Entry) -> Result<Option<E>, QueryError>,
    ) -> Result<(VecDeque<E>, LogIndex), StreamError> {
        let (mut certificate, mut ended) = (self.shared.certificate.subscribe(), self.shared.ended.subscribe());
        loop {
            match self.read_certified(from, pick).await {
                Ok(read) => return Ok(read),
                Err(Ended::Closed) => return Err(StreamError::Closed),
                Err(Ended::Query(QueryError::NotCertified { .. })) => {}
                Err(Ended::Query(QueryError::Pruned { first, .. } | QueryError::NotHere { from: first, .. })) => {
                    return Err(StreamError::Pruned { first });
                }
                Err(Ended::Query(why)) => return Err(StreamError::Store { detail: why.to_string() }),
            }
            tokio::select! {
                next = certificate.changed() => next.map_err(|_| StreamError::Closed)?,
                _ = ended.wait_for(Option::is_some) => return Err(StreamError::Closed),
            }
        }
    }

    /// Waits for certified entries at `from` and picks the events among the next of them.
    async fn read_certified<E: Send + 'static>(
        &self,
        from: LogIndex,
        pick: fn(&Handle, &Entry) -> Result<Option<E>, QueryError>,
    ) -> Result<(VecDeque<E>, LogIndex), Ended> {
        let mut certificate = self.shared.certificate.subscribe();
        let mut ended = self.shared.ended.subscribe();
        let certified = tokio::select! {
            certified = certificate.wait_for(|c| c.as_ref().is_some_and(|c| c.head.size >= from.0)) => {
                certified.ok().and_then(|c| c.as_ref().map(|c| c.head.size))
            }
            _ = ended.wait_for(Option::is_some) => None,
        };
        let upto = LogIndex(certified.ok_or(Ended::Closed)?.min(from.0 + CHUNK - 1));
        let handle = self.clone();
        let read = tokio::task::spawn_blocking(move || -> Result<_, QueryError> {
            let entries = handle.shared.store.read(from, upto, MAX_APPEND_BYTES)?;
            let next = entries.last().map_or(from, |e| e.index().next());
            let mut events = VecDeque::new();
            for entry in &entries {
                events.extend(pick(&handle, entry)?);
            }
            Ok((events, next))
        });
        read.await.map_err(|_| Ended::Closed)?.map_err(Ended::Query)
    }

    fn commit_event(&self, entry: &Entry) -> Result<Option<CommitEvent>, QueryError> {
        let (Kind::Proposal, Some(id), Some(request)) =
            (entry.header.kind, entry.header.proposal_id, entry.body.request.as_ref())
        else {
            return Ok(None);
        };
        let outcome = self.shared.replica().outcome(entry.index()).cloned().unwrap_or(Outcome::Opaque);
        Ok(Some(CommitEvent {
            index: entry.index(),
            id,
            client: request.client.clone(),
            request_id: request.request_id.clone(),
            payload: json(&entry.body.payload),
            outcome,
            certificate: Some(self.commit_certificate(entry)?),
        }))
    }

    fn abort_event(&self, entry: &Entry) -> Result<Option<AbortEvent>, QueryError> {
        let (Kind::Aborted, Some(id), Some(request)) =
            (entry.header.kind, entry.header.proposal_id, entry.body.request.as_ref())
        else {
            return Ok(None);
        };
        let tally = entry.header.tally.as_ref();
        Ok(Some(AbortEvent {
            index: entry.index(),
            id,
            client: request.client.clone(),
            request_id: request.request_id.clone(),
            reason: entry.header.abort_reason.unwrap_or(AbortReason::Expired),
            granted: tally.map(|t| self.names(entry.header.epoch, &t.grants.members)).unwrap_or_default(),
            denied: tally.map(|t| self.names(entry.header.epoch, &t.denials.members)).unwrap_or_default(),
        }))
    }

    fn names(&self, epoch: Epoch, members: &Bitmap) -> Vec<NodeId> {
        let replica = self.shared.replica();
        let Some(table) = replica.epochs.table(epoch) else { return Vec::new() };
        let voters = table.table.voters().enumerate();
        voters.filter(|(position, _)| members.contains(*position)).map(|(_, member)| member.did).collect()
    }
}
