//! Dependencies point one way: which room may use which crate, and which other room.

use crate::code::{code, lines_with};
use crate::{each, none, rust};

/// Rooms (or single files) that may use a crate, their tests aside. Crates that are not listed are open to all.
const CRATES: &[(&str, &[&str])] = &[
    ("sled", &["src/storage/"]),
    ("crc32fast", &["src/storage/"]),
    ("quinn", &["src/transport/"]),
    ("quinn_proto", &["src/transport/"]),
    ("rustls", &["src/transport/"]),
    ("webpki", &["src/transport/"]),
    ("rcgen", &["src/transport/"]),
    ("ring", &["src/transport/"]),
    ("socket2", &["src/transport/"]),
    ("rmp_serde", &["src/wire.rs", "src/storage/", "src/node/image.rs"]),
    ("axum", &["src/http/"]),
    ("hyper", &["src/http/"]),
    ("hyper_util", &["src/http/"]),
    ("reqwest", &["src/client/"]),
    ("clap", &["src/cli/"]),
    ("indicatif", &["src/cli/"]),
    ("hdrhistogram", &["src/cli/"]),
    ("tracing_subscriber", &["src/cli/"]),
    ("toml", &["src/config.rs"]),
    ("opentelemetry", &["src/telemetry.rs"]),
    ("opentelemetry_sdk", &["src/telemetry.rs"]),
    ("opentelemetry_prometheus", &["src/telemetry.rs"]),
    ("prometheus", &["src/telemetry.rs"]),
    ("blst", &["src/certificate/"]),
    ("tokio", ASYNC),
    ("tokio_util", ASYNC),
    ("rand", &["src/node/", "src/transport/", "src/client/", "src/cli/", "src/storage/"]),
];

/// The rooms with tasks and sockets.
const ASYNC: &[&str] = &["src/node/", "src/transport/", "src/http/", "src/client/", "src/cli/"];

/// Every room with the rooms it may use. The order is that of the layers: each uses only rooms above it.
const ROOMS: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("limits", &[]),
    ("docs", &[]),
    ("certificate", &["ids", "limits", "docs"]),
    ("core", &["ids", "limits", "certificate"]),
    ("registry", &["ids", "limits", "certificate"]),
    ("wire", &["ids", "limits", "certificate", "core"]),
    ("api", &["ids", "limits", "certificate", "core", "registry"]),
    ("config", &["ids", "limits", "certificate", "core", "registry"]),
    ("telemetry", &["ids", "limits", "core"]),
    ("audit", &["ids", "limits", "certificate"]),
    ("storage", &["ids", "limits", "certificate", "core", "registry"]),
    ("transport", &["ids", "limits", "certificate", "wire"]),
    ("client", &["ids", "limits", "certificate", "registry", "api"]),
    (
        "node",
        &[
            "ids",
            "limits",
            "certificate",
            "core",
            "registry",
            "wire",
            "api",
            "config",
            "telemetry",
            "storage",
            "transport",
        ],
    ),
    ("backup", &["ids", "limits", "certificate", "core", "registry", "audit", "storage", "node"]),
    ("http", &["ids", "limits", "certificate", "registry", "api", "node", "backup"]),
    (
        "cli",
        &[
            "ids",
            "limits",
            "certificate",
            "registry",
            "api",
            "config",
            "audit",
            "storage",
            "transport",
            "client",
            "node",
            "backup",
            "http",
        ],
    ),
];

/// Rooms that are pure: the same arguments, the same result. They and what they use see no clock, disk, socket,
/// thread or environment.
const PURE: &[&str] = &["ids", "limits", "certificate", "core", "registry", "wire", "api", "audit"];
const IMPURE: &[&str] =
    &["std::time", "std::fs", "std::thread", "std::env", "std::process", "TcpStream", "TcpListener", "UdpSocket"];

fn room(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    let name = rest.split('/').next()?;
    let name = name.strip_suffix(".rs").unwrap_or(name);
    (!matches!(name, "lib" | "main")).then_some(name)
}

fn crates(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("src/") || path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let code = code(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default());
    let mut complaints = Vec::new();
    for (name, allowed) in CRATES {
        if allowed.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for wanted in [format!("{name}::"), format!("use {name};")] {
            for line in lines_with(&code, &wanted) {
                complaints.push(format!("{path}:{line}: {name} belongs to {}", allowed.join(", ")));
            }
        }
    }
    complaints
}

