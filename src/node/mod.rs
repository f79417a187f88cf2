//! The shell: one owner loop that feeds the core and executes its effects, threads for what must not delay it, and
//! the [`Handle`] that the rest of the program holds.

mod applied;
mod asking;
mod ballots;
mod certifying;
pub mod clock;
mod consensus;
mod crypto;
mod delivered;
mod epochs;
pub mod executor;
mod filling;
mod giving;
mod handle;
pub mod image;
mod mailbox;
mod members;
mod membership;
mod mending;
mod owner;
mod pending;
mod queries;
mod search;
mod shared;
mod snapshots;
mod snapshotter;
mod streams;

pub use crypto::Signer;
pub use handle::Handle;
pub use members::Freshness;
pub use mending::NotMended;
pub use queries::{QueryError, SearchError};

use crate::certificate::{CertificateError, EpochChain, Genesis, Kind, PublicKey, TableInForce};
use crate::config::Config;
use crate::core::{self, Core};
use crate::ids::{LogIndex, NodeId};
use crate::limits::MAX_APPEND_BYTES;
pub use crate::storage::STORE_DIR;
use crate::storage::{Keep, OpenError, PinError, RESTORING, ReadError, Store};
use crate::telemetry::Telemetry;
use crate::transport::{self, BindError, Identity, IdentityError, Peer, Transport};
use crate::wire::Frame;
use applied::{Applier, Replica};
use asking::Asking;
use clock::Clock;
use crypto::Pool;
use executor::{Executor, Settings, SnapshotSettings};
use filling::Filling;
use giving::Giving;
use mailbox::Mailbox;
use mending::{Asker, open_mended};
use owner::{Machine, Owner};
use rand::TryRngCore;
use shared::{Parts, Shared};
use snapshotter::{Moment, Snapshotter, read_image};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Requests of handles that may wait for the owner loop.
const EVENTS: usize = 4096;

/// What a node needs to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory that `init` made.
    pub data: PathBuf,
    /// The cluster.
    pub genesis: Genesis,
    /// Where peers connect, UDP.
    pub listen: SocketAddr,
    /// Where this node serves HTTP, told to its peers.
    pub http: Option<String>,
    /// Everything tunable.
    pub config: Config,
    /// Start although no member table names this store's key: it waits to be admitted.
    pub join: bool,
    /// Membership changes since the genesis, for a node that would otherwise know nobody who is still a member.
    pub epochs: EpochChain,
}

