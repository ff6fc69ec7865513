//! Tier 3: an ordinary Responses request over loopback, through one of our own workers.
//!
//! So there is no second HTTP client that speaks TLS, no second store of keys, and any provider will do that an endpoint
//! can have. What comes back is a stranger's text: it is bounded here and judged by the engine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use codex_control::incident::Answer;
use codex_control::redact::redact;
use codex_control::{Secret, token};
use codex_incident::Diagnose;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Most bytes of an answer that are read; one of 200 tokens has a few thousand with everything around it.
const REPLY_BYTES_MAX: u64 = 128 * 1024;
/// Longest reason for a failure that is kept, in bytes.
const REASON_BYTES_MAX: usize = 300;

/// Who is asked.
#[derive(Clone, Debug)]
pub(crate) struct Expert {
    /// The endpoint's listener.
    pub(crate) address: SocketAddr,
    /// File of its local token.
    pub(crate) token_file: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("its local token cannot be read")]
    Token(#[from] token::TokenError),
    #[error("the connection to its worker failed")]
    Connection(#[from] std::io::Error),
    #[error("its answer is longer than {REPLY_BYTES_MAX} bytes")]
    TooLong,
    #[error("its answer cannot be understood")]
    Form(#[from] serde_json::Error),
    #[error("its worker answers `{0}`")]
    Http(String),
    #[error("{0}")]
    Refused(String),
}

/// Puts the question, and waits for the answer as long as the question says.
pub(crate) async fn ask(expert: Expert, question: Diagnose) -> Answer {
    let timeout = Duration::from_millis(question.timeout_ms);
    match tokio::time::timeout(timeout, exchange(&expert, &question)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let reason = codex_control::report::chain(&error);
            let reason = redact(&reason);
            Answer::None(reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned())
        }
        Err(_) => Answer::None(format!("it did not answer within {} s", timeout.as_secs())),
    }
}

async fn exchange(expert: &Expert, question: &Diagnose) -> Result<Answer, AskError> {
    let token = token::ensure_token(&expert.token_file)?;
    let body = json!({
        "model": question.model,
        "instructions": question.system,
        "input": [{
            "type": "message",
            "role": "user",
            "content": [{ "type": "input_text", "text": question.user }],
        }],
        "max_output_tokens": question.max_tokens,
        "temperature": question.temperature,
        "stream": false,
        "store": false,
    })
    .to_string();
    let mut stream = TcpStream::connect(expert.address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&request(expert.address, &token, &body)).await?;
    let mut reply = Vec::new();
    stream.take(REPLY_BYTES_MAX + 1).read_to_end(&mut reply).await?;
    if reply.len() as u64 > REPLY_BYTES_MAX {
        return Err(AskError::TooLong);
    }
    read(&reply)
}

/// HTTP/1.0, so that the answer comes in one piece, ended by the end of the connection.
fn request(address: SocketAddr, token: &Secret, body: &str) -> Vec<u8> {
    format!(
        "POST /v1/responses HTTP/1.0\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        token.expose(),
        body.len(),
    )
    .into_bytes()
}

/// A Responses object, as far as it matters here.
#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    output: Vec<Item>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Trouble>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    content: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
struct Usage {
    input_tokens: u64,
    output_tokens: u64,
}

#[derive(Deserialize)]
struct Trouble {
    #[serde(default)]
    message: String,
}

fn read(reply: &[u8]) -> Result<Answer, AskError> {
    let head_end = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(reply.len());
    let status = reply[..head_end].split(|byte| *byte == b'\r').next().unwrap_or_default();
    let status = String::from_utf8_lossy(status).into_owned();
    let is_good = status.split(' ').nth(1) == Some("200");
    let body = reply.get(head_end + 4..).unwrap_or_default();
    let reply: Reply = match serde_json::from_slice(body) {
        Ok(reply) => reply,
        Err(error) if is_good => return Err(error.into()),
        Err(_) => return Err(AskError::Http(status)),
    };
    if let Some(Trouble { message }) = reply.error {
        return Err(AskError::Refused(message));
    }
    if !is_good {
        return Err(AskError::Http(status));
    }
    let texts = reply.output.into_iter().flat_map(|item| item.content).map(|part| part.text);
    let (input_tokens, output_tokens) = reply.usage.map(|usage| (usage.input_tokens, usage.output_tokens)).unzip();
    Ok(Answer::Text { text: texts.collect(), input_tokens, output_tokens })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn reply(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.0 {status}\r\ncontent-type: application/json\r\n\r\n{body}").into_bytes()
    }

    #[test]
    fn the_text_and_its_cost_are_found() {
        let body = r#"{"status":"completed","output":[{"type":"reasoning","summary":[]},{"type":"message","content":
            [{"type":"output_text","text":"{\"action\":"},{"type":"output_text","text":"\"ignore\"}"}]}],
            "usage":{"input_tokens":800,"output_tokens":20,"total_tokens":820}}"#;
        let answer = read(&reply("200 OK", body)).unwrap();
        let text = r#"{"action":"ignore"}"#.to_owned();
        assert_eq!(answer, Answer::Text { text, input_tokens: Some(800), output_tokens: Some(20) });
    }

    #[test]
    fn what_is_no_answer_is_told_why() {
        for (status, body, expected) in [
            ("200 OK", r#"{"status":"failed","error":{"code":"x","message":"no key"}}"#, "no key"),
            ("400 Bad Request", r#"{"error":{"message":"the model is unknown"}}"#, "the model is unknown"),
            ("503 Unavailable", "busy", "its worker answers `HTTP/1.0 503 Unavailable`"),
            ("200 OK", "prose", "its answer cannot be understood"),
        ] {
            assert_eq!(read(&reply(status, body)).unwrap_err().to_string(), expected);
        }
        assert!(read(b"").is_err() && read(b"\r\n\r\n").is_err());
    }

    #[tokio::test]
    async fn silence_and_floods_are_bounded_and_the_token_is_not_told() {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        token::ensure_token(&token_file).unwrap();
        let token = std::fs::read_to_string(&token_file).unwrap();
        let question = |timeout_ms| Diagnose {
            incident: codex_control::incident::IncidentId(1),
            model: "m".to_owned(),
            system: "s".to_owned(),
            user: "u".to_owned(),
            max_tokens: 200,
            temperature: 0.1,
            timeout_ms,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let expert = Expert { address: listener.local_addr().unwrap(), token_file };
        let (silent, accepted) = tokio::join!(ask(expert.clone(), question(20)), listener.accept());
        assert_eq!(silent, Answer::None("it did not answer within 0 s".to_owned()));
        drop(accepted.unwrap());

        let flooding = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 4096];
            let n_seen = stream.read(&mut asked).await.unwrap();
            // Whoever asked reads a part and goes: then writing fails, or it all stood in buffers.
            let _ = stream.write_all(&reply("200 OK", &"a".repeat(1024 * 1024))).await;
            n_seen
        });
        let flooded = ask(expert, question(60_000)).await;
        assert_eq!(flooded, Answer::None(format!("its answer is longer than {REPLY_BYTES_MAX} bytes")));
        assert!(flooding.await.unwrap() > 0);
        assert!(!format!("{silent:?}{flooded:?}").contains(token.trim()));
    }
}
