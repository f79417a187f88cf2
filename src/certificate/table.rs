//! Member tables, the quorum rule and the genesis file.

use super::bytes::{FormatError, Reader, Writer};
use super::keys::{KeyError, PublicKey, Signature};
use super::statement::SignedFor;
use super::succession::{Succession, SuccessionError};
use crate::ids::{Digest, Epoch, NodeId};
use crate::limits::{MAX_ADDRESS, MAX_MEMBERS, MAX_NAME, MAX_PAYLOAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::net::Ipv6Addr;

const TABLE_TAG: &[u8; 16] = b"concordat:table1";
const GENESIS_TAG: &[u8; 16] = b"concordat:gene:1";
const JOINT_TAG: &[u8; 16] = b"concordat:joint1";
/// The version of the genesis file's JSON.
const GENESIS_VERSION: u64 = 1;

// The largest table is the payload of an `Epoch` entry.
const _: () = assert!(16 + 2 + MAX_MEMBERS * (32 + 48 + 96 + 2 + MAX_ADDRESS + 2) <= MAX_PAYLOAD);

/// What a member does in consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Role {
    /// Counts in elections, commits and certificates.
    Voter = 0,
    /// Receives the log only.
    Learner = 1,
}

/// How a member decides on ballots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Policy {
    /// Grants what is valid.
    Auto = 0,
    /// Decides by its node's own rules.
    Rules = 1,
    /// Its application calls `vote`.
    Manual = 2,
}

/// How many voters make a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum QuorumRule {
    /// ⌊n/2⌋+1.
    Majority = 0,
    /// ⌊2n/3⌋+1.
    Supermajority = 1,
}

impl QuorumRule {
    /// The quorum among `voters` voters.
    #[must_use]
    pub const fn quorum(self, voters: usize) -> usize {
        match self {
            Self::Majority => voters / 2 + 1,
            Self::Supermajority => 2 * voters / 3 + 1,
        }
    }
}

/// A row of the member table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its identity.
    pub did: NodeId,
    /// Its BLS public key.
    pub bls_key: PublicKey,
    /// The proof that it holds the secret key.
    pub possession: Signature,
    /// Where its peers reach it, `HOST:PORT`.
    pub address: String,
    /// Voter or learner.
    pub role: Role,
    /// How it decides on ballots.
    pub policy: Policy,
}

/// The members, sorted by DID. Made only by [`MemberTable::new`], which checks every rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct MemberTable {
    members: Vec<Member>,
}

/// Why a set of members is no member table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// No voter at all.
    #[error("a member table needs at least one voter")]
    NoVoter,
    /// Too many rows.
    #[error("a member table holds at most {MAX_MEMBERS} members, not {0}")]
    TooMany(usize),
    /// One DID in two rows.
    #[error("{0} stands in two rows")]
    Twice(NodeId),
    /// A key that is no key, or a proof that proves nothing.
    #[error("{did}: {source}")]
    Key {
        /// Whose.
        did: NodeId,
        /// Why.
        source: KeyError,
    },
    /// Two members whose keys are equal or opposite.
    #[error("the BLS keys of {0} and {1} are equal or opposite; every store makes its own key with `concordat init`")]
    Collision(NodeId, NodeId),
    /// An address that is no `HOST:PORT`.
    #[error("{did}: {address:?} is no address HOST:PORT of at most {MAX_ADDRESS} bytes")]
    Address {
        /// Whose.
        did: NodeId,
        /// What was given.
        address: String,
    },
    /// Bytes that are no table.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl MemberTable {
    /// Checks and sorts members: 1–100 rows, a voter among them, no DID twice, addresses well-formed, every key valid
    /// with its proof of possession, no two keys equal or opposite.
    ///
    /// # Errors
    /// [`TableError`] naming the first row at fault.
    pub fn new(members: Vec<Member>) -> Result<Self, TableError> {
        let table = Self::unproved(members)?;
        // Pairings last: nothing that is wrong on its face costs one.
        for m in &table.members {
            let proved = m.bls_key.verify_possession(&m.possession);
            proved.map_err(|source| TableError::Key { did: m.did, source })?;
        }
        Ok(table)
    }

    /// Everything but the pairings.
    fn unproved(mut members: Vec<Member>) -> Result<Self, TableError> {
        if members.len() > MAX_MEMBERS {
            return Err(TableError::TooMany(members.len()));
        }
        if !members.iter().any(|m| m.role == Role::Voter) {
            return Err(TableError::NoVoter);
        }
        members.sort_by_key(|m| m.did);
        if let Some(pair) = members.windows(2).find(|pair| pair[0].did == pair[1].did) {
            return Err(TableError::Twice(pair[0].did));
        }
        let mut keys = BTreeMap::new();
        for m in &members {
            if !is_address(&m.address) {
                return Err(TableError::Address { did: m.did, address: m.address.chars().take(MAX_ADDRESS).collect() });
            }
            if let Some(other) = keys.insert(m.bls_key.x_coordinate(), m.did) {
                return Err(TableError::Collision(other, m.did));
            }
        }
        Ok(Self { members })
    }

    /// All rows, sorted by DID.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// One row.
    #[must_use]
    pub fn get(&self, did: &NodeId) -> Option<&Member> {
        self.members.binary_search_by_key(did, |m| m.did).ok().and_then(|i| self.members.get(i))
    }

    /// The voters, sorted by DID: bit `i` of a bitmap is the `i`-th of these.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.role == Role::Voter)
    }

    /// The position of a voter in bitmaps.
    #[must_use]
    pub fn voter_position(&self, did: &NodeId) -> Option<usize> {
        self.voters().position(|m| m.did == *did)
    }

    /// Canonical bytes: the payload of `Epoch` entries and a part of the genesis.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::tagged(TABLE_TAG);
        w.u16(u16::try_from(self.members.len()).expect("at most MAX_MEMBERS"));
        for m in &self.members {
            w.node(&m.did).fixed(&m.bls_key.0).fixed(&m.possession.0);
            w.short(m.address.as_bytes()).u8(m.role as u8).u8(m.policy as u8);
        }
        w.0
    }

    /// Reads canonical bytes and checks every rule of [`MemberTable::new`].
    ///
    /// # Errors
    /// [`TableError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TableError> {
        Self::new(Self::read(bytes)?)
    }

    /// As [`MemberTable::decode`], but takes the proofs of possession as verified: for the payload of an `Epoch` entry,
    /// whose proofs a quorum of voters checked before they granted it, and where a pairing for each row would delay
    /// heartbeats.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn decode_granted(bytes: &[u8]) -> Result<Self, TableError> {
        Self::unproved(Self::read(bytes)?)
    }

    fn read(bytes: &[u8]) -> Result<Vec<Member>, TableError> {
        let mut r = Reader::new(bytes);
        r.tag(TABLE_TAG, "member table")?;
        let count = usize::from(r.u16("table.count")?);
        if count > MAX_MEMBERS {
            return Err(TableError::TooMany(count));
        }
        let members = (0..count).map(|_| read_member(&mut r)).collect::<Result<Vec<_>, _>>()?;
        r.finish("member table")?;
        // Ascending order is the one freedom that the fields leave.
        if !members.is_sorted_by_key(|m| m.did) {
            return Err(FormatError::NotCanonical { what: "member table" }.into());
        }
        Ok(members)
    }
}