fn purity(path: &str, text: &str) -> Vec<String> {
    if !room(path).is_some_and(|room| PURE.contains(&room)) {
        return Vec::new();
    }
    let code = code(text);
    let found = IMPURE.iter().flat_map(|wanted| lines_with(&code, wanted).into_iter().map(move |line| (line, wanted)));
    found.map(|(line, wanted)| format!("{path}:{line}: {wanted} in a pure room; pass the value in")).collect()
}

/// The first segments of `crate::a::…` and of `crate::{a::…, b}`, with their lines.
fn uses(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push((line, rest.chars().take_while(|c| crate::code::is_word(*c)).collect()));
            continue;
        };
        let mut depth = 0;
        let mut name = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    found.push((line, name.trim().split("::").next().unwrap_or_default().to_owned()));
                    name.clear();
                    if c == '}' {
                        break;
                    }
                }
                _ if depth == 0 => name.push(c),
                _ => {}
            }
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

fn rooms(path: &str, text: &str) -> Vec<String> {
    let Some(own) = room(path) else { return Vec::new() };
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == own) else {
        return vec![format!("{path}: the room {own} has no row in ROOMS of tests/tidy/layers.rs")];
    };
    let is_room = |name: &str| ROOMS.iter().any(|(room, _)| *room == name);
    uses(&code(text))
        .into_iter()
        .filter(|(_, used)| used != own && is_room(used) && !allowed.contains(&used.as_str()))
        .map(|(line, used)| format!("{path}:{line}: {own} must not use {used}"))
        .collect()
}

#[test]
fn crates_stay_in_their_rooms() {
    none(&each(&rust(), crates));
}

#[test]
fn a_crate_in_a_foreign_room_is_caught() {
    for (path, text) in [
        ("src/core/log.rs", "use tokio::sync::mpsc;"),
        ("src/node/mod.rs", "fn f(db: &sled::Db) {}"),
        ("src/registry/mod.rs", "let x = rand::random();"),
        ("src/http/mod.rs", "use quinn;"),
        ("src/cli/mod.rs", "use axum::Router;"),
    ] {
        assert_eq!(crates(path, text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/storage/mod.rs", "use sled::Db;"),
        ("src/core/log.rs", "// tokio::spawn\nlet text = \"sled::Db\"; self.brand::<u8>(); crate::toml::x();"),
    ] {
        none(&crates(path, text));
    }
}

#[test]
fn pure_rooms_are_pure() {
    none(&each(&rust(), purity));
    for path in ["src/core/mod.rs", "src/registry/mod.rs", "src/certificate/keys.rs", "src/ids.rs"] {
        assert_eq!(purity(path, "use std::time::Instant;").len(), 1, "{path}");
    }
    none(&purity("src/node/clock.rs", "use std::time::Instant;"));
}

#[test]
fn rooms_use_only_rooms_above_them() {
    none(&each(&rust(), rooms));
}

#[test]
fn a_room_that_looks_down_is_caught() {
    for text in [
        "use crate::node::Handle;",
        "use crate::{\n    ids::{Term, LogIndex},\n    storage::Store,\n};",
        "crate::http::serve()",
    ] {
        assert_eq!(rooms("src/core/log.rs", text).len(), 1, "{text}");
    }
    assert_eq!(rooms("src/attic/mod.rs", "").len(), 1, "a room without a row");
    none(&rooms(
        "src/core/log.rs",
        "use crate::{ids::{Term, LogIndex}, certificate::Entry}; use crate::core::node::X;",
    ));
}

#[test]
fn the_table_of_rooms_is_in_order_and_names_only_what_exists() {
    let files = rust();
    for (number, (name, allowed)) in ROOMS.iter().enumerate() {
        for used in *allowed {
            let above = ROOMS[..number].iter().any(|(room, _)| room == used);
            assert!(above, "{name} uses {used}, which is not above it");
        }
        let is_there = files.keys().any(|path| room(path) == Some(name));
        assert!(is_there, "the room {name} is gone: remove its row");
    }
    for (name, places) in CRATES {
        let is_used = |place: &&str| {
            let wanted = format!("{name}::");
            files.iter().any(|(path, text)| path.starts_with(*place) && !lines_with(&code(text), &wanted).is_empty())
        };
        assert!(places.iter().any(is_used), "{name} is used nowhere: remove its row");
    }
}
