//! A log and its certificates, made by members whose keys are all at hand.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test and bench uses a part of it")]

use concordat::certificate::merkle::{self, Frontier, Nodes};
use concordat::certificate::*;
use concordat::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use std::collections::BTreeMap;
use std::convert::Infallible;

/// A member by a number: its key and DID derive from it.
pub fn secret(seed: u8) -> SecretKey {
    SecretKey::generate(&[seed; 32])
}

pub fn did(seed: u8) -> NodeId {
    NodeId([seed; 32])
}

pub fn member(seed: u8, policy: Policy) -> Member {
    member_with_key(seed, seed, policy)
}

/// A member whose key is not its first one.
pub fn member_with_key(seed: u8, key: u8, policy: Policy) -> Member {
    let key = secret(key);
    Member {
        did: did(seed),
        bls_key: key.public(),
        possession: key.prove_possession(),
        address: format!("10.0.0.{seed}:7000"),
        role: Role::Voter,
        policy,
    }
}

pub fn autos(seeds: impl IntoIterator<Item = u8>) -> Vec<Member> {
    seeds.into_iter().map(|seed| member(seed, Policy::Auto)).collect()
}

pub struct Leaves(pub Vec<Digest>);

impl Nodes for Leaves {
    type Error = Infallible;

    fn node(&self, level: u8, position: u64) -> Result<Digest, Infallible> {
        if level == 0 {
            return Ok(self.0[position as usize]);
        }
        let left = self.node(level - 1, 2 * position)?;
        Ok(merkle::node_hash(&left, &self.node(level - 1, 2 * position + 1)?))
    }
}

/// A membership change of the log.
pub struct Change {
    pub index: LogIndex,
    pub table: TableInForce,
    /// Set once `EpochFinal` is appended.
    pub joint: Option<HeadCertificate>,
}

pub struct Cluster {
    pub genesis: Genesis,
    pub entries: Vec<Entry>,
    pub leaves: Leaves,
    pub changes: Vec<Change>,
    pub term: Term,
    keys: BTreeMap<PublicKey, SecretKey>,
    next_seq: u64,
}

/// Who answers a ballot, by seed.
pub struct Votes<'a> {
    pub required: u16,
    pub grants: &'a [u8],
    pub denials: &'a [u8],
}

impl Cluster {
    pub fn new(members: Vec<Member>) -> Self {
        let table = MemberTable::new(members).unwrap();
        let genesis = Genesis::new("synthetic", QuorumRule::Majority, table).unwrap();
        let keys = (0..=255).map(|seed| (secret(seed).public(), secret(seed))).collect();
        let mut cluster = Self {
            genesis,
            entries: Vec::new(),
            leaves: Leaves(Vec::new()),
            changes: Vec::new(),
            term: Term(1),
            keys,
            next_seq: 1,
        };
        cluster.append(Kind::Noop, b"election certificate");
        cluster
    }

    /// The tables in force at the end of the log: current, and next while a change is in flight.
    pub fn in_force(&self) -> (TableInForce, Option<TableInForce>) {
        let settled = self.changes.iter().rev().find(|c| c.joint.is_some());
        let current = settled.map_or_else(|| self.genesis.in_force(), |c| c.table.clone());
        let next = self.changes.last().filter(|c| c.joint.is_none()).map(|c| c.table.clone());
        (current, next)
    }

    pub fn header(&self, kind: Kind) -> Header {
        Header {
            index: LogIndex(self.entries.len() as u64 + 1),
            term: self.term,
            epoch: self.in_force().0.epoch,
            kind,
            proposal_id: None,
            request_digest: Digest::ZERO,
            proposed_at: 1_700_000_000_000 + 10 * self.entries.len() as u64,
            required_quorum: 0,
            abort_reason: None,
            tally: None,
            payload_len: 0,
            payload_hash: Digest::ZERO,
        }
    }

