//! What certificates cost: signatures, aggregates, receipts, the tree, the codecs.

#![allow(missing_docs, reason = "criterion's macros make public items")]

#[path = "../tests/support/certificates.rs"]
mod support;

use concordat::certificate::merkle::{Frontier, inclusion_path, leaf_hash, root_from_path};
use concordat::certificate::*;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use support::*;

fn signatures(c: &mut Criterion) {
    let cluster = Cluster::new(autos(1..=5));
    let bytes = cluster.statement().signed_bytes(&cluster.genesis.in_force().signed_for(&cluster.genesis.id()));
    let key = secret(1);
    let (public, signature) = (key.public(), key.sign(&bytes));
    c.bench_function("sign", |b| b.iter(|| key.sign(black_box(&bytes))));
    c.bench_function("verify", |b| b.iter(|| public.verify(&bytes, black_box(&signature))));
    let shares: Vec<_> = (1..=5).map(|i| (secret(i).public(), secret(i).sign(&bytes))).collect();
    let signed: Vec<_> = shares.iter().map(|(_, s)| *s).collect();
    c.bench_function("aggregate/3", |b| b.iter(|| aggregate(black_box(&signed[..3]))));
    c.bench_function("aggregate/5", |b| b.iter(|| aggregate(black_box(&signed))));
    c.bench_function("verify_shares/3", |b| b.iter(|| verify_shares(&shares[..3], &bytes, &mut coefficients())));
    c.bench_function("admit_member", |b| b.iter(|| MemberTable::new(autos(1..=1))));
}

fn certificates(c: &mut Criterion) {
    for n in [3, 5, 100] {
        let cluster = Cluster::new(autos(1..=n));
        let (head, id, table) = (cluster.head(), cluster.genesis.id(), cluster.genesis.in_force());
        c.bench_with_input(BenchmarkId::new("head_certificate", n), &head, |b, head| {
            b.iter(|| head.verify(&id, &table, None));
        });
    }
    let mut cluster = Cluster::new(autos(1..=3));
    let index = cluster.propose(&[b'x'; 256]);
    let receipt = cluster.receipt(index).encode();
    c.bench_function("receipt/epoch=0", |b| {
        b.iter(|| Receipt::decode(black_box(&receipt)).unwrap().verify(&cluster.genesis).unwrap());
    });
    cluster.open_change(autos(2..=4));
    cluster.close_change();
    let index = cluster.propose(&[b'x'; 256]);
    let receipt = cluster.receipt(index).encode();
    c.bench_function("receipt/epoch=1", |b| {
        b.iter(|| Receipt::decode(black_box(&receipt)).unwrap().verify(&cluster.genesis).unwrap());
    });
}

fn tree(c: &mut Criterion) {
    let leaf = leaf_hash(b"leaf");
    let mut frontier = Frontier::default();
    c.bench_function("tree/append", |b| b.iter(|| frontier.push(black_box(leaf))));
    c.bench_function("tree/root", |b| b.iter(|| frontier.root()));
    let size = 1 << 12;
    let leaves = Leaves((0..size).map(|i: u64| leaf_hash(&i.to_be_bytes())).collect());
    let path = inclusion_path(&leaves, 77, size).unwrap();
    c.bench_function("tree/verify_inclusion/4096", |b| {
        b.iter(|| root_from_path(leaves.0[77], 77, size, black_box(&path)));
    });
}

fn codec(c: &mut Criterion) {
    let mut cluster = Cluster::new(autos(1..=3));
    let signed = cluster.propose(&[b'x'; 256]);
    let balloted = cluster.ballot(&[b'x'; 256], &Votes { required: 2, grants: &[1, 2], denials: &[3] });
    for (name, index) in [("signed", signed), ("balloted", balloted)] {
        let entry = &cluster.entries[index.0 as usize - 1];
        let (header, whole) = (entry.header.encode(), entry.encode());
        c.bench_function(&format!("header/encode/{name}"), |b| b.iter(|| black_box(&entry.header).encode()));
        c.bench_function(&format!("header/decode/{name}"), |b| b.iter(|| Header::decode(black_box(&header))));
        c.bench_function(&format!("header/leaf_hash/{name}"), |b| b.iter(|| black_box(&entry.header).leaf_hash()));
        c.bench_function(&format!("entry/encode/{name}"), |b| b.iter(|| black_box(entry).encode()));
        c.bench_function(&format!("entry/decode/{name}"), |b| b.iter(|| Entry::decode(black_box(&whole))));
    }
}

criterion_group!(benches, signatures, certificates, tree, codec);
criterion_main!(benches);
