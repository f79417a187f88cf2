//! Canonical bytes: fixed-width big-endian fields, one way to write each value, nothing left over.
//!
//! Everything that is hashed or signed is written here. A decoder reads, re-encodes and demands equality, so that no
//! two byte strings mean the same thing.

use crate::ids::{Digest, NodeId};

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end inside a field.
    #[error("the bytes end inside {field}")]
    Truncated {
        /// The field that was being read.
        field: &'static str,
    },
    /// Bytes follow the last field.
    #[error("{count} bytes follow the end of {what}")]
    Trailing {
        /// How many.
        count: usize,
        /// What was decoded.
        what: &'static str,
    },
    /// A field holds a value that its format does not allow.
    #[error("{field} holds a value that the format does not allow")]
    Value {
        /// The field.
        field: &'static str,
    },
    /// A length is beyond its bound.
    #[error("{field} is {length} long, beyond its bound of {bound}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// The length stated.
        length: usize,
        /// The bound.
        bound: usize,
    },
    /// Bytes of another kind, or of a format version that this program does not know.
    #[error("not a {what} of a format version that this program knows")]
    Tag {
        /// What was expected.
        what: &'static str,
    },
    /// A format version that this program does not know.
    #[error("{what} is of version {version}, which this program does not know; use a newer one")]
    Version {
        /// What was decoded.
        what: &'static str,
        /// The version found.
        version: u8,
    },
    /// The bytes decode, but are not the canonical spelling of what they mean.
    #[error("{what} is not in canonical form")]
    NotCanonical {
        /// What was decoded.
        what: &'static str,
    },
}

/// Appends canonical fields to a byte vector.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// An empty writer that begins with a 16-byte domain tag (ASCII, zero padded).
    #[must_use]
    pub fn tagged(tag: &[u8; 16]) -> Self {
        Self(tag.to_vec())
    }
    /// One byte.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }
    /// Two bytes, big-endian.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.0.extend(v.to_be_bytes());
        self
    }
    /// Four bytes, big-endian.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend(v.to_be_bytes());
        self
    }
    /// Eight bytes, big-endian.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend(v.to_be_bytes());
        self
    }
    /// Bytes of a length that the format fixes.
    pub fn fixed(&mut self, v: &[u8]) -> &mut Self {
        self.0.extend(v);
        self
    }
    /// A digest, 32 bytes.
    pub fn digest(&mut self, v: &Digest) -> &mut Self {
        self.fixed(&v.0)
    }
    /// A member's identity, 32 bytes.
    pub fn node(&mut self, v: &NodeId) -> &mut Self {
        self.fixed(&v.0)
    }
    /// A 16-bit length and that many bytes. Callers keep within 65,535 by their own bounds.
    pub fn short(&mut self, v: &[u8]) -> &mut Self {
        let length = u16::try_from(v.len()).expect("bounded by the field's limit, which is below 65,536");
        self.u16(length).fixed(v)
    }
    /// A 32-bit length and that many bytes.
    pub fn long(&mut self, v: &[u8]) -> &mut Self {
        let length = u32::try_from(v.len()).expect("bounded by the field's limit, which is below 2^32");
        self.u32(length).fixed(v)
    }
}

/// Reads canonical fields; never panics, never allocates more than the input holds.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// `length` bytes.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] when fewer are left.
    pub fn fixed(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], FormatError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(FormatError::Truncated { field })?;
        self.rest = rest;
        Ok(head)
    }

    /// `N` bytes as an array.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] when fewer are left.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(FormatError::Truncated { field })?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`FormatError::Truncated`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, FormatError> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }
    /// Two bytes, big-endian.
    ///
    /// # Errors
    /// [`FormatError::Truncated`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16, FormatError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }
    /// Four bytes, big-endian.
    ///
    /// # Errors
    /// [`FormatError::Truncated`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32, FormatError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }
    /// Eight bytes, big-endian.
    ///
    /// # Errors
    /// [`FormatError::Truncated`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64, FormatError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }
    /// A digest.
    ///
    /// # Errors
    /// [`FormatError::Truncated`].
    pub fn digest(&mut self, field: &'static str) -> Result<Digest, FormatError> {
        self.array(field).map(Digest)
    }
    /// A member's identity.
    ///
    /// # Errors
    /// [`FormatError::Truncated`].
    pub fn node(&mut self, field: &'static str) -> Result<NodeId, FormatError> {
        self.array(field).map(NodeId)
    }
    /// A 16-bit length, at most `bound`, and that many bytes.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] or [`FormatError::TooLong`].
    pub fn short(&mut self, bound: usize, field: &'static str) -> Result<&'a [u8], FormatError> {
        let length = usize::from(self.u16(field)?);
        self.bounded(length, bound, field)
    }
    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
    /// A 32-bit length, at most `bound`, and that many bytes.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] or [`FormatError::TooLong`].
    pub fn long(&mut self, bound: usize, field: &'static str) -> Result<&'a [u8], FormatError> {
        let length = self.u32(field)? as usize;
        self.bounded(length, bound, field)
    }

    fn bounded(&mut self, length: usize, bound: usize, field: &'static str) -> Result<&'a [u8], FormatError> {
        if length > bound {
            return Err(FormatError::TooLong { field, length, bound });
        }
        self.fixed(length, field)
    }

    /// A 16-bit length, at most `bound`, and UTF-8 text of that many bytes.
    ///
    /// # Errors
    /// [`FormatError::Truncated`], [`FormatError::TooLong`] or [`FormatError::Value`] (not UTF-8).
    pub fn text(&mut self, bound: usize, field: &'static str) -> Result<String, FormatError> {
        let bytes = self.short(bound, field)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| FormatError::Value { field })
    }

    /// A 16-byte domain tag.
    ///
    /// # Errors
    /// [`FormatError::Truncated`], or [`FormatError::Tag`] when it is another.
    pub fn tag(&mut self, tag: &[u8; 16], what: &'static str) -> Result<(), FormatError> {
        if self.array::<16>(what)? == *tag { Ok(()) } else { Err(FormatError::Tag { what }) }
    }

    /// Whether everything was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Demands that nothing is left.
    ///
    /// # Errors
    /// [`FormatError::Trailing`].
    pub fn finish(self, what: &'static str) -> Result<(), FormatError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FormatError::Trailing { count: self.rest.len(), what }) }
    }
}
