//! Searching the log over HTTP.

use crate::served::{Served, error};
use crate::support::{set_config, until};
use concordat::api::{FoundEntry, Order, Propose, Search, SearchPage};
use concordat::certificate::{Header, Kind, Policy, Request};
use concordat::client::Client;
use concordat::config::Snapshots;
use concordat::ids::LogIndex;
use serde_json::{Value, json};

/// Real updates of a registry of agents.
fn updates(count: usize) -> Vec<Value> {
    let lines = include_str!("../fixtures/registry-updates.jsonl").lines().take(count);
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn indexes(entries: &[FoundEntry]) -> Vec<u64> {
    entries.iter().map(|found| found.entry.index.0).collect()
}

/// All pages of a search.
async fn all(client: &Client, search: &Search) -> Vec<FoundEntry> {
    let (mut search, mut found) = (search.clone(), Vec::new());
    loop {
        let page = client.search(&search).await.unwrap();
        found.extend(page.entries);
        match page.next {
            Some(next) => search.cursor = Some(next),
            None => return found,
        }
    }
}

fn names(payload: &Value) -> &Value {
    let agent = &payload["agent"]["agent_id"];
    [agent, &payload["agent_id"], &payload["key"]].into_iter().find(|v| !v.is_null()).unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn real_updates_are_found_by_every_word_and_in_both_orders() {
    let served = Served::start(&[Policy::Auto]).await;
    let (client, origin) = (served.client(), served.cluster.ids[0]);
    let updates = updates(120);
    let mut committed = Vec::new();
    for (n, update) in updates.iter().enumerate() {
        let propose = Propose {
            request_id: Some(format!("r{n}")),
            client: Some("import".into()),
            ..Propose::new(update.clone())
        };
        let status = client.propose_with(propose).await.unwrap();
        committed.push((status.index.unwrap().0, update));
    }
    let last = served.cluster.settled().await;
    let busiest = "ocm-mcp-server";
    let of = |name: &str| committed.iter().filter(|(_, u)| names(u) == name).map(|(i, _)| *i).collect::<Vec<_>>();
    assert!(of(busiest).len() > 1, "the sample has one agent more than once");
    let proposals: Vec<u64> = committed.iter().map(|(i, _)| *i).collect();
    let others: Vec<u64> = (1..=last.0).filter(|i| !proposals.contains(i)).collect();

    let by = Search { limit: Some(7), ..Search::default() };
    let signed = Search { signer: Some(origin), ..by.clone() };
    for (search, expected) in [
        (Search { agent: Some(busiest.into()), ..by.clone() }, of(busiest)),
        (Search { key: Some("routing/strategy".into()), ..by.clone() }, of("routing/strategy")),
        (Search { key: Some(busiest.into()), ..by.clone() }, Vec::new()),
        (Search { request_id: Some("r7".into()), client: Some("import".into()), ..by.clone() }, vec![committed[7].0]),
        (Search { request_id: Some("r7".into()), ..by.clone() }, Vec::new()),
        (Search { origin: Some(origin), ..by.clone() }, proposals.clone()),
        (Search { kind: Some(Kind::Noop), ..by.clone() }, others.clone()),
        (Search { denier: Some(origin), ..by.clone() }, Vec::new()),
        (signed.clone(), (1..=last.0).collect()),
        (
            Search { kind: Some(Kind::Proposal), agent: Some(busiest.into()), origin: Some(origin), ..signed },
            of(busiest),
        ),
        (Search { from: Some(LogIndex(5)), to: Some(LogIndex(30)), ..by.clone() }, (5..=30).collect()),
    ] {
        let found = all(&client, &search).await;
        assert_eq!(indexes(&found), expected, "{search:?}");
        let mut backwards = all(&client, &Search { order: Order::Desc, ..search.clone() }).await;
        backwards.reverse();
        assert_eq!(backwards, found, "{search:?}");
        for FoundEntry { entry, certificate_size, .. } in &found {
            assert!(certificate_size.is_some_and(|size| (entry.index.0..=last.0).contains(&size)), "{entry:?}");
            assert_eq!(Some(&entry.payload), client.entry(entry.index).await.ok().map(|e| e.payload).as_ref());
        }
    }

    // Times never decrease along the log: a range of them is a range of it.
    let times: Vec<u64> = all(&client, &by).await.iter().map(|found| found.entry.proposed_at).collect();
    for (from, to) in
        [(times[3], times[60]), (times[60], u64::MAX), (0, times[0]), (0, times[0] - 1), (times[20], times[20])]
    {
        let search = Search { from_time: Some(from), to_time: Some(to), ..by.clone() };
        let expected: Vec<u64> = (1..=last.0).filter(|i| (from..=to).contains(&times[*i as usize - 1])).collect();
        assert_eq!(indexes(&all(&client, &search).await), expected, "{from} to {to}");
    }
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_stays_good_while_the_log_grows_and_is_pruned() {
    let served = Served::start_with(&[Policy::Auto], |options| {
        options.config.snapshots = Snapshots { every: None, retain: 0, ..Snapshots::default() };
    })
    .await;
    let client = served.client();
    let mut first = Vec::new();
    for n in 0..24 {
        let status = client.propose_with(Propose::new(set_config(["a", "b"][n % 2], "v"))).await.unwrap();
        first.push(status.index.unwrap().0);
    }
    let expected: Vec<u64> = first.iter().copied().step_by(2).collect();
    let forward = Search { key: Some("a".into()), limit: Some(3), ..Search::default() };
    let backward = Search { order: Order::Desc, ..forward.clone() };
    let pages: [SearchPage; 2] = [client.search(&forward).await.unwrap(), client.search(&backward).await.unwrap()];
    assert_eq!(pages.each_ref().map(|p| p.entries.len()), [3, 3]);
    for _ in 0..5 {
        client.propose_with(Propose::new(set_config("a", "later"))).await.unwrap();
    }
    let marked = client.mark_snapshot().await.unwrap();
    until("payloads are pruned", || async {
        let (status, entry) = (client.status().await.unwrap(), client.entry(LogIndex(first[23])).await.unwrap());
        (status.snapshot_index == Some(marked.index) && entry.entry.is_none()).then_some(())
    })
    .await;
    for (search, page) in [forward.clone(), backward.clone()].into_iter().zip(pages) {
        let rest = all(&client, &Search { cursor: page.next.clone(), limit: Some(4), ..search.clone() }).await;
        let mut seen = [indexes(&page.entries), indexes(&rest)].concat();
        seen.sort_unstable();
        assert_eq!(seen, expected, "each once, and nothing that came later");
        let other = format!("/v1/search?key=a&kind=proposal&cursor={}", page.next.unwrap());
        let (status, body) = error(served.get(&other)).await;
        assert_eq!((status.as_u16(), &*body.code), (422, "invalid_cursor"), "{body:?}");
    }

    // Nothing is left of the payloads, and all of it is found and proved all the same.
    let found = all(&client, &Search { from: None, ..forward.clone() }).await;
    assert_eq!(found.len(), 12 + 5);
    assert!(found[..12].iter().all(|f| f.entry.entry.is_none() && f.certificate_size.is_some()), "{found:?}");
    let page = client.search(&forward).await.unwrap();
    assert_eq!(page.complete_from, LogIndex(1));
    let origin = Search { origin: Some(served.cluster.ids[0]), ..Search::default() };
    assert_eq!(all(&client, &origin).await.len(), 24 + 5);
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_request_is_found_and_its_header_proves_it() {
    let served = Served::start_with(&[Policy::Auto], |options| {
        options.config.snapshots = Snapshots { every: None, retain: 0, ..Snapshots::default() };
    })
    .await;
    let client = served.client();
    let propose = Propose { request_id: Some("once".into()), client: Some("me".into()), ..Propose::new(json!(1)) };
    let index = client.propose_with(propose).await.unwrap().index.unwrap();
    for _ in 0..20 {
        client.propose_with(Propose::new(json!(2))).await.unwrap();
    }
    client.mark_snapshot().await.unwrap();
    until("the payload is pruned", || async { client.entry(index).await.unwrap().entry.is_none().then_some(()) }).await;
    let search = Search { request_id: Some("once".into()), client: Some("me".into()), ..Search::default() };
    let found = all(&client, &search).await;
    assert_eq!(indexes(&found), [index.0]);
    let header = Header::decode(&hex::decode(&found[0].entry.header).unwrap()).unwrap();
    let deadline_ms = found[0].deadline_ms.unwrap();
    let request = Request { client: "me".into(), request_id: "once".into(), deadline_ms };
    assert_eq!(header.request_digest, request.digest());
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_granted_and_who_denied_is_found() {
    let served = Served::start(&[Policy::Manual]).await;
    let (client, voter) = (served.client(), served.cluster.ids[0]);
    let mut decided = [Vec::new(), Vec::new()];
    for granted in [true, false, true] {
        let propose = Propose { ttl_ms: Some(60_000), ..Propose::new(set_config("k", "v")) };
        let answer = tokio::spawn({
            let client = client.clone();
            async move { client.propose_with(propose).await }
        });
        let ballot = until("a ballot is open", || async { client.ballots().await.unwrap().pop() }).await;
        client.cast_vote(ballot.id, granted).await.unwrap();
        let status = answer.await.unwrap().unwrap();
        decided[usize::from(granted)].push(status.index.unwrap().0);
    }
    served.cluster.settled().await;
    let denied = all(&client, &Search { denier: Some(voter), ..Search::default() }).await;
    assert_eq!(indexes(&denied), decided[0]);
    assert_eq!(denied[0].entry.kind, Kind::Aborted);
    let signed =
        all(&client, &Search { signer: Some(voter), from: Some(LogIndex(decided[1][0])), ..Search::default() }).await;
    assert_eq!(indexes(&signed), decided[1], "what it denied it has not signed");
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_entry_can_be_is_refused_by_name() {
    let served = Served::start(&[Policy::Auto]).await;
    let stranger = concordat::ids::NodeId([7; 32]);
    for (query, status, code, says) in [
        ("kinds=noop", 400, "invalid_query", "kinds"),
        ("kind=nothing", 400, "invalid_query", "snapshot_mark"),
        ("order=up", 400, "invalid_query", "desc"),
        ("origin=me", 400, "invalid_query", "origin"),
        ("from=1&from=2", 400, "invalid_query", "from"),
        ("limit=0", 422, "out_of_bounds", "limit"),
        ("limit=1001", 422, "out_of_bounds", "limit"),
        ("client=a", 422, "invalid_search", "request_id"),
        ("key=a&agent=a", 422, "invalid_search", "agent"),
        ("kind=noop&key=a", 422, "invalid_search", "kind and key"),
        ("kind=aborted&agent=a", 422, "invalid_search", "kind and agent"),
        ("kind=epoch&request_id=a", 422, "invalid_search", "kind and request_id"),
        ("from=3&to=2", 422, "invalid_search", "from lies after to"),
        ("from_time=3&to_time=2", 422, "invalid_search", "from_time"),
        ("cursor=zz", 422, "invalid_cursor", "cursor"),
        ("cursor=0100", 422, "invalid_cursor", "cursor"),
        (&*format!("signer={stranger}"), 404, "not_found", "voter"),
        (&*format!("signer={stranger}&denier={stranger}"), 422, "invalid_search", "denier"),
    ] {
        let (got, body) = error(served.get(&format!("/v1/search?{query}"))).await;
        assert_eq!((got.as_u16(), &*body.code), (status, code), "{query}: {body:?}");
        assert!(body.message.contains(says) && body.without_effect && !body.retryable, "{query}: {body:?}");
    }
    served.close().await;
}
