use super::*;
use crate::ids::NodeId;
use crate::storage::v1;
use proptest::prelude::*;
use std::fmt::Debug;

#[test]
fn the_table_is_the_frozen_description_of_its_version() {
    assert_eq!(SCHEMA, v1::SCHEMA);
    let table: Vec<_> = TABLE.iter().map(|s| (s.tree, s.key, s.value, s.derived)).collect();
    assert_eq!(table, v1::TREES);
    assert_eq!(trees().count(), 8);
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
        prop_assert_eq!(bytes.len(), v1::HARD_STATE[usize::from(vote)]);
        exact(&hard, &bytes, read_hard_state);
    }

    #[test]
    fn a_cast_vote_reads_back(request_key: [u8; 32], content: [u8; 32], granted: bool, keep_until: u64) {
        let cast = CastVote { request_key: Digest(request_key), content: Digest(content), granted, keep_until };
        let key = cast_key(&cast.request_key, &cast.content);
        let value = write_cast(&cast);
        prop_assert_eq!(value.len(), v1::CAST_VOTE);
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
