//! The real Codex CLI, in the version that the contract was measured with.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use codex_control::environment;
use serde_json::Value;

use crate::home::{Running, SandboxHome, workspace};
use crate::provider::FakeProvider;

/// Longest time for one run of Codex: it takes a second or three, plus what the test makes it wait for.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// What Codex or its user would see if something had gone wrong on the way, even if it went well in the end.
const BAD_SIGNS: [&str; 6] = [
    "unsupported call",
    "unsupported custom tool call",
    "Reconnecting",
    "failed to parse function arguments",
    "Connection refused",
    "stream disconnected",
];

/// The Codex program: the one named by `CODEX_SUPERVISOR_CODEX`, else the pinned one, fetched on first use.
///
/// # Panics
/// When it cannot be fetched.
pub fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| {
        if let Some(given) = std::env::var_os(environment::CODEX) {
            return given.into();
        }
        let output = Command::new(workspace().join("scripts/fetch-codex.sh"))
            .output()
            .expect("scripts/fetch-codex.sh can be run");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "Codex could not be fetched: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text.trim().into()
    });
    found.clone()
}

/// What Codex did.
#[derive(Debug)]
pub struct Run {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// The events of `--json`, in order.
    pub events: Vec<Value>,
    /// Stdout as it was.
    pub stdout: String,
    /// Stderr as it was.
    pub stderr: String,
}

impl SandboxHome {
    /// `codexctl launch cli --endpoint ENDPOINT -- ARGUMENTS`.
    pub fn launch_command(&self, endpoint: &str, arguments: &[&str]) -> Command {
        let mut command = self.ctl_command(&["launch", "cli", "--endpoint", endpoint, "--"]);
        command.args(arguments);
        command
    }

    /// Starts `codex exec --json` on the endpoint `scripted`.
    pub fn start_exec(&self, arguments: &[&str]) -> Running {
        self.start_exec_at("scripted", arguments)
    }

    fn start_exec_at(&self, endpoint: &str, arguments: &[&str]) -> Running {
        let mut all = vec!["exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"];
        all.extend(arguments);
        self.spawn(self.launch_command(endpoint, &all))
    }

    /// Runs `codex exec --json` on the endpoint `scripted`.
    pub fn exec(&self, arguments: &[&str]) -> Run {
        Run::finish(self.start_exec(arguments))
    }

    /// Runs `codex exec --json` on any endpoint.
    pub fn exec_at(&self, endpoint: &str, arguments: &[&str]) -> Run {
        Run::finish(self.start_exec_at(endpoint, arguments))
    }
}

impl Run {
    /// Waits for the end of a run.
    pub fn finish(running: Running) -> Self {
        let output = running.finish(DEADLINE);
        let events = output.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Self { code: output.code(), events, stdout: output.stdout, stderr: output.stderr }
    }

    /// The completed items of one type: `agent_message`, `reasoning`, `command_execution`, `file_change`, …
    pub fn items(&self, kind: &str) -> Vec<&Value> {
        let completed = self.events.iter().filter(|event| event["type"] == "item.completed");
        completed.map(|event| &event["item"]).filter(|item| item["type"] == kind).collect()
    }

    /// The last thing the model said.
    pub fn answer(&self) -> &str {
        self.items("agent_message").last().and_then(|item| item["text"].as_str()).unwrap_or_default()
    }

    /// Checks that Codex ended well, that the provider's whole script was played, and that neither saw a sign of
    /// trouble on the way.
    ///
    /// # Panics
    /// When not.
    pub fn assert_clean(&self, provider: &FakeProvider) {
        let requests = provider.assert_played();
        self.assert_ended_well();
        for sign in BAD_SIGNS {
            assert!(!self.stdout.contains(sign) && !self.stderr.contains(sign), "`{sign}` in\n{}", self.shown());
        }
        for (index, request) in requests.iter().enumerate() {
            for (call, result) in request.tool_results() {
                let bad = BAD_SIGNS.iter().any(|sign| result.starts_with(sign)) || result == "aborted";
                assert!(!bad, "in request {index} the result of {call} is {result:?}");
            }
        }
    }

    /// Checks that Codex ended well.
    ///
    /// # Panics
    /// When not.
    pub fn assert_ended_well(&self) {
        assert_eq!(self.code, 0, "{}", self.shown());
        let failed = self.events.iter().find(|event| event["type"] == "turn.failed" || event["type"] == "error");
        assert!(failed.is_none(), "{}", self.shown());
        assert!(self.events.iter().any(|event| event["type"] == "turn.completed"), "{}", self.shown());
    }

    /// Everything, for a person.
    pub fn shown(&self) -> String {
        format!("exit code {}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr)
    }
}
