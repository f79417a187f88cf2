//! `serve`: one node, until a signal or a broken promise ends it.

use super::verify::read_genesis;
use super::{Failure, block_on, output};
use crate::config::{Config, Log, LogFormat};
use crate::http;
use crate::node::{self, Ended};
use clap::Args;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The exit code of a node that halted on purpose, or whose store must not be used again: nobody should restart it before
/// reading why.
const HALTED: u8 = 3;

/// Largest file of proofs of membership changes, in bytes.
const MAX_EPOCHS_FILE: u64 = 256 * 1024 * 1024;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The data directory that `init` made
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The genesis file; the store pins it at the first start and refuses another
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Where the other members connect (QUIC over UDP)
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Where HTTP is served; a loopback address until there is access control
    #[arg(long, value_name = "ADDR")]
    http: SocketAddr,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start although no member table names this store's key yet: it waits until `member add` admits it
    #[arg(long)]
    join: bool,
    /// Proofs of membership changes (`concordat member chain`), for a node that would know no present member otherwise
    #[arg(long, value_name = "FILE")]
    epochs: Option<PathBuf>,
    /// Stop when stdin ends: for a supervisor whose death must not leave the node behind
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
}

impl Serve {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let config = match &self.config {
            Some(path) => Config::load(path).map_err(|e| Failure::caused(&e))?,
            None => Config::default(),
        };
        start_logging(config.log);
        let genesis = read_genesis(&self.genesis)?;
        block_on(self.serve(config, genesis))
    }

    async fn serve(self, config: Config, genesis: crate::certificate::Genesis) -> Result<ExitCode, Failure> {
        if !self.http.ip().is_loopback() {
            // Refused before the store is opened: the same check in `http::serve` comes when the node already runs.
            return Err(Failure::new(http::ServeError::NotLoopback { address: self.http }));
        }
        let mut stop = Stop::listen(self.exit_with_stdin)?;
        let handle = node::start(node::Options {
            data: self.data.clone(),
            genesis,
            listen: self.listen,
            // Peers are told where to send clients; a port that the system has yet to choose cannot be told.
            http: (self.http.port() != 0).then(|| format!("http://{}", self.http)),
            config,
            join: self.join,
            epochs: self.epochs.as_deref().map(read_epochs).transpose()?.unwrap_or_default(),
        })
        .await
        .map_err(|e| {
            let why = Failure::caused(&e).message;
            let failure = Failure::new(format!("cannot start the node in {}: {why}", self.data.display()));
            if e.bars_the_store() { Failure { code: HALTED, ..failure } } else { failure }
        })?;
        let shutdown = CancellationToken::new();
        let server = match http::serve(handle.clone(), self.http, shutdown.clone()).await {
            Ok(server) => server,
            Err(e) => {
                handle.close().await;
                return Err(Failure::caused(&e));
            }
        };
        let ready = format!(
            "ready http=http://{} peers={} id={}",
            server.local_addr(),
            handle.peer_address(),
            handle.status().id
        );
        if let Err(failure) = output::line(&ready) {
            // Whoever started the node has gone away; the node is still one of a quorum.
            tracing::warn!(reason = failure.message, "nobody reads stdout");
        }
        let ended = tokio::select! {
            ended = handle.ended() => Some(ended),
            why = stop.requested() => {
                tracing::info!(why, "shutting down");
                None
            }
        };
        shutdown.cancel();
        server.finished().await;
        let ended = match ended {
            Some(ended) => ended,
            None => {
                handle.close().await;
                handle.ended().await
            }
        };
        match ended {
            Ended::Closed => Ok(ExitCode::SUCCESS),
            Ended::Halted(why) => {
                tracing::error!(why, "halted");
                // The database flushes once more when the last handle is dropped, and panics where the disk still fails:
                // the exit code would be the panic's, and a supervisor would start the node again.
                std::mem::forget(handle);
                Err(Failure { code: HALTED, ..Failure::new(format!("halted: {why}")) })
            }
        }
    }
}

/// What asks a node to stop.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    stdin: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl Stop {
    fn listen(exit_with_stdin: bool) -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| Failure::new(format!("cannot listen for signals: {e}")));
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            stdin: exit_with_stdin.then(stdin_ended),
        })
    }

    /// Cancel-safe: signals stay pending in their streams.
    async fn requested(&mut self) -> &'static str {
        let stdin = async {
            match &mut self.stdin {
                // An error is the reading thread gone, which is the end of stdin too.
                Some(ended) => drop(ended.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
            () = stdin => "stdin ended",
        }
    }
}

/// Resolves when stdin ends. A thread of its own: the runtime would wait for a blocking read when it shuts down.
fn stdin_ended() -> tokio::sync::oneshot::Receiver<()> {
    let (ended, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while matches!(std::io::stdin().lock().read(&mut buffer), Ok(n) if n > 0) {}
        // Nobody waits any more when the node stopped for another reason.
        let _ = ended.send(());
    });
    wait
}

/// Logs go to stderr; `RUST_LOG`, when set, overrides the level.
fn start_logging(log: Log) {
    let level = log.level.to_string();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Reads the proofs of membership changes; they are verified from the genesis on when the node starts.
fn read_epochs(path: &std::path::Path) -> Result<crate::certificate::EpochChain, Failure> {
    let bytes = output::read(path, MAX_EPOCHS_FILE)?;
    crate::certificate::EpochChain::decode(&bytes).map_err(|e| {
        Failure::file("use the proofs of membership changes", path, e).hint("`concordat member chain` writes them")
    })
}
