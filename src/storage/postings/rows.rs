//! How postings are stored: a head for every run, and rows of a few kilobytes. Both bear a checksum.

use super::words::{Code, Posting};
use crate::certificate::{FormatError, Reader, Writer};
use crate::storage::layout::{seal, unseal};

/// Bytes at which a row is full: small enough to be read for one word, large enough that a key costs little.
const ROW: usize = 4096;
/// First byte of the key of a head.
pub(super) const HEAD: u8 = 0;
/// First byte of the key of a row.
pub(super) const ROWS: u8 = 1;

const VERSION: u8 = 1;

/// Consecutive entries that bear a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) code: Code,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) note: u64,
}

/// A run: all postings of consecutive entries, by word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// How often it was merged.
    pub(super) level: u8,
    /// Names its rows; never used twice.
    pub(super) id: u64,
    /// The first entry that it covers.
    pub(super) first: u64,
    /// The last one.
    pub(super) last: u64,
    /// The first entry from which on it has the words of all bodies; `last + 1` when it has none.
    pub(super) bodies_from: u64,
    /// How many rows it has.
    pub(super) rows: u64,
    /// The checksum of their checksums.
    pub(super) sum: u32,
}

impl Run {
    pub(super) fn key(&self) -> [u8; 10] {
        let mut key = [HEAD, self.level, 0, 0, 0, 0, 0, 0, 0, 0];
        key[2..].copy_from_slice(&self.first.to_be_bytes());
        key
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION).u64(self.id).u64(self.last).u64(self.bodies_from).u64(self.rows).u32(self.sum);
        seal(&self.key(), &w.0)
    }

    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, FormatError> {
        let mut k = Reader::new(key);
        if k.u8("postings")? != HEAD {
            return Err(FormatError::Value { field: "postings" });
        }
        let (level, first) = (k.u8("postings.level")?, k.u64("postings.first")?);
        k.finish("postings")?;
        let mut r = Reader::new(unseal(key, value)?);
        match r.u8("postings.version")? {
            VERSION => {}
            version => return Err(FormatError::Version { what: "postings", version }),
        }
        let run = Self {
            level,
            id: r.u64("postings.run")?,
            first,
            last: r.u64("postings.last")?,
            bodies_from: r.u64("postings.bodies")?,
            rows: r.u64("postings.rows")?,
            sum: r.u32("postings.sum")?,
        };
        r.finish("postings")?;
        let ordered = 0 < first && first <= run.last && run.last < u64::MAX;
        let known = (first..=run.last.saturating_add(1)).contains(&run.bodies_from);
        if ordered && known { Ok(run) } else { Err(FormatError::Value { field: "postings.last" }) }
    }
}

/// The key of a row: its run, and its first posting.
pub(super) fn row_key(run: u64, code: Code, first: u64) -> [u8; 33] {
    let mut key = [ROWS; 33];
    for (part, number) in key[1..].chunks_exact_mut(8).zip([run, code.hi, code.lo, first]) {
        part.copy_from_slice(&number.to_be_bytes());
    }
    key
}

/// Reads [`row_key`].
pub(super) fn read_row_key(key: &[u8]) -> Result<(u64, Code, u64), FormatError> {
    let mut r = Reader::new(key);
    if r.u8("postings")? != ROWS {
        return Err(FormatError::Value { field: "postings" });
    }
    let run = r.u64("postings.run")?;
    let code = Code { hi: r.u64("postings.word")?, lo: r.u64("postings.word")? };
    let first = r.u64("postings.first")?;
    r.finish("postings")?;
    Ok((run, code, first))
}

fn put_varint(mut n: u64, into: &mut Vec<u8>) {
    while n >= 0x80 {
        into.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    into.push((n & 0x7f) as u8);
}

fn varint(r: &mut Reader<'_>) -> Result<u64, FormatError> {
    let mut n = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = r.u8("posting")?;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part {
            break;
        }
        n |= part << shift;
        if byte < 0x80 {
            return Ok(n);
        }
    }
    Err(FormatError::Value { field: "posting" })
}

