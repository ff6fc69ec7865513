//! Connections to one provider: made when needed, kept for the next request while they are idle.
//!
//! Whoever waits for an answer drives the connection it comes over. hyper's own pool gives each connection a task, which
//! hands over an answer piece by piece: with providers that write one HTTP chunk for each event that is a change of
//! tasks, and in the end a write to Codex, for each event. Here all that one read has brought is there at once.
//!
//! Dropping an answer that is not at its end closes its connection, and with it the request.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower_service::Service as _;

/// Idle connections kept to the provider: a Codex session has a few requests at once.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// How long an idle connection is kept: below what load balancers commonly allow (60 s and more).
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(50);
/// How often idle connections are looked at, to close those that are too old or that the provider has closed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Makes connections.
pub(super) enum Connector {
    Plain(HttpConnector),
    Tls(HttpsConnector<HttpConnector>),
    /// Through a proxy, which sees no more than the provider's name.
    Tunnel(HttpsConnector<Tunnel<HttpConnector>>),
}

/// Why there is no answer.
pub(super) enum SendError {
    /// No connection could be made.
    Connect(Box<dyn StdError + Send + Sync>),
    /// The connection broke.
    Broken(hyper::Error),
}

/// All connections to one provider.
pub(super) struct Connections {
    connector: Connector,
    /// The lock protects the list while one is taken, kept or closed; nothing is awaited under it.
    idle: Mutex<IdleConnections>,
}

#[derive(Default)]
struct IdleConnections {
    /// The one used last stands last, and is used first.
    list: Vec<(Connection, Instant)>,
    /// Somebody looks after them.
    is_swept: bool,
}

struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Absent once the connection has ended.
    driver: Option<Box<http1::Connection<Stream, Full<Bytes>>>>,
}

/// The body of an answer.
pub(crate) struct Answer {
    incoming: Incoming,
    /// Absent once it is kept for another request.
    connection: Option<Connection>,
    home: Arc<Connections>,
}

impl Connector {
    async fn connect(&self, uri: Uri) -> Result<Stream, Box<dyn StdError + Send + Sync>> {
        match self {
            Self::Plain(connector) => Ok(MaybeHttpsStream::Http(connector.clone().call(uri).await?)),
            Self::Tls(connector) => connector.clone().call(uri).await,
            Self::Tunnel(connector) => connector.clone().call(uri).await,
        }
    }
}

impl Connections {
    pub(super) fn new(connector: Connector) -> Arc<Self> {
        Arc::new(Self { connector, idle: Mutex::default() })
    }

    /// Sends `request`, whose URI is in origin form, to the host of `uri`, and waits for the head of the answer.
    ///
    /// A kept connection that turns out to be closed before anything was sent over it is replaced by another one.
    pub(super) async fn send(
        self: &Arc<Self>,
        uri: &Uri,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Answer>, SendError> {
        loop {
            let kept = self.take();
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(kept) => kept,
                None => self.connect(uri).await?,
            };
            match connection.send(request).await {
                Ok(response) => {
                    let home = Arc::clone(self);
                    return Ok(response.map(|incoming| Answer { incoming, connection: Some(connection), home }));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if is_kept => request = unsent,
                    _ => return Err(SendError::Broken(error.into_error())),
                },
            }
        }
    }

    async fn connect(&self, uri: &Uri) -> Result<Connection, SendError> {
        let stream = self.connector.connect(uri.clone()).await.map_err(SendError::Connect)?;
        let (sender, driver) = http1::handshake(stream).await.map_err(SendError::Broken)?;
        Ok(Connection { sender, driver: Some(Box::new(driver)) })
    }

    fn idle(&self) -> MutexGuard<'_, IdleConnections> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle();
        while let Some((mut connection, since)) = idle.list.pop() {
            if since.elapsed() < IDLE_CONNECTION_TIMEOUT && connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose answer has ended, if another request can go over it.
    fn keep(self: &Arc<Self>, mut connection: Connection) {
        if !connection.is_usable() {
            return;
        }
        let mut idle = self.idle();
        if idle.list.len() == IDLE_CONNECTIONS_MAX {
            idle.list.remove(0);
        }
        idle.list.push((connection, Instant::now()));
        if !std::mem::replace(&mut idle.is_swept, true) {
            // Ends by itself when there are no connections left to look after.
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }
}

/// Closes idle connections when their time has come.
async fn sweep(connections: Weak<Connections>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(connections) = connections.upgrade() else { return };
        let mut idle = connections.idle();
        idle.list.retain_mut(|(connection, since)| since.elapsed() < IDLE_CONNECTION_TIMEOUT && connection.is_usable());
        if idle.list.is_empty() {
            idle.is_swept = false;
            return;
        }
    }
}

impl Connection {
    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        let mut response = std::pin::pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        std::future::poll_fn(|ctx| {
            drive(driver, ctx);
            response.as_mut().poll(ctx)
        })
        .await
    }