/// How a node ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As asked.
    Closed,
    /// By itself, because going on could break a promise; says why and what to do.
    Halted(String),
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store.
    #[error(transparent)]
    Open(Box<OpenError>),
    /// The store belongs to another cluster.
    #[error(transparent)]
    Pin(Box<PinError>),
    /// The log cannot be read back.
    #[error("the log cannot be read back: {0}")]
    Read(#[from] ReadError),
    /// The identity file and the store were made for different members.
    #[error("the identity file is that of {identity}, the store that of {store}: they do not belong together")]
    ForeignStore {
        /// In the identity file.
        identity: NodeId,
        /// In the store.
        store: NodeId,
    },
    /// Not in the genesis.
    #[error(
        "{id} is not a member of cluster {cluster:?}: make the genesis from the member.json of this data directory"
    )]
    NotAMember {
        /// This node.
        id: NodeId,
        /// The genesis.
        cluster: String,
    },
    /// In the genesis with another key.
    #[error(
        "the genesis names BLS key {genesis:?} for {id}, this store holds {store:?}: the store was made anew since; a member that lost its store comes back by a membership change with its new key"
    )]
    ForeignKey {
        /// This node.
        id: NodeId,
        /// In the genesis.
        genesis: Box<PublicKey>,
        /// In the store.
        store: Box<PublicKey>,
    },
    /// The peer port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Threads.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The proofs of membership changes given.
    #[error("the proofs of membership changes do not follow from the genesis: {0}")]
    Epochs(Box<CertificateError>),
    /// The log begins after a snapshot that cannot be read.
    #[error(
        "the log begins after {0}, but no snapshot that stands for the entries before can be read: begin anew with a fresh key (`concordat init --rejoin --even-if-sound` keeps this store aside and says how the member is admitted again)"
    )]
    NoState(LogIndex),
    /// Damaged records that other members could have given back.
    #[error("the store was not mended: {0}")]
    NotMended(Box<NotMended>),
    /// A restore did not end.
    #[error(
        "a restore into {0} is under way, or was interrupted: let it end, or make a new data directory with `concordat init` and restore into that"
    )]
    Restoring(PathBuf),
    /// The store has ended.
    #[error(
        "the store in {0} is retired: its member signed what it holds when its cluster lost its quorum, and another cluster goes on from there; its key must not sign again, so make a new data directory with `concordat init` (ops/quorum-loss.md)"
    )]
    Retired(String),
    /// A member of a successor without the state that it begins with.
    #[error(
        "this cluster succeeds another, and {data} does not hold the state that it begins with: place it with `concordat restore --from BACKUP --data {data} --genesis GENESIS`, with the backup that the genesis was made from; only a member that is admitted later (`serve --join`) gets a state from the others"
    )]
    NoPredecessor {
        /// The data directory.
        data: String,
    },
    /// The log contains an entry that the state machine cannot follow.
    #[error("the store's log has no entry {0}, which its newest certificate covers")]
    Gap(LogIndex),
}

impl StartError {
    /// Whether no node may ever start on this store again: trying once more is of no use.
    #[must_use]
    pub fn bars_the_store(&self) -> bool {
        match self {
            Self::Open(why) => why.bars_the_store(),
            Self::NoState(_) | Self::Restoring(_) | Self::Retired(_) | Self::NoPredecessor { .. } => true,
            _ => false,
        }
    }
}

