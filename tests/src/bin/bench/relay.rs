//! The floor: a proxy of hyper on both sides that passes everything on and looks at nothing.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Passes what comes to the listener passed as stdin on to `to`, until it is killed.
pub(crate) fn run(to: SocketAddr) -> anyhow::Result<()> {
    let listener = std::net::TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let client = client.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
                let uri = format!("http://{to}{path}").parse::<Uri>();
                let client = client.clone();
                async move {
                    *request.uri_mut() = uri.map_err(anyhow::Error::from)?;
                    client.request(request).await.map_err(anyhow::Error::from)
                }
            });
            tokio::spawn(async move {
                // A connection that fails concerns its client only.
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}
