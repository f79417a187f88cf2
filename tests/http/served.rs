//! Clusters whose nodes serve HTTP.

use crate::ports::free_port;
use crate::support::{Cluster, within};
use concordat::api::ErrorBody;
use concordat::certificate::Policy;
use concordat::client::{Client, Options};
use concordat::http::{self, Server};
use concordat::node;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub(crate) struct Served {
    pub(crate) cluster: Cluster,
    pub(crate) servers: Vec<(Server, CancellationToken)>,
    http: reqwest::Client,
}

impl Served {
    pub(crate) async fn start(policies: &[Policy]) -> Self {
        Self::start_with(policies, |_| {}).await
    }

    pub(crate) async fn start_with(policies: &[Policy], change: impl Fn(&mut node::Options)) -> Self {
        let mut cluster = Cluster::prepare(policies);
        let mut servers = Vec::new();
        for n in 0..policies.len() {
            // Named before it is served: a node tells its peers where it serves HTTP.
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let mut options = node::Options { http: Some(format!("http://{address}")), ..cluster.options(n) };
            change(&mut options);
            let handle = node::start(options).await.expect("the node starts");
            let shutdown = CancellationToken::new();
            let server = http::serve(handle.clone(), address, shutdown.clone()).await.expect("HTTP is served");
            cluster.nodes[n] = Some(handle);
            servers.push((server, shutdown));
        }
        cluster.leader().await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { cluster, servers, http }
    }

    pub(crate) fn url(&self, n: usize, path: &str) -> String {
        format!("http://{}{path}", self.servers[n].0.local_addr())
    }

    pub(crate) fn client(&self) -> Client {
        let options = Options { deadline: Duration::from_secs(60), ..Options::default() };
        Client::new((0..self.servers.len()).map(|n| self.url(n, "")), options).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(self.url(0, path))
    }

    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(0, path))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.http.post(self.url(0, path)).json(body)
    }

    /// Stops one node and its HTTP, as a process that is told to end does.
    pub(crate) async fn stop(&mut self, n: usize) {
        self.servers[n].1.cancel();
        within("HTTP ends", self.servers[n].0.finished()).await;
        self.cluster.stop_node(n).await;
    }

    pub(crate) async fn close(mut self) {
        for n in 0..self.servers.len() {
            self.stop(n).await;
        }
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Response {
    within("an answer", request.send()).await.expect("an HTTP answer")
}

pub(crate) async fn error(request: RequestBuilder) -> (StatusCode, ErrorBody) {
    let response = send(request).await;
    let status = response.status();
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status} {text:?} is no error body: {e}"));
    (status, body)
}
