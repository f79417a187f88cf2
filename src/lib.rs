//! Concordat: a durable replicated log in which every entry can be proved.
//!
//! # The life of a proposal
//!
//! ```text
//! client ─propose→ leader ─ballot→ members                     (skipped when every voter grants by signing)
//!                     │ ←signed votes
//!                     ├─ append: index, header, leaf, root
//!                     ├─ replicate ─────────→ followers: match, write, fsync ∥ sign head
//!                     │ ←ack + head share
//!                     ├─ commit   (Raft: quorum durable, own term)
//!                     ├─ certify  (quorum of shares on one head → aggregate)
//!                     └─ apply → stream commits/aborts → client answer
//! ```
//!
//! Each stop, and where it is in the code:
//!
//! 1. **Propose.** A client posts JSON ([`http`], or [`client`] for it); [`node::Handle::submit`] checks what can be
//!    checked without the cluster, looks the request up among those already applied, and hands a
//!    [`core::Submission`] to the owner loop (`node::owner`), which routes it to the leader (`node::pending`), again when
//!    that changes. The leader admits it in `core::admission`: bounds, repeats under way, an id.
//! 2. **Ballot** (`core::ballot`), unless every voter is `auto` and the quorum rule suffices. A member's shell decides by
//!    policy; the answer is fsynced, then signed, then sent.
//! 3. **Append** (`core::replication`, `core::log`): a canonical [`certificate::Header`], hashed into the tree of
//!    [`certificate::merkle`].
//! 4. **Replicate, fsync.** The leader's append and its own write leave in the same drain. A write is a
//!    [`core::Effect::Persist`]; [`storage::Committer`] groups writes, flushes and fsyncs, and only then says
//!    [`core::Input::Persisted`], which alone releases acknowledgements and votes (`Core::let_go`).
//! 5. **Commit** (`Core::advance_commit`): Raft's rule, unmodified.
//! 6. **Certify** (`core::certify`): sign points, shares, aggregates; pairings run in `node::crypto`.
//! 7. **What proves an entry**: a [`certificate::Receipt`], verified by [`certificate::Receipt::verify`] from the
//!    genesis alone; a whole log by [`audit`].
//! 8. **Apply, stream, answer.** The state machine's thread (`node::applied`) feeds [`registry::State`] and wakes whoever
//!    waits; `node::streams` follows what is certified.
//!
//! # Rooms
//!
//! [`ids`] and [`limits`] name and bound everything. [`certificate`], [`core`] and [`registry`] are pure: no clock, no
//! randomness, no I/O. [`wire`], [`storage`] and [`transport`] are the three ways out of a node; [`node`] joins them to
//! the core. [`backup`] is a whole log in a file. [`http`], [`client`] and [`cli`] are what people and programs use. The
//! byte formats are in [`docs::formats`].

pub mod api;
pub mod audit;
pub mod backup;
pub mod certificate;
pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod docs;
pub mod http;
pub mod ids;
pub mod limits;
pub mod node;
pub mod registry;
pub mod storage;
pub mod telemetry;
pub mod transport;
pub mod wire;
