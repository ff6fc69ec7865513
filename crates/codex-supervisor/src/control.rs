//! The control socket: JSON-RPC 2.0, one object a line.
//!
//! A client's calls are answered one after the other; while one is being worked on, events go on arriving. Everything
//! a client can do to us is bounded: the length of a line, the number of clients, the time a write may take.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use codex_control::files::PRIVATE_FILE_MODE;
use codex_control::guests::{Guest, Guests};
use codex_control::rpc::{JSONRPC, LINE_BYTES_MAX, Request, Response, RpcError, code};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::announce::Line;
use crate::event::{Call, Event, Queue};

/// Clients at the same time. For one more the client goes that has been silent longest: it neither waits for an answer
/// nor for events. Where there is none, the new one is told so and sent away.
const CLIENTS_MAX: usize = 64;
/// Time a client has to take what is written to it. A reader of events that is stopped for longer counts as gone.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_mins(1);
/// Pause after a failed accept: the process has no descriptors left, trying again at once would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read at once, at least.
const CHUNK_BYTES: usize = 4096;
/// The method that this module answers itself.
const SUBSCRIBE: &str = "events.subscribe";

/// Binds the control socket at `path`, private. A file left by a supervisor that was killed is removed first: we hold
/// the lock, and it is asked whether somebody answers there all the same.
pub(crate) fn bind(path: &Path) -> io::Result<StdUnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(error) => return Err(error),
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program answers there"));
        }
    }
    let listener = StdUnixListener::bind(path)?;
    make_private(path)?;
    Ok(listener)
}

/// Gives a socket its mode. Its folder is private, so nobody else could reach it before either.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(PRIVATE_FILE_MODE))
}

/// Accepts clients until the sender of `stopped` is dropped; returns when each has got the answer it waits for.
/// A client that takes longer than `write_timeout` for what is written to it goes.
pub(crate) async fn serve(
    listener: StdUnixListener,
    queue: Queue,
    events: broadcast::Sender<Line>,
    mut stopped: watch::Receiver<()>,
    write_timeout: Duration,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let own_uid = rustix::process::geteuid().as_raw();
    let guests = Guests::default();
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a client cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own_uid => {}
            Ok(peer) => {
                warn!(uid = peer.uid(), "a client of another user was sent away");
                continue;
            }
            Err(error) => {
                warn!(%error, "a client that cannot be identified was sent away");
                continue;
            }
        }
        let (reader, writer) = stream.into_split();
        let client = Client {
            guest: guests.admit(),
            lines: Lines { reader, buffer: BytesMut::new() },
            writer: Writer { half: writer, timeout: write_timeout },
            queue: queue.clone(),
            events: events.clone(),
            subscription: None,
            stopped: stopped.clone(),
        };
        if clients.len() >= CLIENTS_MAX {
            // The newest place is that of the new client itself.
            if guests.count() <= 1 || !guests.send_longest_away() {
                client.send_away();
                continue;
            }
            // Whoever it is that has ended, there is room now; the others get a turn to be heard before the next one.
            clients.join_next().await;
        }
        clients.spawn(async move {
            if let Err(error) = client.converse().await {
                debug!(%error, "a client has gone");
            }
        });
    }
    drop(listener);
    while clients.join_next().await.is_some() {}
    Ok(())
}

struct Client {
    guest: Guest,
    lines: Lines,
    writer: Writer,
    queue: Queue,
    events: broadcast::Sender<Line>,
    subscription: Option<broadcast::Receiver<Line>>,
    stopped: watch::Receiver<()>,
}

impl Client {
    async fn converse(mut self) -> io::Result<()> {
        loop {
            let line = tokio::select! {
                line = self.lines.next() => line?,
                event = next_event(&mut self.subscription) => {
                    self.writer.write(event.as_bytes()).await?;
                    continue;
                }
                _ = self.stopped.changed() => return Ok(()),
                () = self.guest.sent_away() => return Ok(()),
            };
            if !self.guest.engage() {
                return Ok(()); // its place is given to another already
            }
            match line {
                None => return Ok(()),
                Some(ReadLine::TooLong) => {
                    let message = format!("a line is longer than {LINE_BYTES_MAX} bytes");
                    let error = RpcError::new(code::INVALID_REQUEST, message, None);
                    // What follows is the rest of that line: there is no telling where the next request begins.
                    return self.answer(Value::Null, Err(error)).await;
                }
                Some(ReadLine::Whole(line)) if line.trim_ascii().is_empty() => {}
                Some(ReadLine::Whole(line)) => match parse(&line) {
                    Ok(request) => self.carry_out(request).await?,
                    Err(response) => self.send(&response).await?,
                },
            }
            // Who waits for events is silent for good reason.
            if self.subscription.is_none() {
                self.guest.disengage();
            }
        }
    }

