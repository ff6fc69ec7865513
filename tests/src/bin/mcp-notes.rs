//! A tiny MCP server on stdin and stdout, for tests: one tool, `keep`, that appends a line to the file it was given.
//!
//! Source: Model Context Protocol, <https://modelcontextprotocol.io/specification>, transport "stdio".

use std::fs::File;
use std::io::{BufRead as _, Write as _};

use anyhow::Context as _;
use serde_json::{Value, json};

fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).context("usage: mcp-notes FILE")?;
    let mut notes = File::options().create(true).append(true).open(path)?;
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let Some(id) = request.get("id") else { continue }; // a notification
        let answer = match request["method"].as_str().unwrap_or_default() {
            "initialize" => json!({ "result": {
                "protocolVersion": request["params"]["protocolVersion"],
                "capabilities": { "tools": {} },
                "serverInfo": { "name": "notes", "version": env!("CARGO_PKG_VERSION") },
            } }),
            "tools/list" => json!({ "result": { "tools": [{
                "name": "keep",
                "description": "Keeps a note",
                "inputSchema": { "type": "object", "properties": { "note": { "type": "string" } }, "required": ["note"] },
            }] } }),
            "tools/call" => {
                let note = request["params"]["arguments"]["note"].as_str().unwrap_or_default();
                writeln!(notes, "{note}")?;
                json!({ "result": { "content": [{ "type": "text", "text": format!("kept: {note}") }] } })
            }
            "ping" => json!({ "result": {} }),
            method => json!({ "error": { "code": -32601, "message": format!("no method {method}") } }),
        };
        let mut message = json!({ "jsonrpc": "2.0", "id": id });
        message
            .as_object_mut()
            .expect("just made as an object")
            .extend(answer.as_object().cloned().unwrap_or_default());
        writeln!(stdout, "{message}")?;
        stdout.flush()?;
    }
    Ok(())
}