    /// Whether it is open, and done with the request before.
    fn is_usable(&mut self) -> bool {
        // Who uses it next polls it with a waker of its own.
        drive(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Reads and writes what can be read and written now. A connection that has ended is dropped: that is how who waits for
/// something from it learns that nothing will come.
fn drive(driver: &mut Option<Box<http1::Connection<Stream, Full<Bytes>>>>, ctx: &mut Context<'_>) {
    if let Some(running) = driver
        && Pin::new(running).poll(ctx).is_ready()
    {
        // An error is told to who waits for the answer or its body.
        *driver = None;
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let mut polled = Pin::new(&mut this.incoming).poll_frame(ctx);
        if polled.is_pending()
            && let Some(connection) = &mut this.connection
        {
            drive(&mut connection.driver, ctx);
            polled = Pin::new(&mut this.incoming).poll_frame(ctx);
        }
        if let Poll::Ready(None) = polled
            && let Some(connection) = this.connection.take()
        {
            this.home.keep(connection);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    struct Provider {
        listener: TcpListener,
        uri: Uri,
        connections: Arc<Connections>,
    }

    async fn provider() -> Provider {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        Provider { listener, uri, connections: Connections::new(Connector::Plain(HttpConnector::new())) }
    }

    impl Provider {
        async fn ask(&self) -> Response<Answer> {
            let asked = self.connections.send(&self.uri, Request::new(Full::default()));
            let Ok(Ok(response)) = tokio::time::timeout(DEADLINE, asked).await else { panic!("no answer") };
            response
        }

        async fn accept(&self) -> TcpStream {
            tokio::time::timeout(DEADLINE, self.listener.accept()).await.unwrap().unwrap().0
        }
    }

    /// Reads one request, which has no body, and answers it.
    async fn answer(stream: &mut TcpStream, answer: &str) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    fn whole(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    async fn body(response: Response<Answer>) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn a_connection_is_used_again_until_the_provider_closes_it() {
        let provider = provider().await;
        let serve = async {
            let mut first = provider.accept().await;
            answer(&mut first, &whole("one")).await;
            answer(&mut first, &whole("two")).await;
            drop(first);
            let mut second = provider.accept().await;
            answer(&mut second, &whole("three")).await;
        };
        let ask = async {
            assert_eq!(body(provider.ask().await).await, "one");
            assert_eq!(body(provider.ask().await).await, "two");
            let closed = async {
                while provider.connections.idle().list.iter_mut().any(|(connection, _)| connection.is_usable()) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(DEADLINE, closed).await.expect("the end of the connection is noticed");
            assert_eq!(body(provider.ask().await).await, "three");
        };
        tokio::join!(serve, ask);
    }

    #[tokio::test]
    async fn a_dropped_answer_closes_its_connection() {
        let provider = provider().await;
        let serve = async {
            let mut stream = provider.accept().await;
            answer(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n").await;
            let mut rest = Vec::new();
            tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("it is closed").unwrap();
        };
        let ask = async {
            let mut answer = provider.ask().await.into_body();
            assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
            drop(answer);
        };
        tokio::join!(serve, ask);
        assert!(provider.connections.idle().list.is_empty());
    }

    /// What makes a burst cheap: no change of tasks between its events.
    #[tokio::test]
    async fn what_one_read_brought_is_there_at_once() {
        const CHUNKS: usize = 100;
        let provider = provider().await;
        let chunks = (0..CHUNKS).fold(String::new(), |mut text, _| {
            let _ = write!(text, "5\r\nevent\r\n"); // writing to a String cannot fail
            text
        });
        let serve = async {
            let mut stream = provider.accept().await;
            answer(&mut stream, &format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"))
                .await;
            stream
        };
        let ask = async {
            let mut answer = provider.ask().await.into_body();
            let at_once = std::future::poll_fn(|ctx| {
                let mut count = 0;
                while let Poll::Ready(Some(Ok(_))) = Pin::new(&mut answer).poll_frame(ctx) {
                    count += 1;
                }
                if count == 0 { Poll::Pending } else { Poll::Ready(count) }
            });
            assert_eq!(tokio::time::timeout(DEADLINE, at_once).await, Ok(CHUNKS));
        };
        let (_stream, ()) = tokio::join!(serve, ask);
        assert_eq!(provider.connections.idle().list.len(), 1);
    }
}