    async fn carry_out(&mut self, request: Request) -> io::Result<()> {
        let id = request.id.clone();
        if request.method == SUBSCRIBE {
            // Before the answer, so that nothing that happens after it is missed.
            let subscription = self.events.subscribe();
            if let Some(id) = id {
                self.answer(id, Ok(Value::Null)).await?;
            }
            self.subscription = Some(subscription);
            return Ok(());
        }
        let (answer, mut answered) = oneshot::channel();
        if self.queue.send(Event::Call(Call { request, answer })).await.is_err() {
            return Err(io::ErrorKind::BrokenPipe.into()); // the owner has ended, and so does this
        }
        let result = loop {
            tokio::select! {
                result = &mut answered => break result,
                event = next_event(&mut self.subscription) => self.writer.write(event.as_bytes()).await?,
            }
        };
        let Some(id) = id else { return Ok(()) };
        let gone = || RpcError::new(code::INTERNAL, "the supervisor ended before it could answer", None);
        self.answer(id, result.unwrap_or_else(|_| Err(gone()))).await
    }

    async fn answer(&mut self, id: Value, result: Result<Value, RpcError>) -> io::Result<()> {
        let (result, error) = match result {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        self.send(&Response { jsonrpc: JSONRPC.to_owned(), id, result, error }).await
    }

    async fn send(&mut self, response: &Response) -> io::Result<()> {
        let mut line = serde_json::to_vec(response)?;
        line.push(b'\n');
        self.writer.write(&line).await
    }

    /// Says that there is no room, if the socket takes that at once, and closes.
    fn send_away(self) {
        let message = format!("{CLIENTS_MAX} clients are connected already");
        let error = RpcError::new(code::CONFLICT, message, Some("close one of them, then try again".to_owned()));
        if let Ok(mut line) = serde_json::to_vec(&failure(Value::Null, error)) {
            line.push(b'\n');
            let _ = self.writer.half.try_write(&line);
        }
    }
}

struct Writer {
    half: OwnedWriteHalf,
    timeout: Duration,
}

impl Writer {
    async fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let written = tokio::time::timeout(self.timeout, self.half.write_all(line)).await;
        written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// The next event; never, without a subscription. What was lost shows in the numbers of the events.
async fn next_event(subscription: &mut Option<broadcast::Receiver<Line>>) -> Line {
    if let Some(receiver) = subscription {
        loop {
            match receiver.recv().await {
                Ok(line) => return line,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => break,
            }
        }
    }
    std::future::pending().await
}

fn failure(id: Value, error: RpcError) -> Response {
    Response { jsonrpc: JSONRPC.to_owned(), id, result: None, error: Some(error) }
}

/// Reads one line as a request; the error is the answer to send.
fn parse(line: &[u8]) -> Result<Request, Box<Response>> {
    const EXAMPLE: &str = r#"send one object a line, e.g. {"jsonrpc":"2.0","id":1,"method":"daemon.status"}"#;
    let refuse = |id: Value, code, message: String, hint: &str| {
        Err(Box::new(failure(id, RpcError::new(code, message, Some(hint.to_owned())))))
    };
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => return refuse(Value::Null, code::PARSE, format!("that is not JSON: {error}"), EXAMPLE),
    };
    if value.is_array() {
        return refuse(Value::Null, code::INVALID_REQUEST, "batches are not supported".to_owned(), EXAMPLE);
    }
    let id = match value.get("id") {
        Some(id @ (Value::String(_) | Value::Number(_))) => id.clone(),
        Some(Value::Null) | None => Value::Null,
        Some(_) => {
            let message = "`id` is neither a string nor a number".to_owned();
            return refuse(Value::Null, code::INVALID_REQUEST, message, EXAMPLE);
        }
    };
    match serde_json::from_value::<Request>(value) {
        Ok(request) if request.jsonrpc == JSONRPC => Ok(request),
        Ok(_) => refuse(id, code::INVALID_REQUEST, format!("`jsonrpc` is not \"{JSONRPC}\""), EXAMPLE),
        Err(error) => refuse(id, code::INVALID_REQUEST, format!("that is no request: {error}"), EXAMPLE),
    }
}

/// Splits what a client sends into lines of bounded length.
struct Lines {
    reader: OwnedReadHalf,
    buffer: BytesMut,
}

#[derive(Debug, PartialEq)]
enum ReadLine {
    Whole(BytesMut),
    TooLong,
}

impl Lines {
    /// The next line without its end; `None` when the client has closed. May be dropped and called again.
    async fn next(&mut self) -> io::Result<Option<ReadLine>> {
        loop {
            if let Some(line) = take_line(&mut self.buffer) {
                return Ok(Some(line));
            }
            self.buffer.reserve(CHUNK_BYTES);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                // A last line without an end counts: `echo -n` into a socket is a request, too.
                let last = std::mem::take(&mut self.buffer);
                return Ok(if last.is_empty() { None } else { Some(ReadLine::Whole(last)) });
            }
        }
    }
}