/// Opens the store, recovers, and runs the node in background tasks of the current tokio runtime.
///
/// # Errors
/// [`StartError`]; nothing runs then.
pub async fn start(options: Options) -> Result<Handle, StartError> {
    let Options { data, genesis, listen, http, config, join, epochs } = options;
    let identity = Identity::load(&data.join(transport::IDENTITY_FILE))?;
    let asker = Asker { identity: &identity, listen, genesis: &genesis, epochs: &epochs };
    let (opened, mended) = open_mended(&data, asker, join).await?;
    let Opened { store, recovered, replica, unfinished } = opened;
    let (manifest, certificate) = (replica.manifest_entry().cloned(), recovered.restored.certificate.clone());
    let id = identity.did();
    if recovered.did != id {
        return Err(StartError::ForeignStore { identity: id, store: recovered.did });
    }
    let ahead = verify_epochs(epochs, &genesis).await?;
    if !join && recovered.last_index == LogIndex::ZERO {
        // A store that has seen nothing yet must be one that the genesis names, or somebody mixed up files.
        let row = genesis.table.get(&id).ok_or_else(|| StartError::NotAMember { id, cluster: genesis.name.clone() })?;
        let own_key = recovered.bls.public();
        if row.bls_key != own_key {
            return Err(StartError::ForeignKey { id, genesis: Box::new(row.bls_key), store: Box::new(own_key) });
        }
    }

    let clock = Clock::start();
    let peers = genesis.table.members().iter().filter(|m| m.did != id);
    let peers: Vec<Peer> = peers.map(|m| Peer { id: m.did, address: m.address.clone(), former: false }).collect();
    let telemetry = Telemetry::new(peers.iter().map(|p| p.id));
    let hello = Frame::Hello { http: http.clone(), version: env!("CARGO_PKG_VERSION").into() };
    let (transport, incoming) = Transport::bind(&identity, listen, peers, hello, transport::Options::default()).await?;
    let (events_in, events) = mpsc::channel(EVENTS);
    let signer = Arc::new(Signer::new(std::iter::once(recovered.bls).chain(recovered.next_bls).collect()));
    let members_of_old = replica.epochs.addresses();
    let shared = Arc::new(Shared::new(Parts {
        id,
        genesis: genesis.clone(),
        store: store.clone(),
        signer: signer.clone(),
        transport,
        telemetry,
        clock,
        events: events_in,
        replica,
        certificate: recovered.restored.certificate.clone(),
        http,
        mended,
    }));

    let mailbox = Arc::new(Mailbox::default());
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let pool = Pool::start(threads, &signer, &mailbox)?;
    let (snapshotter, jobs) = Snapshotter::start(shared.clone(), mailbox.clone(), config.snapshots.rotation)?;
    shared.set_jobs(Some(jobs.clone()));
    let applier = Applier::start(shared.clone(), mailbox.clone(), jobs.clone())?;
    let completed = mailbox.clone();
    let committer = store.start(move |result| match result {
        Ok(seq) => completed.persisted(seq),
        Err(why) => completed.fail(why.to_string()),
    });
    let applied = *shared.applied.borrow();
    let core = Core::new(id, &genesis, recovered.restored, core_options(&config), clock.now());
    let tasks = TaskTracker::new();
    let machine = Machine {
        shared: shared.clone(),
        mailbox: mailbox.clone(),
        committer,
        pool,
        applier,
        snapshotter,
        jobs: jobs.clone(),
        keep: Keep { bytes: config.snapshots.keep.bytes, age_ms: config.snapshots.keep.age_ms },
        clock,
        tasks: tasks.clone(),
    };
    let bytes_per_s = config.snapshots.history_bytes_per_s;
    let snapshots = SnapshotSettings { every: config.snapshots.every, retain: config.snapshots.retain };
    let settings =
        Settings { rules: config.rules, max_pending: config.limits.pending, forward: config.http.forward, snapshots };
    let mut executor = Executor::new(id, core, machine, settings, applied);
    executor.remember(members_of_old);
    let newest = store.snapshots().pop();
    if let Some(moment) = unfinished {
        jobs.take(moment);
    }
    drop(jobs);
    let index = newest.as_ref().map_or(LogIndex::ZERO, |m| m.index);
    if let Some(newest) = newest {
        mailbox.put(core::Input::SnapshotTaken(Arc::new(newest)));
    }
    executor.resume_snapshots(index, manifest, certificate);
    executor.show();
    let asking = Arc::new(Asking::new(shared.transport.clone(), clock));
    let closing = CancellationToken::new();
    let filling = Filling { shared: shared.clone(), asking: asking.clone(), tasks: tasks.clone(), bytes_per_s };
    tasks.spawn(filling.run(closing.clone()));
    let giving = Giving::new(shared.clone(), tasks);
    let filling = closing.drop_guard();
    let owner = Owner { executor, mailbox, clock, events, incoming, asking, giving, filling };
    tokio::spawn(supervise(owner, shared.clone()));
    let handle = Handle::new(shared);
    if !ahead.is_empty() {
        handle.learn_epochs(ahead).await;
    }
    Ok(handle)
}

/// The tables that a chain proves, without the genesis'.
async fn verify_epochs(epochs: EpochChain, genesis: &Genesis) -> Result<Vec<TableInForce>, StartError> {
    let genesis = genesis.clone();
    let verified = tokio::task::spawn_blocking(move || epochs.verify(&genesis)).await.map_err(std::io::Error::other)?;
    Ok(verified.map_err(|why| StartError::Epochs(Box::new(why)))?.split_off(1))
}

/// A broken invariant must stop the node for all to see, not leave it standing with its owner loop gone.
async fn supervise(owner: Owner, shared: Arc<Shared>) {
    if let Err(panic) = tokio::spawn(owner.run()).await {
        let why = format!("internal error, please report it with the log: {panic}");
        tracing::error!(%why, "this node halts");
        shared.transport.close().await;
        shared.ended.send_replace(Some(Ended::Halted(why)));
    }
}

