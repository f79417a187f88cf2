//! Opening a store whose disk lost a few records that certificates prove: they are asked of other members, before there is a
//! core or a vote, over a transport that serves nothing else.

use super::asking::Asking;
use super::clock::Clock;
use super::{Opened, StartError, open};
use crate::certificate::{EpochChain, Genesis, MemberTable};
use crate::ids::{LogIndex, NodeId};
use crate::limits::TILE;
use crate::node::STORE_DIR;
use crate::storage::{MendError, Mending, OpenError, ReadError, Wound};
use crate::transport::{self, Identity, Inbox, Peer, Transport};
use crate::wire::{Found, Frame, History, Piece};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Times that a store is mended and opened again: a record may prove another one that is wrong too.
const ROUNDS: usize = 8;
/// How long a piece is waited for that no member gives, and the pause between two attempts.
const PATIENCE: Duration = Duration::from_secs(120);
const AGAIN: Duration = Duration::from_millis(250);

/// Whom to ask, and from where.
pub(super) struct Asker<'a> {
    pub(super) identity: &'a Identity,
    pub(super) listen: SocketAddr,
    pub(super) genesis: &'a Genesis,
    pub(super) epochs: &'a EpochChain,
}

/// Why a store was not mended.
#[derive(Debug, thiserror::Error)]
pub enum NotMended {
    /// No member gave a piece.
    #[error(
        "no other member gave {wound} within {PATIENCE:?}; start this node again once others are up; if none of them holds it any more, bring this member back with a fresh store and a membership change, as after a lost disk (ops/README.md)"
    )]
    NotGiven {
        /// What is missing.
        wound: Wound,
    },
    /// The store refused.
    #[error(transparent)]
    Mend(#[from] MendError),
}

/// Opens the store; mends it first when it can be. Returns what was mended besides.
pub(super) async fn open_mended(data: &Path, asker: Asker<'_>, join: bool) -> Result<(Opened, Vec<Wound>), StartError> {
    let (mut mended, mut rounds) = (Vec::new(), 0..ROUNDS);
    loop {
        match open(data.to_owned(), asker.genesis.clone(), join).await {
            Err(StartError::Open(why)) if matches!(*why, OpenError::Mendable { .. }) && rounds.next().is_some() => {
                tracing::error!(%why, "this node's disk lost what was written; it is asked of the other members");
                mended.extend(mend(data, &asker).await?);
            }
            opened => return opened.map(|opened| (opened, mended)),
        }
    }
}

async fn mend(data: &Path, asker: &Asker<'_>) -> Result<Vec<Wound>, StartError> {
    let dir = data.join(STORE_DIR);
    let begun = blocking(move || Mending::begin(&dir)).await?;
    let mending = begun.map_err(|why| StartError::Open(Box::new(why)))?;
    let peers = peers(asker, &mending);
    let hello = Frame::Hello { http: None, version: env!("CARGO_PKG_VERSION").into() };
    let members: Vec<NodeId> = peers.iter().map(|peer| peer.id).collect();
    let options = transport::Options::default();
    let (transport, inbox) = Transport::bind(asker.identity, asker.listen, peers, hello, options).await?;
    let asking = Arc::new(Asking::new(transport.clone(), Clock::start()));
    let listening = tokio::spawn(listen(inbox, asking.clone()));
    let mended = Mender { mending: Arc::new(Mutex::new(mending)), members, asking }.run().await;
    // Ends the listening too.
    transport.close().await;
    if listening.await.is_err() {
        tracing::error!("the task that takes answers panicked");
    }
    mended.map_err(|why| StartError::NotMended(Box::new(why)))
}

/// Everyone who is or was a member by what is whole here, with the newest address.
fn peers(asker: &Asker<'_>, mending: &Mending) -> Vec<Peer> {
    let changes = asker.epochs.steps.iter().filter_map(|s| MemberTable::decode(&s.entry.body.payload).ok());
    let mut addresses = BTreeMap::new();
    for table in std::iter::once(asker.genesis.table.clone()).chain(changes) {
        addresses.extend(table.members().iter().map(|m| (m.did, m.address.clone())));
    }
    addresses.extend(mending.members().iter().map(|m| (m.did, m.address.clone())));
    addresses.remove(&asker.identity.did());
    addresses.into_iter().map(|(id, address)| Peer { id, address, former: false }).collect()
}