/// Writes rows out of postings in order.
#[derive(Debug)]
pub(super) struct RowWriter {
    run: u64,
    /// The first entry of the run: indexes are written from here.
    base: u64,
    /// What may still grow.
    open: Option<Stretch>,
    /// The first posting of the row.
    start: Option<(Code, u64)>,
    body: Vec<u8>,
    /// The last word of the body.
    before: u64,
    /// The word being written: how many stretches, the end of the last one, and their bytes.
    group: Option<(Code, u64, u64)>,
    stretches: Vec<u8>,
    rows: u64,
    sum: crc32fast::Hasher,
}

/// A row as it is stored.
pub(super) type Row = ([u8; 33], Vec<u8>);

impl RowWriter {
    pub(super) fn new(run: u64, base: u64) -> Self {
        Self {
            run,
            base,
            open: None,
            start: None,
            body: Vec::new(),
            before: 0,
            group: None,
            stretches: Vec::new(),
            rows: 0,
            sum: crc32fast::Hasher::new(),
        }
    }

    /// Takes what follows by word and index; returns a row that became full.
    pub(super) fn push(&mut self, next: Stretch) -> Option<Row> {
        if let Some(open) = &mut self.open
            && open.code == next.code
            && open.last.checked_add(1) == Some(next.first)
            && !next.code.has_note()
        {
            open.last = next.last;
            return None;
        }
        let done = self.open.replace(next)?;
        self.write(done);
        (self.body.len() + self.stretches.len() >= ROW).then(|| self.finish_row()).flatten()
    }

    fn write(&mut self, s: Stretch) {
        self.start.get_or_insert((s.code, s.first));
        if self.group.is_some_and(|(code, ..)| code != s.code) {
            self.finish_group();
        }
        let (_, count, end) = self.group.get_or_insert((s.code, 0, self.base));
        put_varint((s.first - *end) << 1 | u64::from(s.last > s.first), &mut self.stretches);
        if s.last > s.first {
            put_varint(s.last - s.first - 1, &mut self.stretches);
        }
        if s.code.has_note() {
            put_varint(s.note, &mut self.stretches);
        }
        *count += 1;
        *end = s.last;
    }

    fn finish_group(&mut self) {
        let Some((code, count, _)) = self.group.take() else { return };
        put_varint(code.hi - self.before, &mut self.body);
        if code.is_long() {
            self.body.extend(code.lo.to_be_bytes());
        }
        put_varint(count, &mut self.body);
        self.body.append(&mut self.stretches);
        self.before = code.hi;
    }

    fn finish_row(&mut self) -> Option<Row> {
        self.finish_group();
        let (code, first) = self.start.take()?;
        let key = row_key(self.run, code, first);
        let value = seal(&key, &std::mem::take(&mut self.body));
        self.before = 0;
        self.rows += 1;
        self.sum.update(value.first_chunk::<4>()?);
        Some((key, value))
    }

    /// The last row, if any, how many there were, and the checksum of their checksums.
    pub(super) fn finish(mut self) -> (Option<Row>, u64, u32) {
        if let Some(open) = self.open.take() {
            self.write(open);
        }
        let row = self.finish_row();
        (row, self.rows, self.sum.finalize())
    }
}

/// Reads a row of a run that begins at `base`.
pub(super) fn read_row(base: u64, key: &[u8], value: &[u8]) -> Result<Vec<Stretch>, FormatError> {
    let (_, start, first) = read_row_key(key)?;
    let mut r = Reader::new(unseal(key, value)?);
    let wrong = || FormatError::Value { field: "posting" };
    let mut read: Vec<Stretch> = Vec::new();
    let mut hi = 0_u64;
    while !r.is_empty() {
        hi = hi.checked_add(varint(&mut r)?).ok_or_else(wrong)?;
        let mut code = Code { hi, lo: 0 };
        if code.is_long() {
            code.lo = r.u64("posting")?;
        }
        let (count, mut end) = (varint(&mut r)?, base);
        for _ in 0..count {
            let head = varint(&mut r)?;
            let first = end.checked_add(head >> 1).ok_or_else(wrong)?;
            let more = if head & 1 == 1 { varint(&mut r)?.checked_add(1).ok_or_else(wrong)? } else { 0 };
            end = first.checked_add(more).ok_or_else(wrong)?;
            let note = if code.has_note() { varint(&mut r)? } else { 0 };
            read.push(Stretch { code, first, last: end, note });
        }
    }
    if read.first().is_some_and(|s| (s.code, s.first) == (start, first)) { Ok(read) } else { Err(wrong()) }
}

