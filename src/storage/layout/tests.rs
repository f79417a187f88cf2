use super::*;
use crate::certificate::SnapshotManifest;
use crate::ids::Epoch;
use crate::ids::NodeId;
use crate::storage::{v1, v2, v3};
use proptest::prelude::*;
use std::fmt::Debug;

#[test]
fn the_table_is_the_frozen_description_of_its_version() {
    assert_eq!(SCHEMA, v3::SCHEMA);
    let table: Vec<_> = TABLE.iter().map(|s| (s.tree, s.key, s.value, s.derived)).collect();
    assert_eq!(table, v3::TREES);
    assert_eq!(trees().count(), 12);
}

#[test]
fn every_record_of_a_version_has_the_same_shape_in_the_next() {
    assert_eq!((v1::SCHEMA, v2::SCHEMA, v3::SCHEMA), (1, 2, 3));
    let sizes = [
        (v1::HARD_STATE, v1::CAST_VOTE, v1::WATERMARK, v2::BASE),
        (v2::HARD_STATE, v2::CAST_VOTE, v2::WATERMARK, v2::BASE),
        (v3::HARD_STATE, v3::CAST_VOTE, v3::WATERMARK, v3::BASE),
    ];
    assert!(sizes.iter().all(|of| *of == sizes[0]), "{sizes:?}");
    for (older, newer) in [(v1::TREES, v2::TREES), (v2::TREES, v3::TREES)] {
        for shape in older {
            assert!(newer.contains(shape), "{shape:?}");
        }
    }
}

fn manifest() -> SnapshotManifest {
    SnapshotManifest {
        index: LogIndex(7),
        term: Term(2),
        epoch: Epoch(1),
        proposed_at: 3,
        root: Digest([1; 32]),
        state: Digest([2; 32]),
        bytes: 100,
        chunks_root: Digest([3; 32]),
    }
}

#[test]
fn records_of_snapshots_and_bases_read_back_and_any_changed_bit_is_found() {
    let base = BaseRecord { index: LogIndex(700), from: LogIndex(513), wipe: true, length: 9, sum: [4; 32] };
    assert_eq!(base.encode().len(), v3::BASE);
    exact(&base, &base.encode(), BaseRecord::decode);
    let snapshot = (true, manifest());
    let (key, value) = (number_key(7), write_snapshot(true, &manifest()));
    exact(&snapshot, &value, |v| read_snapshot(&key, v));
    assert!(read_snapshot(&number_key(8), &value).is_err(), "under another key");
    for at in 0..value.len() * 8 {
        let mut bad = value.clone();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(read_snapshot(&key, &bad).is_err(), "bit {at}");
    }
    for at in 0..v3::BASE * 8 {
        let mut bad = base.encode();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(BaseRecord::decode(&bad).is_err(), "bit {at}");
    }
}

#[test]
fn headers_begin_where_a_tile_does_and_not_beyond_the_base() {
    let base =
        |index, from| BaseRecord { index: LogIndex(index), from: LogIndex(from), wipe: false, length: 0, sum: [0; 32] };
    for (index, from, right) in [(0, 1, true), (256, 257, true), (700, 1, true), (700, 514, false), (700, 769, false)] {
        assert_eq!(BaseRecord::decode(&base(index, from).encode()).is_ok(), right, "{index} {from}");
    }
}

/// A codec gives back what it was given, and nothing for bytes that are one too few or one too many.
fn exact<T: PartialEq + Debug, E: Debug>(value: &T, bytes: &[u8], read: impl Fn(&[u8]) -> Result<T, E>) {
    assert_eq!(&read(bytes).expect("own bytes read back"), value);
    assert!(read(&bytes[..bytes.len() - 1]).is_err(), "a byte short");
    assert!(read(&[bytes, &[0]].concat()).is_err(), "a byte over");
    assert!(read(&[]).is_err(), "nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn numbers_and_names_read_back(n: u64, did: [u8; 32]) {
        exact(&n, &number_key(n), read_number_key);
        exact(&(n as u16), &(n as u16).to_be_bytes(), read_schema);
        exact(&did, &did, |b| read_32(b, "did"));
    }

    #[test]
    fn term_and_vote_read_back(term: u64, vote: bool, candidate: [u8; 32], last_term: u64, last_size: u64, last_root: [u8; 32]) {
        let claim = ElectionClaim {
            term: Term(term),
            candidate: NodeId(candidate),
            last_term: Term(last_term),
            last_size,
            last_root: Digest(last_root),
        };
        let hard = HardState { term: Term(term), vote: vote.then_some(claim) };
        let bytes = write_hard_state(&hard);
        prop_assert_eq!(bytes.len(), v3::HARD_STATE[usize::from(vote)]);
        exact(&hard, &bytes, read_hard_state);
    }

    #[test]
    fn a_cast_vote_reads_back(request_key: [u8; 32], content: [u8; 32], granted: bool, keep_until: u64) {
        let cast = CastVote { request_key: Digest(request_key), content: Digest(content), granted, keep_until };
        let key = cast_key(&cast.request_key, &cast.content);
        let value = write_cast(&cast);
        prop_assert_eq!(value.len(), v3::CAST_VOTE);
        exact(&cast, &value, |v| read_cast(&key, v));
        exact(&cast, &key, |k| read_cast(k, &value));
    }

    #[test]
    fn a_tile_reads_back(seed: [u8; 32]) {
        let hashes: Vec<Digest> = (0..=255).map(|i| { let mut h = seed; h[0] = i; Digest(h) }).collect();
        exact(&hashes, &write_tile(&hashes), read_tile);
    }

    #[test]
    fn a_header_run_reads_back(lengths in prop::collection::vec(0..MAX_HEADER, HEADER_RUN as usize), at in 0..HEADER_RUN) {
        let headers: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(i, &n)| vec![i as u8; n]).collect();
        let bytes = write_header_run(&headers);
        exact(&headers[at as usize], &bytes, |b| read_header_run(b, at).map(<[u8]>::to_vec));
    }

    #[test]
    fn a_bucket_reads_back(rows in prop::collection::btree_map(any::<u8>(), any::<u64>(), 1..256)) {
        let rows: Vec<(u8, LogIndex)> = rows.into_iter().map(|(low, i)| (low, LogIndex(i))).collect();
        exact(&rows, &write_bucket(&rows), read_bucket);
    }
}

#[test]
fn a_bucket_out_of_order_is_refused() {
    let rows = [(2, LogIndex(1)), (1, LogIndex(2))];
    assert_eq!(read_bucket(&write_bucket(&rows)), Err(FormatError::NotCanonical { what: "bucket" }));
}

#[test]
fn keys_sort_as_their_numbers() {
    assert!(number_key(255) < number_key(256));
    assert!(tile_key(0, u64::MAX) < tile_key(1, 0));
    assert!(bucket_key(Term(1), u64::MAX) < bucket_key(Term(2), 0));
}
