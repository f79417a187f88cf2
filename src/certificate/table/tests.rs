use super::*;
use crate::certificate::merkle::Frontier;
use crate::certificate::{SecretKey, Signature, SnapshotManifest, Survey};
use crate::ids::{LogIndex, Term};

fn member(seed: u8) -> Member {
    let key = SecretKey::generate(&[seed; 32]);
    Member {
        did: NodeId([seed; 32]),
        bls_key: key.public(),
        possession: key.prove_possession(),
        address: format!("10.0.0.{seed}:7000"),
        role: Role::Voter,
        policy: Policy::Auto,
    }
}

fn table(seeds: impl IntoIterator<Item = u8>) -> MemberTable {
    MemberTable::new(seeds.into_iter().map(member).collect()).unwrap()
}

fn genesis() -> Genesis {
    Genesis::new("a.cluster-1", QuorumRule::Majority, table([3, 1, 2])).unwrap()
}

#[test]
fn rows_are_sorted_and_voters_have_positions_among_voters() {
    let mut learner = member(2);
    learner.role = Role::Learner;
    let t = MemberTable::new(vec![member(3), learner, member(1)]).unwrap();
    assert_eq!(t.members().iter().map(|m| m.did.0[0]).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(t.voter_position(&NodeId([3; 32])), Some(1));
    assert_eq!(t.voter_position(&NodeId([2; 32])), None);
    assert!(t.get(&NodeId([2; 32])).is_some() && t.get(&NodeId([9; 32])).is_none());
}

#[test]
fn a_table_needs_a_voter_and_bounded_distinct_rows() {
    let mut learner = member(1);
    learner.role = Role::Learner;
    assert_eq!(MemberTable::new(vec![]), Err(TableError::NoVoter));
    assert_eq!(MemberTable::new(vec![learner]), Err(TableError::NoVoter));
    assert_eq!(MemberTable::new(vec![member(1), member(1)]), Err(TableError::Twice(NodeId([1; 32]))));
    assert_eq!(MemberTable::new(vec![member(1); MAX_MEMBERS + 1]), Err(TableError::TooMany(MAX_MEMBERS + 1)));
}

#[test]
fn addresses_are_host_and_port() {
    for good in ["10.0.0.1:1", "[::1]:7000", "node-1.example:65535", "localhost:80"] {
        assert!(is_address(good), "{good}");
    }
    let long = format!("{}:80", "a".repeat(MAX_ADDRESS));
    for bad in [
        "",
        ":80",
        "host",
        "host:",
        "host:0",
        "host:65536",
        "host:080",
        "host:+80",
        "::1:80",
        "[::g]:80",
        "a b:80",
        "é:80",
        &long,
    ] {
        assert!(!is_address(bad), "{bad}");
        let mut m = member(1);
        m.address = bad.to_owned();
        assert!(matches!(MemberTable::new(vec![m]), Err(TableError::Address { .. })));
    }
}

#[test]
fn a_table_reads_back_from_its_canonical_bytes_only() {
    let t = table([1, 2]);
    let bytes = t.encode();
    assert_eq!(MemberTable::decode(&bytes), Ok(t));
    for cut in 0..bytes.len() {
        assert!(MemberTable::decode(&bytes[..cut]).is_err());
    }
    let row = (bytes.len() - 18) / 2;
    let swapped = [&bytes[..18], &bytes[18 + row..], &bytes[18..18 + row]].concat();
    assert_eq!(
        MemberTable::decode(&swapped),
        Err(TableError::Format(FormatError::NotCanonical { what: "member table" }))
    );
}

#[test]
fn quorums_follow_the_rule() {
    let counts = [1, 2, 3, 4, 5, 6, 7, 100];
    assert_eq!(counts.map(|n| QuorumRule::Majority.quorum(n)), [1, 2, 2, 3, 3, 4, 4, 51]);
    assert_eq!(counts.map(|n| QuorumRule::Supermajority.quorum(n)), [1, 2, 3, 3, 4, 5, 5, 67]);
}

#[test]
fn a_genesis_file_reads_back() {
    let g = genesis();
    assert_eq!(Genesis::from_json(&g.to_json()).unwrap(), g);
    assert_eq!(g.in_force().epoch_hash, g.id());
}

#[test]
fn an_altered_genesis_file_is_refused_with_the_reason() {
    let text = genesis().to_json();
    let altered = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        Genesis::from_json(&text.replacen(from, to, 1)).unwrap_err()
    };
    assert!(matches!(altered("a.cluster-1", "a.cluster-2"), GenesisError::Id { .. }));
    assert!(matches!(altered("10.0.0.2:7000", "10.0.0.9:7000"), GenesisError::Id { .. }));
    assert!(matches!(altered("majority", "supermajority"), GenesisError::Id { .. }));
    assert!(matches!(altered("a.cluster-1", "A cluster"), GenesisError::Name(_)));
    assert!(matches!(
        altered("\"concordat_genesis\": 1", "\"concordat_genesis\": 2, \"new\": 1"),
        GenesisError::Version(2)
    ));
    assert!(matches!(altered("\"name\"", "\"extra\": 0, \"name\""), GenesisError::Json(_)));
    assert!(matches!(altered("\"address\"", "\"extra\": 0, \"address\""), GenesisError::Json(_)));
    assert!(matches!(altered("\"bls_key\": \"", "\"bls_key\": \"00"), GenesisError::Json(_)));
}

