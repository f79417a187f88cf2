//! Every bound of the system, in one place, with the relations between them checked at compile time.

/// Largest payload of a proposal, in bytes. A stored value beyond about 100 KiB is not durable in sled.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Largest value this crate ever stores in sled, in bytes: segment (8 MiB) / 80.
pub const MAX_STORED_VALUE: usize = 100 * 1024;
/// Largest encoded entry (header, salt, request and payload), in bytes.
pub const MAX_ENTRY: usize = 96 * 1024;
/// Largest header, in bytes: an entry of an entry bundle is length-prefixed with 16 bits (C2SP `tlog-tiles`).
pub const MAX_HEADER: usize = 1024;
/// Most members in one table.
pub const MAX_MEMBERS: usize = 100;
/// Longest cluster name, in bytes.
pub const MAX_NAME: usize = 64;
/// Longest member address (`HOST:PORT`), in bytes.
pub const MAX_ADDRESS: usize = 256;
/// Longest reason for which a cluster is succeeded, in bytes.
pub const MAX_REASON: usize = 256;
/// Longest client identity or request id, in bytes.
pub const MAX_REQUEST_ID: usize = 128;
/// Shortest and longest time to live of a proposal, in milliseconds, and its default.
pub const MIN_TTL_MS: u64 = 1;
/// See [`MIN_TTL_MS`].
pub const MAX_TTL_MS: u64 = 10 * 60 * 1000;
/// See [`MIN_TTL_MS`].
pub const DEFAULT_TTL_MS: u64 = 5_000;
/// Furthest that a request's deadline may lie ahead, in milliseconds (400 days): until then its id is remembered.
pub const MAX_REQUEST_HORIZON_MS: u64 = 400 * 24 * 3600 * 1000;
/// How long a named request is remembered when its client sets no deadline, in milliseconds (one day).
pub const DEFAULT_REQUEST_HORIZON_MS: u64 = 24 * 3600 * 1000;
/// Most requests remembered at once; beyond it admission answers `Backpressure`.
pub const MAX_REQUESTS: usize = 1_000_000;
/// Most proposals pending at one node.
pub const MAX_PENDING: usize = 4096;
/// Most ballots open at a leader.
pub const MAX_BALLOTS: usize = 1024;
/// Most bytes appended but not committed at a leader.
pub const MAX_UNCOMMITTED_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes of entries in one append message.
pub const MAX_APPEND_BYTES: usize = 1024 * 1024;
/// Most append messages in flight to one peer.
pub const MAX_INFLIGHT_APPENDS: usize = 64;
/// Most bytes of entries in flight to one peer.
pub const MAX_INFLIGHT_BYTES: usize = 8 * 1024 * 1024;
/// Entries by which a learner may lag behind the leader's log when it becomes a voter.
pub const MAX_PROMOTION_LAG: u64 = 1_000;
/// Linearizable reads that may wait at one node.
pub const MAX_READS: usize = 4096;
/// How long a read waits at most for a leader's word and for the state to be applied, milliseconds.
pub const READ_WAIT_MS: u64 = 5_000;
/// Largest frame between nodes, in bytes.
pub const MAX_FRAME: usize = 2 * 1024 * 1024;
/// Entries the core keeps in memory behind the applied index, for lagging peers; older ones come from the store.
pub const LOG_WINDOW_ENTRIES: usize = 8192;
/// Bytes of entries the core keeps in memory behind the applied index.
pub const LOG_WINDOW_BYTES: usize = 32 * 1024 * 1024;
/// Most entries in one page of an HTTP answer.
pub const MAX_PAGE: usize = 1000;
/// Records that one page of a search reads at most; then it ends early, and says where to go on.
pub const MAX_SEARCH_READS: usize = 4_096;
/// Largest HTTP request body, in bytes.
pub const MAX_HTTP_BODY: usize = 2 * MAX_PAYLOAD;
/// Largest HTTP request body that is read to its end and thrown away, so that a client still writing sees the refusal
/// instead of a reset connection, in bytes.
pub const MAX_HTTP_DISCARD: usize = 1024 * 1024;
/// Bytes of entries after which a page of an HTTP answer ends early.
pub const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Largest HTTP answer that the client reads (streams excepted), in bytes.
pub const MAX_HTTP_ANSWER: usize = 32 * 1024 * 1024;
/// Largest request head (request line and header fields), in bytes.
pub const MAX_HTTP_HEAD: usize = 64 * 1024;
/// Most HTTP connections at once; further ones wait in the listen queue.
pub const MAX_HTTP_CONNECTIONS: usize = 1024;
/// Most SSE streams at once.
pub const MAX_HTTP_STREAMS: usize = 256;
/// Most HTTP queries that read the store at once; further ones wait.
pub const MAX_HTTP_QUERIES: usize = 16;
/// Longest that a query waits for its turn, in milliseconds.
pub const HTTP_QUEUE_MS: u64 = 5_000;
/// Longest that a connection may take over a request head, idle time between requests included, in milliseconds.
pub const HTTP_HEAD_MS: u64 = 30_000;
/// Longest that a client may take over a request body, in milliseconds.
pub const HTTP_BODY_MS: u64 = 30_000;
/// Longest that a client may leave an answer unread, in milliseconds; then its connection is closed.
pub const HTTP_STALL_MS: u64 = 60_000;
/// Longest that answers under way may take at shutdown, in milliseconds.
pub const HTTP_DRAIN_MS: u64 = 5_000;
/// Silence after which a stream sends a comment, in milliseconds.
pub const SSE_KEEP_ALIVE_MS: u64 = 10_000;
/// Largest event of an SSE stream that the client reads, in bytes.
pub const MAX_SSE_EVENT: usize = 1024 * 1024;
/// Longest that a caller may ask to wait for the outcome of its proposal, in milliseconds.
pub const MAX_WAIT_MS: u64 = MAX_TTL_MS + 60_000;
/// How much longer than its time to live a proposal is waited for when the caller does not say, in milliseconds.
pub const DEFAULT_WAIT_EXTRA_MS: u64 = 5_000;
/// Longest agent id or config key, in bytes. This bound and the next three decide what a registry operation is when an
/// entry is applied: changing one changes the replicated state, so it needs a new state version.
pub const MAX_REGISTRY_KEY: usize = 256;
/// Longest display name, endpoint, DID or version of an agent, in bytes.
pub const MAX_AGENT_TEXT: usize = 2048;
/// Most capabilities of one agent.
pub const MAX_CAPABILITIES: usize = 256;
/// Longest capability tag, in bytes.
pub const MAX_CAPABILITY_TAG: usize = 128;
/// Bytes of a snapshot in one chunk.
pub const SNAPSHOT_CHUNK: usize = 64 * 1024;
/// Most chunks of a snapshot (64 GiB in all).
pub const MAX_SNAPSHOT_CHUNKS: u32 = 1 << 20;
/// Chunks of a snapshot that a node asks for at a time.
pub const MAX_CHUNKS_ASKED: usize = 8;
/// Bytes of a snapshot that a node asks for in a second, unless it is told otherwise.
pub const SNAPSHOT_BYTES_PER_S: u64 = 64 * 1024 * 1024;
/// Bytes of the history before a snapshot that a node asks for in a second, unless it is told otherwise: gentle on members
/// that have better to do.
pub const HISTORY_BYTES_PER_S: u64 = 8 * 1024 * 1024;
/// Pieces of the history that one member may have asked a node for without an answer.
pub const MAX_PIECES_OPEN: usize = 4;
/// Pieces of the history that a node looks up at once for all members together.
pub const MAX_PIECES_GIVEN: usize = 2;
/// Damaged records that are mended at most; beyond it a disk is not to be trusted with what it still gives.
pub const MAX_WOUNDS: usize = 64;
/// Entries of the log that are mended at most.
pub const MAX_MENDED_ENTRIES: u64 = 16_384;
/// Hashes in a tile, as in C2SP `tlog-tiles`.
pub const TILE: u64 = 256;

