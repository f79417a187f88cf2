//! What nodes say to each other, and its codec.
//!
//! A frame on a stream is a 32-bit big-endian length, the protocol version byte, and one MessagePack value (structs as
//! arrays, `rmp-serde`'s compact form); the length counts all that follows it and is at most
//! [`MAX_FRAME`]. Nothing here is hashed or signed: signed statements inside a frame have canonical bytes of their own
//! ([`crate::certificate`]).

mod history;

pub use history::{Found, History, Piece};

use crate::certificate::merkle::MAX_PATH;
use crate::certificate::{ElectionCertificate, Half, HeadCertificate, Request};
use crate::core::{Admission, Message, Submission};
use crate::limits::{MAX_ADDRESS, MAX_FRAME, MAX_MEMBERS, MAX_PAYLOAD, SNAPSHOT_CHUNK};
use serde::{Deserialize, Serialize};

/// The protocol version that leads every frame. Nodes of different versions do not talk.
pub const PROTOCOL_VERSION: u8 = 2;
/// Bytes of the length that precedes a frame.
pub const LENGTH_PREFIX: usize = 4;
/// Longest program version in a [`Frame::Hello`], bytes.
pub const MAX_VERSION_TEXT: usize = 64;
/// A statement is signed under one member table, or under two while a membership change is in flight.
const MAX_TABLES: usize = 2;
/// Deepest nesting of arrays and maps in a frame: the types need about ten; hostile nesting would exhaust the stack.
const MAX_DEPTH: usize = 32;

/// One message between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// From core to core.
    Core(Message),
    /// A proposal on its way to the leader.
    Submit {
        /// Chosen by the sender; the answer echoes it.
        handle: u64,
        /// The proposal.
        submission: Submission,
    },
    /// The leader's answer to `Submit`.
    Submitted {
        /// Echoed.
        handle: u64,
        /// How it was taken.
        admission: Admission,
    },
    /// The first frame of every connection.
    Hello {
        /// Where the sender serves HTTP, when it does.
        http: Option<String>,
        /// The sender's program version.
        version: String,
    },
    /// A piece of the log's history, asked for or given.
    History(History),
}

/// Which of the three streams of a connection a frame takes, so that none waits behind a heavier kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    /// Small and urgent: heartbeats, votes, shares, certificates, every reply.
    Control = 0,
    /// Entries, and ballots with their payloads.
    Append = 1,
    /// Submissions, and whatever nothing waits for but a node that is behind.
    Bulk = 2,
}

impl Lane {
    /// Every lane, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Control, Self::Append, Self::Bulk];

    /// The byte that opens a stream of this lane.
    #[must_use]
    pub const fn tag(self) -> u8 {
        self as u8
    }

    /// The lane of a stream's first byte.
    #[must_use]
    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.tag() == tag)
    }
}

/// Why a frame cannot be sent. Always a defect of the sender, never of its peer.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Beyond [`MAX_FRAME`].
    #[error("the frame has {length} bytes, at most {MAX_FRAME} are allowed")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// A field beyond its own bound, which the receiver would refuse.
    #[error("{field} is beyond its bound")]
    OutOfBounds {
        /// The field.
        field: &'static str,
    },
    /// A value that MessagePack cannot hold.
    #[error("the frame cannot be written as MessagePack")]
    MessagePack(#[from] rmp_serde::encode::Error),
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A stated length of zero or beyond [`MAX_FRAME`].
    #[error("a frame of {length} bytes is announced, 1 to {MAX_FRAME} are allowed")]
    Length {
        /// As stated.
        length: u32,
    },
    /// No version byte.
    #[error("the frame is empty")]
    Empty,
    /// Another protocol.
    #[error(
        "the frame is of protocol version {version}, this program speaks version {PROTOCOL_VERSION}; run the same version on every node"
    )]
    Version {
        /// As found.
        version: u8,
    },
    /// Not the MessagePack of a frame.
    #[error("the frame does not decode")]
    MessagePack(#[from] rmp_serde::decode::Error),
    /// Bytes follow the value.
    #[error("{count} bytes follow the end of the frame's value")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// A field beyond its bound.
    #[error("{field} is beyond its bound")]
    OutOfBounds {
        /// The field.
        field: &'static str,
    },
}

