//! What a worker keeps of requests while their answers flow, to go on with an answer that stops at the provider's output
//! limit, has a total: over it an answer is just not gone on with by us.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use codex_control::tables::Protocol;
use codex_translate::checker;
use e2e::home::SandboxHome;
use e2e::http;
use e2e::until::until;
use serde_json::{Value, json};

use crate::load::{from_environment, resident_bytes};
use crate::standalone::Worker;
use crate::sweep::upstream::{CHUNKED_HEAD, LAST_CHUNK, read_request, write_status};

/// Streams at a time where the environment does not say otherwise: more than there is room for.
const STREAMS: (&str, u64) = ("E2E_KEPT_STREAMS", 40);
/// Length of a request.
const REQUEST_BYTES: usize = 1_000_000;
/// The worker's bound (`KEPT_BYTES_MAX`).
const KEPT_BYTES_MAX: usize = 32 << 20;
/// Longest wait for the next bytes, on a busy machine and without optimisation.
const DEADLINE: Duration = Duration::from_mins(5);

/// The provider's side: answers stop where the gate is.
#[derive(Default)]
struct Provider {
    is_open: Mutex<bool>,
    opened: Condvar,
    continued: AtomicUsize,
}

impl Provider {
    fn start(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port is to be had");
        let address = listener.local_addr().expect("it is bound");
        let provider = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let provider = Arc::clone(&provider);
                // A client that goes away ends its connection, and that is all.
                thread::spawn(move || _ = provider.serve(stream));
            }
        });
        address
    }

    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut pending = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut pending)? {
            if !request.starts_with("POST") {
                write_status(&mut stream, 200, &json!({ "object": "list", "data": [{ "id": "scripted" }] }))?;
                continue;
            }
            stream.write_all(CHUNKED_HEAD)?;
            if request.contains("Write on from exactly where it stops") {
                self.continued.fetch_add(1, Ordering::SeqCst);
                write_event(&mut stream, &json!({ "content": "second half" }), &json!("stop"))?;
            } else {
                write_event(&mut stream, &json!({ "content": "first half, " }), &Value::Null)?;
                let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
                drop(self.opened.wait_while(is_open, |is_open| !*is_open).unwrap_or_else(PoisonError::into_inner));
                write_event(&mut stream, &json!({}), &json!("length"))?;
            }
            stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n")?;
            stream.write_all(LAST_CHUNK)?;
        }
        Ok(())
    }

    fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }
}

fn write_event(stream: &mut TcpStream, delta: &Value, finish: &Value) -> io::Result<()> {
    let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
    let chunk =
        json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "scripted", "choices": [choice] });
    let event = format!("data: {chunk}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
}

/// Asks, calls `begun` at the first text, and reads on to the end.
fn ask(worker: &Worker, body: &str, begun: impl Fn()) -> Result<http::Answer, String> {
    let mut stream = worker.post(body)?;
    stream.set_read_timeout(Some(DEADLINE)).map_err(|error| error.to_string())?;
    let (mut raw, mut piece, mut has_begun) = (Vec::new(), vec![0; 16 << 10], false);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n_bytes) => raw.extend_from_slice(&piece[..n_bytes]),
            Err(error) => return Err(format!("no end: {error}")),
        }
        if !has_begun && raw.windows(10).any(|window| window == b"first half") {
            has_begun = true;
            begun();
        }
    }
    http::parse(&raw).ok_or_else(|| format!("no answer: {}", String::from_utf8_lossy(&raw)))
}

#[test]
fn what_is_kept_of_requests_has_a_total() {
    let streams = usize::try_from(from_environment(STREAMS)).expect("a number of streams");
    let provider = Arc::new(Provider::default());
    let home = SandboxHome::new();
    let workers = Worker::start_all(&home, provider.start(), "kept", "");
    let worker = workers.iter().find(|worker| worker.protocol == Protocol::ChatCompletions).expect("it is one of them");
    let request = |filling: usize| {
        json!({ "model": "scripted", "stream": true, "store": false, "input": "x".repeat(filling) }).to_string()
    };
    let body = request(REQUEST_BYTES - request(0).len());
    assert_eq!(body.len(), REQUEST_BYTES);

    let (n_begun, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (held, answers) = thread::scope(|scope| {
        let asking: Vec<_> = (0..streams)
            .map(|_| {
                scope.spawn(|| {
                    let answer = ask(worker, &body, || _ = n_begun.fetch_add(1, Ordering::SeqCst));
                    has_failed.fetch_or(answer.is_err(), Ordering::SeqCst);
                    answer
                })
            })
            .collect();
        until("all streams", DEADLINE, || {
            let n_begun = n_begun.load(Ordering::SeqCst);
            (n_begun == streams || has_failed.load(Ordering::SeqCst)).then_some(())
        });
        let held = resident_bytes(worker);
        provider.open();
        let answers: Vec<_> = asking.into_iter().map(|asking| asking.join().expect("it does not panic")).collect();
        (held, answers)
    });

    let mut n_whole = 0;
    for answer in answers {
        let answer = answer.unwrap_or_else(|problem| panic!("{problem}"));
        let transcript = checker::check(&answer.body).unwrap_or_else(|fault| panic!("{fault}\n{}", answer.text()));
        match transcript.text.as_str() {
            "first half, second half" => n_whole += 1,
            "first half, " => assert!(answer.text().contains(r#""end_turn":false"#), "{}", answer.text()),
            _ => panic!("{}", answer.text()),
        }
    }
    let n_continued = provider.continued.load(Ordering::SeqCst);
    println!("{streams} streams of {REQUEST_BYTES} bytes: {} MiB held, {n_continued} continued", held >> 20);
    assert_eq!((n_continued, n_whole), (streams.min(KEPT_BYTES_MAX / REQUEST_BYTES), n_continued));

    // The room of answers that have ended is free again.
    let answer = worker.ask(&body).unwrap_or_else(|problem| panic!("{problem}"));
    assert!(answer.text().contains("second half"), "{}", answer.text());
}
