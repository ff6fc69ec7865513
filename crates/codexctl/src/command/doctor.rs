//! `codexctl doctor [ENDPOINT]`: everything that can be looked at, the first problem and its remedy last.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use codex_control::EndpointId;
use codex_control::rpc::{DaemonStatus, EndpointState};
use serde_json::json;

use crate::checkup::{self, Finding, Options, State};
use crate::client::CALL_TIMEOUT;
use crate::command::launch::find_codex;
use crate::failure::Failure;
use crate::service::Service;
use crate::{Context, daemon, program, text};

/// Time for a program to tell its version, and for systemd to answer a question.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(20);

/// Looks at everything: Codex, the supervisor, files, and each endpoint up to a tool call
///
/// Lets each endpoint's default model answer twice, which costs some hundred tokens.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  codexctl doctor
  codexctl doctor zai --clear-learned")]
pub(crate) struct Arguments {
    /// Only this endpoint; default: all that run
    #[arg(value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
    /// Do not let a model answer
    #[arg(long)]
    no_tool_call: bool,
    /// Forget what the provider's refusals have taught
    #[arg(long, requires = "endpoint")]
    clear_learned: bool,
}

pub(crate) fn run(ctx: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let mut machine = vec![codex(ctx)];
    machine.extend(permissions(ctx));
    let mut endpoints: Vec<(EndpointId, Vec<Finding>)> = Vec::new();
    let unreachable = match daemon::connect(ctx) {
        Ok(mut client) => {
            let status: DaemonStatus = client.call("daemon.status", (), CALL_TIMEOUT)?;
            machine.extend(supervisor(ctx, &status));
            let options = Options { asks_model: !arguments.no_tool_call, clears_learned: arguments.clear_learned };
            for endpoint in &status.endpoints {
                let is_meant = arguments.endpoint.as_ref().is_none_or(|wanted| *wanted == endpoint.id);
                // What the person has stopped stays stopped, unless it is asked for.
                let rests = matches!(endpoint.state, EndpointState::Stopped | EndpointState::Disabled);
                if is_meant && !(rests && arguments.endpoint.is_none()) {
                    endpoints.push((endpoint.id.clone(), checkup::endpoint(ctx, &mut client, &endpoint.id, options)));
                }
            }
            if let Some(wanted) = arguments.endpoint.as_ref().filter(|_| endpoints.is_empty()) {
                return Err(Failure::new(format!("there is no endpoint `{wanted}`"))
                    .hint("`codexctl endpoint list` lists them"));
            }
            None
        }
        Err(failure) => {
            machine.push(Finding::failed("supervisor", failure.clone()));
            Some(failure)
        }
    };
    let of_endpoints: serde_json::Map<String, serde_json::Value> =
        endpoints.iter().map(|(id, findings)| (id.to_string(), json!(findings))).collect();
    let verdict = checkup::verdict(machine.iter().chain(endpoints.iter().flat_map(|(_, findings)| findings)));
    let answer = json!({ "works": verdict.is_ok(), "machine": machine, "endpoints": of_endpoints });
    ctx.output.show(&answer, || {
        let endpoints = endpoints.iter().map(|(id, findings)| format!("\n{id}\n{}", checkup::lines(findings, "  ")));
        format!("{}{}", checkup::lines(&machine, ""), endpoints.collect::<String>())
    })?;
    // The exit code of a supervisor that cannot be reached is its own.
    unreachable.map_or(verdict, Err)
}

fn codex(ctx: &Context) -> Finding {
    let path = match find_codex(ctx) {
        Ok(path) => path,
        Err(failure) => return Finding::failed("codex", failure),
    };
    match program::output_within(Command::new(&path).arg("--version"), QUESTION_TIMEOUT) {
        Ok(output) if output.status.success() => {
            Finding::new("codex", State::Good, format!("{} at {}", program::first_line(&output.stdout), path.display()))
        }
        Ok(output) => {
            Finding::new("codex", State::Bad, format!("`{} --version` ended with {}", path.display(), output.status))
                .hint("install Codex anew")
        }
        Err(error) => Finding::new("codex", State::Bad, format!("`{}` cannot be run: {error}", path.display()))
            .hint("install Codex anew"),
    }
}

/// Files and folders that nobody else may read.
fn permissions(ctx: &Context) -> Vec<Finding> {
    let paths = &ctx.paths;
    let mut private: Vec<PathBuf> = vec![
        paths.config_folder().to_owned(),
        paths.state_folder().to_owned(),
        paths.credentials_folder(),
        paths.seal_key(),
    ];
    // A folder that cannot be read shows itself by its own line.
    let credentials = fs::read_dir(paths.credentials_folder()).into_iter().flatten().flatten();
    private.extend(credentials.map(|entry| entry.path()));
    let open: Vec<Finding> = private.iter().filter_map(|path| too_open(path)).collect();
    if open.is_empty() {
        vec![Finding::new("files", State::Good, "settings, keys and state are readable by you alone")]
    } else {
        open
    }
}

fn too_open(path: &Path) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        Finding::new("files", State::Bad, format!("`{}` is open to others (mode {mode:03o})", path.display()))
            .hint(format!("chmod go= {}", path.display()))
    })
}

fn supervisor(ctx: &Context, status: &DaemonStatus) -> Vec<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let uptime = text::ago(text::now_ms(), status.started_at_ms);
    let mut findings = vec![if status.version == own {
        Finding::new("supervisor", State::Good, format!("{own}, pid {}, started {uptime}", status.pid))
    } else {
        Finding::new("supervisor", State::Bad, format!("it is version {}, this program is {own}", status.version))
            .hint("`codexctl restart` starts the installed version; no running stream is lost")
    }];
    findings.push(match &status.settings.problem {
        Some(problem) => Finding::bad("settings", problem.clone()),
        None => Finding::new("settings", State::Good, status.settings.path.clone()),
    });
    if let Some(problem) = &status.database.problem {
        findings.push(Finding::bad("database", problem.clone()));
    }
    findings.push(match Service::find(&ctx.paths, &ctx.environment) {
        None => Finding::new("service", State::Note, "not installed as a user service: nobody restarts the supervisor"),
        Some(service) if service.is_active() => linger(ctx),
        Some(_) => Finding::new("service", State::Note, "installed, but this supervisor was started by hand")
            .hint("`codexctl restart` lets systemd start it"),
    });
    findings
}

/// Whether the service lives on when the person logs out.
fn linger(ctx: &Context) -> Finding {
    let uid = rustix::process::getuid().as_raw().to_string();
    let asked = program::find(&ctx.environment, "loginctl".as_ref()).and_then(|loginctl| {
        let mut command = Command::new(loginctl);
        command.args(["show-user", &uid, "--property=Linger", "--value"]);
        program::output_within(&mut command, QUESTION_TIMEOUT).ok()
    });
    match asked.map(|output| program::first_line(&output.stdout)).as_deref() {
        Some("yes") => Finding::new("service", State::Good, "a user service that goes on when you log out"),
        Some("no") => Finding::new("service", State::Note, "a user service that ends when you log out")
            .hint("`loginctl enable-linger` lets it go on"),
        _ => Finding::new("service", State::Good, "a user service"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_others_can_read_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "x").unwrap();
        for (mode, is_open) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(too_open(&path).is_some(), is_open, "{mode:o}");
        }
        assert_eq!(too_open(&folder.path().join("none")), None);
    }
}
