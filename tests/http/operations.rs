//! What operators and their tools read.

use crate::served::{Served, error, send};
use crate::support::set_config;
use concordat::api::Propose;
use concordat::certificate::Policy;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_how_it_is() {
    let served = Served::start(&[Policy::Auto]).await;
    served.cluster.settled().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(send(served.get(path)).await.status(), StatusCode::OK, "{path}");
    }
    served.client().ready().await.unwrap();
    let status = served.client().status().await.unwrap();
    assert_eq!((status.id, status.genesis_id), (served.cluster.ids[0], served.cluster.genesis.id()));
    let metrics = send(served.get("/metrics")).await;
    assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let metrics = metrics.text().await.unwrap();
    for name in ["proposals_total", "role_transitions_total", "commit_latency_seconds", "pending_proposals", "term"] {
        assert!(metrics.contains(&format!("asi_consensus_{name}")), "{name}");
    }
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_quorum_is_healthy_and_not_ready() {
    let mut served = Served::start(&[Policy::Auto, Policy::Auto]).await;
    served.stop(1).await;
    let (status, body) = crate::support::until("the node notices", || async {
        let response = send(served.get("/readyz")).await;
        let status = response.status();
        (!status.is_success()).then_some((status, response.json::<Value>().await.unwrap()))
    })
    .await;
    assert_eq!((status, &body["code"]), (StatusCode::SERVICE_UNAVAILABLE, &Value::from("not_ready")));
    assert!(body["message"].as_str().unwrap().contains("leader"), "{body}");
    assert_eq!(send(served.get("/healthz")).await.status(), StatusCode::OK);
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_document_names_the_methods_that_are_served() {
    let served = Served::start(&[Policy::Auto]).await;
    let document: Value = send(served.get("/v1/openapi.json")).await.json().await.unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let described: BTreeSet<String> = operations.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect();
        let path = path.replace(['{', '}'], "");
        let trace = served.request(Method::TRACE, &path);
        let answer = send(trace).await;
        let allowed = answer.headers()["allow"].to_str().unwrap().split(',').map(str::trim);
        // HEAD comes with GET.
        let served: BTreeSet<String> = allowed.filter(|m| *m != "HEAD").map(str::to_owned).collect();
        assert_eq!(served, described, "{path}");
    }
    let (status, _) = error(served.request(Method::TRACE, "/v1/status")).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_space_is_given_back_when_it_is_asked_for() {
    let mut served = Served::start(&[Policy::Auto]).await;
    let client = served.client();
    let index = client.propose_with(Propose::new(set_config("k", "v"))).await.unwrap().index.unwrap();
    let before = client.status().await.unwrap().database;
    assert!(before.bytes > 0 && before.last.is_none(), "{before:?}");
    let done = client.compact().await.unwrap();
    assert!(done.bytes_before > 0 && done.bytes_after > 0 && done.records > 0, "{done:?}");
    assert_eq!(client.status().await.unwrap().database.last, Some(done));
    let metrics = send(served.get("/metrics")).await.text().await.unwrap();
    assert!(metrics.contains("concordat_database_rotations_total{outcome=\"done\"} 1"), "{metrics}");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_concordat"));
    let told = command.args(["compact", "--node", &served.url(0, "")]).output().unwrap();
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.status.success() && text.starts_with("the database took ") && text.contains("held up for"),
        "{told:?}"
    );
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_concordat"))
        .args(["status", "--node", &served.url(0, "")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("database   ") && text.contains(", last moved from "), "{text}");
    assert!(client.receipt(index).await.is_ok());
    served.stop(0).await;
}
