//! A stand-in for a worker: answers one kind of request over HTTP and remembers what it was asked.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// A running stand-in; ends with the test.
pub(crate) struct Worker {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Worker {
    /// Answers everything that shows `token` with `status` and `body`, everything else with 401.
    pub(crate) fn new(token: &str, status: u16, body: &Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, token, body) =
            (requests.clone(), format!("\r\nauthorization: Bearer {token}\r\n"), body.to_string());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { break };
                let head = read_head(&mut stream);
                let (status, body) = if head.contains(&token) { (status, body.as_str()) } else { (401, "{}") };
                seen.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
                let answer =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { address, requests }
    }

    /// The first line of each request.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}
