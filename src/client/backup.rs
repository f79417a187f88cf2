//! A backup, as a stream of bytes from one node.

use super::call::{Failure, chain, read, refusal};
use super::{Client, Refusal};
use crate::api::CallError;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use std::time::Duration;
use tokio::time::timeout;

/// A node that has not sent a byte for so long is gone: twice the time that one frame may take at the slowest rate.
const SILENCE: Duration = Duration::from_secs(60);

impl Client {
    /// A backup of the first node given, at most so many bytes a second. What came is a backup only if all of it
    /// verifies ([`crate::backup::verify`]): a stream that a node ends early is told by an error, or by that.
    ///
    /// # Errors
    /// [`Refusal`]; later, in the stream, what went wrong, as text.
    pub async fn backup(
        &self,
        rate: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, CallError<Refusal>> {
        let unreachable = |detail| CallError::Unreachable { detail };
        let node = self.inner.nodes.first().ok_or_else(|| unreachable("no node is known".into()))?;
        let rate = rate.map(|rate| rate.to_string());
        let query: Vec<(&str, &str)> = rate.as_deref().map(|rate| ("rate", rate)).into_iter().collect();
        let request = self.inner.http.get(node.at(&["v1", "backup"], &query)).send();
        let response = match timeout(SILENCE, request).await {
            Ok(response) => response.map_err(|e| unreachable(format!("{node}: {}", chain(&e))))?,
            Err(_) => return Err(unreachable(format!("{node} does not answer"))),
        };
        let status = response.status();
        if !status.is_success() {
            let Ok(Ok(body)) = timeout(SILENCE, read(response)).await else {
                return Err(unreachable(format!("{node} answered {status}")));
            };
            return Err(Failure::refused(refusal(node, status, &body)));
        }
        let bytes = response.bytes_stream().boxed();
        let stream = futures::stream::unfold(Some(bytes), |bytes| async move {
            let mut bytes = bytes?;
            match timeout(SILENCE, bytes.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(bytes))),
                Ok(Some(Err(e))) => Some((Err(chain(&e)), None)),
                Err(_) => Some((Err("the node has fallen silent".to_owned()), None)),
            }
        });
        Ok(stream.boxed())
    }
}
