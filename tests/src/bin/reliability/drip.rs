//! A Chat Completions provider whose answers drip for as long as they are wanted.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use e2e::requests;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Pause between two words: often enough that a cut shows at once.
const DRIP_INTERVAL: Duration = Duration::from_millis(250);

/// A request with these words is answered with one.
const SHORT: &[u8] = b"Load.";

/// A running provider; it ends with the program.
pub(crate) struct Drip {
    address: SocketAddr,
    is_enough: watch::Sender<bool>,
}

impl Drip {
    /// Starts it in a thread of its own.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let is_enough = watch::Sender::new(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let enough = is_enough.subscribe();
        std::thread::Builder::new().name("drip".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
                while let Ok((stream, _)) = listener.accept().await {
                    let enough = enough.clone();
                    // A client that goes away ends its connection, and that is all.
                    tokio::spawn(async move { drop(serve(stream, enough).await) });
                }
            });
        })?;
        Ok(Self { address, is_enough })
    }

    /// What a person would put into `base_url`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Ends all answers well, those that begin later after their first word.
    pub(crate) fn enough(&self) {
        self.is_enough.send_replace(true);
    }
}

async fn serve(mut stream: TcpStream, mut enough: watch::Receiver<bool>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut pending = Vec::new();
    while let Some(request) = requests::next(&mut stream, &mut pending).await? {
        let is_short = request.body().windows(SHORT.len()).any(|window| window == SHORT);
        if request.head.starts_with("get ") {
            let body = r#"{"object":"list","data":[{"id":"scripted","object":"model"}]}"#;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
            stream.write_all(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
            continue;
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        loop {
            stream.write_all(chunk(r#"{"content":"drip "}"#, "null").as_bytes()).await?;
            if is_short || *enough.borrow() {
                break;
            }
            // The sender lives as long as the program.
            let _ = tokio::time::timeout(DRIP_INTERVAL, enough.changed()).await;
        }
        stream.write_all((chunk("{}", "\"stop\"") + "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").as_bytes()).await?;
    }
    Ok(())
}

fn chunk(delta: &str, finish: &str) -> String {
    let data = format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"scripted\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n"
    );
    format!("{:x}\r\n{data}\r\n", data.len())
}