fn read_member(r: &mut Reader<'_>) -> Result<Member, FormatError> {
    Ok(Member {
        did: r.node("member.did")?,
        bls_key: PublicKey(r.array("member.bls_key")?),
        possession: Signature(r.array("member.possession")?),
        address: r.text(MAX_ADDRESS, "member.address")?,
        role: match r.u8("member.role")? {
            0 => Role::Voter,
            1 => Role::Learner,
            _ => return Err(FormatError::Value { field: "member.role" }),
        },
        policy: match r.u8("member.policy")? {
            0 => Policy::Auto,
            1 => Policy::Rules,
            2 => Policy::Manual,
            _ => return Err(FormatError::Value { field: "member.policy" }),
        },
    })
}

/// `HOST:PORT`: an IPv4 address, a bracketed IPv6 address or a host name, and a port other than 0.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port_ok = port.parse::<u16>().is_ok_and(|p| p != 0 && p.to_string() == port);
    let name = |h: &str| !h.is_empty() && h.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    text.len() <= MAX_ADDRESS && port_ok && v6.map_or_else(|| name(host), |h| h.parse::<Ipv6Addr>().is_ok())
}

/// A member table with the names under which its members sign.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableInForce {
    /// Its number.
    pub epoch: Epoch,
    /// The leaf hash of the `Epoch` entry that set it; the genesis id for epoch 0.
    pub epoch_hash: Digest,
    /// The rows.
    pub table: MemberTable,
    /// The quorum rule of the genesis.
    pub rule: QuorumRule,
}

impl TableInForce {
    /// Under which names the members of this table sign while no change is in flight.
    #[must_use]
    pub fn signed_for(&self, genesis_id: &Digest) -> SignedFor {
        SignedFor { genesis_id: *genesis_id, epoch: self.epoch, epoch_hash: self.epoch_hash }
    }

    /// Under which names heads and election claims are signed, a statement per table in force (current first): `next`
    /// is the table whose `Epoch` entry has been appended and whose `EpochFinal` has not.
    ///
    /// While a change is in flight the current table signs for the hash of *both* tables. Under its plain hash its
    /// signatures would also stand as a certificate of one half, so that whoever collected a quorum of the current table
    /// alone could strip the missing half off and "prove" an entry that joint consensus may still lose.
    #[must_use]
    pub fn signed_under(&self, genesis_id: &Digest, next: Option<&Self>) -> Vec<SignedFor> {
        let mut current = self.signed_for(genesis_id);
        let Some(next) = next else { return vec![current] };
        let mut w = Writer::tagged(JOINT_TAG);
        w.digest(&self.epoch_hash).digest(&next.epoch_hash);
        current.epoch_hash = Digest(Sha256::digest(&w.0).into());
        vec![current, next.signed_for(genesis_id)]
    }