async fn listen(mut inbox: Inbox, asking: Arc<Asking>) {
    while let Some(incoming) = inbox.recv().await {
        // Whatever else a member sends is for a node that takes part, which this one does not yet.
        if let Frame::History(History::Answer { id, found }) = incoming.frame {
            asking.answered(incoming.from, id, found);
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StartError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| StartError::Thread(std::io::Error::other(e)))
}

struct Mender {
    /// Reading and writing it blocks.
    mending: Arc<Mutex<Mending>>,
    members: Vec<NodeId>,
    asking: Arc<Asking>,
}

impl Mender {
    async fn run(self) -> Result<Vec<Wound>, NotMended> {
        let wounds = lock(&self.mending).wounds().to_vec();
        let mut givers = BTreeMap::new();
        for wound in &wounds {
            let giver = self.heal(wound).await?;
            givers.insert(wound.to_string(), giver);
        }
        loop {
            match self.on_store(Mending::finish).await {
                Err(MendError::Unproved { wound }) => {
                    if let Some(giver) = givers.get(&wound.to_string()) {
                        self.unproved(*giver, &wound);
                    }
                    let giver = self.heal(&wound).await?;
                    givers.insert(wound.to_string(), giver);
                }
                done => {
                    done?;
                    break;
                }
            }
        }
        for wound in &wounds {
            tracing::warn!(%wound, "mended: proved by certificates, and durable");
        }
        Ok(wounds)
    }

    /// Has one wound's piece given, and says by whom. Pieces that are proved one by one are written here.
    async fn heal(&self, wound: &Wound) -> Result<NodeId, NotMended> {
        let healing = async {
            loop {
                let Some((member, found)) = self.whole(wound).await else {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                };
                let of = wound.clone();
                match self.on_store(move |mending| give(mending, &of, found)).await {
                    Ok(()) => return Ok(member),
                    Err(MendError::Unproved { .. }) => self.unproved(member, wound),
                    Err(why) => return Err(why.into()),
                }
            }
        };
        let healed = tokio::time::timeout(PATIENCE, healing).await;
        healed.unwrap_or_else(|_| Err(NotMended::NotGiven { wound: wound.clone() }))
    }

    async fn on_store(
        &self,
        work: impl FnOnce(&mut Mending) -> Result<(), MendError> + Send + 'static,
    ) -> Result<(), MendError> {
        let mending = self.mending.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut lock(&mending))).await;
        done.unwrap_or_else(|e| Err(ReadError::Panicked { message: e.to_string() }.into()))
    }

    fn unproved(&self, member: NodeId, wound: &Wound) {
        self.asking.unproved(member, &piece_of(wound), &"it does not belong there");
    }

    /// A piece from one member; the entries of a gap, which may take several answers, all from the same.
    async fn whole(&self, wound: &Wound) -> Option<(NodeId, Found)> {
        let (member, mut found) = self.asking.fetch(&self.members, &piece_of(wound)).await?;
        while let (Found::Bodies(entries), Wound::Entries { first, last }) = (&mut found, wound) {
            let next = LogIndex(first.0 + entries.len() as u64);
            if next > *last {
                break;
            }
            let piece = piece_of(&Wound::Entries { first: next, last: *last });
            let (_, Found::Bodies(more)) = self.asking.fetch(&[member], &piece).await? else { return None };
            if more.is_empty() {
                return None;
            }
            entries.extend(more);
        }
        Some((member, found))
    }
}

fn lock(mending: &Mutex<Mending>) -> MutexGuard<'_, Mending> {
    mending.lock().unwrap_or_else(PoisonError::into_inner)
}

fn piece_of(wound: &Wound) -> Piece {
    match wound {
        Wound::Entries { first, last } => {
            let upto = last.0.min(first.0 + TILE - 1);
            Piece::Bodies { indexes: (first.0..=upto).map(LogIndex).collect() }
        }
        Wound::Headers { first } => Piece::Headers { first: *first },
        Wound::Tile { level, position } => Piece::Tile { level: *level, position: *position },
        Wound::Kept { index } => Piece::Bodies { indexes: vec![*index] },
        Wound::Chunk { snapshot, number } => Piece::Chunk { snapshot: *snapshot, number: *number },
    }
}

fn give(mending: &mut Mending, wound: &Wound, found: Found) -> Result<(), MendError> {
    match (wound, found) {
        (Wound::Entries { first, .. }, Found::Bodies(entries)) => mending.give_entries(*first, entries),
        (Wound::Headers { first }, Found::Headers(headers)) => {
            let headers: Vec<Vec<u8>> = headers.into_iter().map(serde_bytes::ByteBuf::into_vec).collect();
            mending.give_headers(*first, &headers)
        }
        (Wound::Tile { level, position }, Found::Tile(hashes)) => mending.give_tile(*level, *position, &hashes),
        (Wound::Kept { index }, Found::Bodies(entries)) => match entries.as_slice() {
            [entry] if entry.index() == *index => mending.give_kept(entry),
            _ => Err(MendError::Unproved { wound: wound.clone() }),
        },
        (Wound::Chunk { snapshot, number }, Found::Chunk { bytes, path }) => {
            mending.give_chunk(*snapshot, *number, &bytes, &path)
        }
        _ => Err(MendError::Unproved { wound: wound.clone() }),
    }
}