/// Postings in order, each once.
pub(super) fn sorted(mut postings: Vec<Posting>) -> impl Iterator<Item = Stretch> {
    postings.sort_unstable();
    postings.dedup();
    postings.into_iter().map(|p| Stretch { code: p.code, first: p.index, last: p.index, note: p.note })
}

#[cfg(test)]
mod tests {
    use super::super::words::Word;
    use super::*;
    use crate::ids::{Digest, NodeId};
    use crate::registry::Key;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn word(n: u8) -> Word {
        match n % 3 {
            0 => Word::Origin(NodeId([n; 32])),
            1 => Word::Request(Digest([n; 32])),
            _ => Word::Key(Key::Config(n.to_string())),
        }
    }

    fn write(base: u64, stretches: &[Stretch]) -> (Vec<Row>, u64, u32) {
        let mut writer = RowWriter::new(7, base);
        let mut rows: Vec<Row> = stretches.iter().filter_map(|s| writer.push(*s)).collect();
        let (last, count, sum) = writer.finish();
        rows.extend(last);
        (rows, count, sum)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn rows_read_back_as_what_was_written(
            postings in proptest::collection::vec((0_u8..12, 1_000_u64..9_000, any::<u64>()), 1..6_000)
        ) {
            let postings: BTreeMap<(Code, u64), u64> = postings
                .into_iter()
                .map(|(n, index, note)| {
                    let code = word(n).code();
                    ((code, index), if code.has_note() { note } else { 0 })
                })
                .collect();
            let all: Vec<Stretch> =
                postings.iter().map(|((code, i), note)| Stretch { code: *code, first: *i, last: *i, note: *note }).collect();
            let (rows, count, _) = write(1_000, &all);
            prop_assert_eq!(rows.len() as u64, count);
            let mut read = BTreeMap::new();
            for (key, value) in &rows {
                prop_assert!(value.len() < 2 * ROW);
                for s in read_row(1_000, key, value).unwrap() {
                    read.extend((s.first..=s.last).map(|i| ((s.code, i), s.note)));
                }
            }
            prop_assert_eq!(read, postings);
        }

        #[test]
        fn a_flipped_bit_of_a_row_or_a_head_is_found(at: proptest::sample::Index, bit in 0_u8..8) {
            let code = word(1).code();
            let all: Vec<Stretch> = (1..40).map(|i| Stretch { code, first: i * 3, last: i * 3, note: i }).collect();
            let (rows, count, sum) = write(1, &all);
            let (key, value) = &rows[0];
            let mut bad = value.clone();
            *at.get_mut(&mut bad) ^= 1 << bit;
            prop_assert!(read_row(1, key, &bad).is_err());
            let mut other = *key;
            *at.get_mut(&mut other) ^= 1 << bit;
            prop_assert!(read_row(1, &other, value).is_err());
            let head = Run { level: 2, id: 7, first: 1, last: 120, bodies_from: 5, rows: count, sum };
            let mut bad = head.encode();
            prop_assert_eq!(&Run::decode(&head.key(), &bad).unwrap(), &head);
            *at.get_mut(&mut bad) ^= 1 << bit;
            prop_assert!(Run::decode(&head.key(), &bad).is_err());
        }

        #[test]
        fn bytes_of_any_kind_are_refused_or_read(body: Vec<u8>) {
            let key = row_key(1, Code { hi: 1 << 56, lo: 0 }, 5);
            drop(read_row(1, &key, &seal(&key, &body)));
        }
    }

    #[test]
    fn a_word_in_every_entry_takes_a_few_bytes() {
        let code = word(0).code();
        let (rows, ..) =
            write(1, &(1..=1_000_000).map(|i| Stretch { code, first: i, last: i, note: 0 }).collect::<Vec<_>>());
        assert!(rows.len() == 1 && rows[0].1.len() < 30, "{} bytes", rows[0].1.len());
    }
}