fn take_line(buffer: &mut BytesMut) -> Option<ReadLine> {
    match buffer.iter().position(|byte| *byte == b'\n') {
        Some(end) if end <= LINE_BYTES_MAX => {
            let line = buffer.split_to(end);
            buffer.advance(1);
            Some(ReadLine::Whole(line))
        }
        None if buffer.len() <= LINE_BYTES_MAX => None,
        _ => Some(ReadLine::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn who_subscribes_and_never_reads_goes_and_others_stay() {
        use std::io::BufRead;
        use std::os::unix::net::UnixStream;

        const WRITE_TIMEOUT: Duration = Duration::from_millis(200);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (queue, _owner) = tokio::sync::mpsc::channel(1);
        let (events, stop) = (broadcast::channel(4).0, watch::channel(()));
        let served = serve(bind(&path).unwrap(), queue, events.clone(), stop.1, WRITE_TIMEOUT);
        let served = tokio::spawn(served);
        let subscribe = || {
            let mut stream = UnixStream::connect(&path).unwrap();
            io::Write::write_all(&mut stream, b"{\"jsonrpc\":\"2.0\",\"method\":\"events.subscribe\"}\n").unwrap();
            stream
        };
        let (_deaf, reader) = (subscribe(), subscribe());
        let (read, mut lines) = tokio::sync::mpsc::unbounded_channel();
        let reading = tokio::task::spawn_blocking(move || {
            let events = io::BufReader::new(reader).lines().map_while(Result::ok).filter(|line| line.starts_with('x'));
            events.for_each(|line| read.send(line.len()).unwrap());
        });
        let only_the_deaf_one_goes = async {
            while events.receiver_count() < 2 {
                tokio::task::yield_now().await;
            }
            while events.receiver_count() == 2 {
                events.send(format!("{}\n", "x".repeat(CHUNK_BYTES)).into()).unwrap();
                // The next one when it has this one: its buffer is never full, however slow it is.
                assert_eq!(lines.recv().await, Some(CHUNK_BYTES));
            }
            events.receiver_count()
        };
        assert_eq!(tokio::time::timeout(Duration::from_mins(1), only_the_deaf_one_goes).await, Ok(1));
        drop(stop.0);
        served.await.unwrap().unwrap();
        reading.await.unwrap();
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        for (line, id, code, message) in [
            ("{", json!(null), code::PARSE, "that is not JSON"),
            ("\u{fffd}", json!(null), code::PARSE, "that is not JSON"),
            ("[]", json!(null), code::INVALID_REQUEST, "batches are not supported"),
            (
                r#"[{"jsonrpc":"2.0","id":1,"method":"m"}]"#,
                json!(null),
                code::INVALID_REQUEST,
                "batches are not supported",
            ),
            ("7", json!(null), code::INVALID_REQUEST, "that is no request"),
            (r#"{"jsonrpc":"2.0","id":7}"#, json!(7), code::INVALID_REQUEST, "missing field `method`"),
            (r#"{"id":"a","method":"m"}"#, json!("a"), code::INVALID_REQUEST, "missing field `jsonrpc`"),
            (
                r#"{"jsonrpc":"1.0","id":"a","method":"m"}"#,
                json!("a"),
                code::INVALID_REQUEST,
                "`jsonrpc` is not \"2.0\"",
            ),
            (
                r#"{"jsonrpc":"2.0","id":[1],"method":"m"}"#,
                json!(null),
                code::INVALID_REQUEST,
                "neither a string nor a number",
            ),
            (&format!("{}1{}", "[".repeat(300), "]".repeat(300)), json!(null), code::PARSE, "recursion limit"),
        ] {
            let response = parse(line.as_bytes()).unwrap_err();
            let error = response.error.unwrap();
            assert_eq!((response.id, error.code), (id, code), "{line}");
            assert!(error.message.contains(message), "{line}: {}", error.message);
        }
    }

    #[test]
    fn requests_and_notifications_are_read() {
        let request = parse(br#"{"jsonrpc":"2.0","id":7,"method":"endpoint.show","params":{"id":"zai"}}"#).unwrap();
        assert_eq!((request.id, request.params), (Some(json!(7)), json!({"id": "zai"})));
        let notification = parse(br#"{"jsonrpc":"2.0","method":"daemon.reload"}"#).unwrap();
        assert_eq!((notification.id, notification.params), (None, Value::Null));
    }

    #[test]
    fn lines_are_found_however_they_arrive_and_have_a_length() {
        let mut buffer = BytesMut::from("one");
        assert_eq!(take_line(&mut buffer), None);
        buffer.extend_from_slice(b"\ntwo\nth");
        assert_eq!(take_line(&mut buffer), Some(ReadLine::Whole(BytesMut::from("one"))));
        assert_eq!(take_line(&mut buffer), Some(ReadLine::Whole(BytesMut::from("two"))));
        assert_eq!(take_line(&mut buffer), None);
        buffer.extend_from_slice(&vec![b'x'; LINE_BYTES_MAX - 2]);
        assert_eq!(take_line(&mut buffer), None);
        buffer.extend_from_slice(b"x");
        assert_eq!(take_line(&mut buffer), Some(ReadLine::TooLong));
    }
}