#[test]
fn names_are_lower_case_and_bounded() {
    for name in ["", "A", "a b", "a_b", "é", &"a".repeat(MAX_NAME + 1)] {
        assert!(matches!(Genesis::new(name, QuorumRule::Majority, table([1])), Err(GenesisError::Name(_))), "{name}");
    }
    assert!(Genesis::new(&"a".repeat(MAX_NAME), QuorumRule::Majority, table([1])).is_ok());
}

#[test]
fn a_change_in_flight_is_signed_under_other_names_than_either_table_alone() {
    let now = genesis().in_force();
    let next = TableInForce { epoch: Epoch(1), epoch_hash: Digest([9; 32]), table: table([1, 2]), rule: now.rule };
    let id = genesis().id();
    assert_eq!(now.signed_under(&id, None), [now.signed_for(&id)]);
    let joint = now.signed_under(&id, Some(&next));
    assert_eq!(joint[1], next.signed_for(&id));
    assert_eq!(joint[0].epoch, Epoch(0));
    assert_ne!(joint[0].epoch_hash, now.epoch_hash);
}

fn succession() -> Succession {
    let mut tree = Frontier::default();
    (0..5).for_each(|n| tree.push(Digest([n; 32])));
    let snapshot = SnapshotManifest {
        index: LogIndex(5),
        term: Term(2),
        epoch: Epoch::ZERO,
        proposed_at: 77,
        root: tree.root(),
        state: Digest([1; 32]),
        bytes: 9,
        chunks_root: Digest([2; 32]),
    };
    let key = SecretKey::generate(&[9; 32]);
    let mut survey = Survey {
        genesis_id: Digest([8; 32]),
        member: NodeId([3; 32]),
        bls_key: key.public(),
        last_term: Term(2),
        size: 5,
        root: snapshot.root,
        certified: 3,
        signature: Signature([0; 96]),
    };
    survey.signature = key.sign(&survey.signed_bytes());
    let genesis_id = survey.genesis_id;
    let missing = vec![NodeId([5; 32])];
    Succession { genesis_id, snapshot, tree, certified: 3, missing, surveys: vec![survey], reason: "lost".into() }
}

#[test]
fn a_genesis_that_succeeds_none_has_the_id_that_it_always_had() {
    let genesis = genesis();
    let mut w = Writer::tagged(b"concordat:gene:1");
    w.short(genesis.name.as_bytes()).u8(genesis.rule as u8).long(&genesis.table.encode());
    assert_eq!(genesis.id(), Digest(Sha256::digest(&w.0).into()));
    assert!(!genesis.to_json().contains("succeeds"));
    assert_eq!(genesis.begins_after(), 0);
}

#[test]
fn a_successor_reads_back_and_another_predecessor_makes_it_another_cluster() {
    let plain = genesis();
    let successor = plain.clone().succeeding(succession()).unwrap();
    assert_ne!(successor.id(), plain.id());
    assert_eq!(successor.begins_after(), 5);
    assert_eq!(Genesis::from_json(&successor.to_json()).unwrap(), successor);
    let again = succession();
    assert_eq!(Succession::decode(&again.encode()), Ok(again.clone()));
    for length in 0..again.encode().len() {
        assert!(Succession::decode(&again.encode()[..length]).is_err(), "cut to {length}");
    }
    // The file cannot say otherwise than its id.
    let altered = successor.to_json().replace("\"reason\": \"lost\"", "\"reason\": \"moved\"");
    assert!(matches!(Genesis::from_json(&altered), Err(GenesisError::Id { .. })));
}

#[test]
fn a_predecessor_that_contradicts_itself_is_refused() {
    let bad: [fn(&mut Succession); 11] = [
        |s| s.certified = 6,
        |s| s.snapshot.root = Digest([6; 32]),
        |s| s.snapshot.epoch = Epoch(1),
        |s| s.reason.clear(),
        |s| s.reason = "x".repeat(257),
        |s| s.missing = vec![s.surveys[0].member],
        |s| s.surveys[0].size = 6,
        |s| (s.surveys[0].size, s.surveys[0].last_term) = (4, Term(3)),
        // Entries that nobody vouches for, by signature or certificate.
        |s| s.surveys[0].root = Digest([6; 32]),
        |s| s.surveys[0].genesis_id = Digest([7; 32]),
        |s| s.surveys.push(s.surveys[0].clone()),
    ];
    for (n, change) in bad.iter().enumerate() {
        let mut succession = succession();
        change(&mut succession);
        let refused = genesis().succeeding(succession);
        assert!(matches!(refused, Err(GenesisError::Succession(SuccessionError::Inconsistent(_)))), "{n}: {refused:?}");
    }
    let mut unsigned = succession();
    unsigned.surveys[0].certified = 2;
    let refused = genesis().succeeding(unsigned);
    assert!(matches!(refused, Err(GenesisError::Succession(SuccessionError::Survey { .. }))), "{refused:?}");
}
