//! What nodes say to each other, and its codec.
//!
//! A frame on a stream is a 32-bit big-endian length, the protocol version byte, and one MessagePack value (structs as
//! arrays, `rmp-serde`'s compact form); the length counts all that follows it and is at most
//! [`MAX_FRAME`]. Nothing here is hashed or signed: signed statements inside a frame have canonical bytes of their own
//! ([`crate::certificate`]).

use crate::certificate::{ElectionCertificate, Half, HeadCertificate, Request};
use crate::core::{Admission, Message, Submission};
use crate::limits::{MAX_ADDRESS, MAX_FRAME, MAX_MEMBERS, MAX_PAYLOAD};
use serde::{Deserialize, Serialize};

/// The protocol version that leads every frame. Nodes of different versions do not talk.
pub const PROTOCOL_VERSION: u8 = 1;
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
}

/// Which of the three streams of a connection a frame takes, so that none waits behind a heavier kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    /// Small and urgent: heartbeats, votes, shares, certificates, every reply.
    Control = 0,
    /// Entries, and ballots with their payloads.
    Append = 1,
    /// Submissions.
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
    #[error("the frame is of protocol version {version}, this program speaks version {PROTOCOL_VERSION}; run the same version on every node")]
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
            Self::Submit { .. } => Lane::Bulk,
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
            Self::Hello { http, version } => {
                at_most(http.as_deref().map_or(0, str::len), MAX_ADDRESS, "hello.http")?;
                at_most(version.len(), MAX_VERSION_TEXT, "hello.version")
            }
        }
    }
}

fn check_message(message: &Message) -> Result<(), &'static str> {
    match message {
        Message::Append { election, .. } | Message::Heartbeat { election, .. } => check_election(election.as_deref()),
        Message::RequestVoteReply { signatures, .. } | Message::HeadShare { signatures, .. } => {
            at_most(signatures.len(), MAX_TABLES, "signatures")
        }
        Message::Certificate(certificate) => {
            let HeadCertificate { halves, .. } = certificate.as_ref();
            check_halves(halves)
        }
        Message::Ballot { ballot, .. } => check_request(&ballot.request, &ballot.payload),
        Message::PreVote { .. }
        | Message::PreVoteReply { .. }
        | Message::RequestVote { .. }
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
