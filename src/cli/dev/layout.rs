//! What `dev` keeps on disk: three members, their genesis, and the ports that stand in it.

use super::super::setup::{init, make_genesis};
use super::super::verify::read_genesis;
use super::super::{Failure, output};
use crate::certificate::{Genesis, Policy, QuorumRule};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

/// Members of a development federation.
pub(super) const NODES: usize = 3;
/// HTTP ports lie this far above the peer ports.
const HTTP_OFFSET: u16 = 100;
const PORTS_FILE: &str = "dev.json";
const MAX_PORTS: u64 = 4096;
/// The genesis file in the directory.
pub(super) const GENESIS_FILE: &str = "genesis.json";

/// A development federation on disk.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) genesis: Genesis,
    pub(super) members: Vec<MemberPorts>,
    /// Whether this run made it.
    pub(super) created: bool,
}

/// The ports of one member, on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemberPorts {
    /// UDP; stands in the genesis.
    pub(super) peer: u16,
    /// TCP.
    pub(super) http: u16,
}

impl MemberPorts {
    pub(super) fn peer_address(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.peer).into()
    }

    pub(super) fn http_address(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.http).into()
    }

    pub(super) fn url(self) -> String {
        format!("http://{}", self.http_address())
    }
}

impl Layout {
    /// Opens the federation in `dir`, or makes one there. `base` is where its ports begin.
    pub(super) fn open_or_create(dir: &Path, base: Option<u16>) -> Result<Self, Failure> {
        if dir.join(PORTS_FILE).exists() {
            if base.is_some() {
                eprintln!("--port is ignored: the ports of {} stand in its genesis", dir.display());
            }
            return Self::open(dir);
        }
        if std::fs::read_dir(dir).is_ok_and(|mut there| there.next().is_some()) {
            return Err(Failure::new(format!("{} holds something else than a development federation", dir.display()))
                .hint("name another directory with --data"));
        }
        Self::create(dir, base.unwrap_or(super::DEFAULT_PORT))
    }

    fn open(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(PORTS_FILE);
        let mut members: Vec<MemberPorts> =
            serde_json::from_slice(&output::read(&path, MAX_PORTS)?).map_err(|e| Failure::file("read", &path, e))?;
        if members.len() != NODES {
            return Err(Failure::new(format!("{} names {} members, not {NODES}", path.display(), members.len())));
        }
        let mut held = Held::default();
        for member in &mut members {
            if !held.udp(member.peer) {
                return Err(Failure::new(format!("UDP port {} is taken, and it stands in the genesis", member.peer))
                    .hint(
                        "another `concordat dev` on this directory? stop what uses the port, or name another --data",
                    ));
            }
            member.http = held.tcp_or_free(member.http)?;
        }
        Ok(Self { dir: dir.to_owned(), genesis: read_genesis(&dir.join(GENESIS_FILE))?, members, created: false })
    }

    /// Makes everything beside its place and moves it there by one rename, so that an interrupted run leaves nothing
    /// that a later one could mistake for a federation.
    fn create(dir: &Path, base: u16) -> Result<Self, Failure> {
        let members = choose_ports(base)?;
        let name = dir.file_name().ok_or_else(|| Failure::usage(format!("{} names no directory", dir.display())))?;
        let mut beside = name.to_owned();
        beside.push(".creating");
        let beside = dir.with_file_name(beside);
        let at_beside = |e| Failure::file("make", &beside, e);
        match std::fs::remove_dir_all(&beside) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(at_beside(e)),
            _ => std::fs::create_dir_all(&beside).map_err(at_beside)?,
        }
        let rows = (1..).zip(&members).map(|(number, ports)| {
            init(&beside.join(format!("n{number}")), &ports.peer_address().to_string(), Policy::Auto)
        });
        let genesis = make_genesis("dev", QuorumRule::Majority, rows.collect::<Result<_, _>>()?)?;
        output::write_new(&beside.join(GENESIS_FILE), genesis.to_json().as_bytes())?;
        output::write_new(&beside.join(PORTS_FILE), output::to_json(&members)?.as_bytes())?;
        std::fs::rename(&beside, dir).map_err(|e| Failure::file("make", dir, e))?;
        Ok(Self { dir: dir.to_owned(), genesis, members, created: true })
    }

    pub(super) fn data(&self, node: usize) -> PathBuf {
        self.dir.join(format!("n{}", node + 1))
    }

    pub(super) fn log(&self, node: usize) -> PathBuf {
        self.dir.join(format!("n{}.log", node + 1))
    }

    pub(super) fn genesis_path(&self) -> PathBuf {
        self.dir.join(GENESIS_FILE)
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|m| m.url()).collect()
    }
}

/// The ports from `base` on where they are free, others where they are not.
fn choose_ports(base: u16) -> Result<Vec<MemberPorts>, Failure> {
    let mut held = Held::default();
    let mut members = Vec::new();
    for number in 0..NODES as u16 {
        let peer = base.checked_add(number);
        let http = peer.and_then(|p| p.checked_add(HTTP_OFFSET));
        let (Some(peer), Some(http)) = (peer, http) else {
            return Err(Failure::usage(format!("--port {base} leaves no room for {NODES} members below 65536")));
        };
        members.push(MemberPorts { peer: held.udp_or_free(peer)?, http: held.tcp_or_free(http)? });
    }
    Ok(members)
}

/// Sockets held while ports are chosen, so that no port is chosen twice. Another program can still take one between
/// this and the node's own bind; the node then says so.
#[derive(Default)]
struct Held {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Held {
    fn udp(&mut self, port: u16) -> bool {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
        let free = socket.is_ok();
        self.udp.extend(socket);
        free
    }

    fn udp_or_free(&mut self, port: u16) -> Result<u16, Failure> {
        if self.udp(port) {
            return Ok(port);
        }
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(no_port)?;
        let other = socket.local_addr().map_err(no_port)?.port();
        self.udp.push(socket);
        eprintln!("UDP port {port} is taken; using {other}");
        Ok(other)
    }

    fn tcp_or_free(&mut self, port: u16) -> Result<u16, Failure> {
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(no_port)?,
        };
        let chosen = listener.local_addr().map_err(no_port)?.port();
        self.tcp.push(listener);
        if chosen != port {
            eprintln!("TCP port {port} is taken; using {chosen}");
        }
        Ok(chosen)
    }
}

fn no_port(error: std::io::Error) -> Failure {
    Failure::new(format!("cannot find a free port on loopback: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_ports_are_replaced_by_free_ones_and_no_port_is_chosen_twice() {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let base = udp.local_addr().unwrap().port().min(60_000);
        let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, base));
        let members = choose_ports(base).unwrap();
        let mut peers: Vec<u16> = members.iter().map(|m| m.peer).collect();
        assert!(!peers.contains(&base));
        peers.sort_unstable();
        peers.dedup();
        assert_eq!(peers.len(), NODES);
        drop(taken);
    }

    #[test]
    fn a_base_without_room_is_refused() {
        assert_eq!(choose_ports(65_500).unwrap_err().code, 2);
    }
}
