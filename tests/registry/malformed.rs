use super::log::{FAR, Log, request};
use concordat::registry::{Operation, Outcome, check_payload};
use serde_json::{Value, json};

fn with(path: &str, value: Value) -> Value {
    let mut payload = json!({"op": "register", "if_revision": 0, "agent": {
        "agent_id": "a", "display_name": "A", "endpoint": "https://a.example", "did": "did:web:a.example",
        "capabilities": [{"tag": "x", "version": "2.0", "max_concurrency": 3}], "status": "busy", "metadata": {}}});
    let (parent, field) = path.rsplit_once('/').unwrap();
    payload.pointer_mut(parent).unwrap()[field] = value;
    payload
}

#[test]
fn admission_names_the_field_and_what_is_expected() {
    let long = "x".repeat(257);
    let cases = [
        (json!({"op": "register"}), "register", "agent: missing"),
        (json!({"op": "register", "agent": []}), "register", "agent: expected an object, found an array of 0"),
        (json!({"op": "register", "agent": {}, "if_revison": 1}), "register", "if_revison: unknown field"),
        (with("/agent/agent_id", json!(7)), "register", "agent.agent_id: expected a string of 1 to 256 bytes, found 7"),
        (
            with("/agent/agent_id", json!("")),
            "register",
            "agent.agent_id: expected a string of 1 to 256 bytes, found \"\"",
        ),
        (with("/agent/agent_id", json!(long)), "register", "found a string of 257 bytes"),
        (with("/agent/display_name", Value::Null), "register", "agent.display_name: expected a string of 0 to 2048"),
        (
            with("/agent/endpoint", json!({})),
            "register",
            "agent.endpoint: expected a string of 1 to 2048 bytes, found an object",
        ),
        (with("/agent/did", json!("key")), "register", "agent.did: expected a DID"),
        (
            with("/agent/nickname", json!("x")),
            "register",
            "agent.nickname: unknown field, expected only agent_id, display_name",
        ),
        (with("/agent/capabilities", json!("x")), "register", "agent.capabilities: expected an array of at most 256"),
        (
            with("/agent/capabilities", json!(["x"])),
            "register",
            "agent.capabilities[0]: expected an object, found \"x\"",
        ),
        (with("/agent/capabilities", json!([{"version": "1"}])), "register", "agent.capabilities[0].tag: missing"),
        (
            with("/agent/capabilities", json!([{"tag": "x"}, {"tag": "y", "weight": 1}])),
            "register",
            "agent.capabilities[1].weight: unknown field",
        ),
        (with("/agent/capabilities", vec![json!({"tag": "x"}); 257].into()), "register", "found an array of 257"),
        (
            with("/agent/capabilities", json!([{"tag": "x", "max_concurrency": 0}])),
            "register",
            "max_concurrency: expected an integer from 1 to 4294967295, found 0",
        ),
        (with("/agent/capabilities", json!([{"tag": "x", "max_concurrency": 1.5}])), "register", "found 1.5"),
        (
            with("/agent/capabilities", json!([{"tag": "x", "max_concurrency": 1_u64 << 32}])),
            "register",
            "found 4294967296",
        ),
        (
            with("/agent/capabilities", json!([{"tag": "x", "version": 1}])),
            "register",
            "agent.capabilities[0].version: expected a string",
        ),
        (
            with("/agent/status", json!("idle")),
            "register",
            "agent.status: expected available, busy, draining or offline, found \"idle\"",
        ),
        (with("/agent/metadata", json!([])), "register", "agent.metadata: expected an object"),
        (json!({"op": "deregister"}), "deregister", "agent_id: missing"),
        (json!({"op": "deregister", "agent_id": "a", "status": "busy"}), "deregister", "status: unknown field"),
        (
            json!({"op": "deregister", "agent_id": "a", "if_revision": -1}),
            "deregister",
            "if_revision: expected a revision",
        ),
        (
            json!({"op": "deregister", "agent_id": "a", "if_revision": null}),
            "deregister",
            "if_revision: expected a revision",
        ),
        (json!({"op": "set_status", "agent_id": "a"}), "set_status", "status: missing"),
        (json!({"op": "set_status", "agent_id": "a", "status": true}), "set_status", "status: expected available"),
        (json!({"op": "set_config", "key": "k"}), "set_config", "value: missing"),
        (json!({"op": "set_config", "key": "", "value": 1}), "set_config", "key: expected a string of 1 to 256 bytes"),
    ];
    for (payload, operation, detail) in cases {
        let error = check_payload(&payload).expect_err(&payload.to_string());
        assert_eq!(error.operation, operation);
        assert!(error.detail.contains(detail), "{payload}\nsays {:?}\nnot  {detail:?}", error.detail);
        let mut log = Log::default();
        assert_eq!(log.propose(&payload), Outcome::Opaque, "{payload}");
        assert_eq!((log.state.agents_len(), log.state.configs().count()), (0, 0));
    }
}

#[test]
fn a_long_unknown_field_is_cut_in_the_message() {
    let error = check_payload(&json!({"op": "deregister", "y".repeat(60_000): 1})).unwrap_err();
    assert!(error.detail.len() < 300, "{}", error.detail.len());
}

#[test]
fn every_field_at_its_bound_is_taken() {
    let edge = [
        with("/agent/agent_id", json!("é".repeat(128))),
        with("/agent/did", Value::Null),
        with("/agent/display_name", json!("")),
        with("/agent/capabilities", vec![json!({"tag": "x".repeat(128)}); 256].into()),
        with("/agent/capabilities", json!([{"tag": "x", "max_concurrency": u32::MAX}])),
        json!({"op": "set_config", "key": "k".repeat(256), "value": null, "if_revision": u64::MAX}),
    ];
    for payload in edge {
        assert!(matches!(Operation::parse(&payload), Ok(Some(_))), "{payload}");
    }
}

#[test]
fn anything_else_is_opaque() {
    let payloads = [
        json!(null),
        json!([1]),
        json!({}),
        json!({"op": 7}),
        json!({"op": "Register"}),
        json!({"op": "vote", "agent_id": 1}),
    ];
    for payload in payloads {
        assert_eq!(Operation::parse(&payload), Ok(None), "{payload}");
        assert_eq!(Log::default().propose(&payload), Outcome::Opaque);
    }
    let deep = "[".repeat(10_000);
    for bytes in [&b""[..], b"{", b"\xff\xfe", b"{\"op\":\"deregister\",\"agent_id\":\"a\"} x", deep.as_bytes()] {
        assert_eq!(Log::default().propose_bytes(request("r", FAR), bytes), Outcome::Opaque);
    }
}