    pub fn push(&mut self, header: Header, body: Body) -> LogIndex {
        let entry = Entry::new(header, body).unwrap();
        self.leaves.0.push(entry.header.leaf_hash());
        self.entries.push(entry);
        LogIndex(self.entries.len() as u64)
    }

    /// An entry that nobody proposed.
    pub fn append(&mut self, kind: Kind, payload: &[u8]) -> LogIndex {
        let body = Body { salt: [9; 16], request: None, payload: payload.to_vec() };
        let header = named(self.header(kind), &body);
        self.push(header, body)
    }

    /// A proposed entry before it is appended, without a tally.
    pub fn proposal(&mut self, payload: &[u8], required: u16) -> (Header, Body) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let request = Request {
            client: "did:example:client".to_owned(),
            request_id: format!("request-{seq}"),
            deadline_ms: 1_800_000_000_000,
        };
        let body = Body { salt: [seq as u8; 16], request: Some(request), payload: payload.to_vec() };
        let mut header = named(self.header(Kind::Proposal), &body);
        header.proposal_id = Some(ProposalId { term: self.term, seq, origin: self.genesis.table.members()[0].did });
        header.required_quorum = required;
        (header, body)
    }

    /// A proposal granted by signing the head.
    pub fn propose(&mut self, payload: &[u8]) -> LogIndex {
        let quorum = self.in_force().0.quorum() as u16;
        let (header, body) = self.proposal(payload, quorum);
        self.push(header, body)
    }

    /// A balloted proposal that was granted.
    pub fn ballot(&mut self, payload: &[u8], votes: &Votes<'_>) -> LogIndex {
        let (mut header, body) = self.proposal(payload, votes.required);
        header.tally = Some(self.tally(&header, votes));
        self.push(header, body)
    }

    /// A balloted proposal that was not.
    pub fn abort(&mut self, payload: &[u8], reason: AbortReason, votes: &Votes<'_>) -> LogIndex {
        let (mut header, body) = self.proposal(payload, votes.required);
        header.kind = Kind::Aborted;
        header.abort_reason = Some(reason);
        header.tally = Some(self.tally(&header, votes));
        self.push(header, Body { salt: [0; 16], request: body.request, payload: Vec::new() })
    }

    pub fn tally(&self, header: &Header, votes: &Votes<'_>) -> Tally {
        let table = self.in_force().0;
        let side = |seeds: &[u8], granted| {
            let statement = VoteStatement {
                request_digest: header.request_digest,
                payload_hash: header.payload_hash,
                required_quorum: header.required_quorum,
                granted,
            };
            let bytes = statement.signed_bytes(&table.signed_for(&self.genesis.id()));
            let (members, signatures) = self.signatures(&table, seeds, &bytes);
            TallySide { members, aggregate: aggregate(&signatures).ok() }
        };
        Tally { grants: side(votes.grants, true), denials: side(votes.denials, false) }
    }

    fn signatures(&self, table: &TableInForce, seeds: &[u8], bytes: &[u8]) -> (Bitmap, Vec<Signature>) {
        let voters: Vec<_> = table.table.voters().collect();
        let positions: Vec<_> = seeds.iter().map(|s| table.table.voter_position(&did(*s)).unwrap()).collect();
        let signatures = positions.iter().map(|p| self.key(voters[*p]).sign(bytes)).collect();
        (Bitmap::of(voters.len(), positions), signatures)
    }

    pub fn key(&self, member: &Member) -> &SecretKey {
        &self.keys[&member.bls_key]
    }

    /// Opens a change: appends the `Epoch` entry.
    pub fn open_change(&mut self, members: Vec<Member>) -> LogIndex {
        let table = MemberTable::new(members).unwrap();
        let (current, _) = self.in_force();
        let index = self.append(Kind::Epoch, &table.encode());
        let epoch_hash = self.leaves.0[index.0 as usize - 1];
        let table = TableInForce { epoch: current.epoch.next(), epoch_hash, table, rule: current.rule };
        self.changes.push(Change { index, table, joint: None });
        index
    }

    /// Closes it: certifies the head by both tables and appends `EpochFinal` under the new one.
    pub fn close_change(&mut self) -> LogIndex {
        let joint = self.head();
        self.changes.last_mut().unwrap().joint = Some(joint.clone());
        self.append(Kind::EpochFinal, &joint.encode())
    }

    pub fn statement(&self) -> Head {
        let mut frontier = Frontier::default();
        self.leaves.0.iter().for_each(|leaf| frontier.push(*leaf));
        Head { term: self.term, size: frontier.size(), root: frontier.root() }
    }

    /// The head of the whole log, signed by the first quorum of every table in force.
    pub fn head(&self) -> HeadCertificate {
        let quorum = |t: &TableInForce| t.table.voters().take(t.quorum()).map(|m| m.did.0[0]).collect::<Vec<_>>();
        let (current, next) = self.in_force();
        let signers: Vec<_> = [Some(&current), next.as_ref()].into_iter().flatten().map(quorum).collect();
        self.head_by(&signers.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// The head of the whole log, signed by these members of each table in force.
    pub fn head_by(&self, signers: &[&[u8]]) -> HeadCertificate {
        let (current, next) = self.in_force();
        let under = current.signed_under(&self.genesis.id(), next.as_ref());
        let tables = [Some(&current), next.as_ref()].into_iter().flatten();
        let head = self.statement();
        let half = |((table, under), seeds): ((&TableInForce, &SignedFor), &&[u8])| {
            let (signers, signatures) = self.signatures(table, seeds, &head.signed_bytes(under));
            let aggregate = aggregate(&signatures).unwrap();
            Half { epoch: under.epoch, epoch_hash: under.epoch_hash, signers, aggregate }
        };
        HeadCertificate { head, halves: tables.zip(&under).zip(signers).map(half).collect() }
    }

    pub fn path(&self, index: LogIndex, size: u64) -> Vec<Digest> {
        merkle::inclusion_path(&self.leaves, index.0 - 1, size).unwrap()
    }

    pub fn chain(&self, steps: usize, in_flight: &HeadCertificate) -> EpochChain {
        let step = |change: &Change| {
            let joint = change.joint.as_ref().unwrap_or(in_flight).clone();
            let path = self.path(change.index, joint.head.size);
            EpochStep { entry: self.entries[change.index.0 as usize - 1].clone(), joint, path }
        };
        EpochChain { steps: self.changes[..steps].iter().map(step).collect() }
    }

    /// The receipt of an entry under a head certificate of this log.
    pub fn receipt_under(&self, index: LogIndex, certificate: HeadCertificate) -> Receipt {
        let size = certificate.head.size;
        let entry = &self.entries[index.0 as usize - 1];
        let highest = certificate.halves.iter().map(|h| h.epoch).max().unwrap_or(Epoch(0));
        Receipt {
            header: entry.header.clone(),
            body: Some(entry.body.clone()),
            path: self.path(index, size),
            last_header: self.entries[size as usize - 1].header.clone(),
            last_path: self.path(LogIndex(size), size),
            chain: self.chain(highest.0 as usize, &certificate),
            certificate,
        }
    }

    /// The receipt of an entry under the head of the whole log.
    pub fn receipt(&self, index: LogIndex) -> Receipt {
        self.receipt_under(index, self.head())
    }
}

/// Names a body in its header.
pub fn named(mut header: Header, body: &Body) -> Header {
    header.request_digest = body.request.as_ref().map_or(Digest::ZERO, Request::digest);
    header.payload_len = body.payload.len() as u32;
    header.payload_hash = payload_hash(&body.salt, &body.payload);
    header
}

/// Not random, but neither zero nor repeating.
pub fn coefficients() -> impl FnMut(&mut [u8]) {
    let mut state = 0x9e37_79b9_u32;
    move |bytes: &mut [u8]| {
        for b in bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *b = (state >> 24) as u8;
        }
    }
}