/// Most bytes in one frame of a backup: larger than any one thing that stands in it.
pub const MAX_BACKUP_FRAME: usize = 2 * 1024 * 1024;
/// Backups that one node streams at once; each holds compaction back.
pub const MAX_BACKUPS: usize = 2;

const _: () = assert!(MAX_PAYLOAD + MAX_HEADER + 4 * MAX_REQUEST_ID < MAX_ENTRY);
const _: () = assert!(MAX_ENTRY < MAX_STORED_VALUE);
const _: () = assert!(MAX_APPEND_BYTES + MAX_ENTRY < MAX_FRAME);
const _: () = assert!(MAX_APPEND_BYTES <= MAX_INFLIGHT_BYTES);
const _: () = assert!(SNAPSHOT_CHUNK < MAX_STORED_VALUE);
const _: () = assert!(MAX_HEADER <= u16::MAX as usize);
const _: () = assert!(MAX_HTTP_BODY >= MAX_PAYLOAD + 4 * MAX_REQUEST_ID);
const _: () = assert!(MAX_HTTP_STREAMS < MAX_HTTP_CONNECTIONS);
const _: () = assert!(MAX_PAGE_BYTES + 64 * MAX_ENTRY < MAX_HTTP_ANSWER);
const _: () = assert!(4 * MAX_ENTRY < MAX_SSE_EVENT);
const _: () = assert!(2 * SSE_KEEP_ALIVE_MS < HTTP_STALL_MS);
