//! The command line. Nothing secret ever stands here: every local user can read it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use codex_control::EndpointId;

/// Serves one endpoint to Codex and speaks to its provider.
///
/// The supervisor starts one for each endpoint. By hand, for tests and debugging:
///
///     codex-worker --listen 127.0.0.1:0 --endpoint supervisor.toml
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Address to listen on, loopback only; port 0 takes a free one. Default: the listener passed as standard input.
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,

    /// Run alone, with the endpoint described in this file (same form as supervisor.toml).
    #[arg(long, value_name = "FILE", conflicts_with = "supervisor")]
    pub(crate) endpoint: Option<PathBuf>,

    /// Which endpoint of the file, or of the supervisor.
    #[arg(long, value_name = "ID")]
    pub(crate) endpoint_id: Option<EndpointId>,

    /// File of the local bearer token, when running alone; made if it does not exist.
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    pub(crate) token_file: Option<PathBuf>,

    /// The supervisor's worker socket.
    #[arg(long, value_name = "SOCKET", requires_all = ["endpoint_id", "generation"])]
    pub(crate) supervisor: Option<PathBuf>,

    /// Which start of this endpoint's worker this is.
    #[arg(long, value_name = "N")]
    pub(crate) generation: Option<u64>,
}

/// How to reach the supervisor, and as whom.
#[derive(Debug)]
pub(crate) struct Supervision {
    pub(crate) socket: PathBuf,
    pub(crate) endpoint: EndpointId,
    pub(crate) generation: u64,
    pub(crate) listen: Option<SocketAddr>,
}

impl Arguments {
    /// The supervised mode's arguments, or `None` when running alone.
    pub(crate) fn supervision(&self) -> anyhow::Result<Option<Supervision>> {
        match (&self.supervisor, &self.endpoint_id, self.generation, &self.endpoint) {
            (Some(socket), Some(endpoint), Some(generation), None) => Ok(Some(Supervision {
                socket: socket.clone(),
                endpoint: endpoint.clone(),
                generation,
                listen: self.listen,
            })),
            (None, _, _, Some(_)) => Ok(None),
            _ => anyhow::bail!("give `--endpoint FILE` to run alone; the supervisor gives the other arguments"),
        }
    }
}