impl Frame {
    /// The lane it travels on.
    #[must_use]
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Core(Message::Append { .. } | Message::Ballot { .. }) => Lane::Append,
            // Proofs of many changes are large, and nothing waits for them but a node that is behind.
            Self::Submit { .. }
            | Self::History(_)
            | Self::Core(Message::Epochs { .. } | Message::SnapshotChunk { .. }) => Lane::Bulk,
            Self::Core(_) | Self::Submitted { .. } | Self::Hello { .. } => Lane::Control,
        }
    }

    /// Appends length, version and value to `out`, which is left as it was on error.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.check_bounds().map_err(|field| EncodeError::OutOfBounds { field })?;
        let start = out.len();
        out.extend([0; LENGTH_PREFIX]);
        out.push(PROTOCOL_VERSION);
        let written = rmp_serde::encode::write(out, self);
        let length = out.len() - start - LENGTH_PREFIX;
        let result = match (written, u32::try_from(length)) {
            (Err(e), _) => Err(e.into()),
            (Ok(()), Ok(stated)) if length <= MAX_FRAME => {
                out[start..start + LENGTH_PREFIX].copy_from_slice(&stated.to_be_bytes());
                Ok(())
            }
            (Ok(()), _) => Err(EncodeError::TooLong { length }),
        };
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    /// Reads the version byte and the value: a frame without its length prefix.
    ///
    /// Allocates no more than a small multiple of `bytes`: MessagePack's stated lengths are held against what is there.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (&version, value) = bytes.split_first().ok_or(DecodeError::Empty)?;
        if version != PROTOCOL_VERSION {
            return Err(DecodeError::Version { version });
        }
        let mut rest = value;
        let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
        deserializer.set_max_depth(MAX_DEPTH);
        let frame = Self::deserialize(&mut deserializer)?;
        if !rest.is_empty() {
            return Err(DecodeError::Trailing { count: rest.len() });
        }
        frame.check_bounds().map_err(|field| DecodeError::OutOfBounds { field })?;
        Ok(frame)
    }

    /// The bounds that the types alone do not hold; the field at fault otherwise.
    fn check_bounds(&self) -> Result<(), &'static str> {
        match self {
            Self::Core(message) => check_message(message),
            Self::Submit { submission, .. } => check_request(&submission.request, &submission.payload),
            Self::Submitted { .. } => Ok(()),
            Self::History(history) => history.check(),
            Self::Hello { http, version } => {
                at_most(http.as_deref().map_or(0, str::len), MAX_ADDRESS, "hello.http")?;
                at_most(version.len(), MAX_VERSION_TEXT, "hello.version")
            }
        }
    }
}

fn check_message(message: &Message) -> Result<(), &'static str> {
    match message {
        Message::Append { election, to_keys, .. } | Message::Heartbeat { election, to_keys, .. } => {
            at_most(to_keys.len(), MAX_TABLES, "to_keys")?;
            check_election(election.as_deref())
        }
        Message::SnapshotOffer { election, to_keys, offer, .. } => {
            at_most(to_keys.len(), MAX_TABLES, "to_keys")?;
            at_most(offer.path.len(), MAX_PATH, "path")?;
            check_halves(&offer.certificate.halves)?;
            check_election(election.as_deref())
        }
        Message::SnapshotChunk { bytes, path, .. } => {
            at_most(bytes.len(), SNAPSHOT_CHUNK, "chunk")?;
            at_most(path.len(), MAX_PATH, "path")
        }
        Message::RequestVoteReply { signatures, .. } | Message::HeadShare { signatures, .. } => {
            at_most(signatures.len(), MAX_TABLES, "signatures")
        }
        Message::Certificate(certificate) => {
            let HeadCertificate { halves, .. } = certificate.as_ref();
            check_halves(halves)
        }
        Message::Ballot { ballot, .. } => check_request(&ballot.request, &ballot.payload),
        Message::RequestVote { under, .. } => at_most(under.len(), MAX_TABLES, "under"),
        Message::Epochs { in_flight, .. } => at_most(in_flight.len(), 1, "in_flight"),
        Message::PreVote { keys, .. } => at_most(keys.len(), MAX_TABLES, "keys"),
        Message::PreVoteReply { .. }
        | Message::EpochsWanted { .. }
        | Message::SnapshotWanted { .. }
        | Message::ReadIndex { .. }
        | Message::ReadIndexReply { .. }
        | Message::TimeoutNow { .. }
        | Message::AppendReply { .. }
        | Message::HeartbeatReply { .. }
        | Message::ProofWanted { .. }
        | Message::Vote { .. } => Ok(()),
    }
}