/// What opening gives.
struct Opened {
    store: Store,
    recovered: crate::storage::Recovered,
    replica: Replica,
    /// The newest mark that was applied, when its image was never finished.
    unfinished: Option<Moment>,
}

/// Opens the store, pins the genesis, and brings the state machine up to the newest certificate: from the newest snapshot,
/// if there is one.
async fn open(data: PathBuf, genesis: Genesis, join: bool) -> Result<Opened, StartError> {
    let opened = tokio::task::spawn_blocking(move || {
        if data.join(RESTORING).exists() {
            return Err(StartError::Restoring(data));
        }
        let (store, recovered) = Store::open(&data.join(STORE_DIR)).map_err(|e| StartError::Open(Box::new(e)))?;
        if recovered.retired {
            return Err(StartError::Retired(data.display().to_string()));
        }
        // Without the state at its beginning, a member named by a successor's genesis could elect itself over an empty
        // log. One that joins holds no vote before it is admitted, and gets a snapshot: no leader has earlier entries.
        let own_key = recovered.bls.public();
        let joins = join && genesis.table.get(&recovered.did).is_none_or(|row| row.bls_key != own_key);
        if store.last_index().0 < genesis.begins_after() && !joins {
            return Err(StartError::NoPredecessor { data: data.display().to_string() });
        }
        store.pin_genesis(&genesis).map_err(|e| StartError::Pin(Box::new(e)))?;
        let certified = LogIndex(recovered.restored.certificate.as_ref().map_or(0, |c| c.head.size));
        let base = store.base();
        // What the core calls committed at its start; it delivers what comes after.
        let known = certified.max(base);
        let snapshot = store.snapshots().into_iter().rev().find(|manifest| manifest.index <= known);
        let mut replica = match snapshot.and_then(|manifest| read_image(&store, &manifest)) {
            Some(image) => Replica::from_image(&genesis, image),
            None if base > LogIndex::ZERO => return Err(StartError::NoState(base)),
            None => Replica::new(&genesis),
        };
        let mut unfinished = None;
        let mut next = replica.state.applied().next();
        // Between the log's beginning and the snapshot, nothing is applied but indexed.
        let mut archived = LogIndex(store.archived()).next();
        while archived < next {
            let entries = store.read(archived, next.prev(), MAX_APPEND_BYTES)?;
            store.archive(&entries)?;
            archived = entries.last().map(|e| e.index().next()).ok_or(StartError::Gap(archived))?;
        }
        while next <= certified {
            let entries = store.read(next, certified, MAX_APPEND_BYTES)?;
            store.archive(&entries)?;
            for entry in &entries {
                replica.apply(entry);
                if entry.header.kind == Kind::SnapshotMark {
                    unfinished = Some(replica.moment());
                }
            }
            next = entries.last().map(|e| e.index().next()).ok_or(StartError::Gap(next))?;
        }
        Ok(Opened { store, recovered, replica, unfinished })
    });
    opened.await.map_err(std::io::Error::other)?
}

fn core_options(config: &Config) -> core::Options {
    let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let mut seed = [0; 8];
    rand::rngs::OsRng.try_fill_bytes(&mut seed).expect("the operating system has randomness");
    core::Options {
        election_timeout_ms: (ms(config.consensus.election_timeout_min), ms(config.consensus.election_timeout_max)),
        heartbeat_ms: ms(config.consensus.heartbeat),
        max_pending: config.limits.pending,
        max_uncommitted_bytes: config.limits.uncommitted_bytes,
        max_clock_difference_ms: ms(config.consensus.max_clock_difference),
        snapshot_bytes_per_s: config.snapshots.fetch_bytes_per_s,
        seed: u64::from_be_bytes(seed),
    }
}

#[cfg(test)]
mod tests;