    /// The quorum of this table.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.rule.quorum(self.table.voters().count())
    }
}

/// The file that every verifier trusts. In JSON for people; its identity is the hash of its canonical bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Genesis {
    /// The cluster's name, 1–64 bytes of `[a-z0-9.-]`.
    pub name: String,
    /// The quorum rule, for ever.
    pub rule: QuorumRule,
    /// The first member table (epoch 0).
    pub table: MemberTable,
    /// The cluster that it succeeds, if it does.
    pub succeeds: Option<Succession>,
}

/// Why a file is no genesis.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// Not the JSON of a genesis.
    #[error("not a genesis file: {0}")]
    Json(#[from] serde_json::Error),
    /// A name out of bounds.
    #[error("a cluster name is 1 to {MAX_NAME} characters of a-z, 0-9, '.' and '-', not {0:?}")]
    Name(String),
    /// Another format version.
    #[error("genesis format {0} is not known to this program; use a newer one")]
    Version(u64),
    /// The `genesis_id` in the file is not the hash of its contents.
    #[error("the file states genesis id {stated}, its contents have {actual}: the file was altered")]
    Id {
        /// In the file.
        stated: Digest,
        /// Computed.
        actual: Digest,
    },
    /// The table breaks a rule.
    #[error(transparent)]
    Table(#[from] TableError),
    /// What it says of its predecessor breaks a rule.
    #[error(transparent)]
    Succession(#[from] SuccessionError),
}

/// The genesis file as it stands in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GenesisFile {
    concordat_genesis: u64,
    genesis_id: Digest,
    name: String,
    quorum: QuorumRule,
    members: Vec<Member>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    succeeds: Option<Succession>,
}

/// Read first, so that a file of a later version is called that, whatever fields it has.
#[derive(Deserialize)]
struct GenesisVersion {
    concordat_genesis: u64,
}

impl Genesis {
    /// Checks the name.
    ///
    /// # Errors
    /// [`GenesisError::Name`].
    pub fn new(name: &str, rule: QuorumRule, table: MemberTable) -> Result<Self, GenesisError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
            return Err(GenesisError::Name(name.chars().take(2 * MAX_NAME).collect()));
        }
        Ok(Self { name: name.to_owned(), rule, table, succeeds: None })
    }

    /// The same for a cluster that succeeds another.
    ///
    /// # Errors
    /// [`GenesisError::Succession`].
    pub fn succeeding(self, succession: Succession) -> Result<Self, GenesisError> {
        succession.check()?;
        Ok(Self { succeeds: Some(succession), ..self })
    }

    /// How many entries lie before this cluster's first: those of the cluster that it succeeds, or none.
    #[must_use]
    pub fn begins_after(&self) -> u64 {
        self.succeeds.as_ref().map_or(0, Succession::size)
    }

    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::tagged(GENESIS_TAG);
        w.short(self.name.as_bytes()).u8(self.rule as u8).long(&self.table.encode());
        // Absent from a genesis that succeeds none, so that those from before there were successors keep their id.
        if let Some(succession) = &self.succeeds {
            w.long(&succession.encode());
        }
        w.0
    }

    /// SHA-256 of the canonical bytes.
    #[must_use]
    pub fn id(&self) -> Digest {
        Digest(Sha256::digest(self.encode()).into())
    }

    /// The JSON file: `{"concordat_genesis":1,"genesis_id":…,"name":…,"quorum":…,"members":[…]}`, with `"succeeds":{…}` at its end
    /// when it succeeds another cluster, pretty-printed, with a
    /// line feed at its end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let file = GenesisFile {
            concordat_genesis: GENESIS_VERSION,
            genesis_id: self.id(),
            name: self.name.clone(),
            quorum: self.rule,
            members: self.table.members.clone(),
            succeeds: self.succeeds.clone(),
        };
        serde_json::to_string_pretty(&file).expect("strings, numbers and arrays") + "\n"
    }

    /// Reads the JSON file; the stated `genesis_id` must be that of the contents.
    ///
    /// # Errors
    /// [`GenesisError`].
    pub fn from_json(text: &str) -> Result<Self, GenesisError> {
        let GenesisVersion { concordat_genesis: version } = serde_json::from_str(text)?;
        if version != GENESIS_VERSION {
            return Err(GenesisError::Version(version));
        }
        let file: GenesisFile = serde_json::from_str(text)?;
        let genesis = Self::new(&file.name, file.quorum, MemberTable::new(file.members)?)?;
        let genesis = match file.succeeds {
            None => genesis,
            Some(succession) => genesis.succeeding(succession)?,
        };
        let actual = genesis.id();
        if actual != file.genesis_id {
            return Err(GenesisError::Id { stated: file.genesis_id, actual });
        }
        Ok(genesis)
    }

    /// Epoch 0.
    #[must_use]
    pub fn in_force(&self) -> TableInForce {
        TableInForce { epoch: Epoch(0), epoch_hash: self.id(), table: self.table.clone(), rule: self.rule }
    }
}

#[cfg(test)]
mod tests;