fn check_election(certificate: Option<&ElectionCertificate>) -> Result<(), &'static str> {
    certificate.map_or(Ok(()), |c| check_halves(&c.halves))
}

fn check_halves(halves: &[Half]) -> Result<(), &'static str> {
    at_most(halves.len(), MAX_TABLES, "certificate.halves")?;
    halves.iter().try_for_each(|h| at_most(h.signers.as_bytes().len(), MAX_MEMBERS.div_ceil(8), "certificate.signers"))
}

fn check_request(request: &Request, payload: &[u8]) -> Result<(), &'static str> {
    at_most(payload.len(), MAX_PAYLOAD, "payload")?;
    if request.is_within_bounds() { Ok(()) } else { Err("request") }
}

fn at_most(length: usize, bound: usize, field: &'static str) -> Result<(), &'static str> {
    if length <= bound { Ok(()) } else { Err(field) }
}

/// Splits the first whole frame off a stream's bytes: its value (for [`Frame::decode`]) and how many bytes it took with
/// its prefix. `None` while bytes are missing. A length out of bounds is refused as soon as it is seen, before a byte
/// of the frame is awaited or stored.
///
/// # Errors
/// [`DecodeError::Length`].
pub fn split_frame(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, DecodeError> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<LENGTH_PREFIX>() else { return Ok(None) };
    let stated = u32::from_be_bytes(*prefix);
    let length = usize::try_from(stated).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_FRAME {
        return Err(DecodeError::Length { length: stated });
    }
    Ok(rest.get(..length).map(|value| (value, LENGTH_PREFIX + length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{
        Bitmap, Body, ElectionClaim, Entry, Head, Header, Kind, Signature, SignedFor, payload_hash,
    };
    use crate::core::{AppendResult, Ballot};
    use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
    use crate::limits::MAX_HEADER;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn request() -> Request {
        Request { client: "client".into(), request_id: "request".into(), deadline_ms: 99 }
    }

    fn entry(index: u64, payload: &[u8]) -> Arc<Entry> {
        let body = Body { salt: [3; 16], request: Some(request()), payload: payload.to_vec() };
        let header = Header {
            index: LogIndex(index),
            term: Term(4),
            epoch: Epoch(0),
            kind: Kind::Proposal,
            proposal_id: Some(ProposalId { term: Term(4), seq: index, origin: NodeId([5; 32]) }),
            request_digest: request().digest(),
            proposed_at: 1_700_000_000_000,
            required_quorum: 2,
            abort_reason: None,
            tally: None,
            payload_len: u32::try_from(payload.len()).unwrap(),
            payload_hash: payload_hash(&body.salt, payload),
        };
        Arc::new(Entry::new(header, body).unwrap())
    }

    fn append(entries: Vec<Arc<Entry>>) -> Frame {
        Frame::Core(Message::Append {
            term: Term(4),
            session: 1,
            to_keys: vec![crate::certificate::PublicKey([4; 48])],
            prev_index: LogIndex(6),
            prev_term: Term(3),
            prev_root: Some(Digest([1; 32])),
            entries,
            commit: LogIndex(5),
            sign_point: LogIndex(0),
            election: Some(Arc::new(ElectionCertificate { claim: claim(), halves: vec![half()] })),
        })
    }

    fn claim() -> ElectionClaim {
        ElectionClaim {
            term: Term(4),
            candidate: NodeId([5; 32]),
            last_term: Term(3),
            last_size: 6,
            last_root: Digest([1; 32]),
        }
    }

    fn under() -> SignedFor {
        SignedFor { genesis_id: Digest([8; 32]), epoch: Epoch(0), epoch_hash: Digest([8; 32]) }
    }

    fn half() -> Half {
        Half {
            epoch: Epoch(0),
            epoch_hash: Digest([8; 32]),
            signers: Bitmap::of(3, [0, 2]),
            aggregate: Signature([9; 96]),
        }
    }

    fn submission(payload: Vec<u8>) -> Submission {
        Submission {
            origin: NodeId([5; 32]),
            request: request(),
            salt: [200; 16],
            payload,
            required_quorum: Some(3),
            ttl_ms: 5000,
        }
    }

    /// One frame of each shape that matters: nested, optional, with raw bytes, empty.
    fn samples() -> Vec<Frame> {
        let head = Head { term: Term(4), size: 7, root: Digest([2; 32]) };
        let ballot = Ballot {
            id: ProposalId { term: Term(4), seq: 1, origin: NodeId([5; 32]) },
            kind: Kind::Proposal,
            request: request(),
            salt: [255; 16],
            payload: b"{}".to_vec(),
            required_quorum: 3,
            ttl_ms: 5000,
            under: under(),
        };
        vec![
            Frame::Hello { http: Some("127.0.0.1:8080".into()), version: "0.1.0".into() },
            append(vec![entry(7, b"{\"op\":\"register\"}"), entry(8, b"")]),
            Frame::Core(Message::AppendReply { term: Term(4), session: 1, result: AppendResult::Durable(LogIndex(8)) }),
            Frame::Core(Message::HeadShare { head, signatures: vec![(under(), Signature([7; 96]))] }),
            Frame::Core(Message::Certificate(Arc::new(HeadCertificate { head, halves: vec![half(), half()] }))),
            Frame::Core(Message::Ballot { term: Term(4), ballot: Arc::new(ballot) }),
            Frame::Core(Message::RequestVote {
                claim: claim(),
                under: vec![(under(), crate::certificate::PublicKey([3; 48]))],
                transfer: true,
            }),
            Frame::Core(Message::ProofWanted { term: Term(u64::MAX) }),
            Frame::Submit { handle: 1, submission: submission(vec![0; 1000]) },
            Frame::Submitted { handle: 1, admission: Admission::InvalidQuorum { least: 2, most: 3 } },
            Frame::Submitted { handle: 2, admission: Admission::Backpressure },
            asked(Piece::Tile { level: 1, position: 3 }),
            asked(Piece::Bodies { indexes: vec![LogIndex(1), LogIndex(300)] }),
            found(Found::Tile(vec![Digest([1; 32]); 256])),
            found(Found::Headers(vec![serde_bytes::ByteBuf::from(vec![7; 200]); 256])),
            found(Found::Certificates(vec![Arc::new(HeadCertificate { head, halves: vec![half()] })])),
            found(Found::Bodies(vec![entry(7, b"{}")])),
            found(Found::Chunk { bytes: serde_bytes::ByteBuf::from(vec![1; 9]), path: vec![Digest([3; 32])] }),
            Frame::History(History::Answer { id: 9, found: None }),
        ]
    }

    fn asked(piece: Piece) -> Frame {
        Frame::History(History::Ask { id: 9, piece })
    }

    fn found(found: Found) -> Frame {
        Frame::History(History::Answer { id: 9, found: Some(found) })
    }

    fn encode(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.encode_into(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn frames_read_back_one_after_another() {
        let mut stream = Vec::new();
        samples().iter().for_each(|f| f.encode_into(&mut stream).unwrap());
        let mut rest = stream.as_slice();
        for frame in samples() {
            let (value, taken) = split_frame(rest).unwrap().expect("a whole frame");
            assert_eq!(Frame::decode(value).unwrap(), frame);
            rest = &rest[taken..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_cut_frame_is_waited_for() {
        for frame in samples() {
            let bytes = encode(&frame);
            for cut in 0..bytes.len() {
                assert!(split_frame(&bytes[..cut]).unwrap().is_none());
                assert!(Frame::decode(bytes.get(LENGTH_PREFIX..cut).unwrap_or_default()).is_err());
            }
        }
    }

    /// Nodes of one version number must agree on these bytes: a change here is a change of [`PROTOCOL_VERSION`].
    #[test]
    fn the_bytes_of_a_frame_are_fixed() {
        let hello = Frame::Hello { http: None, version: "1".into() };
        let heartbeat =
            Frame::Core(Message::HeartbeatReply { term: Term(1), session: 300, round: 0, wall: 1 << 40, certified: 0 });
        assert_eq!(hex::encode(encode(&hello)), "0000000c0281a548656c6c6f92c0a131");
        assert_eq!(
            hex::encode(encode(&heartbeat)),
            "000000270281a4436f726581ae4865617274626561745265706c799501cd012c00cf000001000000000000"
        );
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_the_frame_arrives() {
        let most = u32::try_from(MAX_FRAME).unwrap();
        for (length, fits) in [(0, false), (1, true), (most, true), (most + 1, false), (u32::MAX, false)] {
            let split = split_frame(&length.to_be_bytes()).map(|s| s.is_none());
            match split {
                Ok(waits) => assert!(fits && waits, "{length}"),
                Err(e) => assert!(!fits && matches!(e, DecodeError::Length { length: l } if l == length), "{length}"),
            }
        }
    }

    #[test]
    fn a_stated_count_without_its_elements_costs_nothing() {
        // A map of one variant, `Core`, `Append`, then arrays and byte strings that claim 2^32-1 elements.
        let mut claims_much = vec![PROTOCOL_VERSION, 0x81, 0xa4];
        claims_much.extend(b"Core");
        claims_much.extend([0x81, 0xa6]);
        claims_much.extend(b"Append");
        for claim in [[0xdd, 0xff, 0xff, 0xff, 0xff], [0xc6, 0xff, 0xff, 0xff, 0xff], [0xdf, 0xff, 0xff, 0xff, 0xff]] {
            let mut bytes = claims_much.clone();
            bytes.extend(claim);
            assert!(Frame::decode(&bytes).is_err());
            let mut nested = claims_much.clone();
            nested.extend([0x99, 1, 1, 1, 1, 0xc0]);
            nested.extend(claim);
            assert!(Frame::decode(&nested).is_err());
        }
        let mut deep = vec![PROTOCOL_VERSION];
        deep.extend(vec![0x91; 100_000]);
        assert!(Frame::decode(&deep).is_err());
    }

    #[test]
    fn other_versions_and_leftovers_are_refused() {
        let bytes = encode(&samples()[0]);
        let mut value = bytes[LENGTH_PREFIX..].to_vec();
        value.push(0xc0);
        assert!(matches!(Frame::decode(&value), Err(DecodeError::Trailing { count: 1 })));
        value.pop();
        value[0] = PROTOCOL_VERSION + 1;
        assert!(matches!(Frame::decode(&value), Err(DecodeError::Version { version: 3 })));
        assert!(matches!(Frame::decode(&[]), Err(DecodeError::Empty)));
    }

    #[test]
    fn fields_beyond_their_bounds_are_refused_on_both_sides() {
        let share = |n| {
            Frame::Core(Message::HeadShare {
                head: Head { term: Term(1), size: 1, root: Digest::ZERO },
                signatures: vec![(under(), Signature([0; 96])); n],
            })
        };
        let nameless = Submission { request: Request { client: String::new(), ..request() }, ..submission(vec![]) };
        let frames = [
            share(3),
            Frame::Submit { handle: 1, submission: submission(vec![0; MAX_PAYLOAD + 1]) },
            Frame::Submit { handle: 1, submission: nameless },
            Frame::Hello { http: None, version: "v".repeat(MAX_VERSION_TEXT + 1) },
            Frame::Hello { http: Some("h".repeat(MAX_ADDRESS + 1)), version: String::new() },
            Frame::Core(Message::Certificate(Arc::new(HeadCertificate {
                head: Head { term: Term(1), size: 1, root: Digest::ZERO },
                halves: vec![half(); 3],
            }))),
            asked(Piece::Bodies { indexes: vec![LogIndex(1); 257] }),
            found(Found::Tile(vec![Digest::ZERO; 257])),
            found(Found::Headers(vec![serde_bytes::ByteBuf::from(vec![0; MAX_HEADER + 1])])),
            found(Found::Chunk { bytes: serde_bytes::ByteBuf::from(vec![0; SNAPSHOT_CHUNK + 1]), path: vec![] }),
        ];
        for frame in frames {
            let mut out = vec![1, 2, 3];
            assert!(matches!(frame.encode_into(&mut out), Err(EncodeError::OutOfBounds { .. })), "{frame:?}");
            assert_eq!(out, [1, 2, 3], "nothing is left behind");
            let mut value = vec![PROTOCOL_VERSION];
            rmp_serde::encode::write(&mut value, &frame).unwrap();
            assert!(Frame::decode(&value).is_err(), "{frame:?}");
        }
        assert!(encode(&share(2)).len() > 100);
    }

    #[test]
    fn an_append_beyond_the_frame_bound_is_not_sent() {
        let payload = vec![0; MAX_PAYLOAD];
        let entries = (1..=40).map(|i| entry(i, &payload)).collect();
        let mut out = Vec::new();
        assert!(matches!(append(entries).encode_into(&mut out), Err(EncodeError::TooLong { .. })));
        assert!(out.is_empty());
    }

    /// The largest append that the core may build, and one entry more as `Fetch` allows, fits a frame.
    #[test]
    fn the_largest_append_fits() {
        let payload = vec![0; MAX_PAYLOAD];
        let count = u64::try_from(crate::limits::MAX_APPEND_BYTES / MAX_PAYLOAD).unwrap() + 1;
        let frame = append((1..=count).map(|i| entry(i, &payload)).collect());
        assert_eq!(Frame::decode(&encode(&frame)[LENGTH_PREFIX..]).unwrap(), frame);
    }

    #[test]
    fn heartbeats_votes_and_replies_share_a_lane_without_payloads() {
        for frame in samples() {
            let expected = match &frame {
                Frame::Core(Message::Append { .. } | Message::Ballot { .. }) => Lane::Append,
                Frame::Submit { .. } | Frame::History(_) => Lane::Bulk,
                _ => Lane::Control,
            };
            assert_eq!(frame.lane(), expected);
            assert!(expected != Lane::Control || encode(&frame).len() < 2048, "{frame:?}");
        }
        for lane in Lane::ALL {
            assert_eq!(Lane::from_tag(lane.tag()), Some(lane));
        }
        assert_eq!(Lane::from_tag(3), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), versioned: bool) {
            if let (true, Some(first)) = (versioned, bytes.first_mut()) {
                *first = PROTOCOL_VERSION;
            }
            let _refused = Frame::decode(&bytes);
            let _waits = split_frame(&bytes);
        }

        #[test]
        fn altered_frames_decode_to_a_frame_or_an_error(
            which in 0..19_usize,
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
            cut in any::<prop::sample::Index>(),
            is_cut: bool,
        ) {
            let mut value = encode(&samples()[which])[LENGTH_PREFIX..].to_vec();
            for (at, to) in flips {
                let at = at.index(value.len());
                value[at] = to;
            }
            if is_cut {
                value.truncate(cut.index(value.len()));
            }
            if let Ok(frame) = Frame::decode(&value) {
                prop_assert_eq!(Frame::decode(&encode(&frame)[LENGTH_PREFIX..]).unwrap(), frame);
            }
        }
    }
}
